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

func TestSimExportFaults(t *testing.T) {
	for fault, tc := range map[string]struct {
		open, read error // what Export and Read give; errAny = some error
		status     TaskStatus
	}{
		"export-refused":       {open: errAny},
		"export-cut":           {},
		"export-embedded-500":  {},
		"export-task-fails":    {},
		"export-read-error":    {},
		"export-task-vanishes": {status: TaskGone},
		"export-slow-head":     {status: TaskSuccess},
		"export-stall":         {status: TaskSuccess},
	} {
		t.Run(fault, func(t *testing.T) {
			p := startSim(t, nil)
			c := masterClient(t, p)
			vm := aVM(t, c, "Halted")
			f := xensim.Fault{Name: fault, Delay: 20 * time.Second}
			if fault != "export-slow-head" {
				f.After = 1 << 20
			}
			if err := p.Inject(f); err != nil {
				t.Fatal(err)
			}
			e, err := c.Export(t.Context(), ExportRequest{VM: vm.Ref})
			if tc.open != nil {
				if !isAnswer(err) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			_, readErr := io.Copy(io.Discard, e)
			status, err := e.Wait(t.Context())
			if status != tc.status || (tc.status == 0) != (err != nil) {
				t.Errorf("read: %v; task: %v, %v", readErr, status, err)
			}
			if err := e.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("embedded at once", func(t *testing.T) {
		p := startSim(t, nil)
		c := masterClient(t, p)
		if err := p.Inject(xensim.Fault{Name: "export-embedded-500"}); err != nil {
			t.Fatal(err)
		}
		e, err := c.Export(t.Context(), ExportRequest{VM: aVM(t, c, "Halted").Ref})
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, e); n > 0 || err == nil {
			t.Errorf("%d bytes, %v", n, err)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestSimImportFaults(t *testing.T) {
	p := startSim(t, nil)
	c := masterClient(t, p)
	vm := aVM(t, c, "Halted")
	data := exported(t, c, vm.Ref)
	sr := must(c.VDI(t.Context(), must(c.VBD(t.Context(), vm.VBDs[0])).VDI)).SR
	count := func() int { return len(must(c.VMs(t.Context()))) + len(must(c.VDIs(t.Context()))) }
	before := count()
	for fault, want := range map[string]error{"import-fails-at-start": errAny, "import-fails-at-end": errAny, "sr-full": ErrNoSpace} {
		if err := p.Inject(xensim.Fault{Name: fault}); err != nil {
			t.Fatal(err)
		}
		refs, err := c.Import(t.Context(), ImportRequest{Body: bytes.NewReader(data), Length: int64(len(data)), SR: sr})
		if !isAnswer(err) || !is(err, want) {
			t.Errorf("%s: %v, %v", fault, refs, err)
		}
		p.Clear("")
	}
	bad := errors.New("bad block")
	for name, body := range map[string]io.Reader{
		"cut": bytes.NewReader(data[:len(data)/2]), "late fault": io.MultiReader(bytes.NewReader(data), &failing{bad}), "damaged": bytes.NewReader(damaged(data)),
	} {
		if refs, err := c.Import(t.Context(), ImportRequest{Body: body, Length: int64(len(data)), SR: sr}); err == nil {
			t.Errorf("%s: imported %v", name, refs)
		}
	}
	if after := count(); after != before {
		t.Errorf("%d records before, %d after", before, after)
	}
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

func damaged(data []byte) []byte {
	out := bytes.Clone(data)
	out[len(out)/2] ^= 4
	return out
}

func TestSimCallFaults(t *testing.T) {
	p := startSim(t, nil)
	c := masterClient(t, p)
	vm := aVM(t, c, "Halted")
	inject := func(f xensim.Fault) {
		t.Helper()
		if err := p.Inject(f); err != nil {
			t.Fatal(err)
		}
	}
	inject(xensim.Fault{Name: "session-invalid", Times: 1})
	if _, err := c.Pool(t.Context()); err != nil {
		t.Errorf("a lost session: %v", err)
	}
	inject(xensim.Fault{Name: "host-booting", Times: 1})
	if _, err := c.Pool(t.Context()); !errors.Is(err, ErrBusy) {
		t.Errorf("booting: %v", err)
	}
	inject(xensim.Fault{Name: "answer-lost", Times: 1, Method: "VM.set_name_description"})
	if err := c.SetVMField(t.Context(), vm.Ref, "name_description", "changed"); !errors.Is(err, ErrUnreachable) {
		t.Errorf("a lost answer: %v", err)
	}
	if got := must(c.VM(t.Context(), vm.Ref)).Description; got != "changed" {
		t.Errorf("the call was not carried out: %q", got)
	}
	snap, _, err := c.Snapshot(t.Context(), vm.Ref, "s", nil)
	if err != nil {
		t.Fatal(err)
	}
	inject(xensim.Fault{Name: "vdi-in-use", Times: 3})
	destroyWhole(t, c, snap)
	p.Clear("")
	inject(xensim.Fault{Name: "toolstack-restart", Times: 1, Delay: 100 * time.Second})
	_, err = c.Pool(t.Context())
	for end := time.Now().Add(10 * time.Second); err != nil && time.Now().Before(end); _, err = c.Pool(t.Context()) {
		if !errors.Is(err, ErrUnreachable) && !errors.Is(err, ErrBusy) {
			t.Fatalf("during the restart: %v", err)
		}
	}
	if err != nil {
		t.Errorf("after the restart: %v", err)
	}
}

func TestSimFailover(t *testing.T) {
	p := startSim(t, func(cfg *xensim.Config) { cfg.Hosts = 3 })
	hosts := p.Info().Hosts
	c := simClient(t, p, hosts[1].HTTPS)
	must(c.Hosts(t.Context()))
	if err := p.SetMaster(hosts[2].Name); err != nil {
		t.Fatal(err)
	}
	cycle(t, c)
	if err := p.SetHostDown(hosts[1].Name, true, true); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Pool(t.Context()); err != nil {
		t.Errorf("the configured host is down: %v", err)
	}
	if _, err := c.Export(t.Context(), ExportRequest{VM: aVM(t, c, "Halted").Ref}); !errors.Is(err, ErrUnreachable) {
		t.Errorf("a stream goes to the configured host, which is down: %v", err)
	}
	e, err := c.Export(t.Context(), ExportRequest{VM: aVM(t, c, "Halted").Ref, Host: strings.TrimPrefix(hosts[0].HTTPS, "https://")})
	if err != nil {
		t.Fatalf("a stream by way of another host: %v", err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}

func TestSimJournalKeys(t *testing.T) {
	p := startSim(t, nil)
	c := masterClient(t, p)
	now, err := c.ServerTime(t.Context())
	if err != nil || time.Since(now).Abs() > time.Hour {
		t.Errorf("time %v, %v", now, err)
	}
	value := `{"v":1,"name":"<ß&>"}`
	if err := c.AddToPoolOtherConfig(t.Context(), "dpxen:x:claim", value); err != nil {
		t.Fatal(err)
	}
	if err := c.AddToPoolOtherConfig(t.Context(), "dpxen:x:claim", value); !errors.Is(err, ErrDuplicateKey) {
		t.Errorf("twice: %v", err)
	}
	if m := must(c.PoolOtherConfig(t.Context())); m["dpxen:x:claim"] != value {
		t.Errorf("got %v", m)
	}
	for range 2 {
		if err := c.RemoveFromPoolOtherConfig(t.Context(), "dpxen:x:claim"); err != nil {
			t.Error(err)
		}
	}
}
