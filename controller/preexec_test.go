package controller

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestReuse: a restarted session of Data Protector uses the last set again only where it is one: whole, good, not saved yet. A
// session that was refused, or had no VM, has staged nothing.
func TestReuse(t *testing.T) {
	good := func(t *testing.T, c *Controller, r *Report) {
		path := stagedBackup{n: 1, name: "web", mode: AllOnline, of: r.ID, spec: "NIGHT", pool: poolA}.stage(t, c.cfg.Staging)
		r.VMs = []VMResult{{UUID: testUUID(1), Status: StatusGood, File: base(path)}}
	}
	for _, tt := range []struct {
		name string
		make func(*testing.T, *Controller, *Report)
		err  error
		want bool
	}{
		{"whole and good", good, nil, true},
		{"good with a warning", func(t *testing.T, c *Controller, r *Report) {
			good(t, c, r)
			r.Warnings = []string{"w"}
		}, nil, true},
		{"no agent answered", nil, &UnreachableError{Failure{What: "agents"}}, false},
		{"refused", nil, &PreflightError{Failure{What: "room"}}, false},
		{"failed before any VM", nil, errors.New("broken"), false},
		{"no VM", nil, nil, false},
		{"one failed", func(t *testing.T, c *Controller, r *Report) {
			good(t, c, r)
			r.VMs = append(r.VMs, VMResult{UUID: testUUID(2), Status: StatusFailed})
		}, nil, false},
		{"its file is gone", func(_ *testing.T, _ *Controller, r *Report) {
			r.VMs = []VMResult{{UUID: testUUID(1), Status: StatusGood, File: "gone.xva"}}
		}, nil, false},
		{"a bit of its file has changed", func(t *testing.T, c *Controller, r *Report) {
			good(t, c, r)
			path := filepath.Join(c.cfg.Staging, r.VMs[0].File)
			data, err := os.ReadFile(path)
			if err == nil {
				data[len(data)/2] ^= 1
				err = os.WriteFile(path, data, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}, nil, false},
		{"saved already", func(t *testing.T, c *Controller, r *Report) {
			good(t, c, r)
			r.DP.Saved = true
		}, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := stateOnly(t)
			_, lock, err := c.openStaging("")
			if err == nil {
				err = lock.Unlock()
			}
			if err != nil {
				t.Fatal(err)
			}
			s := mustSession(t, c, Report{Action: ActionBackup, Mode: AllOnline, Folder: c.cfg.Staging, DP: &DPRecord{Spec: "NIGHT"}})
			if tt.make != nil {
				err = s.update(func(r *Report) { tt.make(t, c, r) })
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.finish(c.o.Now(), tt.err); err != nil {
				t.Fatal(err)
			}
			p := &preExec{c: c, dp: DP{Spec: "NIGHT", Restarted: true}, req: Request{Mode: AllOnline}}
			got, err := p.reuse(t.Context())
			if err != nil || (got != nil) != tt.want {
				t.Errorf("got %+v, %v; want it used again: %v", got, err, tt.want)
			}
			if told := strings.Contains(strings.Join(p.warnings, " "), "is not used again"); told != strings.HasPrefix(tt.name, "a bit") {
				t.Errorf("warnings: %q", p.warnings)
			}
		})
	}
}
