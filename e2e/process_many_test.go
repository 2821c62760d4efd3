//go:build e2e && linux

package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dpxen/dpxen/controller"
	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xensim"
)

// manyTiming lets claims of agents that are gone run out soon, and waits for what is busy.
const manyTiming = controllerTiming

// newSites starts a site of a pool with an agent beside each host, and a second pool of two hosts that one agent serves, in
// one configuration.
func newSites(t *testing.T, first, second []string, limits string) (s *site, other *site) {
	t.Helper()
	s = newSite(t, first...)
	other = &site{t: t, root: t, dir: s.dir, bin: s.bin, config: s.config}
	var line string
	other.sim, line = s.start("xensim", append([]string{"--control", "127.0.0.1:0", "--speedup", "50", "--seed", "77",
		"--data", s.path("xensim2")}, second...)...)
	if err := json.Unmarshal([]byte(line), &other.pool); err != nil {
		t.Fatalf("xensim printed %q: %v", line, err)
	}
	own := s.pool
	s.pool = other.pool // for the agent's settings
	n := len(s.agents) + 1
	addr := s.addAgent(s.pool.Hosts[0].HTTPS)
	s.pool = own
	s.edit(s.config, manyTiming, fmt.Sprintf("  - {name: xs%d, address: %q}\n", n, addr)+manyTiming)
	s.edit(s.config, "  total: 8\n  per_host: 2\n  per_sr: 2\n  per_pool: 4\n  stagger: 2s\n", limits)
	return s, other
}

func (s *site) journal() (deeds []xensim.Deed) {
	s.t.Helper()
	s.control(http.MethodGet, "/journal", nil, &deeds)
	return deeds
}

// atOnce counts exports that are under way, of a host, an SR, or all, and keeps the most.
type atOnce struct{ now, most map[string]int }

func (a *atOnce) add(d xensim.Deed) {
	n := 1
	if d.End {
		n = -1
	}
	for _, key := range append([]string{"pool", "host " + d.Host, "vm " + d.Name}, prefix("SR ", d.SRs)...) {
		a.now[key] += n
		a.most[key] = max(a.most[key], a.now[key])
	}
}

func prefix(with string, list []string) []string {
	var out []string
	for _, s := range list {
		out = append(out, with+s)
	}
	return out
}

// death is when all that a host's agent had under way was at its end, whatever XAPI knew of it: it learns that nobody listens
// any more when it has the next bytes to send, and a new life of the agent is fast.
type death struct {
	host string
	at   time.Time
}

// untilDeath lets each export that failed end when its agent died.
func untilDeath(deeds []xensim.Deed, deaths ...death) []xensim.Deed {
	began := map[string]time.Time{}
	deeds = slices.Clone(deeds)
	for i, d := range deeds {
		if d.What != "export" || !d.End {
			began[d.Task] = d.Time
			continue
		}
		for _, x := range deaths {
			if d.Error != "" && d.Host == x.host && began[d.Task].Before(x.at) && x.at.Before(d.Time) {
				deeds[i].Time = x.at
			}
		}
	}
	slices.SortStableFunc(deeds, func(a, b xensim.Deed) int { return a.Time.Compare(b.Time) })
	return deeds
}

// exportsAtOnce reads what the simulators wrote down: the most exports at once, of everything.
func exportsAtOnce(deeds ...xensim.Deed) map[string]int {
	a := atOnce{now: map[string]int{}, most: map[string]int{}}
	for _, d := range deeds {
		if d.What == "export" {
			a.add(d)
		}
	}
	return a.most
}

// report is the report of the newest session.
func (s *site) report() (r controller.Report) {
	s.t.Helper()
	files, err := filepath.Glob(s.path("state/sessions/*.json"))
	if err != nil || len(files) == 0 {
		s.t.Fatalf("no sessions: %v", err)
	}
	slices.Sort(files)
	data, err := os.ReadFile(files[len(files)-1])
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// namesEveryOnce fails the test where the report does not name every VM of the states once.
func namesEveryOnce(t *testing.T, r *controller.Report, states ...xensim.State) {
	t.Helper()
	seen := map[string]int{}
	for _, vm := range r.VMs {
		seen[vm.UUID]++
	}
	n := 0
	for _, state := range states {
		for _, vm := range state.VMs {
			n++
			if seen[vm.UUID] != 1 {
				t.Errorf("the report names VM %s (%s) %d times", vm.Name, vm.UUID, seen[vm.UUID])
			}
		}
	}
	if len(r.VMs) != n {
		t.Errorf("the report names %d VMs, there are %d", len(r.VMs), n)
	}
}

// under tells whether an export by the host is under way.
func under(deeds []xensim.Deed, host string) bool {
	n := 0
	for _, d := range deeds {
		if d.What == "export" && d.Host == host {
			if n++; d.End {
				n -= 2
			}
		}
	}
	return n > 0
}

// TestProcessManyHosts lets one session back up a pool of four hosts and a second pool, with local and shared SRs, while an
// agent is killed for good, another is killed and started again, the master moves and VMs migrate. What the simulators wrote
// down shows that the limits held at every moment, VMs were exported where they were, and the report names every VM once.
func TestProcessManyHosts(t *testing.T) {
	const shared, perSR, perHost, perPool, total = 3, 2, 2, 4, 5
	s, other := newSites(t,
		[]string{"--hosts", "4", "--vms", "16", "--disk-size", "6MiB", "--bandwidth", "4MiB"},
		[]string{"--hosts", "2", "--vms", "4", "--disk-size", "6MiB", "--bandwidth", "4MiB"},
		fmt.Sprintf("  total: %d\n  per_host: %d\n  per_sr: %d\n  per_pool: %d\n  stagger: 100ms\n  srs: {Shared storage: %d}\n",
			total, perHost, perSR, perPool, shared))
	before := s.dump()
	client := s.client()
	session := s.begin("backup", "--mode", "allOnline")

	s.until(30*time.Second, "the second host exports", func() bool { return under(s.journal(), "xen2") })
	s.agents[1].end(t, syscall.SIGKILL) // and never comes back
	deaths := []death{{"xen2", time.Now()}}
	s.control(http.MethodPost, "/master", map[string]string{"host": "xen3"}, nil)
	moved := s.migrateThree(client)
	s.until(30*time.Second, "the third host exports", func() bool { return under(s.journal(), "xen3") || !session.running() })
	s.agents[2].end(t, syscall.SIGKILL)
	deaths = append(deaths, death{"xen3", time.Now()})
	s.startAgent(2)
	session.wait(t)

	text := session.out.String()
	t.Logf("the session said:\n%s", text)
	r := s.report()
	namesEveryOnce(t, &r, s.dump(), other.dump())
	for _, vm := range r.VMs {
		if vm.Status != controller.StatusGood {
			t.Errorf("VM %s: %s: %s", vm.Name, vm.Status, vm.Error)
		}
		if vm.Agent == "xs2" && !exportedBefore(s.journal(), vm.UUID, "xen2") {
			t.Errorf("VM %s is said to be the work of an agent that was dead", vm.Name)
		}
	}
	if r.Code != controller.CodeOK && r.Code != controller.CodeWarnings {
		t.Errorf("code %d", r.Code)
	}
	s.says(text, "good=20/20", "RETRIED")
	mine, theirs := untilDeath(s.journal(), deaths...), other.journal()
	for _, pool := range [][]xensim.Deed{mine, theirs} {
		for key, most := range exportsAtOnce(pool...) {
			limit := map[string]int{"pool": perPool, "SR Shared storage": shared}[key]
			switch {
			case limit > 0:
			case strings.HasPrefix(key, "host "):
				limit = perHost
			case strings.HasPrefix(key, "vm "):
				limit = 1
			default:
				limit = perSR
			}
			if most > limit {
				t.Errorf("%s: %d exports at once, the limit is %d:\n%s", key, most, limit, exportsOf(pool, strings.TrimPrefix(key, "vm ")))
			}
		}
	}
	both := append(slices.Clone(mine), theirs...)
	slices.SortStableFunc(both, func(a, b xensim.Deed) int { return a.Time.Compare(b.Time) })
	if most := exportsAtOnce(both...)["pool"]; most > total || most < 3 {
		t.Errorf("%d exports at once in all, the limit is %d", most, total)
	}
	for uuid, host := range moved {
		i := slices.IndexFunc(r.VMs, func(vm controller.VMResult) bool { return vm.UUID == uuid })
		if got := exporter(mine, uuid); got != host || r.VMs[i].Agent != "xs4" {
			t.Errorf("VM %s moved to %s before it was begun, and was exported by %s, by the report's word by agent %s", r.VMs[i].Name, host, got, r.VMs[i].Agent)
		}
	}
	s.same(before)
	s.clean()
	other.clean()
}

// exportsOf are the exports of the VM of that name, or all of them where none is called so, a line each.
func exportsOf(deeds []xensim.Deed, name string) string {
	known := slices.ContainsFunc(deeds, func(d xensim.Deed) bool { return d.Name == name })
	var lines []string
	for _, d := range deeds {
		if d.What == "export" && (!known || d.Name == name) {
			lines = append(lines, fmt.Sprintf("%s end=%t %s by %s %s %s", d.Time.Format("15:04:05.000"), d.End, d.Name, d.Host, d.Task, d.Error))
		}
	}
	return strings.Join(lines, "\n")
}

// migrateThree moves three running VMs that nothing was begun with, of those on shared storage, to the fourth host. It
// returns where they are by UUID, of those alone of which the session asks later where they are.
func (s *site) migrateThree(client *xapi.Client) map[string]string {
	s.t.Helper()
	to, err := client.Hosts(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	var target xapi.Ref
	for ref, h := range to {
		if h.Name == "xen4" {
			target = ref
		}
	}
	begun := map[string]bool{}
	for _, d := range s.journal() {
		begun[d.VM] = true
	}
	vms, err := client.VMs(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	moved := map[string]string{}
	for _, name := range []string{"vm-15", "vm-13", "vm-11", "vm-07", "vm-05", "vm-03", "vm-01"} {
		for ref, vm := range vms {
			if vm.Name != name || vm.IsSnapshot || begun[vm.UUID] || vm.ResidentOn == target || len(moved) == 3 {
				continue
			}
			if _, err := client.CallAsync(s.t.Context(), "e2e", "VM.pool_migrate", ref, target, map[string]string{}); err != nil {
				s.t.Logf("VM %s stays: %v", name, err) // on local storage, or begun by now
				continue
			}
			moved[vm.UUID] = "xen4"
		}
	}
	// The session asks where a VM is right before it writes down what it is about to do with it: what is not written down a while
	// after the VM has moved it asks about from now on.
	time.Sleep(time.Second)
	for _, in := range s.report().Intents {
		delete(moved, in.VMUUID)
	}
	if len(moved) == 0 {
		s.t.Error("no VM could be moved before it was begun")
	}
	return moved
}

// exporter is the host that exported the VM at last.
func exporter(deeds []xensim.Deed, vm string) (host string) {
	for _, d := range deeds {
		if d.What == "export" && d.VM == vm && d.End && d.Error == "" {
			host = d.Host
		}
	}
	return host
}

func exportedBefore(deeds []xensim.Deed, vm, host string) bool { return exporter(deeds, vm) == host }

// TestProcessPoolDown: a pool whose only agent dies in mid-session does not stop the other one; the report says so of each of
// its VMs, and the session is run again for them alone once the agent is back.
func TestProcessPoolDown(t *testing.T) {
	s, other := newSites(t, []string{"--hosts", "2", "--vms", "4", "--disk-size", "4MiB", "--bandwidth", "8MiB"},
		[]string{"--hosts", "2", "--vms", "3", "--disk-size", "4MiB", "--bandwidth", "500KiB"},
		"  total: 8\n  per_host: 2\n  per_sr: 2\n  per_pool: 2\n  stagger: 0s\n")
	s.edit(s.config, "release_timeout: 30s", "release_timeout: 5s")
	s.edit(s.config, "xapi_outage: 10s", "xapi_outage: 3s")
	session := s.begin("backup", "--mode", "allOnline")
	s.until(30*time.Second, "the second pool exports", func() bool { return under(other.journal(), "xen1") })
	s.agents[2].end(t, syscall.SIGKILL)
	if code := session.wait(t); code != controller.CodeSome {
		t.Errorf("code %d:\n%s", code, session.out)
	}
	text := session.out.String()
	s.result(text, "PARTIAL", 3, "4/7")
	r := s.report()
	namesEveryOnce(t, &r, s.dump(), other.dump())
	for _, vm := range r.VMs {
		ofOther := slices.ContainsFunc(other.dump().VMs, func(o xensim.VMState) bool { return o.UUID == vm.UUID })
		switch {
		case ofOther && (vm.Status != controller.StatusFailed || vm.Reason != "UNREACHABLE"):
			t.Errorf("VM %s of the pool that is down: %s %s %s", vm.Name, vm.Status, vm.Reason, vm.Error)
		case !ofOther && vm.Status != controller.StatusGood:
			t.Errorf("VM %s: %s %s", vm.Name, vm.Status, vm.Error)
		}
	}
	s.says(text, "dpxen rerun --failed "+r.ID)
	s.startAgent(2)
	s.result(s.dpxen(0, "rerun", "--failed", "last"), "OK", 0, "3/3")
	again := s.report()
	if again.RerunOf != r.ID || again.Mode != controller.AllOnline || len(again.VMs) != 3 {
		t.Errorf("the second session is %s of %q with %d VMs", again.Mode, again.RerunOf, len(again.VMs))
	}
	for _, vm := range again.VMs {
		manifest, err := os.ReadFile(s.path("staging/" + strings.TrimSuffix(vm.File, ".xva") + ".json"))
		if err != nil || !strings.Contains(string(manifest), `"rerun_of": "`+r.ID+`"`) {
			t.Errorf("%v; the manifest of %s does not name the former session:\n%s", err, vm.Name, manifest)
		}
	}
	s.says(s.dpxen(0, "rerun", "--failed", r.ID), "nothing to do", "RESULT OK code=0 good=0/0 session=-")
	if n := len(s.staged("*")); n != 7 {
		t.Errorf("%d staged files", n)
	}
	s.clean()
	other.clean()
}

// TestProcessTwoControllers: a second controller that comes to a VM which another one works on is told who, for which session
// and since when, in its output and report, waits as its configuration says, and leaves the VM alone.
func TestProcessTwoControllers(t *testing.T) {
	s := newSite(t, "--hosts", "1", "--vms", "2", "--disk-size", "4MiB", "--bandwidth", "500KiB")
	first := s.begin("backup", "--mode", "online", "--vm", "vm-01")
	s.until(30*time.Second, "the first exports", func() bool { return under(s.journal(), "xen1") })
	data, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(data), s.path("staging"), s.path("staging2"), 1)
	text = strings.Replace(text, s.path("state"), s.path("state2"), 1)
	text = strings.Replace(text, "timing: {", "timing: {claim_wait: 1s, ", 1)
	s.write("etc/second.yaml", text)
	second, _ := s.start("dpxen", "-c", s.path("etc/second.yaml"), "backup", "--mode", "allOnline")
	second.wait(t)
	mine := s.report()
	s.result(second.out.String(), "PARTIAL", 3, "1/2")
	s.says(second.out.String(), "CLAIMED", "controller dp1", "session "+mine.ID, "agent xs1", "since 20")
	shown, _ := s.start("dpxen", "-c", s.path("etc/second.yaml"), "show", "--json", "last")
	shown.wait(t)
	var r controller.Report
	if err := json.Unmarshal(shown.out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	for _, vm := range r.VMs {
		if vm.Name != "vm-01" {
			continue
		}
		h := vm.HeldBy
		if h == nil || h.Controller != "dp1" || h.Session != mine.ID || h.Agent != "xs1" || h.Since.IsZero() || h.Until.Before(h.Since) {
			t.Errorf("held by %+v", h)
		}
		if vm.Status != controller.StatusFailed || vm.Reason != "CLAIMED" || len(vm.Attempts) != 1 {
			t.Errorf("%s %s after %+v", vm.Status, vm.Reason, vm.Attempts)
		}
	}
	first.wait(t)
	s.result(first.out.String(), "OK", 0, "1/1")
	for key, most := range exportsAtOnce(s.journal()...) {
		if strings.HasPrefix(key, "vm ") && most > 1 {
			t.Errorf("%s was exported twice at once", key)
		}
	}
	again, _ := s.start("dpxen", "-c", s.path("etc/second.yaml"), "rerun", "--failed", r.ID)
	again.wait(t)
	s.result(again.out.String(), "OK", 0, "1/1")
	s.clean()
}
