package agent

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/google/uuid"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xensim"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// TestBackupMoved: a VM that would use a host or an SR which it is not counted for is left alone, and said to have moved;
// where it is counted for all, or nothing is said, it is backed up.
func TestBackupMoved(t *testing.T) {
	b := newBench(t, xensim.Config{VMs: 4, Hosts: 1})
	a := b.agent(nil)
	vm := b.vm(running, 0)
	told := named(t, a, vm.UUID)
	if len(told) != 1 || told[0].GetUuid() != vm.UUID || told[0].GetResidentHostUuid() == "" {
		t.Fatalf("asked for VM %s, got %v", vm.UUID, told)
	}
	host, sr := told[0].GetResidentHostUuid(), told[0].GetDisks()[0].GetSrUuid()
	elsewhere := uuid.NewString()
	for name, tt := range map[string]struct {
		place *agentv1.Place
		moved bool
	}{
		"another host":    {&agentv1.Place{HostUuids: []string{elsewhere}}, true},
		"another SR":      {&agentv1.Place{HostUuids: []string{host}, SrUuids: []string{elsewhere}}, true},
		"where it is":     {&agentv1.Place{HostUuids: []string{elsewhere, host}, SrUuids: []string{sr}}, false},
		"nothing is said": {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(b.pool.Journal())
			spec := online()
			spec.Place = tt.place
			p := newPuller(t, a, vm.UUID, spec)
			err := p.pull()
			out := a.release(t, p.opening.GetKey())
			did := ""
			for _, d := range b.pool.Journal()[before:] {
				did += fmt.Sprint(d.What, " ", d.Name, " ", d.Host, " ", d.End, "; ")
			}
			switch want := fmt.Sprintf("snapshot %[1]s xen1 false; snapshot %[1]s xen1 true; export %[1]s xen1 false; export %[1]s xen1 true; ", vm.Name); {
			case tt.moved && (!errors.Is(err, rpc.Moved) || did != ""):
				t.Errorf("%v; the pool did: %s", err, did)
			case !tt.moved && (err != nil || did != want):
				t.Errorf("%v; the pool did: %s", err, did)
			case !tt.moved:
				wantGood(t, out)
			}
			b.wantClean()
		})
	}
	if got := named(t, a, elsewhere, vm.UUID); len(got) != 1 {
		t.Errorf("one that does not exist beside one that does: %v", got)
	}
}

// named asks for VMs by UUID.
func named(t *testing.T, a *runningAgent, uuids ...string) (all []*agentv1.VM) {
	t.Helper()
	st, err := a.client.ListVMs(t.Context(), &agentv1.ListVMsRequest{VmUuids: uuids})
	for err == nil {
		var page *agentv1.ListVMsResponse
		if page, err = st.Recv(); err == nil {
			all = append(all, page.GetVms()...)
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return all
}
