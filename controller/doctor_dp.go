package controller

import (
	"bufio"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// DPHost says where Data Protector is on this machine.
type DPHost struct {
	Home   string // /opt/omni; on Windows DP_home
	Global string // the Cell Manager's file of global options, which is there on a Cell Manager alone
}

// DefaultDPHost returns where Data Protector is by default.
func DefaultDPHost() DPHost {
	if runtime.GOOS == "windows" {
		return DPHost{Home: filepath.Join(os.Getenv("ProgramFiles"), "OmniBack"),
			Global: filepath.Join(os.Getenv("ProgramData"), "OmniBack", "Config", "Server", "Options", "global")}
	}
	return DPHost{Home: "/opt/omni", Global: "/etc/opt/omni/server/options/global"}
}

// Bin is the folder where commands of the session level must lie.
func (h DPHost) Bin() string {
	if runtime.GOOS == "windows" {
		return filepath.Join(h.Home, "bin")
	}
	return filepath.Join(h.Home, "lbin")
}

// omnirc is the file of a client's switches.
func (h DPHost) omnirc() string {
	if runtime.GOOS == "windows" {
		return filepath.Join(h.Home, "omnirc")
	}
	return filepath.Join(h.Home, ".omnirc")
}

// dpSilenceMinutes is the least number of minutes without a line that Data Protector must allow: ours come every minute.
const dpSilenceMinutes = 2

// dataProtector looks at Data Protector's own side of this machine.
func (d *doctor) dataProtector() {
	h := d.o.DP
	if _, err := os.Stat(h.Home); err != nil {
		d.warn("Data Protector", h.Home, "pre-exec and post-exec must run on the client that owns the staging folder; --dp-home names another place",
			"it is not installed here: %v", err)
		return
	}
	agent := filepath.Join(h.Bin(), "vbda")
	if runtime.GOOS == "windows" {
		agent += ".exe"
	}
	if _, err := os.Stat(agent); err != nil {
		d.fail("Data Protector", h.Home, "install the Disk Agent on this client", "there is no Disk Agent: %v", err)
	} else {
		d.pass("Data Protector", h.Home, "the Disk Agent is installed")
	}
	d.switches(h)
	d.scripts(h)
	d.global(h)
}

// switches looks at the client's omnirc.
func (d *doctor) switches(h DPHost) {
	set, err := readSwitches(h.omnirc())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.pass("omnirc", h.omnirc(), "it is not there: no switch is set")
		return
	case err != nil:
		d.warn("omnirc", h.omnirc(), "let this user read it, or look for OB2REXECOFF and OB2OEXECOFF by hand", "%v", err)
		return
	}
	bad := false
	for _, s := range []struct{ name, level string }{{"OB2REXECOFF", "session"}, {"OB2OEXECOFF", "object"}} {
		if set[s.name] == "1" {
			bad = true
			d.fail("omnirc", h.omnirc(), "remove it, or use commands of the other level", "%s=1 forbids commands of the %s level on this client", s.name, s.level)
		}
	}
	if !bad {
		d.pass("omnirc", h.omnirc(), "no switch forbids commands")
	}
}

// scripts looks for our commands where those of the session level must lie.
func (d *doctor) scripts(h DPHost) {
	const advice = "copy the scripts of dpxen dp-spec there and make them executable; commands of the object level may lie elsewhere"
	entries, err := os.ReadDir(h.Bin())
	if err != nil {
		d.warn("scripts", h.Bin(), advice, "%v", err)
		return
	}
	var ours []string
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !strings.Contains(strings.ToLower(e.Name()), "dpxen") {
			continue
		}
		if runtime.GOOS != "windows" && info.Mode().IsRegular() && info.Mode().Perm()&0o111 == 0 {
			d.fail("scripts", h.Bin(), "chmod 755 "+filepath.Join(h.Bin(), e.Name()), "%s is not executable", e.Name())
			return
		}
		ours = append(ours, e.Name())
	}
	if len(ours) == 0 {
		d.warn("scripts", h.Bin(), advice, "no command of ours is there, as the session level needs")
		return
	}
	d.pass("scripts", h.Bin(), "%s", strings.Join(ours[:min(len(ours), maxCandidates)], ", "))
}

// global looks at the Cell Manager's options, where this machine is one. Elsewhere they cannot be seen, and nothing is said.
func (d *doctor) global(h DPHost) {
	set, err := readSwitches(h.Global)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		d.warn("Cell Manager", h.Global, "let this user read it, or look for SmDisableScript by hand", "%v", err)
		return
	}
	bad := false
	if set["SmDisableScript"] == "1" {
		bad = true
		d.fail("Cell Manager", h.Global, "remove it, or use commands of the object level", "SmDisableScript=1 forbids commands of the session level in the whole cell")
	}
	for _, name := range []string{"ScriptOutputTimeout", "SmDaIdleTimeout"} {
		if n, err := strconv.Atoi(set[name]); err == nil && n > 0 && n < dpSilenceMinutes {
			bad = true
			d.fail("Cell Manager", h.Global, "set it to 15 or more", "%s=%d aborts a session that says nothing for %d minutes: dpxen says a line a minute", name, n, n)
		}
	}
	if !bad {
		d.pass("Cell Manager", h.Global, "commands are allowed, and the limit of silence is long enough")
	}
}

// readSwitches reads a file of NAME=VALUE lines; lines that begin with # are comments.
func readSwitches(path string) (map[string]string, error) {
	data, err := readBounded(path, maxConfig)
	if err != nil {
		return nil, err
	}
	set := map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, maxConfig)
	for lines.Scan() {
		name, value, ok := strings.Cut(strings.TrimSpace(lines.Text()), "=")
		if ok && !strings.HasPrefix(name, "#") {
			set[strings.TrimSpace(name)] = strings.Trim(strings.TrimSpace(value), `"`)
		}
	}
	return set, lines.Err()
}
