package rpc

import (
	"fmt"

	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// The protocol versions that this program speaks. Version N works with N-1.
const (
	ProtocolMin uint32 = 1
	ProtocolMax uint32 = 1
)

// OwnProtocol returns the range of versions that this program speaks.
func OwnProtocol() *agentv1.ProtocolRange {
	return &agentv1.ProtocolRange{Min: ProtocolMin, Max: ProtocolMax}
}

// Negotiate returns the newest version that both ranges hold. Without one, or when a range is missing or malformed, the
// error is an *Error with UnsupportedVersion that names both.
func Negotiate(own, peer *agentv1.ProtocolRange) (uint32, error) {
	low, high := max(own.GetMin(), peer.GetMin()), min(own.GetMax(), peer.GetMax())
	if low == 0 || low > high {
		return 0, Errorf(UnsupportedVersion, "no common protocol version: this side speaks %s, the other %s; update the older one",
			rangeText(own), rangeText(peer))
	}
	return high, nil
}

func rangeText(r *agentv1.ProtocolRange) string {
	switch {
	case r.GetMin() == 0 || r.GetMin() > r.GetMax():
		return "no known version"
	case r.GetMin() == r.GetMax():
		return fmt.Sprintf("version %d", r.GetMin())
	}
	return fmt.Sprintf("versions %d to %d", r.GetMin(), r.GetMax())
}
