package agent

import (
	"bytes"
	"encoding/json"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/dpxen/dpxen/internal/xensim"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// logBook keeps what agents log, as JSON lines.
type logBook struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBook) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBook) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// auditLine is a line of the audit.
type auditLine struct {
	Message         string `json:"@message"`
	Module          string `json:"@module"`
	Call            string
	By, Session, VM string
}

// audit returns the audit's lines.
func (b *logBook) audit(t *testing.T) []auditLine {
	t.Helper()
	var out []auditLine
	for line := range strings.Lines(b.String()) {
		var e auditLine
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if e.Module != "audit" {
			continue
		}
		out = append(out, e)
	}
	return out
}

// Who had what changed is in the log, line by line; secrets are not.
func TestAudit(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, Password: "p4ss-Secret-W0rd"})
	book := &logBook{}
	b.log = hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: book, JSONFormat: true})
	a := b.agent(nil)
	vm := b.vm(running, 0)
	p := newPuller(t, a, vm.UUID, online())
	if err := p.pull(); err != nil {
		t.Fatal(err)
	}
	wantGood(t, a.release(t, p.opening.GetKey()))
	r := newPusher(t, a, vm.UUID, p.data.Bytes(), agentv1.BackupKind_BACKUP_KIND_ONLINE)
	if err := r.push(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantGood(t, a.release(t, r.opening.GetKey()))
	if _, err := a.client.Sweep(t.Context(), &agentv1.SweepRequest{}); err != nil {
		t.Fatal(err)
	}
	a.stop()

	seen := map[string]int{}
	for _, e := range book.audit(t) {
		seen[e.Message+" "+e.Call]++
		if e.Call == "sweep" {
			if e.By != "ctl" {
				t.Errorf("%+v: want it by ctl", e)
			}
			continue
		}
		session := p.opening.GetSessionId()
		if e.Session != session {
			session = r.opening.GetSessionId()
		}
		if e.By != "ctl" || e.VM != vm.UUID || e.Session != session {
			t.Errorf("%+v: want it by ctl, for the VM, in one of its sessions", e)
		}
	}
	for _, want := range []string{"called backup", "called restore", "called release", "called sweep", "changed VM.snapshot",
		"changed VM.destroy", "changed VDI.destroy", "changed pool.add_to_other_config", "changed pool.remove_from_other_config",
		"changed import", "changed VM.clean_shutdown", "changed VBD.create", "changed VM.start"} {
		if seen[want] == 0 {
			t.Errorf("no line %q", want)
		}
	}
	for what := range seen {
		if strings.Contains(what, ".get_") || strings.Contains(what, "session.") {
			t.Errorf("%s changes nothing", what)
		}
	}
	if strings.Contains(book.String(), "p4ss-Secret-W0rd") {
		t.Error("the password is in the log")
	}
}
