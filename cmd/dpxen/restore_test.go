package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/dpxen/dpxen/controller"
)

func TestParseAt(t *testing.T) {
	loc := time.FixedZone("here", 3600)
	for in, want := range map[string]time.Time{
		"":                          {},
		"2026-11-22T20:30:00Z":      time.Date(2026, 11, 22, 20, 30, 0, 0, time.UTC),
		"2026-11-22T20:30:00+02:00": time.Date(2026, 11, 22, 18, 30, 0, 0, time.UTC),
		"2026-11-22 20:30":          time.Date(2026, 11, 22, 19, 30, 0, 0, time.UTC),
		"2026-11-22 20:30:15":       time.Date(2026, 11, 22, 19, 30, 15, 0, time.UTC),
	} {
		if got, err := parseAt(in, loc); err != nil || !got.Equal(want) {
			t.Errorf("%q: %s, %v; want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"2026-11-22", "22.11.2026 20:30", "now", "2026-13-01 00:00"} {
		if got, err := parseAt(in, loc); codeOf(err) != exitUsage {
			t.Errorf("%q: %s, %v", in, got, err)
		}
	}
}

// requestOf parses a command line of restore.
func requestOf(t *testing.T, args ...string) (controller.RestoreRequest, error) {
	t.Helper()
	var f restoreFlags
	cmd := &cobra.Command{Use: "restore"}
	f.add(cmd)
	if err := cmd.ParseFlags(args); err != nil {
		return controller.RestoreRequest{}, err
	}
	return f.request(cmd, time.UTC)
}

func TestRestoreRequest(t *testing.T) {
	got, err := requestOf(t, "--mode", "OFFline", "--vm", "a,b", "--vm=c", "--exclude", "d", "--host", "h", "--set", "s", "--from", "/x",
		"--at", "2026-11-22 20:30", "--dp-session", "1", "--adopt", "--as-new=new one", "--start", "--sr", "nfs", "--network", "a=b",
		"--network=c=d=e", "--pool", "p", "--keep-old-disks", "--force-off", "--discard-memory")
	if err != nil {
		t.Fatal(err)
	}
	want := controller.RestoreRequest{Mode: controller.Offline, Selection: controller.Selection{VM: []string{"a,b", "c"}, Exclude: []string{"d"},
		Host: []string{"h"}, Sets: []string{"s"}}, From: "/x", At: time.Date(2026, 11, 22, 20, 30, 0, 0, time.UTC), DPSession: "1", Adopt: true,
		AsNew: true, NewName: "new one", Start: true, SR: "nfs", Networks: map[string]string{"a": "b", "c": "d=e"}, Pool: "p",
		KeepOldDisks: true, ForceOff: true, DiscardMemory: true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
	got, err = requestOf(t, "--mode", "online", "--as-new", "file", "--delete-first")
	if err != nil || !got.AsNew || got.NewName != "" || !got.DeleteFirst {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := requestOf(t, "--mode", "online", "--as-new="); err == nil {
		t.Error("an empty name was taken")
	}
}

func TestSource(t *testing.T) {
	dir := t.TempDir()
	cfg := &controller.Config{Restore: filepath.Join(dir, "restore"), Staging: filepath.Join(dir, "staging")}
	for _, file := range []string{"restore/a.xva", "staging/a.xva", "staging/b.xva", "other/c.xva", "b.xva"} {
		path := filepath.Join(dir, filepath.FromSlash(file))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	for _, c := range []struct{ from, files, wantFrom, want string }{
		{"", "", "", ""},
		{"", "a.xva", "restore", "restore/a.xva"},
		{"staging", "a.xva b.xva", "staging", "staging/a.xva staging/b.xva"},
		{"", "b.xva", ".", "b.xva"},
		{"", "other/c.xva", "other", "other/c.xva"},
		{"", "a.xva other/c.xva", "", "restore/a.xva other/c.xva"},
	} {
		req := &controller.RestoreRequest{}
		under := func(path string) string {
			if path == "" {
				return ""
			}
			return filepath.Join(dir, filepath.FromSlash(path))
		}
		req.From = under(c.from)
		if err := source(req, cfg, strings.Fields(c.files)); err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		var want []string
		for _, f := range strings.Fields(c.want) {
			want = append(want, under(f))
		}
		if diff := cmp.Diff(want, req.Files); diff != "" || req.From != under(c.wantFrom) {
			t.Errorf("%+v: from %s, files (-want +got):\n%s", c, req.From, diff)
		}
	}
	if err := source(&controller.RestoreRequest{}, cfg, []string{"d.xva"}); codeOf(err) != exitUsage {
		t.Errorf("a file that is nowhere: %v", err)
	}
}
