package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dpxen/dpxen/certs"
)

// asAgent makes this test program the agent itself.
const asAgent = "DPXEN_TEST_AS_AGENT"

func TestMain(m *testing.M) {
	if os.Getenv(asAgent) != "" {
		main()
	}
	os.Exit(m.Run())
}

// TestLimitsTakeEffect starts an agent as a process of its own and reads what the system and its metrics say of it.
func TestLimitsTakeEffect(t *testing.T) {
	dir, config := setup(t, certs.Identity{Role: certs.Agent, Name: "xs1"})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	metrics := l.Addr().String()
	l.Close()
	path := write(t, dir, "agent.yaml", config+"metrics: {listen: \""+metrics+"\"}\nlimits: {memory: 96MiB, cpus: 1, nice: 13}\n")
	cmd := exec.Command(os.Args[0], "--config", path)
	cmd.Env = append(os.Environ(), asAgent+"=1", "GOMAXPROCS=2")
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	lines := bufio.NewScanner(log)
	for lines.Scan() && !strings.Contains(lines.Text(), "agent started") {
	}
	go io.Copy(io.Discard, log)
	said := scrape(t, "http://"+metrics+"/metrics")
	for _, want := range []string{"go_sched_gomaxprocs_threads 1\n", fmt.Sprintf("go_gc_gomemlimit_bytes %v\n", float64(96<<20))} {
		if !strings.Contains(said, want) {
			t.Errorf("metrics lack %q", want)
		}
	}
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", cmd.Process.Pid))
	if err != nil || len(threads) < 2 {
		t.Fatalf("%d threads, %v", len(threads), err)
	}
	for _, stat := range threads {
		data, err := os.ReadFile(stat)
		if err != nil {
			continue // the thread has ended
		}
		fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
		if nice := fields[16]; nice != "13" { // the 19th field of all; the name may hold anything
			t.Errorf("%s: nice %s", stat, nice)
		}
	}
}

// scrape reads metrics, which may be served a moment after the agent says that it has started.
func scrape(t *testing.T, url string) string {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		resp, err := http.Get(url)
		if err == nil {
			defer resp.Body.Close()
			data, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			return string(data)
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}
