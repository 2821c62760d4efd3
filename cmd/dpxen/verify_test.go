package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dpxen/dpxen/controller"
)

// A verification that is cancelled says how far it came; the damage that it found is not lost by that.
func TestVerifyCancelled(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a.xva", "b.xva"} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 1024), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, args := range [][]string{{"verify", "--staging", dir}, {"verify", filepath.Join(dir, "a.xva"), filepath.Join(dir, "b.xva")}} {
		var out bytes.Buffer
		code := run(ctx, args, &out, &out)
		const want = "dpxen: cancelled: 0 files read, 0 of them not good; nothing is known of the other 2\n"
		if code != controller.CodeCancelled || out.String() != want {
			t.Errorf("%v: code %d, %q", args, code, &out)
		}
	}
	var out bytes.Buffer
	a := &app{out: &out, err: &out}
	code, err := exitCode(a.verifyCancelled([]controller.VerifyResult{{OK: true}, {Problem: "digest"}}, 3))
	if code != exitIntegrity || err != nil || !strings.Contains(out.String(), "2 files read, 1 of them not good; nothing is known of the other 3") {
		t.Errorf("code %d, %v, %q", code, err, &out)
	}
}
