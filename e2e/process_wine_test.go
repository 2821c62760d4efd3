//go:build e2e && linux && wine

package e2e

import (
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// wine is where `make wine` has its Wine; the folder with dpxen.exe is that of the other binaries. The build tag keeps this
// out of where there is none.
var wine = flag.String("wine", "wine", "program that runs Windows programs")

// TestControllerOnWindows runs the controller as a Windows program, against a pool and agents of this machine: a night of Data
// Protector by the scripts of dp-spec, and a restore.
func TestControllerOnWindows(t *testing.T) {
	s := dpSite(t, "--vms", "4", "--disk-size", "4MiB")
	drive := func(path string) string { return `Z:` + strings.ReplaceAll(path, "/", `\`) }
	data, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	for _, folder := range []string{"staging", "restore", "state"} {
		text = strings.Replace(text, folder+": "+s.path(folder)+"\n", folder+": '"+drive(s.path(folder))+"'\n", 1)
	}
	s.write("etc/windows.yaml", text)
	config := drive(s.path("etc/windows.yaml"))
	run := func(want int, env []string, args ...string) string {
		t.Helper()
		cmd := exec.Command(*wine, args...)
		cmd.Env, cmd.Dir = append(os.Environ(), env...), s.dir
		cmd.WaitDelay = time.Minute
		out, err := cmd.Output() // standard output alone, as Data Protector has it
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Fatalf("%v ended with %d, want %d:\n%s", args, got, want, out)
		}
		return string(out)
	}
	program := filepath.Join(s.bin, "dpxen.exe")
	dpxen := func(want int, args ...string) string {
		t.Helper()
		return run(want, nil, append([]string{program, "-c", config}, args...)...)
	}
	const failed = 255 // what is left of -1

	s.says(dpxen(0, "hosts"), "xs1", "ok")
	dpxen(0, "dp-spec", "--spec", "NIGHTLY", "--out", drive(s.path("scripts")), "--restore-mode", "allOnline")
	script := func(want int, name string, env ...string) string {
		t.Helper()
		return run(want, env, "cmd", "/c", drive(s.path("scripts/dpxen-nightly-"+name+".cmd")))
	}
	before := s.dump()

	s.says(script(0, "pre", "PREVIEW=1"), "preview: nothing is changed")
	s.says(script(0, "pre", "PREVIEW=0", "SESSIONID=2026/11/25-1", "DATALIST=NIGHTLY"), "told to go on (exit 0): 4 files staged", "RESULT OK code=0 good=4/4")
	if n := len(s.staged("*.online.*")); n != 4 {
		t.Fatalf("%d files are staged, want 4", n)
	}
	s.says(dpxen(4, "doctor"), "PASS  staging write", "PASS  agent xs1", "PASS  specification NIGHTLY")
	s.says(dpxen(0, "verify"), "OK  ", "held to its manifest")
	s.says(s.dpxen(0, append([]string{"verify"}, s.staged("*")...)...), "held to its manifest") // as another system reads them
	cell := newDPCell(s, "NIGHTLY")
	media := cell.save()
	s.says(script(0, "post", "SMEXIT=0", "SESSIONID=2026/11/25-1"), "4 of them deleted", "RESULT OK")
	if n := len(s.staged("*")); n != 0 {
		t.Errorf("%d files stay", n)
	}
	s.says(script(failed, "post", "SMEXIT=0", "SESSIONID=2026/11/25-2"), "no pre-exec of", "told of a failure (exit -1)")

	s.scribble("", 5)
	cell.bringBack(restoreNight{media: media, objects: [][]string{{".xva", ".json"}}}, 0, &restored{})
	s.says(script(0, "restore"), "4 of 4 VMs restored", "RESULT OK code=0 good=4/4")
	s.same(before)
	s.says(script(0, "restore"), "nothing to restore")
	s.says(dpxen(failed, "restore", "--spec", "NIGHTLY", "--mode", "allOffline"), "told of a failure (exit -1)")
	s.says(dpxen(0, "sessions"), "2026/11/25-1")
	s.clean()
}
