package controller

import (
	"crypto/sha256"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/transfer"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// planPart is one archive that the agent wants.
type planPart struct {
	SR, SRName string
	Disks      []string // directories in the file
	OVA        []byte   // its ova.xml
}

// restorePlan is what the agent wants sent.
type restorePlan struct {
	Parts     []planPart
	InPlace   bool
	Untouched []Disk
	Warnings  []string
	SHA1      bool // a host of the pool knows no newer checksum
}

// restoreEnd is what the restore came to.
type restoreEnd struct {
	VMUUID, VMName string
	InPlace        bool
	Power          string
	NotRestored    []string
	Kept           []Disk
	Warnings       []string
}

// take takes the plan in, and how long its documents will be together.
func (a *uploading) take(m *agentv1.RestorePlan) error {
	parts := m.GetParts()
	if a.plan != nil || len(parts) == 0 || len(parts) > maxParts {
		return rpc.Errorf(rpc.Invalid, "the agent plans %d parts, or plans twice", len(parts))
	}
	// Each document is made of the file's ova.xml: it is about as long, or shorter.
	limit := min(maxPlanned, uint64(len(parts))*(2*uint64(len(a.ova))+documentPiece))
	for _, p := range parts {
		if n := p.GetOvaBytes(); n == 0 || n > limit-a.want {
			return rpc.Errorf(rpc.Invalid, "the agent plans a document of %d bytes for a file whose ova.xml has %d", n, len(a.ova))
		}
		a.want += p.GetOvaBytes()
	}
	a.plan = m
	return nil
}

// end takes the result in. The agent cannot have restored what it did not get.
func (a *uploading) end(m *agentv1.RestoreResult) error {
	if a.attachment == nil || !a.attachment.Complete() {
		return rpc.Errorf(rpc.Invalid, "the agent calls the VM restored before all of the file was sent")
	}
	end := endFrom(m)
	switch {
	case end.VMUUID == "":
		return rpc.Errorf(rpc.Invalid, "the agent does not say which VM it has restored (UUID %.80q)", m.GetVmUuid())
	case a.spec.AsNew && end.VMUUID == a.open.VM:
		return rpc.Errorf(rpc.Invalid, "the agent has restored VM %s, asked for was another one beside it", end.VMUUID)
	case !a.spec.AsNew && end.VMUUID != a.open.VM:
		return rpc.Errorf(rpc.Invalid, "the agent has restored VM %s, asked for was %s", end.VMUUID, a.open.VM)
	}
	a.result = end
	return nil
}

// document collects the plan's documents; with the last one sending begins.
func (a *uploading) document(d *agentv1.Document) error {
	if a.plan == nil || uint64(len(a.docs)+len(d.GetData())) > a.want {
		return rpc.Errorf(rpc.Invalid, "the agent sends other documents than it planned")
	}
	a.docs = append(a.docs, d.GetData()...)
	if !d.GetLast() {
		return nil
	}
	if uint64(len(a.docs)) != a.want || a.attachment != nil {
		return rpc.Errorf(rpc.Invalid, "the agent sends other documents than it planned")
	}
	planned, err := planSum(a.plan, a.docs)
	if err != nil {
		return err
	}
	switch {
	case a.sender == nil:
		a.planned = planned
		if err := a.begin(planFrom(a.plan, a.docs)); err != nil {
			return err
		}
	case a.planned != planned: // what was produced is of another plan
		return rpc.Errorf(rpc.SessionGone, "the agent has begun anew, with another plan")
	}
	att, err := a.sender.Attach(a.attempt, a.offset)
	if err != nil {
		return err
	}
	a.attachment = att
	close(a.ready)
	return nil
}

// begin starts the producer, once for all attempts.
func (u *upload) begin(plan restorePlan) error {
	sizes, produce, err := u.onPlan(plan)
	if err != nil {
		return err
	}
	u.sizes, u.sender = sizes, transfer.NewSender(u.open.Window)
	u.making.Go(func() {
		if err := produce(u.sender); err != nil {
			u.sender.Abort(err)
			return
		}
		u.sender.Finish()
	})
	return nil
}

// planSum tells plans apart.
func planSum(m *agentv1.RestorePlan, docs []byte) (sum [sha256.Size]byte, err error) {
	text, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return sum, fmt.Errorf("compare plans: %w", err)
	}
	return sha256.Sum256(append(text, docs...)), nil
}

func planFrom(m *agentv1.RestorePlan, docs []byte) restorePlan {
	p := restorePlan{InPlace: m.GetInPlace(), Warnings: texts(m.GetWarnings()), SHA1: m.GetChecksum() == "sha1"}
	for _, part := range m.GetParts() {
		n := part.GetOvaBytes()
		p.Parts = append(p.Parts, planPart{SR: canonicalUUID(part.GetSrUuid()), SRName: clipText(part.GetSrName()), Disks: part.GetDisks(), OVA: docs[:n:n]})
		docs = docs[n:]
	}
	for _, d := range m.GetUntouched()[:min(len(m.GetUntouched()), maxTexts)] {
		p.Untouched = append(p.Untouched, DiskFrom(d))
	}
	return p
}

func endFrom(m *agentv1.RestoreResult) *restoreEnd {
	e := &restoreEnd{VMUUID: canonicalUUID(m.GetVmUuid()), VMName: clipText(m.GetVmName()), InPlace: m.GetInPlace(),
		Power: PowerName(m.GetPowerState()), NotRestored: texts(m.GetNotRestored()), Warnings: texts(m.GetWarnings())}
	for _, d := range m.GetKeptDisks()[:min(len(m.GetKeptDisks()), maxTexts)] {
		e.Kept = append(e.Kept, DiskFrom(d))
	}
	return e
}
