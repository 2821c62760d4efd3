//go:build e2e && linux

package e2e

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/xensim"
)

// restoreNight is a restore in the cell: objects are restored one after the other or all at once, and each has the
// post-exec, which is told nothing.
type restoreNight struct {
	media     string
	objects   [][]string // what is chosen of each object, as parts of file names
	overwrite bool       // not the default: a file on disk that is as new or newer is kept
	together  bool
	into      string   // folder of the site; the restore folder where empty
	args      []string // of the post-exec, beyond --spec
	write     func(name string, data []byte) []byte
}

// restored is what Data Protector shows of the restore of an object.
type restored struct {
	dpSession
	kept []string // by the conflict rule
}

// restore plays a restore of what was saved; it gives one result for each object.
func (c *dpCell) restore(n restoreNight) []restored {
	c.s.t.Helper()
	out := make([]restored, len(n.objects))
	var wait sync.WaitGroup
	for i := range n.objects {
		c.bringBack(n, i, &out[i])
		if n.together {
			continue
		}
		c.restorePost(n, &out[i])
	}
	for i := range n.objects {
		if n.together {
			wait.Go(func() { c.restorePost(n, &out[i]) })
		}
	}
	wait.Wait()
	return out
}

func (c *dpCell) restorePost(n restoreNight, r *restored) {
	env := []string{"PATH=" + os.Getenv("PATH")}
	args := append([]string{"restore", "--spec", c.spec}, n.args...)
	if n.into != "" {
		args = append(args, "--from", c.s.path(n.into))
	}
	r.post = c.command(&r.dpSession, env, nil, args...)
	r.status = "Completed"
	if r.post != 0 {
		r.status = "Aborted"
	}
	r.pre = notRun
}

// bringBack puts the chosen files of an object into the restore folder, with their times.
func (c *dpCell) bringBack(n restoreNight, object int, r *restored) {
	c.s.t.Helper()
	files, err := os.ReadDir(n.media)
	if err == nil {
		if n.into == "" {
			n.into = "restore"
		}
		err = os.MkdirAll(c.s.path(n.into), 0o700)
	}
	if err != nil {
		c.s.t.Fatal(err)
	}
	for _, f := range files {
		if !contains(f.Name(), n.objects[object]) {
			continue
		}
		from, to := filepath.Join(n.media, f.Name()), c.s.path(n.into+"/"+f.Name())
		saved, err := os.Stat(from)
		if err != nil {
			c.s.t.Fatal(err)
		}
		there, err := os.Stat(to)
		if err == nil && !n.overwrite && !there.ModTime().Before(saved.ModTime()) {
			r.kept = append(r.kept, f.Name())
			continue
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			c.s.t.Fatal(err)
		}
		data, err := os.ReadFile(from)
		if err == nil && n.write != nil {
			data = n.write(f.Name(), data)
		}
		if err == nil && data != nil {
			err = errors.Join(os.WriteFile(to, data, 0o600), os.Chtimes(to, time.Time{}, saved.ModTime()))
		}
		if err != nil {
			c.s.t.Fatal(err)
		}
	}
}

func contains(name string, parts []string) bool {
	for _, part := range parts {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}

// changed fails the test unless just the disks of the VMs with these names differ from what they were.
func (s *site) changed(before xensim.State, names ...string) {
	s.t.Helper()
	now := s.dump()
	for _, was := range before.VMs {
		is := s.vm(now, was.Name)
		differs := false
		for k, v := range facts(xensim.State{VMs: []xensim.VMState{was}}) {
			if strings.Contains(k, " disk ") && facts(xensim.State{VMs: []xensim.VMState{is}})[k] != v {
				differs = true
			}
		}
		if want := contains(was.Name, names); differs != want {
			s.t.Errorf("disks of %s differ: %v, want %v", was.Name, differs, want)
		}
		if is.PowerState != was.PowerState {
			s.t.Errorf("%s is %s and was %s", was.Name, is.PowerState, was.PowerState)
		}
	}
}

// TestDataProtectorRestores plays restores of a Data Protector cell, of five VMs.
func TestDataProtectorRestores(t *testing.T) {
	s := dpSite(t, "--vms", "5", "--disk-size", "4MiB")
	cell := newDPCell(s, "NIGHTLY")
	first := cell.run(night{})
	first.want(t, "Completed", 0, 0, "good=5/5")
	saved := s.dump()
	name := func(i int) string { return saved.VMs[i].Name }
	all := []string{".xva", ".json"}
	seed := 0
	// play scribbles on every disk, runs a restore, and holds that the disks of these VMs alone are as they were saved.
	play := func(label string, n restoreNight, run func(t *testing.T, r []restored), back ...string) {
		t.Run(label, func(t *testing.T) {
			outer := s.t
			s.t = t
			defer func() { s.t = outer }()
			seed++
			s.scribble("", seed)
			s.changed(saved, "")
			if n.media == "" {
				n.media = first.media
			}
			run(t, cell.restore(n))
			var others []string
			for _, vm := range saved.VMs {
				if !contains(vm.Name, back) {
					others = append(others, vm.Name)
				}
			}
			s.changed(saved, others...)
			s.clean()
		})
	}
	empty := func() {
		if err := os.RemoveAll(s.path("restore")); err != nil {
			t.Fatal(err)
		}
	}

	play("without a mode", restoreNight{objects: [][]string{all}}, func(t *testing.T, r []restored) {
		r[0].want(t, "Completed", notRun, 0, "no VM is changed", "GOOD    ", "dpxen restore --spec NIGHTLY --mode allOnline", "RESULT OK code=0 good=5/5 session=-")
	})
	empty()
	two := restoreNight{objects: [][]string{{name(1) + ".", name(3) + "."}}, args: []string{"--mode", "allOnline"}}
	play("two of five", two, func(t *testing.T, r []restored) {
		r[0].want(t, "Completed", notRun, 0, "DP      told to go on (exit 0): 2 of 2 VMs restored", "RESULT OK code=0 good=2/2")
	}, name(1), name(3))
	play("again, all files kept", two, func(t *testing.T, r []restored) {
		r[0].want(t, "Completed", notRun, 0, "restored from it by session", "nothing to restore", "RESULT OK code=0 good=0/0")
		if len(r[0].kept) != 4 {
			t.Errorf("kept: %v", r[0].kept)
		}
	})
	over := two
	over.overwrite = true
	play("again, overwritten", over, func(t *testing.T, r []restored) {
		r[0].want(t, "Completed", notRun, 0, "RESULT OK code=0 good=2/2")
	}, name(1), name(3))
	play("another beside stale ones", restoreNight{objects: [][]string{{name(0) + "."}}, args: []string{"--mode", "allOnline"}}, func(t *testing.T, r []restored) {
		r[0].want(t, "Completed", notRun, 0, "RESULT OK code=0 good=1/1", "has not written it again since")
	}, name(0))
	play("forced", restoreNight{objects: [][]string{{"nothing"}}, args: []string{"--mode", "online", "--vm", name(1), "--again"}}, func(t *testing.T, r []restored) {
		r[0].want(t, "Completed", notRun, 0, "RESULT OK code=0 good=1/1")
	}, name(1))
	empty()
	objects := restoreNight{objects: [][]string{{name(0) + "."}, {name(1) + ".", name(2) + "."}, {name(4) + "."}}, args: []string{"--mode", "allOnline"}}
	play("several objects", objects, func(t *testing.T, r []restored) {
		for i, n := range []string{"1/1", "2/2", "1/1"} {
			r[i].want(t, "Completed", notRun, 0, "RESULT OK code=0 good="+n)
		}
	}, name(0), name(1), name(2), name(4))
	empty()
	objects.together = true
	play("several objects at once", objects, func(t *testing.T, r []restored) {
		whole := ""
		for i := range r {
			r[i].want(t, "Completed", notRun, 0, "RESULT OK code=0 good=")
			whole += r[i].messages
		}
		s.says(whole, "good=4/4", "waiting for another restore", "nothing to restore")
	}, name(0), name(1), name(2), name(4))
	empty()
	play("half a file kept by the conflict rule", restoreNight{objects: [][]string{{name(0) + ".", name(1) + "."}}, args: []string{"--mode", "allOnline"},
		write: func(file string, data []byte) []byte {
			if strings.HasPrefix(file, name(0)) && strings.HasSuffix(file, ".xva") {
				return data[:len(data)/2]
			}
			return data
		}}, func(t *testing.T, r []restored) {
		r[0].want(t, "Aborted", notRun, 5, name(0), "choose to overwrite", "RESULT FAILED code=5 good=1/2")
	}, name(1))
	play("the same, sound but kept", restoreNight{objects: [][]string{{name(0) + "."}}, args: []string{"--mode", "allOnline"}}, func(t *testing.T, r []restored) {
		r[0].want(t, "Aborted", notRun, 5, "choose to overwrite", "RESULT FAILED code=5 good=0/1")
	})
	play("the same, overwritten", restoreNight{objects: [][]string{{name(0) + "."}}, overwrite: true, args: []string{"--mode", "allOnline"}}, func(t *testing.T, r []restored) {
		r[0].want(t, "Completed", notRun, 0, "RESULT OK code=0 good=1/1")
	}, name(0))
	play("a file without its manifest", restoreNight{objects: [][]string{{name(2) + "."}}, args: []string{"--mode", "allOnline"},
		write: func(file string, data []byte) []byte {
			if strings.HasSuffix(file, ".json") {
				return nil
			}
			return data
		}}, func(t *testing.T, r []restored) {
		r[0].want(t, "Aborted", notRun, 1, "NO_MANIFEST", "the .xva with its .json", "RESULT FAILED code=1 good=0/1")
	})
	empty()
	s.restoreStale(t, cell, first, play, empty, name)
}

// restoreStale restores an older session beside a newer one's files, and after an agent that was away.
func (s *site) restoreStale(t *testing.T, cell *dpCell, first dpSession,
	play func(string, restoreNight, func(*testing.T, []restored), ...string), empty func(), name func(int) string) {
	second := cell.run(night{})
	second.want(t, "Completed", 0, 0)
	cell.bringBack(restoreNight{media: second.media, objects: [][]string{{name(1) + ".", name(2) + "."}}}, 0, &restored{})
	play("an older session beside a newer one's stale files", restoreNight{objects: [][]string{{name(1) + "."}}, args: []string{"--mode", "allOnline"}}, func(t *testing.T, r []restored) {
		r[0].want(t, "Completed", notRun, 0, "of session "+second.id, "RESULT OK code=0 good=1/1")
	}, name(1))
	empty()
	one := restoreNight{objects: [][]string{{name(1) + "."}}, args: []string{"--mode", "allOnline"}}
	cell.run(night{media: 11})
	staged := restoreNight{objects: [][]string{{name(0) + "."}}, args: []string{"--mode", "allOnline"}, into: "staging"}
	play("to where it was saved, beside staged files", staged, func(t *testing.T, r []restored) {
		r[0].want(t, "Completed", notRun, 0, "lay here before the files of session", "RESULT OK code=0 good=1/1")
	}, name(0))
	s.killedRestore(t, cell, first, name)
	s.inject(xensim.Fault{Name: "import-fails-at-start"})
	play("the hosts refuse", one, func(t *testing.T, r []restored) {
		if r[0].post == 0 {
			t.Errorf("post-exec 0:\n%s", r[0].messages)
		}
		s.says(r[0].messages, "told of a failure", "good=0/1")
	})
	s.clearFault("import-fails-at-start")
	play("the same files when they do not any more", one, func(t *testing.T, r []restored) {
		r[0].want(t, "Completed", notRun, 0, "RESULT OK code=0 good=1/1")
	}, name(1))
	empty()
}

// killedRestore kills the command in the midst of a restore and starts it again.
func (s *site) killedRestore(t *testing.T, cell *dpCell, first dpSession, name func(int) string) {
	t.Run("killed, and started again", func(t *testing.T) {
		outer := s.t
		s.t = t
		defer func() { s.t = outer }()
		n := restoreNight{media: first.media, objects: [][]string{{name(0) + ".", name(2) + "."}}}
		var r restored
		cell.bringBack(n, 0, &r)
		s.scribble("", 1000)
		before := s.dump()
		s.slow()
		env := []string{"PATH=" + os.Getenv("PATH")}
		code := cell.command(&r.dpSession, env, func(cmd *exec.Cmd) {
			s.until(20*time.Second, "a carrier is there", func() bool { return len(s.leftovers()) > 0 })
			_ = cmd.Process.Kill() // as asked
		}, "restore", "--spec", cell.spec, "--mode", "allOnline")
		s.fast()
		if code != killed {
			t.Errorf("it ended with %d:\n%s", code, r.messages)
		}
		// A guest that was asked to shut down is watched by the agent that did so; another one does not restore it meanwhile.
		s.until(40*time.Second, "the agents have cleaned up alone", func() bool { return len(s.leftovers()) == 0 })
		r.dpSession = dpSession{}
		r.post = cell.command(&r.dpSession, env, nil, "restore", "--spec", cell.spec, "--mode", "allOnline")
		s.says(r.messages, "was repaired first", "2 of 2 VMs restored", "RESULT OK code=0 good=2/2")
		if r.post != 0 {
			t.Errorf("it ended with %d", r.post)
		}
		s.changed(before, name(0), name(2))
		s.clean()
	})
}
