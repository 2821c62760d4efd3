package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Data Protector starts dpxen before it saves the staging folder and after, and after a restore. It is played here by its
// environment, its order, its restored files, and by what it does when a command dies.

// dpSpecs are the backup specifications of every site.
const dpSpecs = "specs:\n" +
	"  NIGHTLY: {mode: allOnline}\n" +
	"  WEEKLY: {mode: allOffline, keep_sets: 1}\n" +
	"  WHOLE: {mode: allOnline, partial: fail, keep_unsaved: true}\n"

// dpSpec is one of them.
type dpSpec struct {
	name, mode string
	whole      bool // nothing is saved unless all VMs are good; files that were not saved stay
}

var dpSpecList = []dpSpec{{"NIGHTLY", "online", false}, {"WEEKLY", "offline", false}, {"WHOLE", "online", true}}

// night is a specification's last session of Data Protector.
type night struct {
	spec  dpSpec
	count int
	open  bool // no post-exec has come to its end yet
}

func (n *night) id() string { return fmt.Sprintf("2026/11/29-%s-%d", n.spec.name, n.count) }

// environment is what the commands see at session level; at object level they see less.
func (n *night) environment(restarted bool, end string) []string {
	env := []string{"PREVIEW=0"}
	if strings.HasPrefix(end, "BDACC") {
		return append(env, end)
	}
	again := map[bool]string{true: "1", false: "0"}[restarted]
	env = append(env, "DATALIST="+n.spec.name, "MODE=full", "OWNER=backup.users@client", "SESSIONID="+n.id(),
		"SESSIONKEY=R-"+strings.ReplaceAll(n.id(), "/", "-"), "RESTARTED="+again)
	if end != "" {
		env = append(env, end)
	}
	return env
}

// dpEnds are what Data Protector tells post-exec: that it has saved the files, that it has not, or nothing.
var dpEnds = []string{"SMEXIT=0", "SMEXIT=0", "SMEXIT=0", "SMEXIT=0", "SMEXIT=10", "SMEXIT=12", "BDACC=0", "BDACC=1", ""}

// drawDP draws a pre-exec, or the post-exec of one.
func (h *history) drawDP() step {
	n := h.nights[h.rng.IntN(len(h.nights))]
	if n.open && h.rng.IntN(3) > 0 {
		return n.post(h.rng)
	}
	restarted := n.count > 0 && h.rng.IntN(5) == 0
	if !restarted {
		n.count++
	}
	n.open = true
	return step{kind: "pre", mode: n.spec.mode, args: []string{"pre-exec", "--spec", n.spec.name}, night: n, env: n.environment(restarted, "")}
}

func (n *night) post(r *rand.Rand) step {
	end := dpEnds[r.IntN(len(dpEnds))]
	return step{kind: "post", mode: n.spec.mode, args: []string{"post-exec", "--spec", n.spec.name}, night: n, saved: strings.HasSuffix(end, "=0"),
		object: strings.HasPrefix(end, "BDACC"), env: n.environment(false, end)}
}

// drawBrought makes a restore that Data Protector starts, of one file that it has brought into the restore folder; what there
// is of specifications alone. It is an ordinary one where there is none.
func (h *history) drawBrought(s step) step {
	if s.file.spec == "" || s.kind != "restore" || h.rng.IntN(2) == 0 {
		return s
	}
	s.args = []string{"restore", "--spec", s.file.spec, "--mode", "all" + s.mode}
	s.brought, s.first = true, false
	return s
}

// bring empties the restore folder and puts a file there with its manifest, as Data Protector does.
func (h *history) bring(f *staged) error {
	dir := h.site.path("restore")
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700)); err != nil {
		return err
	}
	for _, from := range []string{f.path, strings.TrimSuffix(f.path, ".xva") + ".json"} {
		data, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		info, err := os.Stat(from)
		if err != nil {
			return err
		}
		to := filepath.Join(dir, filepath.Base(from))
		if err := errors.Join(os.WriteFile(to, data, 0o600), os.Chtimes(to, time.Time{}, info.ModTime())); err != nil {
			return err
		}
	}
	h.counts.add("files that Data Protector brought back", 1)
	return nil
}

// afterDP holds what a command has told Data Protector against what it says of the session.
func (h *history) afterDP(p *process, s step, r *report, word string, said, good int) {
	exit, log := p.code(), filepath.Base(p.log)
	switch s.kind {
	case "pre":
		h.counts.add("pre-execs that came to their ends", 1)
		if exit == 0 && (good == 0 || s.night.spec.whole && said != 0 && said != 4) {
			h.violation("%s: pre-exec tells Data Protector to save, and the session's code is %d with %d VMs good", log, said, good)
		}
		if exit != 0 && good > 0 && (said == 0 || said == 4) {
			h.violation("%s: pre-exec ended with %d, and the session's code is %d with %d VMs good", log, exit, said, good)
		}
	case "post":
		h.counts.add("post-execs that came to their ends", 1)
		if s.object && exit != 0 {
			h.violation("%s: post-exec at object level ended with %d", log, exit)
		}
		if !s.object && exit == 0 && word != "OK" && word != "WARN" {
			h.violation("%s: post-exec ended with 0, and the session is %s with code %d", log, word, said)
		}
		s.night.open = false
		h.savedAreGone(s, r, log)
	}
}

// savedAreGone holds that the files of a session that Data Protector has saved are gone where none are to be kept.
func (h *history) savedAreGone(s step, r *report, log string) {
	if r == nil || !s.saved || s.night.spec.name != "NIGHTLY" {
		return
	}
	out, err := os.ReadFile(h.site.path(log))
	if err != nil || !strings.Contains(string(out), "of them deleted") {
		return
	}
	for _, f := range h.files {
		if _, err := os.Stat(f.path); f.session == r.ID && err == nil {
			h.violation("%s: Data Protector has saved session %s, and its file %s is still there", log, r.ID, filepath.Base(f.path))
		}
	}
}

// mayBeDeleted tells whether a command of Data Protector's may have deleted a file: one of the file's own specification, and
// where files stay until they were saved, only if they were.
func (h *history) mayBeDeleted(f *staged) bool {
	i := slices.IndexFunc(dpSpecList, func(s dpSpec) bool { return s.name == f.spec })
	return i >= 0 && h.dpRan[f.spec] && (!dpSpecList[i].whole || h.dpSaved[f.spec])
}

// verifiable tells whether dpxen verify has something to read: all files may be another controller's, or on file systems of
// their own, and the staging folder not made yet.
func (h *history) verifiable() bool {
	return slices.ContainsFunc(h.present(), func(f *staged) bool { return filepath.Dir(f.path) == h.site.path("staging") })
}

// present are the files that are still there.
func (h *history) present() []*staged {
	return slices.DeleteFunc(slices.Clone(h.files), func(f *staged) bool { return f.gone })
}

// dpExit is the exit code that Data Protector is given for the code of a restore.
func dpExit(code int) int {
	switch code {
	case 4:
		return 0
	case 130:
		return 1
	}
	return code
}
