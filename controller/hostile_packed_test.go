package controller

import (
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/dpxen/dpxen/internal/rpc"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

func packedOf(data []byte) *agentv1.BackupResponse {
	return &agentv1.BackupResponse{Kind: &agentv1.BackupResponse_Packed{Packed: &agentv1.PackedFrame{Zstd: data}}}
}

// packing makes the controller of a site ask for packed frames.
func packing(s *hostileSite) *hostileSite {
	s.cfg.WireCompression = WireZstd
	return s
}

// TestAgentThatPacksNothing is asked for packed frames and knows nothing of it, as agents of the version before.
func TestAgentThatPacksNothing(t *testing.T) {
	r, code := packing(newHostileSite(t, honest(t), nil)).backup(AllOnline)
	if code != CodeOK || r.Counts().Good != 1 {
		t.Errorf("code %d: %+v", code, r.VMs)
	}
}

// TestPackedFrames: frames come packed, plain, and packed again; what is wrong with one of them is found.
func TestPackedFrames(t *testing.T) {
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	pack := func(s *scripted, change func(at int, packed []byte) []byte) {
		plain := s.data
		s.data = nil
		for at := 0; at < len(plain); at += 300_000 {
			data := plain[at:min(at+300_000, len(plain))]
			if at == 300_000 {
				s.packed = append(s.packed, frameOf(data))
				continue
			}
			s.packed = append(s.packed, packedOf(change(at, enc.EncodeAll(data, nil))))
		}
	}
	same := func(_ int, packed []byte) []byte { return packed }
	for name, tt := range map[string]struct {
		lie   func(*scripted)
		asked bool
		says  string
	}{
		"good":      {func(s *scripted) { pack(s, same) }, true, ""},
		"not asked": {func(s *scripted) { pack(s, same) }, false, "not asked for"},
		"a bomb": {func(s *scripted) {
			pack(s, func(int, []byte) []byte { return enc.EncodeAll(make([]byte, 256<<20), nil) })
		}, true, "packed frame"},
		"one byte too many": {func(s *scripted) {
			pack(s, func(int, []byte) []byte { return enc.EncodeAll(make([]byte, rpc.MaxFrame+1), nil) })
		}, true, "packed frame"},
		"garbage": {func(s *scripted) { pack(s, func(int, []byte) []byte { return []byte("garbage") }) }, true, "packed frame"},
		"other bytes": {func(s *scripted) {
			pack(s, func(at int, packed []byte) []byte {
				if at == 600_000 {
					return enc.EncodeAll(make([]byte, 300_000), nil)
				}
				return packed
			})
		}, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			script := honestBackup(t)
			tt.lie(script)
			a := honest(t)
			a["Backup"] = script.serve
			s := newHostileSite(t, a, nil)
			if tt.asked {
				packing(s)
			}
			ends(t, time.Minute, func() {
				r, code := s.backup(AllOnline)
				if good := name == "good"; (code == CodeOK) != good || !strings.Contains(r.VMs[0].Error, tt.says) {
					t.Errorf("code %d: %.300q, want something with %q", code, r.VMs[0].Error, tt.says)
				}
			})
		})
	}
}
