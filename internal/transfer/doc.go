// Package transfer is the chunk protocol that agent and controller share: one logical stream of bytes that survives cuts
// of the network while both processes live (DESIGN section 3).
//
// The producing end is a [Sender]: a ring of reference-counted buffers between a reader and the stream that is attached
// at the moment. The consuming end is a [Receiver]: an offset, a checksum and a writer. A cut costs at most the window:
// what was produced and not acknowledged is sent again from the ring. Offsets are implied, so both ends count; CRC-32C
// (RFC 3720 appendix B.4) runs over the logical stream, never over bytes sent again.
//
// Attempts count the streams of one transfer from 1. A higher attempt evicts a lower one on both ends, and every write is
// made under the lock that holds the attempt, so a stream that was given up can do no harm however late it wakes.
//
// [Run] and [Pump] hold what every stream handler needs; [Lease] and [Registry] are the agent's, [Redial] the
// controller's.
package transfer
