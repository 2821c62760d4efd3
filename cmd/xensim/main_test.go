package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dpxen/dpxen/internal/xensim"
)

func TestServes(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, w := io.Pipe()
	cmd := command()
	cmd.SetOut(w)
	cmd.SetArgs([]string{
		"--vms", "3", "--hosts", "2", "--disk-size", "2MiB", "--content", "zero", "--password-file", password, "--speedup", "1000",
		"--control", "127.0.0.1:0",
	})
	done := make(chan error, 1)
	go func() { done <- cmd.ExecuteContext(ctx) }()
	out := bufio.NewReader(r)
	line, err := out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var info xensim.Info
	if err := json.Unmarshal([]byte(line), &info); err != nil {
		t.Fatal(err)
	}
	if len(info.Hosts) != 2 || len(info.VMs) != 3 || info.Username != "root" || info.Password != "secret" || !info.Hosts[0].Master {
		t.Errorf("the line: %s", line)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, info.Control+"/info", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("ending: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "xensim-*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestRefuses(t *testing.T) {
	for _, args := range [][]string{
		{"--disk-size", "many"}, {"--content", "noise"}, {"--scenario", "none"}, {"--vms", "3", "--scenario", "demo"}, {"extra"},
		{"--product-version", "99"}, {"--hosts", "100"}, {"--password-file", "/nonexistent"}, {"--checksum", "md5"}, {"--listen", "here"},
		{"--account", "x:read-only"}, {"--account", "x:read-only:/nonexistent"}, {"--account", "x:king:/dev/null"},
	} {
		cmd := command()
		cmd.SetOut(io.Discard)
		cmd.SetArgs(args)
		if err := cmd.ExecuteContext(t.Context()); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: %v", args, err)
		}
	}
}
