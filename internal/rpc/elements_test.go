package rpc_test

import (
	"errors"
	"strings"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/transfer"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

func TestTooManyElements(t *testing.T) {
	empties := func(tag byte, n int) []byte { return []byte(strings.Repeat(string([]byte{tag, 0}), n)) }
	inside := func(tag byte, content []byte) []byte {
		return append(protowire.AppendVarint([]byte{tag}, uint64(len(content))), content...)
	}
	const vms, disks, facts, names = 0x0a, 0x3a, 0x1a, 0x32
	for name, tt := range map[string]struct {
		into any
		data []byte
		want error
	}{
		"as many as may be":      {&agentv1.ListVMsResponse{}, empties(vms, 1<<16), nil},
		"one more":               {&agentv1.ListVMsResponse{}, empties(vms, 1<<16+1), rpc.ErrElements},
		"deeper down":            {&agentv1.ListVMsResponse{}, inside(vms, empties(disks, 1_000_000)), rpc.ErrElements},
		"in an event":            {&transfer.BackupEvent{}, inside(facts, inside(vms, empties(disks, 1_000_000))), rpc.ErrElements},
		"texts are no messages":  {&agentv1.ListVMsResponse{}, inside(vms, empties(names, 500_000)), nil},
		"and unknown fields not": {&agentv1.ListVMsResponse{}, empties(0x7a, 500_000), nil},
	} {
		t.Run(name, func(t *testing.T) {
			if err := rpc.Codec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(tt.data)}, tt.into); !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
		})
	}
	if err := rpc.Codec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(append(empties(vms, 1<<16), 0xff))}, &agentv1.ListVMsResponse{}); err == nil {
		t.Error("what cannot be parsed is taken")
	}
}
