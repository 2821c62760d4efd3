package e2e

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dpxen/dpxen/controller"
	"github.com/dpxen/dpxen/internal/staging"
	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xensim"
)

// TestBackupModes backs the demo's VMs up in both kinds and proves the files.
func TestBackupModes(t *testing.T) {
	t.Parallel()
	for _, mode := range []controller.Mode{controller.AllOnline, controller.AllOffline} {
		t.Run(string(mode), func(t *testing.T) {
			c := newCell(t, xensim.Config{Scenario: "demo"})
			before := c.state()
			r, err := c.controller().Backup(context.Background(), controller.Request{Mode: mode})
			c.want(controller.CodeOK, r, err)
			after := c.state()
			if diff := cmp.Diff(powers(before), powers(after)); diff != "" {
				t.Errorf("power states (-before +after):\n%s", diff)
			}
			if diff := cmp.Diff(disks(before), disks(after)); diff != "" {
				t.Errorf("disks (-before +after):\n%s", diff)
			}
			if got := r.Counts(); got.Good != len(before.VMs) {
				t.Errorf("%d good of %d VMs", got.Good, len(before.VMs))
			}
			c.clean()
		})
	}
}

// A VM whose disks are gone (a restore that deletes them first was interrupted, or its user took them away) is backed up, and
// nobody takes the file for one with its data.
func TestBackupOfVMWithoutDisks(t *testing.T) {
	t.Parallel()
	c := newCell(t, xensim.Config{VMs: 1, DiskSize: 1 << 20})
	vm, x := c.state().VMs[0], c.client()
	if err := x.HardShutdown(t.Context(), xapi.Ref(vm.Ref)); err != nil && vm.PowerState == "Running" {
		t.Fatal(err)
	}
	rec, err := x.VM(t.Context(), xapi.Ref(vm.Ref))
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range rec.VBDs {
		vbd, err := x.VBD(t.Context(), ref)
		if err == nil {
			err = x.DestroyVBD(t.Context(), ref)
		}
		if err == nil && !vbd.VDI.Null() {
			err = x.DestroyVDI(t.Context(), vbd.VDI)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, mode := range []controller.Mode{controller.AllOnline, controller.AllOffline} {
		r, err := c.controller().Backup(context.Background(), controller.Request{Mode: mode})
		c.want(controller.CodeWarnings, r, err)
		if len(r.VMs) != 1 || !strings.Contains(strings.Join(r.VMs[0].Warnings, " "), "no disks") {
			t.Errorf("%s: %+v", mode, r.VMs)
		}
	}
	c.clean()
}

// A suspended VM's online backup has one warning, which both the plan and the agent know, in the report and in the manifest.
func TestBackupOfSuspendedVM(t *testing.T) {
	t.Parallel()
	c := newCell(t, xensim.Config{VMs: 1, DiskSize: 1 << 20})
	vm, x := c.state().VMs[0], c.client()
	if vm.PowerState != "Running" {
		t.Fatalf("the VM is %s", vm.PowerState)
	}
	if _, err := x.CallAsync(t.Context(), "suspend", "VM.suspend", xapi.Ref(vm.Ref)); err != nil {
		t.Fatal(err)
	}
	r, err := c.controller().Backup(context.Background(), controller.Request{Mode: controller.AllOnline})
	c.want(controller.CodeWarnings, r, err)
	if len(r.VMs) != 1 || len(r.VMs[0].Warnings) != 1 || !strings.Contains(r.VMs[0].Warnings[0], "suspended") {
		t.Fatalf("%+v", r.VMs)
	}
	e := staging.Inspect(filepath.Join(r.Folder, r.VMs[0].File))
	if e.Manifest == nil || !slices.Equal(e.Manifest.Warnings, r.VMs[0].Warnings) {
		t.Errorf("manifest: %+v", e.Manifest)
	}
	c.clean()
}
