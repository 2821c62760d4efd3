//go:build e2e && linux

package e2e

import (
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dpxen/dpxen/controller"
	"github.com/dpxen/dpxen/internal/xensim"
)

// exported are the VMs whose exports were begun, in their order, from the nth deed on.
func exported(deeds []xensim.Deed, from int) (vms []string) {
	for _, d := range deeds[from:] {
		if d.What == "export" && !d.End {
			vms = append(vms, d.VM)
		}
	}
	return vms
}

// TestProcessRerunFailed: a night in which one VM fails, and the agent of the second pool is down, is run again for that VM and
// for what that pool has, in two steps, and for nothing else; the reports name what they ran again, and say what they did. Once
// all is good there is nothing to do, whichever of the sessions is named.
func TestProcessRerunFailed(t *testing.T) {
	t.Parallel()
	s, other := newSites(t, []string{"--hosts", "2", "--vms", "3", "--disk-size", "4MiB"},
		[]string{"--hosts", "1", "--vms", "2", "--disk-size", "4MiB"}, "  total: 8\n  per_host: 2\n  per_sr: 2\n  per_pool: 2\n  stagger: 0s\n")
	s.edit(s.config, "xapi_outage: 10s", "xapi_outage: 2s")
	before, beforeOther := s.dump(), other.dump()
	failing, fine := before.VMs[0], before.VMs[1:]
	fault := xensim.Fault{Name: "snapshot-fails", Object: failing.UUID}
	s.agents[2].end(t, syscall.SIGKILL)
	s.inject(fault)

	// The VMs of the pool that nobody sees are in no report; those asked for by name are.
	mine, theirs := len(s.journal()), len(other.journal())
	did := func(word, good string, code int, here, there []string, args ...string) (r controller.Report) {
		t.Helper()
		out := s.dpxen(code, args...)
		s.result(out, word, code, good)
		if r = s.report(); !strings.Contains(out, "session="+r.ID) {
			t.Fatalf("the newest report is of %s:\n%s", r.ID, out)
		}
		for _, of := range []struct {
			site *site
			from *int
			want []string
		}{{s, &mine, here}, {other, &theirs, there}} {
			deeds := of.site.journal()
			got := exported(deeds, *of.from)
			slices.Sort(got)
			slices.Sort(of.want)
			if diff := cmp.Diff(of.want, got); diff != "" {
				t.Errorf("%v: exported (-want +got):\n%s", args, diff)
			}
			*of.from = len(deeds)
		}
		return r
	}
	outcomes := func(r controller.Report) map[string]string {
		out := map[string]string{}
		for _, vm := range r.VMs {
			out[vm.UUID] = strings.TrimSpace(string(vm.Status) + " " + vm.Reason)
		}
		return out
	}
	var hers []string
	for _, vm := range beforeOther.VMs {
		hers = append(hers, vm.UUID)
	}
	night := did("PARTIAL", "2/3", 3, []string{fine[0].UUID, fine[1].UUID}, nil, "backup", "--mode", "allOnline")
	if got := outcomes(night); len(got) != 3 || !strings.HasPrefix(got[failing.UUID], "failed") {
		t.Errorf("the night: %v", got)
	}

	// The fault is over, the agent is still down: not all is done yet, and the code says so.
	s.clearFault(fault.Name)
	first := did("PARTIAL", "1/1", 3, []string{failing.UUID}, nil, "rerun", "--failed", "last")
	if diff := cmp.Diff(map[string]string{failing.UUID: "good"}, outcomes(first)); diff != "" || first.RerunOf != night.ID || first.Mode != controller.AllOnline {
		t.Errorf("run again (-want +got), of %q:\n%s", first.RerunOf, diff)
	}
	s.startAgent(2)
	second := did("OK", "2/2", 0, nil, hers, "rerun", "--failed", "last")
	if diff := cmp.Diff(map[string]string{hers[0]: "good", hers[1]: "good"}, outcomes(second)); diff != "" || second.RerunOf != first.ID {
		t.Errorf("run again once more (-want +got), of %q:\n%s", second.RerunOf, diff)
	}
	for _, id := range []string{"last", second.ID, first.ID, night.ID} {
		s.says(s.dpxen(0, "rerun", "--failed", id), "nothing to do: session ", "every VM of the session is good", "RESULT OK code=0 good=0/0 session=-")
	}
	if n := len(s.staged("*")); n != 5 {
		t.Errorf("%d files are staged", n)
	}
	s.same(before)
	other.same(beforeOther)
	s.clean()
	other.clean()
}

// TestProcessRerunLast: VMs asked for by name of which one fails and one is of an agent that is down; and what last means when
// other sessions came after that night: the newest one, whatever it was, which the command names, so that nobody takes it for
// the night.
func TestProcessRerunLast(t *testing.T) {
	t.Parallel()
	s, other := newSites(t, []string{"--hosts", "1", "--vms", "2", "--disk-size", "4MiB"},
		[]string{"--hosts", "1", "--vms", "1", "--disk-size", "4MiB"}, "  total: 8\n  per_host: 2\n  per_sr: 2\n  per_pool: 2\n  stagger: 0s\n")
	s.edit(s.config, "xapi_outage: 10s", "xapi_outage: 2s")
	before := s.dump()
	failing, fine, hers := before.VMs[0].UUID, before.VMs[1].UUID, other.dump().VMs[0].UUID
	s.says(s.dpxen(2, "rerun", "--failed", "last"), "there is no session yet", "RESULT REFUSED code=2 good=0/0 session=-")
	s.agents[1].end(t, syscall.SIGKILL)
	s.inject(xensim.Fault{Name: "snapshot-fails", Object: failing})
	night := s.dpxen(3, "backup", "--mode", "online", "--vm", failing, "--vm", fine, "--vm", hers)
	s.result(night, "PARTIAL", 3, "1/3")
	id := s.report().ID
	s.says(night, "AGAIN   dpxen rerun --failed "+id, "for the 2 VMs that did not become good")

	// Sessions after it: a good restore, and one that was refused.
	s.clearFault("snapshot-fails")
	s.startAgent(1)
	s.result(s.dpxen(0, "restore", "--mode", "online", "--from", s.path("staging"), "--vm", fine), "OK", 0, "1/1")
	restored := s.report().ID
	s.says(s.dpxen(0, "rerun", "--failed", "last"), "nothing to do: session "+restored+": every VM of the session is good")
	s.result(s.dpxen(2, "backup", "--mode", "online", "--vm", "no-such-vm"), "REFUSED", 2, "0/0")
	refused := s.report().ID
	again := s.dpxen(2, "rerun", "--failed", "last")
	s.result(again, "REFUSED", 2, "0/0")
	s.says(again, "runs session "+refused+" again", "no-such-vm")

	s.result(s.dpxen(0, "rerun", "--failed", id), "OK", 0, "2/2")
	r := s.report()
	var got []string
	for _, vm := range r.VMs {
		got = append(got, vm.UUID+" "+string(vm.Status))
	}
	want := []string{failing + " good", hers + " good"}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" || r.RerunOf != id || r.Mode != controller.Online {
		t.Errorf("run again of %q (-want +got):\n%s", r.RerunOf, diff)
	}
	s.says(s.dpxen(0, "rerun", "--failed", "last"), "nothing to do: session "+r.ID)
	s.says(s.dpxen(0, "rerun", "--failed", id), "nothing to do: session "+id)
	s.same(before)
	s.clean()
	other.clean()
}
