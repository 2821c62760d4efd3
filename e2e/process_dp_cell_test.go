//go:build e2e && linux

package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// dpCell plays Data Protector: it runs pre-exec and post-exec in its order and with its environment, saves the staging
// folder to media in between, and keeps the session's messages. It takes nothing but exit codes and standard output.
type dpCell struct {
	s        *site
	spec     string
	silence  time.Duration // a command that says nothing for so long is an aborted session
	object   bool          // commands at object level: BDACC, no SMEXIT, and failures abort the object
	bare     bool          // no environment at all
	host     bool          // the object is a whole client: no BDACC either
	postArgs []string
	scripts  string // folder with the scripts of dp-spec, which are started then
	count    int
}

// night is how a session of the cell goes beyond its usual course.
type night struct {
	preview, restarted bool
	mode               string               // of Data Protector's backup; full where empty
	duringPre          func(pre *exec.Cmd)  // while pre-exec runs
	media              int                  // what becomes of the saving: 0 good, else its exit code
	postAlways         bool                 // post-exec runs although pre-exec failed, as some versions may
	noPre              bool                 // pre-exec does not run
	id                 string               // of a restarted session
	between            func(session string) // between saving and post-exec
	preArgs            []string
}

// dpSession is what Data Protector shows of a session.
type dpSession struct {
	id, status string
	pre, post  int // exit codes; -1 where it did not run
	messages   string
	media      string // folder with what was saved
}

const (
	notRun = -1
	killed = 137 // by a signal
)

func newDPCell(s *site, spec string) *dpCell {
	return &dpCell{s: s, spec: spec, silence: 30 * time.Second}
}

// environment is what the commands of the level see.
func (c *dpCell) environment(id string, n night, more ...string) []string {
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=/"}
	if c.bare {
		return env
	}
	mode := n.mode
	if mode == "" {
		mode = "full"
	}
	set := map[bool]string{true: "1", false: "0"}
	if !c.object {
		env = append(env, "DATALIST="+c.spec, "MODE="+mode, "OWNER=backup.users@dpclient", "SESSIONKEY=R-"+strings.ReplaceAll(id, "/", "-"),
			"SESSIONID="+id, "RESTARTED="+set[n.restarted])
	}
	return append(append(env, "PREVIEW="+set[n.preview]), more...)
}

// run runs a session from its start to its end.
func (c *dpCell) run(n night) dpSession {
	c.s.t.Helper()
	c.count++
	out := dpSession{id: n.id, pre: notRun, post: notRun, status: "Completed"}
	if out.id == "" {
		out.id = fmt.Sprintf("2026/11/23-%d", c.count)
	}
	if !n.noPre {
		args := append([]string{"pre-exec"}, n.preArgs...)
		out.pre = c.command(&out, c.environment(out.id, n), n.duringPre, args...)
	}
	failed := out.pre > 0
	switch {
	case failed && c.object:
		out.status = "Aborted"
	case failed:
		out.status = "Failed"
	}
	if n.preview {
		return out
	}
	exit := 12
	if !failed {
		if exit = n.media; exit == 0 {
			out.media = c.save()
		} else {
			out.status = "Completed/Failures"
		}
	}
	if failed && !n.postAlways {
		return out
	}
	if n.between != nil {
		n.between(out.id)
	}
	end := fmt.Sprintf("SMEXIT=%d", exit)
	switch {
	case c.host:
		end = "BDACC="
	case c.object:
		end = fmt.Sprintf("BDACC=%d", exit)
	}
	out.post = c.command(&out, c.environment(out.id, n, end), nil, append([]string{"post-exec"}, c.postArgs...)...)
	if out.post != 0 && !failed {
		out.status = map[bool]string{true: "Aborted", false: "Completed/Errors"}[c.object]
	}
	return out
}

// save copies the staging folder, without what the specification excludes, to media.
func (c *dpCell) save() string {
	c.s.t.Helper()
	media := c.s.t.TempDir()
	files, err := os.ReadDir(c.s.path("staging"))
	if err != nil {
		c.s.t.Fatal(err)
	}
	for _, f := range files {
		if f.IsDir() {
			continue // .dpxen
		}
		c.copy(c.s.path("staging/"+f.Name()), filepath.Join(media, f.Name()))
	}
	return media
}

func (c *dpCell) copy(from, to string) {
	c.s.t.Helper()
	info, err := os.Stat(from)
	var data []byte
	if err == nil {
		data, err = os.ReadFile(from)
	}
	if err == nil {
		err = errors.Join(os.WriteFile(to, data, 0o600), os.Chtimes(to, time.Time{}, info.ModTime()))
	}
	if err != nil {
		c.s.t.Fatal(err)
	}
}

// command runs one of the commands. Standard error is dropped, as on UNIX; the session's messages are the standard output,
// of which something must come within the silence limit, until every process that has it open is gone.
func (c *dpCell) command(out *dpSession, env []string, during func(*exec.Cmd), args ...string) int {
	t := c.s.t
	t.Helper()
	cmd := exec.Command(filepath.Join(c.s.bin, "dpxen"), append([]string{"-c", c.s.config}, args...)...)
	if c.scripts != "" {
		name := map[string]string{"pre-exec": "pre", "post-exec": "post", "restore": "restore"}[args[0]]
		cmd = exec.Command(filepath.Join(c.scripts, "dpxen-"+strings.ToLower(c.spec)+"-"+name+".sh"))
	}
	cmd.Env, cmd.Dir = env, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	watchdog := time.AfterFunc(c.silence, func() {
		t.Errorf("%v said nothing for %s: Data Protector aborts the session", args, c.silence)
		_ = cmd.Process.Kill() // it may be gone
	})
	defer watchdog.Stop()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if during != nil {
			during(cmd)
		}
	}()
	lines := bufio.NewReader(stdout)
	for {
		line, err := lines.ReadString('\n')
		watchdog.Reset(c.silence)
		out.messages += line
		c.wantMessage(line, err)
		if err != nil {
			break
		}
	}
	<-ended
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if code := cmd.ProcessState.ExitCode(); code != -1 {
		return code
	}
	return killed
}

// wantMessage holds what a session message must be like.
func (c *dpCell) wantMessage(line string, err error) {
	c.s.t.Helper()
	if err != nil && (line != "" || !errors.Is(err, io.EOF)) {
		c.s.t.Errorf("standard output ended with %q, %v", line, err)
	}
	line = strings.TrimSuffix(line, "\n")
	if len(line) >= 200 || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r > '~' }) {
		c.s.t.Errorf("this is no session message: %q", line)
	}
}

// want checks what Data Protector shows of a session.
func (d dpSession) want(t *testing.T, status string, pre, post int, says ...string) {
	t.Helper()
	if d.status != status || d.pre != pre || d.post != post {
		t.Errorf("session %s: %s, pre-exec %d, post-exec %d; want %s, %d, %d:\n%s", d.id, d.status, d.pre, d.post, status, pre, post, d.messages)
		return
	}
	for _, text := range says {
		if !strings.Contains(d.messages, text) {
			t.Errorf("session %s does not say %q:\n%s", d.id, text, d.messages)
		}
	}
}
