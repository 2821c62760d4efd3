package e2e

import (
	"context"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dpxen/dpxen/controller"
	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xensim"
)

// scribble changes every disk of the pool's VMs, as guests would.
func (c *cell) scribble() {
	c.t.Helper()
	for _, vm := range c.state().VMs {
		for _, d := range vm.Disks {
			if d.Type == "Disk" && !d.Empty {
				if err := c.pool.Scribble(d.VDI.UUID, 7, 3); err != nil {
					c.t.Fatal(err)
				}
			}
		}
	}
}

// macs are the VMs' MAC addresses by UUID and device.
func macs(s xensim.State) map[string]string {
	out := map[string]string{}
	for _, vm := range s.VMs {
		for _, vif := range vm.VIFs {
			out[vm.UUID+"/"+vif.Device] = vif.MAC
		}
	}
	return out
}

// TestRestoreInPlace backs all VMs up, changes their disks, restores them and compares byte for byte.
func TestRestoreInPlace(t *testing.T) {
	t.Parallel()
	for _, mode := range []controller.Mode{controller.AllOnline, controller.AllOffline} {
		t.Run(string(mode), func(t *testing.T) {
			c := newCell(t, xensim.Config{Scenario: "demo"})
			ctl := c.controller()
			before := c.state()
			r, err := ctl.Backup(context.Background(), controller.Request{Mode: mode})
			c.want(controller.CodeOK, r, err)
			c.scribble()
			if cmp.Equal(disks(before), disks(c.state())) {
				t.Fatal("the disks did not change")
			}
			r, err = ctl.Restore(context.Background(), controller.RestoreRequest{Mode: mode, From: c.cfg.Staging})
			c.want(controller.CodeOK, r, err)
			after := c.state()
			if diff := cmp.Diff(disks(before), disks(after)); diff != "" {
				t.Errorf("disks (-before +after):\n%s", diff)
			}
			if diff := cmp.Diff(powers(before), powers(after)); diff != "" {
				t.Errorf("power states (-before +after):\n%s", diff)
			}
			if diff := cmp.Diff(macs(before), macs(after)); diff != "" {
				t.Errorf("MACs (-before +after):\n%s", diff)
			}
			c.clean()
		})
	}
}

// client is an independent look at the pool, by XAPI.
func (c *cell) client() *xapi.Client {
	c.t.Helper()
	cfg := c.agentConfig("client", 0).XAPI
	x, err := xapi.New(xapi.Config{URL: cfg.URL, Username: cfg.Username, PasswordFile: cfg.PasswordFile, Fingerprints: cfg.Fingerprints})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		if err := x.Close(context.Background()); err != nil {
			c.t.Error(err)
		}
	})
	return x
}

// vm finds a VM of the pool by name.
func (c *cell) vm(name string) xensim.VMState {
	c.t.Helper()
	for _, vm := range c.state().VMs {
		if vm.Name == name {
			return vm
		}
	}
	c.t.Fatalf("no VM %q", name)
	return xensim.VMState{}
}

// destroy deletes a VM and its disks.
func (c *cell) destroy(name string) {
	c.t.Helper()
	ctx, x := context.Background(), c.client()
	vm, err := x.VMByUUID(ctx, c.vm(name).UUID)
	if err != nil {
		c.t.Fatal(err)
	}
	if vm.PowerState != "Halted" {
		if err := x.HardShutdown(ctx, vm.Ref); err != nil {
			c.t.Fatal(err)
		}
	}
	for _, ref := range vm.VBDs {
		vbd, err := x.VBD(ctx, ref)
		if err != nil {
			c.t.Fatal(err)
		}
		if vbd.Type == "Disk" {
			if err := x.DestroyVDI(ctx, vbd.VDI); err != nil {
				c.t.Fatal(err)
			}
		}
	}
	if err := x.DestroyVM(ctx, vm.Ref); err != nil {
		c.t.Fatal(err)
	}
}

// only backs one VM up.
func (c *cell) only(ctl *controller.Controller, mode controller.Mode, name string) {
	c.t.Helper()
	r, err := ctl.Backup(context.Background(), controller.Request{Mode: mode, Selection: controller.Selection{VM: []string{name}}})
	c.want(controller.CodeOK, r, err)
}

// TestRestoreAbsent restores a VM with disks on two SRs that was deleted, from either kind of file.
func TestRestoreAbsent(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		mode     controller.Mode
		recreate bool
		code     int
	}{
		{controller.Offline, false, controller.CodeOK},
		{controller.Online, true, controller.CodeOK},
		{controller.Online, false, controller.CodeNone},
	} {
		t.Run(string(tc.mode)+map[bool]string{true: " recreate"}[tc.recreate], func(t *testing.T) {
			c := newCell(t, xensim.Config{Scenario: "demo"})
			ctl := c.controller()
			before := c.state()
			was := c.vm("db-01")
			c.only(ctl, tc.mode, "db-01")
			c.destroy("db-01")
			gone := c.state()
			r, err := ctl.Restore(context.Background(), controller.RestoreRequest{Mode: tc.mode, From: c.cfg.Staging,
				Selection: controller.Selection{VM: []string{"db-01"}}, Recreate: tc.recreate, Start: true})
			c.want(tc.code, r, err)
			c.clean()
			if tc.code != controller.CodeOK {
				if diff := cmp.Diff(disks(gone), disks(c.state())); diff != "" {
					t.Errorf("disks (-before +after):\n%s", diff)
				}
				return
			}
			after := c.state()
			if diff := cmp.Diff(disks(before), disks(after)); diff != "" {
				t.Errorf("disks (-before +after):\n%s", diff)
			}
			if diff := cmp.Diff(macs(before), macs(after)); diff != "" {
				t.Errorf("MACs (-before +after):\n%s", diff)
			}
			is := c.vm("db-01")
			if is.PowerState != "Running" || is.UUID != was.UUID {
				t.Errorf("restored as %s, %s; was %s", is.UUID, is.PowerState, was.UUID)
			}
			for i := range was.Disks {
				if is.Disks[i].VDI.SR != was.Disks[i].VDI.SR {
					t.Errorf("disk %s is on SR %s instead of %s", is.Disks[i].UserDevice, is.Disks[i].VDI.SR, was.Disks[i].VDI.SR)
				}
			}
		})
	}
}

// TestRestoreAsNew makes a second VM beside the first, from either kind of file.
func TestRestoreAsNew(t *testing.T) {
	t.Parallel()
	for _, mode := range []controller.Mode{controller.Offline, controller.Online} {
		t.Run(string(mode), func(t *testing.T) {
			c := newCell(t, xensim.Config{Scenario: "demo"})
			ctl := c.controller()
			c.only(ctl, mode, "db-01")
			before := c.state()
			r, err := ctl.Restore(context.Background(), controller.RestoreRequest{Mode: mode, From: c.cfg.Staging,
				Selection: controller.Selection{VM: []string{"db-01"}}, AsNew: true, NewName: "db-02"})
			c.want(controller.CodeOK, r, err)
			c.clean()
			old, twin := c.vm("db-01"), c.vm("db-02")
			if twin.UUID == old.UUID || twin.PowerState != "Halted" || twin.UUID != r.VMs[0].NewUUID {
				t.Errorf("the new VM is %s, %s; the old one %s", twin.UUID, twin.PowerState, old.UUID)
			}
			for i := range old.Disks {
				if old.Disks[i].VDI.SHA256 != twin.Disks[i].VDI.SHA256 {
					t.Errorf("disk %d differs", i)
				}
			}
			for i := range old.VIFs {
				if old.VIFs[i].MAC == twin.VIFs[i].MAC {
					t.Errorf("both have the MAC %s", old.VIFs[i].MAC)
				}
			}
			after := c.state()
			for id, sum := range disks(before) {
				if disks(after)[id] != sum {
					t.Errorf("disk %s changed", id)
				}
			}
		})
	}
}

// TestRestoreOldDisks has the replaced disks kept, or deleted first.
func TestRestoreOldDisks(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ keep, first bool }{{keep: true}, {first: true}} {
		t.Run(map[bool]string{true: "keep", false: "delete first"}[tc.keep], func(t *testing.T) {
			c := newCell(t, xensim.Config{Scenario: "demo"})
			ctl := c.controller()
			before := c.state()
			c.only(ctl, controller.Online, "db-01")
			c.scribble()
			changed := c.vm("db-01")
			r, err := ctl.Restore(context.Background(), controller.RestoreRequest{Mode: controller.Online, From: c.cfg.Staging,
				Selection: controller.Selection{VM: []string{"db-01"}}, KeepOldDisks: tc.keep, DeleteFirst: tc.first})
			c.want(controller.CodeOK, r, err)
			after := c.state()
			for _, d := range c.vm("db-01").Disks {
				if id := changed.UUID + "/" + d.UserDevice; disks(before)[id] != d.VDI.SHA256 {
					t.Errorf("disk %s differs", id)
				}
			}
			if diff := cmp.Diff(powers(before), powers(after)); diff != "" {
				t.Errorf("power states (-before +after):\n%s", diff)
			}
			kept := map[string]bool{}
			for _, vdi := range after.Orphans {
				kept[vdi.SHA256] = true
			}
			changed.Disks = slices.DeleteFunc(changed.Disks, func(d xensim.DiskState) bool { return d.Type != "Disk" })
			if want := map[bool]int{true: len(changed.Disks)}[tc.keep]; len(after.Orphans) != want {
				t.Errorf("%d disks hang on nothing, want %d", len(after.Orphans), want)
			}
			for _, d := range changed.Disks {
				if tc.keep && !kept[d.VDI.SHA256] {
					t.Errorf("disk %s was not kept", d.VDI.Name)
				}
			}
		})
	}
}
