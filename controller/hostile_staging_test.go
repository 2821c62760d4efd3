package controller

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/dpxen/dpxen/internal/xva"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// mixedXVA is an export of that VM whose second chunk, of 1 MiB, has another kind of checksum than the first.
func mixedXVA(t *testing.T) []byte {
	t.Helper()
	var kinds [2]bytes.Buffer
	data := make([]byte, 2<<20)
	for i, kind := range []xva.ChecksumKind{xva.XXHash, xva.SHA1} {
		w := xva.NewWriter(&kinds[i], xva.WriterOptions{Checksum: kind})
		for _, err := range []error{
			w.WriteOVA(testOVA(testUUID(300), "web", len(data))),
			w.WriteBlock("Ref:2", 0, data[:1<<20]),
			w.WriteBlock("Ref:2", 1, data[1<<20:]),
			w.Close(),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	const tail = 4 * 512 // the last checksum's entry and the end of the archive
	n := kinds[0].Len() - tail
	return slices.Concat(kinds[0].Bytes()[:n], kinds[1].Bytes()[n:])
}

// TestStagingThatCannotBeReadAgain: a chunk is proven by reading it once more, and the unfinished file has lost it. That is
// the folder's fault and not the export's.
func TestStagingThatCannotBeReadAgain(t *testing.T) {
	script := honestBackup(t)
	script.data = mixedXVA(t)
	script.cut(len(script.data))
	summary := script.summary
	script.summary = nil
	a := honest(t)
	s := newHostileSite(t, a, nil)
	a["Backup"] = func(st grpc.ServerStream) error {
		if err := script.serve(st); err != nil {
			return err
		}
		for written := uint64(0); written < summary.GetBytes(); {
			var m agentv1.BackupRequest
			if err := st.RecvMsg(&m); err != nil {
				return err
			}
			written = m.GetAck().GetOffset()
		}
		files, err := filepath.Glob(filepath.Join(s.cfg.Staging, ".dpxen", "partial", "*"))
		if err != nil || len(files) != 1 {
			t.Errorf("unfinished files %v, %v", files, err)
		}
		for _, f := range files {
			if err := os.Truncate(f, 1<<20); err != nil {
				t.Error(err)
			}
		}
		return st.SendMsg(summaryOf(summary))
	}
	ends(t, time.Minute, func() {
		r, code := s.backup(AllOnline)
		vm := r.VMs[0]
		if code == CodeOK || vm.Reason != ReasonStaging || !strings.Contains(vm.Error, "the staging folder cannot be read") {
			t.Errorf("code %d, %s: %.300q", code, vm.Reason, vm.Error)
		}
	})
}
