package agent

import (
	"slices"
	"testing"

	"github.com/dpxen/dpxen/internal/xensim"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

func TestBackupByPowerState(t *testing.T) {
	for _, tc := range []struct {
		name, state string
		spec        *agentv1.BackupSpec
	}{
		{"online running", running, online()},
		{"online halted", halted, online()},
		{"offline running", running, offline()},
		{"offline halted", halted, offline()},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, xensim.Config{VMs: 4})
			a := b.agent(nil)
			vm := b.vm(tc.state, 0)
			p := newPuller(t, a, vm.UUID, tc.spec)
			if err := p.pull(); err != nil {
				t.Fatalf("backup: %v", err)
			}
			rep := p.wantArchive(vm.Disks)
			if got := rep.OVA.VM().Name; tc.spec.GetKind() == agentv1.BackupKind_BACKUP_KIND_OFFLINE && got != vm.Name {
				t.Errorf("VM in the archive: got %q, want %q", got, vm.Name)
			}
			f := p.facts
			if f.GetVm().GetUuid() != vm.UUID || f.GetVm().GetName() != vm.Name || f.GetVm().GetPowerState() != powerToWire(tc.state) ||
				len(f.GetVm().GetNics()) != len(vm.VIFs) || f.GetPool().GetUuid() == "" || f.GetHost().GetUuid() == "" {
				t.Errorf("facts: got %v", f)
			}
			if f.GetTaken().AsTime().Year() < 2020 || (f.GetSnapshotUuid() != "") != (tc.spec.GetKind() == agentv1.BackupKind_BACKUP_KIND_ONLINE) {
				t.Errorf("facts: taken %v, snapshot %q", f.GetTaken().AsTime(), f.GetSnapshotUuid())
			}
			out := a.release(t, p.opening.GetKey())
			wantGood(t, out)
			if out.GetPowerBefore() != powerToWire(tc.state) || out.GetPowerAfter() != powerToWire(tc.state) {
				t.Errorf("power: got %v before, %v after", out.GetPowerBefore(), out.GetPowerAfter())
			}
			b.wantClean()
		})
	}
}

// Disks that are left out are in neither archive nor snapshot, on hosts that understand the exclusion and on older ones.
func TestBackupWithoutSomeDisks(t *testing.T) {
	for _, version := range []string{"8.2.1", "8.4.0"} {
		for _, spec := range []*agentv1.BackupSpec{online(), offline()} {
			t.Run(version+" "+spec.GetKind().String(), func(t *testing.T) {
				t.Parallel()
				b := newBench(t, xensim.Config{Scenario: "demo", ProductVersion: version})
				a := b.agent(nil)
				i := slices.IndexFunc(b.before.VMs, func(v xensim.VMState) bool {
					disks := 0
					for _, d := range v.Disks {
						if d.Type == "Disk" {
							disks++
						}
					}
					return disks > 1 && v.PowerState == running
				})
				if i < 0 {
					t.Fatal("the demo has no running VM with two disks")
				}
				vm := b.before.VMs[i]
				n := slices.IndexFunc(vm.Disks, func(d xensim.DiskState) bool { return d.Type == "Disk" })
				spec.ExcludedVdiUuids = []string{vm.Disks[n].VDI.UUID}
				p := newPuller(t, a, vm.UUID, spec)
				if err := p.pull(); err != nil {
					t.Fatalf("backup: %v", err)
				}
				p.wantArchive(slices.Delete(slices.Clone(vm.Disks), n, n+1))
				if len(p.facts.GetExcluded()) != 1 || p.facts.GetExcluded()[0].GetVdiUuid() != vm.Disks[n].VDI.UUID {
					t.Errorf("excluded: got %v", p.facts.GetExcluded())
				}
				if p.facts.GetFromSnapshot() != (spec.GetKind() == agentv1.BackupKind_BACKUP_KIND_OFFLINE) {
					t.Errorf("from_snapshot: got %v", p.facts.GetFromSnapshot())
				}
				wantGood(t, a.release(t, p.opening.GetKey()))
				b.wantClean()
			})
		}
	}
}
