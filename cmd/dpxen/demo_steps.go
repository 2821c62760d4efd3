package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/dpxen/dpxen/controller"
	"github.com/dpxen/dpxen/internal/staging"
	"github.com/dpxen/dpxen/internal/xapi"
)

// round backs everything up in a mode, changes every disk, restores, and compares.
func (d *demo) round(ctx context.Context, mode string) error {
	before, err := d.dump(ctx)
	if err != nil {
		return err
	}
	if err := d.run(ctx, controller.CodeOK, "backup", "--mode", mode); err != nil {
		return err
	}
	if err := d.run(ctx, controller.CodeOK, "verify"); err != nil {
		return err
	}
	d.right("%s: %d machines backed up, every block of every file read again and proven", mode, len(before.VMs))
	changed, err := d.scribble(ctx, before)
	if err != nil {
		return err
	}
	fmt.Fprintf(d.out, "\n  (the guests write to their disks: %d disks changed)\n", changed)
	if err := d.run(ctx, controller.CodeOK, "restore", "--mode", mode, "--from", d.path("staging")); err != nil {
		return err
	}
	if err := d.same(ctx, before); err != nil {
		return err
	}
	d.right("%s: %d disks are byte for byte what was backed up; UUIDs, MACs and power states as before", mode, changed)
	return d.checkExt4(ctx, before, mode)
}

// same returns every difference between the pool as it is now and an earlier state of it.
func (d *demo) same(ctx context.Context, before *poolState) error {
	after, err := d.dump(ctx)
	if err != nil {
		return err
	}
	return after.compare(before)
}

// selected does the two modes that take a selection.
func (d *demo) selected(ctx context.Context) error {
	before, err := d.dump(ctx)
	if err != nil {
		return err
	}
	for _, step := range [][]string{
		{"backup", "--mode", "online", "--vm", "db-*"},
		{"restore", "--mode", "online", "--vm", "db-01", "--from", d.path("staging")},
		{"backup", "--mode", "offline", "--tag", "gold", "--exclude", "db-01"},
		{"restore", "--mode", "offline", "--vm", "web-01", "--from", d.path("staging")},
	} {
		if err := d.run(ctx, controller.CodeOK, step...); err != nil {
			return err
		}
	}
	if err := d.same(ctx, before); err != nil {
		return err
	}
	d.right("online and offline: machines chosen by name, glob and tag")
	return nil
}

// deleted deletes a machine with its disks and restores it under its own identity.
func (d *demo) deleted(ctx context.Context) error {
	const victim = "archive"
	before, err := d.dump(ctx)
	if err != nil {
		return err
	}
	if err := d.destroy(ctx, victim); err != nil {
		return err
	}
	fmt.Fprintf(d.out, "  (machine %q and its disks are deleted on the host)\n", victim)
	if err := d.run(ctx, controller.CodeOK, "restore", "--mode", "offline", "--vm", victim, "--from", d.path("staging")); err != nil {
		return err
	}
	if err := d.same(ctx, before); err != nil {
		return err
	}
	d.right("a deleted machine is back with its disks, its UUID and its MACs")
	return nil
}

// destroy deletes a halted VM as an administrator would by mistake.
func (d *demo) destroy(ctx context.Context, name string) (err error) {
	var pins []string
	for _, h := range d.pool.Hosts {
		pins = append(pins, h.Fingerprint)
	}
	c, err := xapi.New(xapi.Config{URL: d.pool.Hosts[0].HTTPS, Username: d.pool.Username, Fingerprints: pins,
		PasswordFile: filepath.Join(d.path("etc"), "xs1", "xapi.password"), Originator: "dpxen-demo"})
	if err != nil {
		return fmt.Errorf("reach the pool: %w", err)
	}
	defer func() { err = errors.Join(err, c.Close(ctx)) }()
	refs, err := c.VMsByName(ctx, name)
	if err != nil || len(refs) != 1 {
		return fmt.Errorf("find VM %s: %d of that name: %w", name, len(refs), err)
	}
	vm, err := c.VM(ctx, refs[0])
	if err != nil {
		return fmt.Errorf("read VM %s: %w", name, err)
	}
	for _, ref := range vm.VBDs {
		vbd, err := c.VBD(ctx, ref)
		if err != nil {
			return fmt.Errorf("read a disk of %s: %w", name, err)
		}
		if vbd.Type == "Disk" {
			if err := c.DestroyVDI(ctx, vbd.VDI); err != nil {
				return fmt.Errorf("delete a disk of %s: %w", name, err)
			}
		}
	}
	if err := c.DestroyVM(ctx, vm.Ref); err != nil {
		return fmt.Errorf("delete VM %s: %w", name, err)
	}
	return nil
}

// damaged flips one bit in a copy of a staged file: verify finds it, restore refuses it, and no host is touched.
func (d *demo) damaged(ctx context.Context) error {
	before, err := d.dump(ctx)
	if err != nil {
		return err
	}
	entry, err := d.newest("web-01", "online")
	if err != nil {
		return err
	}
	dir := d.path("damaged")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create %s: %w", dir, err)
	}
	copyPath := filepath.Join(dir, entry.Base())
	for _, from := range []string{entry.Path, strings.TrimSuffix(entry.Path, ".xva") + ".json"} {
		data, err := os.ReadFile(from)
		if err != nil {
			return fmt.Errorf("copy %s: %w", from, err)
		}
		if strings.HasSuffix(from, ".xva") {
			data[len(data)/2] ^= 1
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(from)), data, 0o600); err != nil {
			return fmt.Errorf("copy %s: %w", from, err)
		}
	}
	fmt.Fprintf(d.out, "  (one bit of a copy of %s is flipped)\n", entry.Base())
	if err := d.run(ctx, controller.CodeIntegrity, "verify", copyPath); err != nil {
		return err
	}
	if err := d.run(ctx, controller.CodeIntegrity, "restore", "--mode", "online", copyPath); err != nil {
		return err
	}
	if err := d.same(ctx, before); err != nil {
		return err
	}
	d.right("a single flipped bit is found, and the file refused before anything on a host is touched")
	return nil
}

// newest finds the staged file of a VM that was backed up last.
func (d *demo) newest(name, kind string) (staging.Entry, error) {
	dir, err := staging.Open(d.path("staging"), staging.Options{ReadOnly: true})
	if err != nil {
		return staging.Entry{}, err
	}
	entries, err := dir.List()
	if err != nil {
		return staging.Entry{}, err
	}
	var found staging.Entry
	for _, e := range entries {
		if e.Manifest != nil && e.Manifest.VM.Name == name && string(e.Name.Kind) == kind && !e.Name.Time.Before(found.Name.Time) {
			found = e
		}
	}
	if found.Manifest == nil {
		return found, fmt.Errorf("no %s file of VM %s in the staging folder", kind, name)
	}
	return found, nil
}

// nothingLeft looks for anything of ours on the hosts.
func (d *demo) nothingLeft(ctx context.Context) error {
	s, err := d.dump(ctx)
	if err != nil {
		return err
	}
	if err := s.clean(); err != nil {
		return err
	}
	if err := d.run(ctx, controller.CodeOK, "sessions"); err != nil {
		return err
	}
	if err := d.run(ctx, controller.CodeOK, "repair", "--dry-run"); err != nil {
		return err
	}
	d.right("no journal entry, snapshot, carrier, blocked operation or stray disk is left in the pool")
	return nil
}
