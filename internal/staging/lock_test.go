package staging

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// lockDirEnv makes the test binary a second process that holds the lock of a folder until its input ends.
const lockDirEnv = "DPXEN_TEST_LOCK"

func TestMain(m *testing.M) {
	if dir := os.Getenv(lockDirEnv); dir != "" {
		os.Exit(holdLock(dir))
	}
	os.Exit(m.Run())
}

func holdLock(dir string) int {
	d, err := Open(dir, Options{Holder: Holder{Session: "S-other", Command: "dpxen backup"}})
	if err == nil {
		_, err = d.Lock()
	}
	if err == nil {
		_, err = d.Create(Name{"vm", uuid1, Online, at}, nil)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("locked")
	_ = bufio.NewScanner(os.Stdin).Scan() // until killed
	return 0
}

func TestLockOfAnotherProcess(t *testing.T) {
	d := open(t, nil)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), lockDirEnv+"="+d.Path())
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "locked\n" {
		t.Fatalf("the other process says %q, %v", line, err)
	}

	_, err = d.Lock()
	var locked *LockedError
	if !errors.Is(err, ErrLocked) || !errors.As(err, &locked) {
		t.Fatalf("got %v, want %v", err, ErrLocked)
	}
	if h := locked.Holder; !locked.Known || h.Session != "S-other" || h.PID != cmd.Process.Pid || time.Since(h.Since) > time.Hour || h.Host == "" {
		t.Errorf("holder %+v, known %v, want session S-other of process %d", h, locked.Known, cmd.Process.Pid)
	}
	if !strings.Contains(err.Error(), "S-other") || !strings.Contains(err.Error(), "since 20") {
		t.Errorf("message does not tell who and since when: %v", err)
	}
	if h, held, err := d.Holder(); !held || h.Session != "S-other" || err != nil {
		t.Errorf("Holder: %+v, %v, %v", h, held, err)
	}

	// Killed, it has let go, whatever holder.json still says; its partial file is cleaned up.
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(stdin.Close(), cmd.Wait()); err == nil {
		t.Error("the other process ended by itself")
	}
	if _, held, err := d.Holder(); held || err != nil {
		t.Errorf("Holder after a kill: %v, %v, want none", held, err)
	}
	l, err := d.Lock()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := d.CleanPartials(); err != nil || len(got) != 1 {
		t.Errorf("CleanPartials: %v, %v, want one", got, err)
	}
	if err := errors.Join(l.Unlock(), l.Unlock()); err != nil {
		t.Error(err)
	}
}

func TestLockInOneProcess(t *testing.T) {
	d := open(t, nil)
	d.o.Holder.Session = "first"
	l, err := d.Lock()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Open(d.Path(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.Lock(); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), "first") {
		t.Errorf("second lock: got %v, want %v by first", err, ErrLocked)
	}
	// Without a readable holder.json the lock holds all the same.
	for _, text := range []string{"{", strings.Repeat(" ", maxHolder+1)} {
		writeText(t, d.meta(holderName), text)
		_, err := again.Lock()
		var locked *LockedError
		if !errors.As(err, &locked) || locked.Known {
			t.Errorf("holder.json damaged: got %v, want %v by an unknown session", err, ErrLocked)
		}
	}
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(d.meta(holderName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("holder.json after Unlock: %v, want it gone", err)
	}
	l, err = again.Lock()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Unlock(); err != nil {
		t.Error(err)
	}
}

// Looking at the lock must not make a session that starts meanwhile fail.
func TestLookingDoesNotTakeTheLock(t *testing.T) {
	d := open(t, nil)
	looker := d.flock()
	if got, err := looker.TryRLock(); !got || err != nil {
		t.Fatal(got, err)
	}
	release := time.AfterFunc(lockPatience/5, func() {
		if err := looker.Unlock(); err != nil {
			t.Error(err)
		}
	})
	defer release.Stop()
	l, err := d.Lock()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Unlock(); err != nil {
		t.Error(err)
	}
}
