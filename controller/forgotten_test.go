package controller

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestForgottenStays: the lock is all that tells of a session whose file is gone. A repair that fails, is a dry run, or reaches no
// agent leaves it for the next one.
func TestForgottenStays(t *testing.T) {
	p := newPKI(t)
	cfg := p.config(AgentConfig{Name: "xs1", Address: "127.0.0.1:1"})
	cfg.Timing.BackoffMin = 100 * time.Millisecond
	c := mustController(t, cfg, Options{})
	lock := filepath.Join(c.sessionsDir(), newID(time.Now())+lockExt)
	if err := os.MkdirAll(c.sessionsDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(lock, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	for name, repair := range map[string]func() (*RepairReport, error){
		"failed":   func() (*RepairReport, error) { return c.Repair(ended, false) },
		"dry":      func() (*RepairReport, error) { return c.Repair(t.Context(), true) },
		"no agent": func() (*RepairReport, error) { return c.Repair(t.Context(), false) },
	} {
		rep, err := repair()
		if (err != nil) != (name == "failed") || err == nil && len(rep.Notes) == 0 {
			t.Errorf("%s: %+v, %v", name, rep, err)
		}
		if _, err := os.Lstat(lock); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
