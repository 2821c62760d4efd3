package rpc_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/dpxen/dpxen/internal/rpc"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

func TestNegotiate(t *testing.T) {
	r := func(low, high uint32) *agentv1.ProtocolRange { return &agentv1.ProtocolRange{Min: low, Max: high} }
	for _, c := range []struct {
		own, peer *agentv1.ProtocolRange
		want      uint32
	}{
		{r(1, 1), r(1, 1), 1}, {r(1, 2), r(2, 3), 2}, {r(2, 3), r(1, 2), 2}, {r(1, 9), r(3, 4), 4},
		{r(1, 1), r(2, 3), 0}, {r(2, 3), r(1, 1), 0}, {r(1, 1), nil, 0}, {r(1, 1), r(0, 0), 0}, {r(1, 3), r(3, 2), 0},
	} {
		got, err := rpc.Negotiate(c.own, c.peer)
		if got != c.want || (err == nil) != (c.want > 0) {
			t.Errorf("%v with %v: got %d, %v", c.own, c.peer, got, err)
		}
		if err != nil && !errors.Is(err, rpc.UnsupportedVersion) {
			t.Errorf("%v with %v: got %v", c.own, c.peer, err)
		}
	}
	_, err := rpc.Negotiate(r(1, 1), r(2, 3))
	for _, want := range []string{"version 1,", "versions 2 to 3"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not name %q", err, want)
		}
	}
	if own := rpc.OwnProtocol(); own.GetMin() != rpc.ProtocolMin || own.GetMax() != rpc.ProtocolMax {
		t.Errorf("own range: %v", own)
	}
}
