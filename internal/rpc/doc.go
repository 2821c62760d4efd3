// Package rpc is how dpxen speaks gRPC: servers and connections with the options of DESIGN section 3, the identity of the
// peer, errors that keep their reason across the wire, and a codec that moves a transfer's frames without copying them.
//
// # Ownership of buffers
//
// A frame's bytes are counted buffers (mem.Buffer). Marshal takes references of its own, which gRPC frees when they are sent;
// the sender still owns what it passed to SendMsg. Unmarshal takes references of its own on the buffers that hold payload,
// since gRPC frees the message's as soon as it has returned, and passes them on to the message: whoever received it frees it,
// once, or gives it to who does. Of other messages nothing is kept. What gRPC has queued when a connection or a call ends it
// drops without freeing: such buffers fall to the garbage collector. docs/wire.md follows a buffer through all its owners.
package rpc
