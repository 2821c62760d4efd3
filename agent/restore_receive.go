package agent

import (
	"context"
	"fmt"
	"io"

	"github.com/dpxen/dpxen/internal/failpoint"
	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xva"
)

// setSizes stores the lengths of the archives to come, once; the same again is no error.
func (r *restore) setSizes(sizes []int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.plan == nil || len(sizes) != len(r.plan.Parts) {
		return rpc.Errorf(rpc.Invalid, "lengths of %d archives for another number of parts", len(sizes))
	}
	for i, n := range sizes {
		if n <= int64(len(r.docs[i])) || n%512 != 0 {
			return rpc.Errorf(rpc.Invalid, "an archive of %d bytes cannot be", n)
		}
	}
	if r.sizes != nil {
		for i, n := range sizes {
			if r.sizes[i] != n {
				return rpc.Errorf(rpc.Invalid, "other lengths than before")
			}
		}
		return nil
	}
	r.sizes = sizes
	close(r.sized)
	return nil
}

// setTotals stores the sender's totals, once.
func (r *restore) setTotals(t streamTotals) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.totals != nil {
		if *r.totals != t {
			return rpc.Errorf(rpc.Invalid, "other totals than before")
		}
		return nil
	}
	r.totals = &t
	close(r.over)
	return nil
}

// receive imports the parts as their bytes come, and holds them against what the sender says it sent. Nothing of the
// VM's has been touched so far.
func (r *restore) receive(ctx context.Context, j *job) error {
	r.arrived = map[string]xapi.VDI{}
	for i, part := range r.plan.Parts {
		j.setPhase(phaseTransfer, fmt.Sprintf("importing %s to SR %q", disks(len(part.Disks)), part.SR.Name))
		if err := r.importPart(ctx, j, i, part); err != nil {
			return fmt.Errorf("import to SR %q: %w", part.SR.Name, err)
		}
	}
	// Nobody reads on: bytes beyond the announced lengths are an error, not a standstill.
	r.fail(rpc.Errorf(rpc.Invalid, "more bytes than were announced"))
	if err := r.await(ctx, r.over); err != nil {
		return err
	}
	if err := r.recv.Check(r.totals.bytes, r.totals.crc32c); err != nil {
		return fmt.Errorf("what arrived is not what was sent: %w", err)
	}
	if err := failpoint.Hit("agent/restore/arrived"); err != nil {
		return err
	}
	r.proven = true
	return nil
}

// importPart hands one archive to XAPI and reads back what became of it.
func (r *restore) importPart(ctx context.Context, j *job, i int, part restorePart) error {
	passed := r.a.metrics.bytes.WithLabelValues("restore")
	body := io.TeeReader(io.LimitReader(pace(ctx, r.pipe, r.a.pacer), r.sizes[i]), counting{passed})
	stop := r.endPipe(ctx, j)
	defer stop()
	if err := failpoint.Hit("agent/restore/before-import"); err != nil {
		return err
	}
	refs, err := r.a.xapi.Import(ctx, xapi.ImportRequest{
		Body: body, Length: r.sizes[i], SR: part.SR.Ref, Restore: part.Whole && r.goal == goalAbsent,
		Label: importLabel(j.Nonce),
		TaskCreated: func(_ xapi.Ref, uuid string) error {
			err := r.claim.note(ctx, fmt.Sprintf("%s%d", stepImport, i), importNote{Task: uuid, SR: part.SR.UUID})
			if err == nil {
				r.imports = append(r.imports, uuid)
			}
			return err
		},
	})
	if err != nil {
		if ctx.Err() != nil { // the body was cut because of it
			return fmt.Errorf("%w (%w)", context.Cause(ctx), err)
		}
		return err
	}
	// XAPI stops reading after the last disk's last byte; the archive's end is still on its way.
	if _, err := io.Copy(io.Discard, body); err != nil {
		return fmt.Errorf("read the archive's end: %w", err)
	}
	if err := failpoint.Hit("agent/restore/after-import"); err != nil {
		return err
	}
	vm, err := r.imported(ctx, j, refs, part)
	if err != nil {
		return err
	}
	disks, err := arrivedOn(ctx, r.a.xapi, vm.Ref, part)
	if err != nil {
		return err
	}
	if part.Whole {
		r.made = vm
		if len(r.plan.Parts) > 1 {
			return r.holdMade(ctx, j)
		}
		return nil
	}
	for device, vdi := range disks {
		r.arrived[device] = vdi
	}
	return nil
}

// endPipe has the pipe, which knows nothing of contexts, end for its reader and its writer when the job does. The writer's stream
// may be told of it before the job has failed, so the error is one that can cross the wire.
func (r *restore) endPipe(ctx context.Context, j *job) (stop func() bool) {
	return context.AfterFunc(ctx, func() { r.pipe.CloseWithError(wireError(context.Cause(ctx), rpc.ImportFailed, j.VM)) })
}

// importLabel is the name of an import's task.
func importLabel(nonce string) string { return "dpxen restore " + nonce }

// imported finds the VM that an import made among those that its task names.
func (r *restore) imported(ctx context.Context, j *job, refs []xapi.Ref, part restorePart) (xapi.VM, error) {
	for _, ref := range refs {
		vm, err := r.a.xapi.VM(ctx, ref)
		if err != nil {
			return xapi.VM{}, fmt.Errorf("read the imported VM: %w", err)
		}
		if vm.OtherConfig[xva.CarrierKey] == j.Nonce && isCarrier(vm) != part.Whole {
			return vm, nil
		}
	}
	return xapi.VM{}, rpc.Errorf(rpc.ImportFailed, "the import's result names no VM of this restore")
}
