//go:build e2e && linux

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// The clocks of a process cannot be set apart from the machine's: name spaces of time leave the wall clock alone. So dpxen and
// dpxen-agent are built once more with a time.Now whose wall part is moved by what a file says; what it tells of the monotonic
// clock, and with it timers and what passes between two times, is the machine's. The sources themselves are what they are.

// movedNow stands in the place of time.Now.
const movedNow = `// MoveWall moves the wall clock by so many seconds.
func MoveWall(by int64) { movedBy = by }

var movedBy int64

func Now() Time {
	t := unmovedNow()
	t.addSec(movedBy)
	return t
}

func unmovedNow() Time {
`

// mover is a file beside the main package's: it follows the file of its program in the folder that the environment names.
const mover = `package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

func init() {
	file := filepath.Join(os.Getenv("DPXEN_TEST_CLOCKS"), filepath.Base(os.Args[0]))
	follow := func() {
		if data, err := os.ReadFile(file); err == nil {
			if by, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64); err == nil {
				time.MoveWall(by)
			}
		}
	}
	follow()
	go func() {
		for {
			time.Sleep(10 * time.Millisecond)
			follow()
		}
	}()
}
`

// movable builds the programs with clocks that can be moved, once; it gives their folder.
var movable = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "dpxen-clocks-")
	if err != nil {
		return "", err
	}
	list, err := exec.Command("go", "list", "-f", "{{.Dir}}", "time", "../cmd/dpxen", "../cmd/dpxen-agent").Output()
	if err != nil {
		return dir, fmt.Errorf("find the sources: %w", err)
	}
	dirs := strings.Fields(string(list))
	original := filepath.Join(dirs[0], "time.go")
	source, err := os.ReadFile(original)
	if err != nil {
		return dir, err
	}
	patched := strings.Replace(string(source), "func Now() Time {\n", movedNow, 1)
	if patched == string(source) {
		return dir, fmt.Errorf("%s has no time.Now to be replaced", original)
	}
	replace := map[string]string{original: filepath.Join(dir, "time.go")}
	for _, main := range dirs[1:] {
		replace[filepath.Join(main, "mover.go")] = filepath.Join(dir, "mover.go")
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return dir, err
	}
	for name, text := range map[string]string{"time.go": patched, "mover.go": mover, "overlay.json": string(overlay)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return dir, err
		}
	}
	build := exec.Command("go", "build", "-trimpath", "-overlay", filepath.Join(dir, "overlay.json"), "-o", dir+"/", "../cmd/dpxen", "../cmd/dpxen-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("build with clocks that can be moved: %w: %s", err, out)
	}
	return dir, nil
})

// TestMain removes what was built.
func TestMain(m *testing.M) {
	code := m.Run()
	if clocksBuilt {
		if dir, _ := movable(); dir != "" {
			_ = os.RemoveAll(dir) // a temporary folder
		}
	}
	os.Exit(code)
}

// clocksBuilt says that movable was called.
var clocksBuilt bool

// clockSite is a site of one host whose controller and agent have wall clocks that can be set, see setClock.
func clockSite(t *testing.T, simArgs ...string) *site {
	t.Helper()
	s := clockPool(t, simArgs...)
	s.installClocks()
	return s
}

// clockPool is a clockSite without its agents.
func clockPool(t *testing.T, simArgs ...string) *site {
	t.Helper()
	dir, err := movable()
	clocksBuilt = true
	if err != nil {
		t.Fatal(err)
	}
	s := newPool(t, append([]string{"--hosts", "1"}, simArgs...)...)
	s.bin = dir
	s.env = []string{"DPXEN_TEST_CLOCKS=" + s.path("clocks")}
	if err := os.Mkdir(s.path("clocks"), 0o700); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *site) installClocks() {
	s.t.Helper()
	s.setClock("dpxen", -7*24*time.Hour) // certificates are older than what becomes of the clocks
	s.install()
	s.setClock("dpxen", 0)
}

// setClock moves the wall clock of all processes of a program from the machine's, and waits until they follow it.
func (s *site) setClock(program string, by time.Duration) {
	s.t.Helper()
	s.write("clocks/"+program+".new", fmt.Sprintf("%d\n", int64(by.Seconds())))
	if err := os.Rename(s.path("clocks/"+program+".new"), s.path("clocks/"+program)); err != nil {
		s.t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
}
