package main

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestBits: each bit of all files comes once before any comes again.
func TestBits(t *testing.T) {
	dir := t.TempDir()
	var names []string
	for i, size := range []int{1, 37, 512} {
		name := filepath.Join(dir, string(rune('a'+i)))
		if err := os.WriteFile(name, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	for seed := range uint64(20) {
		b, err := newBits(names, rand.New(rand.NewPCG(seed, 0))) //nolint:gosec // repeatable on purpose
		if err != nil {
			t.Fatal(err)
		}
		seen := map[[2]uint64]bool{}
		for n := range b.total {
			file, bit := b.at(n)
			if bit >= 8*uint64(len(b.data[file])) {
				t.Fatalf("seed %d: bit %d of file %d of %d bytes", seed, bit, file, len(b.data[file]))
			}
			seen[[2]uint64{uint64(file), bit}] = true
		}
		if uint64(len(seen)) != b.total || b.total != 8*(1+37+512) {
			t.Errorf("seed %d: %d of %d bits", seed, len(seen), b.total)
		}
	}
}

// TestKillCounts: a kill is what a process has died of; one that has ended, or dies of something else, was not killed.
func TestKillCounts(t *testing.T) {
	start := func(args ...string) *process {
		t.Helper()
		path, err := exec.LookPath(args[0])
		if err != nil {
			t.Fatal(err)
		}
		p, _, err := spawn(t.TempDir(), filepath.Join(t.TempDir(), "log"), false, nil, path, args[1:]...)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := start("sleep", "60")
	if !p.kill() {
		t.Error("a running process was not killed")
	}
	if p.kill() {
		t.Error("a dead process was killed again")
	}
	p = start("true")
	<-p.done
	if p.kill() {
		t.Error("a process that has ended was killed")
	}
	p = start("sleep", "60")
	p.signal(syscall.SIGTERM)
	<-p.done
	if p.kill() {
		t.Error("a process that has died of another signal was killed")
	}
}

// TestFuzzedFor: the fuzzer's last word counts, and without one nothing does.
func TestFuzzedFor(t *testing.T) {
	out := "fuzz: elapsed: 0s, gathering baseline coverage: 0/8 completed\nfuzz: elapsed: 3s, execs: 120 (40/sec), new interesting: 0 (total: 8)\n" +
		"fuzz: elapsed: 1m3s, execs: 4711 (70/sec), new interesting: 1 (total: 9)\nPASS\nok  \tp\t99.0s\n"
	if took, runs, err := fuzzedFor(out); took != 63*time.Second || runs != 4711 || err != nil {
		t.Errorf("%s, %d, %v", took, runs, err)
	}
	if took, runs, err := fuzzedFor("FAIL p [build failed]\n"); took != 0 || runs != 0 || err != nil {
		t.Errorf("%s, %d, %v", took, runs, err)
	}
}

// TestOnce: the same contents are kept once, and no contents are not the same as empty ones.
func TestOnce(t *testing.T) {
	got := once([]contents{{"0": "a"}, nil, {}, {"0": "a"}, {"0": "b"}, nil, {"0": "a", "1": "c"}})
	if len(got) != 5 {
		t.Errorf("%d kept: %v", len(got), got)
	}
}

// TestAgain: what follows a dead controller in a storm makes a VM of another name, or repairs.
func TestAgain(t *testing.T) {
	s := step{kind: "new", name: "made-1", args: []string{"restore", "--as-new=made-1", "made-2.xva"}}
	if n := s.again(gust{name: 7}); n.name != "made-7" || n.args[1] != "--as-new=made-7" || n.args[2] != "made-2.xva" || s.args[1] != "--as-new=made-1" {
		t.Errorf("%+v", n)
	}
	if n := s.again(gust{repair: true}); n.kind != "repair" || n.args[0] != "repair" {
		t.Errorf("%+v", n)
	}
	pre := step{kind: "pre", night: &night{spec: dpSpecList[0], count: 1}}
	if n := pre.again(gust{repair: true, name: 2}); n.kind != "post" || n.night != pre.night {
		t.Errorf("%+v", n)
	}
}

// TestBesidesUntold: what the journal keeps of a VM that was made as new is no leftover; all else of the same work is.
func TestBesidesUntold(t *testing.T) {
	const pool = "pool: pool.other_config dpxen:"
	left := []string{pool + "ab12:made was not there", pool + "ab12:claim.2 was not there", pool + "take:ab12 was not there",
		pool + "ab12:import0 was not there", pool + "cd34:claim was not there", pool + "take:cd34 was not there", "VM x has our mark"}
	if got := besidesUntold(left); text(got) != text(left[3:]) {
		t.Errorf("left %q", got)
	}
}
