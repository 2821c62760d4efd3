package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// A user may delete the record of a snapshot of ours alone: its disks stay then, and nothing names them. So they are in the
// journal, by UUID, from the moment when the snapshot is there.

// stepTaken is the step of the journal that names the disks of the work's snapshot.
const stepTaken = "taken"

// takenNote is the journal's taken entry. There may be several of one piece of work: a snapshot that was deleted is taken anew.
type takenNote struct {
	Disks []string `json:"d"` // UUIDs of VDIs
}

// takenDisks returns the disks that the work's taken entries name.
func takenDisks(steps []entry) ([]string, error) {
	var out []string
	for _, e := range steps {
		if e.Step != stepTaken || !e.Complete {
			continue
		}
		var note takenNote
		if err := e.decode(&note); err != nil {
			return nil, fmt.Errorf("read which disks the snapshot has: %w", err)
		}
		out = append(out, note.Disks...)
	}
	return out, nil
}

// noteTaken writes down the disks of the snapshot that is there now, and keeps those of one that an earlier attempt had, which recall has found.
func (b *backup) noteTaken(ctx context.Context, disks []attachedDisk) error {
	var missing []string
	for _, d := range disks {
		if !slices.Contains(b.taken, d.vdi.UUID) {
			missing = append(missing, d.vdi.UUID)
		}
	}
	b.taken = append(b.taken, missing...)
	b.facts.Disks = b.taken
	if len(missing) == 0 {
		return nil
	}
	return b.claim.note(ctx, stepTaken, takenNote{Disks: missing})
}

// strays returns those of the disks, by UUID, that the work's snapshot has left behind, and those that are somebody's by now;
// others are not there any more.
func (a *Agent) strays(ctx context.Context, disks []string) (out, theirs []string, err error) {
	for _, uuid := range disks {
		vdi, err := a.xapi.VDIByUUID(ctx, uuid)
		if gone(err) || err == nil && !vdi.IsSnapshot {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("look for disk %s of the snapshot: %w", uuid, err)
		}
		// What the control domain has is let go of when its export has ended.
		if err := a.onlyOn(ctx, vdi, nil, nil); errors.Is(err, errNotOurs) {
			theirs = append(theirs, uuid)
			continue
		} else if err != nil && !passing(err) {
			return nil, nil, err
		}
		out = append(out, uuid)
	}
	return out, theirs, nil
}

// destroyStray deletes a disk that the snapshot has left behind, unless it is somebody's by now.
func (a *Agent) destroyStray(ctx context.Context, uuid string) error {
	vdi, err := a.xapi.VDIByUUID(ctx, uuid)
	if gone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for disk %s of the snapshot: %w", uuid, err)
	}
	if err := a.destroyDisk(ctx, vdi.Ref); err != nil && !errors.Is(err, errNotOurs) {
		return err
	}
	return nil
}

// cleanStray deletes disks of the snapshot that are left without it, and tells of those that somebody has put to use.
func (b *backup) cleanStray(ctx context.Context, out *outcome) {
	var strays, theirs []string
	err := b.agent.retry().do(ctx, passing, func(ctx context.Context) (err error) {
		strays, theirs, err = b.agent.strays(ctx, b.taken)
		return err
	})
	if len(theirs) > 0 {
		out.Warnings = append(out.Warnings, "somebody has put disks of the snapshot to use, or has renamed it: they stay: "+strings.Join(theirs, ", "))
	}
	left := b.taken
	for _, uuid := range strays {
		if err = b.agent.destroyStray(ctx, uuid); err != nil {
			left = []string{uuid}
			break
		}
	}
	if err != nil {
		for _, uuid := range left {
			out.Leftovers = append(out.Leftovers, "disk "+uuid)
		}
		out.Warnings = append(out.Warnings, fmt.Sprintf("a disk of the snapshot, which is gone, was not deleted: %v", err))
	}
}

// strays deletes what the work's snapshot, which is gone, has left behind.
func (s *sweeping) strays(ctx context.Context) {
	disks, err := takenDisks(s.work.steps)
	for _, uuid := range s.copied {
		if !slices.Contains(disks, uuid) {
			disks = append(disks, uuid)
		}
	}
	if err == nil {
		disks, _, err = s.a.strays(ctx, disks)
	}
	if err != nil {
		s.report("look for disks of the snapshot", snapshotPrefix+s.work.nonce, err)
		return
	}
	for _, uuid := range disks {
		s.do("delete the disk of a snapshot whose record is gone", uuid, func() error { return s.a.destroyStray(ctx, uuid) })
	}
}
