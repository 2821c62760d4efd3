// Package rpc is how dpxen speaks gRPC: servers and connections with the options of DESIGN section 3, the identity of the
// peer, errors that keep their reason across the wire, and a codec that moves a transfer's frames without copying them.
package rpc
