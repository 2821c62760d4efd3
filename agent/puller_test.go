package agent

import (
	"bytes"
	"context"
	"errors"
	"hash/crc32"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/dpxen/dpxen/internal/transfer"
	"github.com/dpxen/dpxen/internal/xensim"
	"github.com/dpxen/dpxen/internal/xva"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// puller is a controller's side of one backup.
type puller struct {
	t       *testing.T
	agent   *runningAgent
	opening *agentv1.Opening
	spec    *agentv1.BackupSpec

	data    bytes.Buffer
	opened  *agentv1.Opened
	facts   *agentv1.BackupFacts
	summary *agentv1.BackupSummary
	phases  []agentv1.Phase
	// onFrame, when set, is called after each frame; an error breaks the stream off.
	onFrame func() error
	// noAck keeps acknowledgements back.
	noAck bool
}

func online() *agentv1.BackupSpec {
	return &agentv1.BackupSpec{Kind: agentv1.BackupKind_BACKUP_KIND_ONLINE}
}
func offline() *agentv1.BackupSpec {
	return &agentv1.BackupSpec{Kind: agentv1.BackupKind_BACKUP_KIND_OFFLINE}
}

func newPuller(t *testing.T, a *runningAgent, vm string, spec *agentv1.BackupSpec) *puller {
	return &puller{t: t, agent: a, spec: spec, opening: &agentv1.Opening{Key: uuid.NewString(), Attempt: 1,
		SessionId: uuid.NewString(), Nonce: uuid.NewString(), VmUuid: vm}}
}

var errBreak = errors.New("the test broke the stream off")

// pull runs one stream to its end.
func (p *puller) pull() error {
	ctx, cancel := context.WithTimeout(p.t.Context(), 2*time.Minute)
	defer cancel()
	st, err := p.agent.client.Backup(ctx)
	if err != nil {
		return err
	}
	p.opening.Offset = uint64(p.data.Len())
	err = st.SendMsg(&agentv1.BackupRequest{Kind: &agentv1.BackupRequest_Open{
		Open: &agentv1.BackupOpen{Opening: p.opening, Spec: p.spec}}})
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for {
		e := &transfer.BackupEvent{}
		if err := st.RecvMsg(e); errors.Is(err, io.EOF) {
			if p.summary == nil {
				p.t.Error("the stream ended without a summary")
			}
			return nil
		} else if err != nil {
			return err
		}
		if err := p.take(e); err != nil {
			return err
		}
		if e.Frame != nil && !p.noAck {
			ack := &agentv1.BackupRequest{Kind: &agentv1.BackupRequest_Ack{Ack: &agentv1.Ack{Offset: uint64(p.data.Len())}}}
			if err := st.Send(ack); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
		}
	}
}

func (p *puller) take(e *transfer.BackupEvent) error {
	if e.Frame != nil {
		if p.facts == nil {
			p.t.Error("a frame came before the facts")
		}
		for _, b := range e.Frame {
			p.data.Write(b.ReadOnlyData())
		}
		e.Frame.Free()
		if p.onFrame != nil {
			return p.onFrame()
		}
		return nil
	}
	switch m := e.Msg.GetKind().(type) {
	case *agentv1.BackupResponse_Opened:
		p.opened = m.Opened
	case *agentv1.BackupResponse_Facts:
		p.facts = m.Facts
	case *agentv1.BackupResponse_Progress:
		if n := len(p.phases); n == 0 || p.phases[n-1] != m.Progress.GetPhase() {
			p.phases = append(p.phases, m.Progress.GetPhase())
		}
	case *agentv1.BackupResponse_Summary:
		p.summary = m.Summary
	}
	return nil
}

// wantArchive checks that what came is a complete archive of these disks, as the summary says.
func (p *puller) wantArchive(disks []xensim.DiskState) *xva.Report {
	p.t.Helper()
	if p.summary == nil {
		p.t.Fatal("no summary")
	}
	sum := crc32.Checksum(p.data.Bytes(), crc32.MakeTable(crc32.Castagnoli))
	if p.summary.GetBytes() != uint64(p.data.Len()) || p.summary.GetCrc32C() != sum {
		p.t.Errorf("summary: got %d bytes, CRC %x; have %d, %x", p.summary.GetBytes(), p.summary.GetCrc32C(), p.data.Len(), sum)
	}
	rep, err := xva.Verify(bytes.NewReader(p.data.Bytes()), xva.ReaderOptions{RequireExactEnd: true})
	if err != nil {
		p.t.Fatalf("archive: %v", err)
	}
	var want []string
	for _, d := range disks {
		if d.Type == "Disk" {
			want = append(want, d.UserDevice)
		}
	}
	var got []string
	for _, d := range p.facts.GetVm().GetDisks() {
		got = append(got, d.GetUserdevice())
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) || len(rep.Disks) != len(want) {
		p.t.Errorf("disks: got %v in the facts and %d in the archive, want %v", got, len(rep.Disks), want)
	}
	return rep
}

func wantGood(t *testing.T, out *agentv1.Outcome) {
	t.Helper()
	if !out.GetSucceeded() || !out.GetPowerRestored() || len(out.GetLeftovers()) > 0 || out.GetError() != "" {
		t.Errorf("outcome: got %v, want success", out)
	}
}
