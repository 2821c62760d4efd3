package xapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/xensim"
)

// These tests hold the client against the simulator, whose reading of the reference is another's.

func startSim(t *testing.T, change func(*xensim.Config)) *xensim.Pool {
	t.Helper()
	cfg := xensim.Config{Hosts: 2, VMs: 4, DiskSize: 2<<20 + 4096, Content: "sparse", Speedup: 1000, Seed: 3, Check: true, Data: t.TempDir(), Socket: t.TempDir()}
	if change != nil {
		change(&cfg)
	}
	p, err := xensim.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p.Start()
	t.Cleanup(func() {
		if err := errors.Join(p.CheckInvariants(), p.Close()); err != nil {
			t.Error(err)
		}
	})
	return p
}

// simClient connects to a host of the pool, trusting all of them. url makes the address.
func simClient(t *testing.T, p *xensim.Pool, url string) *Client {
	t.Helper()
	info := p.Info()
	cfg := Config{URL: url, Username: info.Username, PasswordFile: passwordFile(t, info.Password, 0o600), Originator: "dpxen-agent/test", Timeouts: quick()}
	cfg.Timeouts.Outage = 10 * time.Second
	for _, h := range info.Hosts {
		cfg.Fingerprints = append(cfg.Fingerprints, h.Fingerprint)
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, stop := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Second)
		defer stop()
		if err := c.Close(ctx); err != nil && !errors.Is(err, ErrUnreachable) {
			t.Errorf("close: %v", err)
		}
	})
	return c
}

func masterClient(t *testing.T, p *xensim.Pool) *Client {
	return simClient(t, p, p.Info().Hosts[0].HTTPS)
}

// aVM gives a plain VM in that power state.
func aVM(t *testing.T, c *Client, state string) VM {
	t.Helper()
	vms, err := c.VMs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, vm := range vms {
		if !vm.IsTemplate && !vm.IsSnapshot && !vm.IsControlDomain && vm.PowerState == state {
			return vm
		}
	}
	t.Fatalf("no VM is %s", state)
	return VM{}
}

// exported exports a VM whole.
func exported(t *testing.T, c *Client, vm Ref) []byte {
	t.Helper()
	e, err := c.Export(t.Context(), ExportRequest{VM: vm, Label: "dpxen export"})
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(e)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := e.Wait(t.Context()); err != nil || s != TaskSuccess {
		t.Fatalf("task: %v, %v", s, err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if len(got) < 1<<20 || len(got)%512 != 0 {
		t.Errorf("%d bytes are no archive", len(got))
	}
	return got
}

// destroyVM removes a VM and its disks.
func destroyWhole(t *testing.T, c *Client, ref Ref) {
	t.Helper()
	vm, err := c.VM(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	var disks []Ref
	for _, b := range vm.VBDs {
		vbd, err := c.VBD(t.Context(), b)
		if err != nil {
			t.Fatal(err)
		}
		if vbd.Type == "Disk" {
			disks = append(disks, vbd.VDI)
		}
	}
	if err := c.DestroyVM(t.Context(), ref); err != nil {
		t.Error(err)
	}
	for _, d := range disks {
		for range 2 { // the second time it is gone
			if err := c.DestroyVDI(t.Context(), d); err != nil {
				t.Error(err)
			}
		}
	}
}

// cycle backs a VM up from a snapshot and restores it as a new one.
func cycle(t *testing.T, c *Client) {
	vm := aVM(t, c, "Running")
	snap, _, err := c.Snapshot(t.Context(), vm.Ref, "dpxen snapshot ß", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetIsATemplate(t.Context(), snap, false); err != nil {
		t.Fatal(err)
	}
	s, err := c.VM(t.Context(), snap)
	if err != nil || !s.IsSnapshot || s.SnapshotOf != vm.Ref || s.Name != "dpxen snapshot ß" || s.SnapshotTime.IsZero() {
		t.Fatalf("snapshot %+v, %v", s, err)
	}
	data := exported(t, c, snap)
	destroyWhole(t, c, snap)
	if _, err := c.VM(t.Context(), snap); !errors.Is(err, ErrNotFound) {
		t.Errorf("the snapshot is still there: %v", err)
	}
	vbd, err := c.VBD(t.Context(), vm.VBDs[0])
	if err != nil {
		t.Fatal(err)
	}
	vdi, err := c.VDI(t.Context(), vbd.VDI)
	if err != nil {
		t.Fatal(err)
	}
	refs, err := c.Import(t.Context(), ImportRequest{Body: bytes.NewReader(data), Length: int64(len(data)), SR: vdi.SR, Label: "dpxen import"})
	if err != nil || len(refs) != 1 {
		t.Fatalf("%v, %v", refs, err)
	}
	twin, err := c.VM(t.Context(), refs[0])
	if err != nil || twin.Name != s.Name || twin.PowerState != "Halted" || len(twin.VBDs) != len(vm.VBDs) {
		t.Fatalf("imported %+v, %v", twin, err)
	}
	if err := c.Start(t.Context(), twin.Ref); err != nil {
		t.Error(err)
	}
	if err := c.HardShutdown(t.Context(), twin.Ref); err != nil {
		t.Error(err)
	}
	destroyWhole(t, c, twin.Ref)
}

func TestSimWays(t *testing.T) {
	p := startSim(t, nil)
	hosts := p.Info().Hosts
	for name, url := range map[string]string{
		"master": hosts[0].HTTPS, "member": hosts[1].HTTPS, "plain master": hosts[0].HTTP, "plain member": hosts[1].HTTP,
		"socket of the master": "unix://" + hosts[0].Socket, "socket of a member": "unix://" + hosts[1].Socket,
	} {
		t.Run(name, func(t *testing.T) { cycle(t, simClient(t, p, url)) })
	}
	c := masterClient(t, p)
	tasks, err := c.Call(t.Context(), "task.get_all_records")
	if err != nil {
		t.Fatal(err)
	}
	all, err := tasks.Record()
	if err != nil {
		t.Fatal(err)
	}
	for ref := range all {
		f := &fields{rec: must(all.Get(ref).Record())}
		if task := decodeTask(f); f.err != nil || strings.HasPrefix(task.Name, "dpxen") {
			t.Errorf("task %q was left behind: %v", task.Name, f.err)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestSimReleases(t *testing.T) {
	for _, release := range []string{"6.5.0", "7.0.0", "7.6.0", "8.1.0", "8.2.1", "8.4.0"} {
		t.Run(release, func(t *testing.T) {
			p := startSim(t, func(cfg *xensim.Config) { cfg.ProductVersion = release })
			cycle(t, masterClient(t, p))
		})
	}
}

func TestSimLeavesDisksOut(t *testing.T) {
	for release, want := range map[string]bool{"8.2.1": false, "8.4.0": true} {
		p := startSim(t, func(cfg *xensim.Config) { cfg.ProductVersion = release })
		c := masterClient(t, p)
		vm := aVM(t, c, "Running")
		vbd, err := c.VBD(t.Context(), vm.VBDs[0])
		if err != nil {
			t.Fatal(err)
		}
		snap, honoured, err := c.Snapshot(t.Context(), vm.Ref, "s", []Ref{vbd.VDI})
		if err != nil || honoured != want {
			t.Fatalf("%s: honoured %v, %v", release, honoured, err)
		}
		if s, err := c.VM(t.Context(), snap); err != nil || (len(s.VBDs) < len(vm.VBDs)) != want {
			t.Errorf("%s: the snapshot has %d disks of %d, %v", release, len(s.VBDs), len(vm.VBDs), err)
		}
	}
}

func TestSimDemoRecords(t *testing.T) {
	p := startSim(t, func(cfg *xensim.Config) { cfg.Scenario, cfg.DiskSize = "demo", 4<<20 })
	c := simClient(t, p, p.Info().Hosts[0].HTTPS)
	vms, err := c.VMs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := len(must(c.VMsByName(t.Context(), "twin"))); got != 2 {
		t.Errorf("%d VMs are called twin", got)
	}
	if refs := must(c.VMsByName(t.Context(), `Büro/"ERP": *Köln*? <ß>`)); len(refs) != 1 || vms[refs[0]].Name != `Büro/"ERP": *Köln*? <ß>` {
		t.Errorf("the name of many signs: %v", refs)
	}
	vbds, vdis := must(c.VBDs(t.Context())), must(c.VDIs(t.Context()))
	srs, pbds := must(c.SRs(t.Context())), must(c.PBDs(t.Context()))
	hosts, nets, vifs := must(c.Hosts(t.Context())), must(c.Networks(t.Context())), must(c.VIFs(t.Context()))
	pool := must(c.Pool(t.Context()))
	if _, ok := hosts[pool.Master]; !ok || len(nets) == 0 || len(vifs) == 0 || len(pbds) == 0 {
		t.Errorf("pool %+v, %d networks, %d VIFs, %d PBDs", pool, len(nets), len(vifs), len(pbds))
	}
	must(c.GuestMetrics(t.Context()))
	local := false
	for _, vm := range vms {
		for _, b := range vm.VBDs {
			vbd := vbds[b]
			if vbd.Type != "Disk" || vm.IsControlDomain || vm.IsTemplate {
				continue
			}
			vdi, sr := vdis[vbd.VDI], srs[vdis[vbd.VDI].SR]
			if vbd.VM != vm.Ref || vdi.VirtualSize == 0 || sr.PhysicalSize == 0 || !slices.Contains(vdi.VBDs, vbd.Ref) {
				t.Errorf("VBD %+v, VDI %+v, SR %+v", vbd, vdi, sr)
			}
			// A disk on the other host's own storage: both streams are sent on by this one.
			if !sr.Shared && vm.PowerState == "Halted" && pbds[sr.PBDs[0]].Host != pool.Master && !local {
				local = true
				data := exported(t, c, vm.Ref)
				refs, err := c.Import(t.Context(), ImportRequest{Body: bytes.NewReader(data), Length: int64(len(data)), SR: sr.Ref})
				if err != nil {
					t.Fatal(err)
				}
				destroyWhole(t, c, refs[0])
			}
		}
	}
	if !local {
		t.Error("no VM on a member's own storage")
	}
}

func TestSimPower(t *testing.T) {
	p := startSim(t, nil)
	c := masterClient(t, p)
	vm := aVM(t, c, "Running")
	if _, err := c.Export(t.Context(), ExportRequest{VM: vm.Ref}); !errors.Is(err, ErrPowerState) {
		t.Errorf("export of a running VM: %v", err)
	}
	if err := c.AddBlockedOperation(t.Context(), vm.Ref, "clean_shutdown", "dpxen holds it"); err != nil {
		t.Fatal(err)
	}
	if err := c.AddBlockedOperation(t.Context(), vm.Ref, "clean_shutdown", "again"); !errors.Is(err, ErrDuplicateKey) {
		t.Errorf("blocked twice: %v", err)
	}
	if err := c.CleanShutdown(t.Context(), vm.Ref); !errors.Is(err, ErrBlocked) || !strings.Contains(err.Error(), "dpxen holds it") {
		t.Errorf("blocked: %v", err)
	}
	if err := c.RemoveBlockedOperation(t.Context(), vm.Ref, "clean_shutdown"); err != nil {
		t.Fatal(err)
	}
	if err := p.SetGuest(vm.UUID, true, 0); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	if err := c.CleanShutdown(ctx, vm.Ref); err == nil || !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, ErrCancelled) {
		t.Errorf("a guest that does not listen: %v", err)
	}
	if now := must(c.VM(t.Context(), vm.Ref)); now.PowerState != "Running" || len(now.CurrentOperations) > 0 {
		t.Errorf("after the cancelled shutdown: %s, %v", now.PowerState, now.CurrentOperations)
	}
	if err := p.SetGuest(vm.UUID, false, 0); err != nil {
		t.Fatal(err)
	}
	if err := c.CleanShutdown(t.Context(), vm.Ref); err != nil {
		t.Fatal(err)
	}
	if err := c.CleanShutdown(t.Context(), vm.Ref); !errors.Is(err, ErrPowerState) {
		t.Errorf("shut down twice: %v", err)
	}
	if err := c.Start(t.Context(), vm.Ref); err != nil {
		t.Error(err)
	}
}

func TestSimSwapsADisk(t *testing.T) {
	p := startSim(t, nil)
	c := masterClient(t, p)
	vm := aVM(t, c, "Halted")
	old := must(c.VBD(t.Context(), vm.VBDs[0]))
	data := exported(t, c, vm.Ref)
	refs, err := c.Import(t.Context(), ImportRequest{Body: bytes.NewReader(data), Length: int64(len(data)), SR: must(c.VDI(t.Context(), old.VDI)).SR})
	if err != nil {
		t.Fatal(err)
	}
	carrier := must(c.VM(t.Context(), refs[0]))
	fresh := must(c.VBD(t.Context(), carrier.VBDs[0])).VDI
	if err := c.DestroyVM(t.Context(), carrier.Ref); err != nil {
		t.Fatal(err)
	}
	if err := c.AddToVDIOtherConfig(t.Context(), fresh, "dpxen:x", "y"); err != nil {
		t.Error(err)
	}
	if err := c.RemoveFromVDIOtherConfig(t.Context(), fresh, "dpxen:x"); err != nil {
		t.Error(err)
	}
	if err := c.DestroyVBD(t.Context(), old.Ref); err != nil {
		t.Fatal(err)
	}
	ref, err := c.CreateVBD(t.Context(), VBDSpec{VM: vm.Ref, VDI: fresh, UserDevice: old.UserDevice, Mode: old.Mode, Type: old.Type, Bootable: old.Bootable,
		Unpluggable: old.Unpluggable, OtherConfig: old.OtherConfig, QOSAlgorithmType: old.QOSAlgorithmType, QOSAlgorithmParams: old.QOSAlgorithmParams})
	if err != nil {
		t.Fatal(err)
	}
	if got := must(c.VBD(t.Context(), ref)); got.VDI != fresh || got.UserDevice != old.UserDevice || got.Mode != old.Mode || got.Bootable != old.Bootable {
		t.Errorf("got %+v, had %+v", got, old)
	}
	if err := c.SetVDIName(t.Context(), fresh, "näme"); err != nil {
		t.Error(err)
	}
	if err := c.DestroyVDI(t.Context(), old.VDI); err != nil {
		t.Error(err)
	}
	if len(vm.VIFs) > 0 {
		vif := must(c.VIF(t.Context(), vm.VIFs[0]))
		if err := c.DestroyVIF(t.Context(), vif.Ref); err != nil {
			t.Fatal(err)
		}
		again, err := c.CreateVIF(t.Context(), VIFSpec{VM: vm.Ref, Network: vif.Network, Device: vif.Device, MAC: vif.MAC, MTU: vif.MTU, LockingMode: vif.LockingMode})
		if err != nil {
			t.Fatal(err)
		}
		if got := must(c.VIF(t.Context(), again)); got.MAC != vif.MAC || got.Network != vif.Network || got.MTU != vif.MTU {
			t.Errorf("got %+v, had %+v", got, vif)
		}
	}
	for field, value := range map[string]any{"name_label": " <ö&> ", "name_description": "d", "order": int64(3), "ha_restart_priority": "", "platform": map[string]string{"a": "b"}} {
		if err := c.SetVMField(t.Context(), vm.Ref, field, value); err != nil {
			t.Errorf("%s: %v", field, err)
		}
	}
	if got := must(c.VM(t.Context(), vm.Ref)); got.Name != " <ö&> " || got.Order != 3 || got.Platform["a"] != "b" {
		t.Errorf("got %q, %d, %v", got.Name, got.Order, got.Platform)
	}
	if err := c.Start(t.Context(), vm.Ref); err != nil {
		t.Error(err)
	}
}
