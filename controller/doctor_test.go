package controller

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/dpxen/dpxen/certs"
	"github.com/dpxen/dpxen/internal/rpc"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// checked returns the check of that name and subject as "STATUS text. advice"; several are joined.
func checked(checks []Check, name, subject string) string {
	var all []string
	for _, c := range checks {
		if c.Name == name && (c.Subject == subject || subject == "") {
			all = append(all, fmt.Sprintf("%s %s. %s", c.Status, c.Text, c.Advice))
		}
	}
	return strings.Join(all, "\n")
}

func TestDoctorAgents(t *testing.T) {
	p := newPKI(t)
	disk := func(n int, sr int) *agentv1.Disk {
		return &agentv1.Disk{Userdevice: "0", VdiUuid: testUUID(n), VirtualSize: 40 << 30, SrUuid: testUUID(sr), Mode: "RW"}
	}
	vm := func(n int, name string, power agentv1.PowerState, sr int) *agentv1.VM {
		return &agentv1.VM{Uuid: testUUID(n), Name: name, PowerState: power, CapableHostUuids: []string{testUUID(11)}, Disks: []*agentv1.Disk{disk(n+50, sr)}}
	}
	good := toldPool(1, 11, 11)
	good.ServerTime = timestamppb.New(time.Now().Add(time.Minute))
	good.Srs = []*agentv1.SR{
		{Uuid: testUUID(31), Name: "thin", Type: "nfs", PhysicalSize: 1 << 40, PhysicalUtilisation: 1 << 39},
		{Uuid: testUUID(32), Name: "thick", Type: "lvmoiscsi", PhysicalSize: 100 << 30, PhysicalUtilisation: 90 << 30},
		{Uuid: testUUID(33), Name: "raw", Type: "iscsi", PhysicalSize: 1 << 40},
		{Uuid: testUUID(34), Name: "new", Type: "quantum", PhysicalSize: 1 << 40},
		{Uuid: testUUID(35), Name: "unused", Type: "iscsi", PhysicalSize: 1 << 40},
	}
	halted := agentv1.PowerState_POWER_STATE_HALTED
	pages := [][]*agentv1.VM{{vm(101, "a", halted, 31), vm(102, "b", halted, 32), vm(103, "c", halted, 33), vm(104, "d", halted, 34),
		vm(105, "e", agentv1.PowerState_POWER_STATE_PAUSED, 31)}}
	host := toldHost("xs1")
	host.Version, host.Time = "old", timestamppb.New(time.Now().Add(-time.Hour))
	cfg := p.config(
		AgentConfig{Name: "xs1", Address: p.serve("xs1", &toldAgent{host: host, check: good, pages: pages}, certs.PeerPolicy{})},
		AgentConfig{Name: "xs2", Address: p.serve("xs2", &toldAgent{host: toldHost("xs2"), checkErr: rpc.Errorf(rpc.HostAuth, "wrong password")}, certs.PeerPolicy{})},
		AgentConfig{Name: "xs3", Address: p.serve("xs3", &toldAgent{silent: true}, certs.PeerPolicy{})},
	)
	cfg.Timing.ConnectTimeout = time.Hour // only the doctor's own limit ends it
	cfg.Sets = map[string]Set{"gone": {VM: []string{"nobody"}}, "paused": {VM: []string{"e"}}}
	spec := func(mode Mode, set string) Spec {
		s := cfg.SpecDefaults
		s.Mode, s.Select = string(mode), set
		return s
	}
	cfg.Specs = map[string]Spec{"NIGHTLY": spec(AllOffline, ""), "BAD": spec(Online, "gone"), "PAUSED": spec(Offline, "paused")}
	began := time.Now()
	checks := Doctor(t.Context(), cfg, nil, DoctorOptions{Options: Options{Version: "test"}, Limit: 2 * time.Second, DP: DPHost{Home: t.TempDir()}})
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it took %s with a limit of 2 s", took)
	}
	for _, tt := range []struct{ name, subject, want string }{
		{"agent", "xs1", "PASS it answers"}, {"agent", "xs2", "FAIL authentication"}, {"agent", "xs2", "xapi.password_file"},
		{"agent", "xs3", "FAIL unreachable"},
		{"clock", "xs1", "FAIL the agent's clock differs by -1h0m0"}, {"version", "xs1", "WARN the agent is old"},
		{"certificate", "xs1", "WARN valid until"}, {"certificate", "xs2", "WARN valid until"},
		{"pool", "", "PASS"}, {"clock", "pool", "WARN the pool master's clock differs by"},
		{"storage", "pool/thin", "PASS nfs, 512 GiB free"}, {"storage", "pool/thick", "WARN lvmoiscsi, 10 GiB free of 100 GiB, disks of 1 VMs: less than the 40 GiB"},
		{"storage", "pool/raw", "takes no snapshots"}, {"storage", "pool/new", "it is not known whether this type takes snapshots"},
		{"specification", "NIGHTLY", "e: it is paused"}, {"specification", "BAD", "FAIL"}, {"specification", "PAUSED", "FAIL mode offline, 1 VMs, 0 would run"},
		{"Data Protector", "", "there is no Disk Agent"},
	} {
		if got := checked(checks, tt.name, tt.subject); !strings.Contains(got, tt.want) {
			t.Errorf("%s %s: %q, want %q", tt.name, tt.subject, got, tt.want)
		}
	}
	if got := checked(checks, "storage", "pool/unused"); got != "" {
		t.Errorf("an SR without disks: %s", got)
	}
	if got := CheckCode(checks); got != CodeNone {
		t.Errorf("code %d", got)
	}
}

func TestCheckCode(t *testing.T) {
	for want, all := range map[int][]CheckStatus{
		CodeOK: {CheckPass}, CodeWarnings: {CheckPass, CheckWarn, CheckPass}, CodeNone: {CheckWarn, CheckFail, CheckPass},
	} {
		var checks []Check
		for _, s := range all {
			checks = append(checks, Check{Status: s})
		}
		if got := CheckCode(checks); got != want {
			t.Errorf("%v: %d, want %d", all, got, want)
		}
	}
}

// What sessions have left, and state that cannot be read.
func TestDoctorSessions(t *testing.T) {
	c := stateOnly(t)
	d := &doctor{cfg: c.cfg, o: DoctorOptions{Options: c.o}}
	look := func(want string) {
		t.Helper()
		d.checks = nil
		d.sessions()
		if got := checked(d.checks, "sessions", ""); !strings.Contains(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
	look("PASS 0, none left anything")
	s := mustSession(t, c, Report{})
	look("PASS 1, none left anything; " + s.id + " runs")
	if err := s.lock.Unlock(); err != nil {
		t.Fatal(err)
	}
	look("WARN 1 died or left work behind, the last " + s.id)
	writeFile(t, filepath.Join(c.sessionsDir(), s.id+reportExt), []byte("{"))
	look("WARN the files of 1 cannot be read")
}
