package xva

import (
	"bytes"
	"hash"
	"io"

	"github.com/cespare/xxhash/v2"
)

// ReaderOptions says how strictly the end of a file is taken.
type ReaderOptions struct {
	// RequireExactEnd asks for two zero blocks and then nothing, as XAPI
	// writes. Without it, up to MaxTail zero bytes may follow, as from tools
	// that pad tar files to whole records.
	RequireExactEnd bool
	// Past, if not nil, gives a Verifier of a plain archive the bytes that have
	// passed once more, by their offsets, when it is closed. Then it need not
	// keep a chunk until its checksum entry tells the algorithm: it takes the one
	// of the chunk before, for the first chunk both, and reads again where that
	// was wrong.
	Past io.ReaderAt
}

// MaxTail is the most zero bytes allowed after the two end blocks.
const MaxTail = 1 << 20

// Block is a chunk that was found good.
type Block struct {
	// Dir is the directory of its disk.
	Dir string
	// Number is the number in its name.
	Number int64
	// Offset is where it belongs on the disk, in bytes, by the importer's rule.
	Offset int64
	// Length is its length in bytes; 0 for one that kept a connection alive.
	Length int64
	// Checksum is the kind, and Sum the content, of its checksum entry.
	Checksum ChecksumKind
	Sum      string
	// Data is the chunk. It is valid until the next call to Next, and must not
	// be changed.
	Data []byte

	gap int64 // absent chunks before it
}

// event is why a scanner stopped before the end of its input.
type event int

const (
	evNone  event = iota
	evOVA         // ova.xml was read
	evBlock       // a chunk was found good
)

// step is what a scanner reads next.
type step int

const (
	inHeader step = iota
	inOVA
	inPax
	inChunk
	inSum
	inPadding
	inEnd  // the second zero block
	inTail // what follows it
)

// way is what is done with a chunk's bytes until its checksum entry comes.
type way int

const (
	kept   way = iota // in memory
	hashed            // by both algorithms
	bet               // by the algorithm of the chunk before
)

// owed is a chunk whose bytes were hashed by the wrong algorithm.
type owed struct {
	chunk Block
	start int64 // of its bytes in the archive
	want  string
	entry string // of the checksum, and where it begins
	at    int64
}

// scanner is the state machine behind the readers. Bytes go in by feed in any
// portions; it holds one chunk at most.
type scanner struct {
	o ReaderOptions
	// keep is the longest chunk held in memory; longer ones are only hashed,
	// by both algorithms since the one that counts is named after the data.
	keep int64

	step  step
	off   int64 // bytes taken so far
	entry int64 // offset of the current entry
	block [tarBlock]byte
	have  int // bytes in block
	left  int64
	done  step // what the padding belongs to
	pad   int64
	tail  int64

	name   string
	global bool // the pax entry is a global one
	pax    pax
	body   []byte // ova.xml or pax records

	cur     Block
	pending bool  // a chunk waits for its checksum entry
	way     way   // in which its bytes are taken
	start   int64 // of its bytes
	buf     []byte
	xxh     xxhash.Digest
	sha     hash.Hash
	kinds   [2]bool
	last    ChecksumKind // of the chunk before
	owed    *owed        // at most one: after it chunks are kept

	ova    *OVA
	raw    []byte
	place  *placer
	report Report
	err    error
}

func newScanner(o ReaderOptions, keep int64) *scanner {
	return &scanner{o: o, keep: keep}
}

// feed takes bytes and stops early where something is complete. After an error
// it only repeats it.
func (s *scanner) feed(p []byte) (n int, ev event, err error) {
	for n < len(p) && s.err == nil {
		took := s.take(p[n:])
		n += took
		s.off += int64(took)
		if ev := s.advance(); ev != evNone {
			return n, ev, nil
		}
	}
	return n, evNone, s.err
}

// take consumes what belongs to the current step.
func (s *scanner) take(p []byte) int {
	switch s.step {
	case inHeader, inEnd:
		n := copy(s.block[s.have:], p)
		s.have += n
		return n
	case inTail:
		s.tail += int64(len(p))
		switch {
		case s.o.RequireExactEnd:
			s.fail(bad(ErrTrailing, "%d bytes or more follow the two zero blocks", s.tail))
		case s.tail > MaxTail:
			s.fail(bad(ErrTrailing, "more than %d bytes follow the two zero blocks", MaxTail))
		case !allZero(p):
			s.fail(bad(ErrTrailing, "something other than zeros follows the two zero blocks"))
		}
		return len(p)
	}
	p = p[:min(int64(len(p)), s.left)]
	s.left -= int64(len(p))
	switch s.step {
	case inOVA, inPax:
		s.body = append(s.body, p...)
	case inSum:
		s.have += copy(s.block[s.have:], p)
	case inPadding:
		if !allZero(p) {
			s.fail(bad(ErrFormat, "padding of a tar entry is not zero"))
		}
	case inChunk:
		s.takeChunk(p)
	}
	return len(p)
}

// takeChunk takes bytes of a chunk. The hashes' Write never fails.
func (s *scanner) takeChunk(p []byte) {
	if s.way == kept {
		s.buf = append(s.buf, p...)
		return
	}
	if s.way == hashed || s.last == XXHash {
		_, _ = s.xxh.Write(p)
	}
	if s.way == hashed || s.last == SHA1 {
		_, _ = s.sha.Write(p)
	}
}

// advance moves on when the current step is complete.
func (s *scanner) advance() event {
	switch s.step {
	case inHeader:
		if s.have == tarBlock && s.err == nil {
			s.have = 0
			s.header()
		}
		return s.skipEmpty()
	case inEnd:
		if s.have == tarBlock && s.err == nil {
			s.end()
		}
		return evNone
	case inTail:
		return evNone
	}
	return s.skipEmpty()
}

// skipEmpty goes through steps that have no bytes left.
func (s *scanner) skipEmpty() event {
	for s.left == 0 && s.err == nil && s.step != inHeader && s.step != inEnd && s.step != inTail {
		if s.step != inPadding {
			s.done, s.step, s.left = s.step, inPadding, s.pad
			continue
		}
		s.step = inHeader
		if ev := s.entryDone(); ev != evNone {
			return ev
		}
	}
	return evNone
}

func allZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeros))
		if !bytes.Equal(p[:n], zeros[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}
