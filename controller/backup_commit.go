package controller

import (
	"context"
	"fmt"

	"github.com/dpxen/dpxen/internal/failpoint"
	"github.com/dpxen/dpxen/internal/staging"
	"github.com/dpxen/dpxen/internal/xva"
)

// compare holds what is in the file against what the agent said is in it: a file is good only if it has every disk that
// it should have, and is of the VM that it should be of.
func (f *incoming) compare() error {
	want := f.facts.SnapshotUUID
	if want == "" {
		want = f.facts.VM.UUID
	}
	if got := f.report.OVA.VM().UUID; got != want {
		return &IntegrityError{Failure{What: fmt.Sprintf("the export is of VM %s instead of %s", got, want)}}
	}
	byDevice := map[string]xva.DiskReport{}
	for _, d := range f.report.Disks {
		if !d.Suspend {
			byDevice[d.UserDevice] = d
		}
	}
	for _, want := range f.facts.VM.Disks {
		got, ok := byDevice[want.UserDevice]
		switch {
		case !ok:
			return &IntegrityError{Failure{What: fmt.Sprintf("the export lacks disk %s %q", want.UserDevice, want.Name)}}
		case got.Size != want.Size:
			return &IntegrityError{Failure{What: fmt.Sprintf("disk %s %q has %d bytes in the export and %d on the host",
				want.UserDevice, want.Name, got.Size, want.Size)}}
		}
		delete(byDevice, want.UserDevice)
	}
	for device := range byDevice {
		return &IntegrityError{Failure{What: "the export has a disk that the VM had not, at position " + device}}
	}
	return nil
}

// store commits what was received without an error beside the agent's cleanup: a VM that is off is not kept waiting for our
// disk. What has failed gives its room back before that. What store returns waits for its end.
func (f *incoming) store(ctx context.Context, failed error) (wait func() error) {
	if failed != nil {
		f.discard()
		return func() error { return failed }
	}
	f.phase(f.vm.Ref(), "writing to disk", "")
	done := make(chan error, 1)
	go func() { done <- f.commit(ctx) }()
	return func() error {
		select {
		case err := <-done:
			return err
		default:
		}
		if f.c.cfg.ReadBack {
			f.phase(f.vm.Ref(), "reading the file back", "")
		}
		return <-done
	}
}

// commit gives the proven file its final name and its manifest.
func (f *incoming) commit(ctx context.Context) error {
	bytes, _ := f.recv.Totals()
	m := f.manifest()
	if err := failpoint.Hit("controller/backup/before-commit"); err != nil {
		return err
	}
	path, err := f.partial.Commit(ctx, staging.Expected{Bytes: bytes}, m)
	if err != nil {
		return fmt.Errorf("commit %s: %w", f.partial.Name().XVA(), stagingFailure(err))
	}
	failpoint.Pass("controller/backup/after-commit")
	entry := staging.Inspect(path)
	f.change(func(r *VMResult) {
		r.File, r.Bytes = f.partial.Name().XVA(), bytes
		if entry.Manifest != nil {
			r.Digest, r.DigestAlgorithm = entry.Manifest.File.Digest, entry.Manifest.File.DigestAlgorithm
		}
		for _, w := range f.warnings {
			r.Warnings = appendNew(r.Warnings, w)
		}
	})
	f.emit(Event{Type: EventVMProgress, VM: f.vm.Ref(), Phase: "staged", Bytes: bytes, TotalEst: bytes})
	return nil
}

// manifest describes the file.
func (f *incoming) manifest() staging.Manifest {
	facts, c := f.facts, f.c
	head := f.s.header()
	vm := staging.VM{UUID: facts.VM.UUID, Name: facts.VM.Name, PowerStateBefore: facts.VM.Power,
		Pool: staging.Ref{UUID: facts.Pool.UUID, Name: facts.Pool.Name}, Host: staging.Ref{UUID: facts.Host.UUID, Name: facts.Host.Name},
		Tags: facts.VM.Tags, Settings: facts.VM.Settings, Record: facts.Own}
	for _, n := range facts.VM.NICs {
		vm.VIFs = append(vm.VIFs, staging.VIF{Device: n.Device, MAC: n.MAC, Network: staging.Ref{UUID: n.NetworkUUID, Name: n.Network}})
	}
	for _, d := range facts.VM.Disks {
		vm.Disks = append(vm.Disks, stagedDisk(d))
	}
	for _, d := range facts.Excluded {
		why := "asked for"
		for _, planned := range f.vm.Excluded {
			if planned.VDI == d.VDI {
				why = planned.Why
			}
		}
		vm.ExcludedDisks = append(vm.ExcludedDisks, staging.ExcludedDisk{Disk: stagedDisk(d), Reason: why})
	}
	return staging.Manifest{DpxenVersion: c.o.Version, DP: staging.DPSession{Session: head.DPSession, Spec: head.DPSpec},
		Session: f.s.id, RerunOf: head.RerunOf, Mode: string(f.req.Mode), Agent: f.agent, Started: f.began, Finished: c.o.Now().UTC(),
		VM: vm, Snapshot: staging.Snapshot{UUID: facts.SnapshotUUID, Time: facts.Taken},
		File: staging.File{ArchiveBytes: f.report.ArchiveBytes, Compression: string(f.report.Compression),
			BlocksVerified: f.report.Blocks, Checksum: f.report.Checksum},
		Product:  staging.Product{Brand: facts.Pool.ProductBrand, Version: facts.Pool.ProductVersion},
		Warnings: f.warnings}
}

func stagedDisk(d Disk) staging.Disk {
	return staging.Disk{Device: d.UserDevice, VDI: d.VDI, Name: d.Name, Size: d.Size, SRUUID: d.SR, SRName: d.SRName,
		Bootable: d.Bootable, Mode: d.Mode, Type: d.Type}
}
