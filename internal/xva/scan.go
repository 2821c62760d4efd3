package xva

import (
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strings"

	"github.com/cespare/xxhash/v2"
)

// ReaderOptions says how strictly the end of a file is taken.
type ReaderOptions struct {
	// RequireExactEnd asks for two zero blocks and then nothing, as XAPI
	// writes. Without it, up to MaxTail zero bytes may follow, as from tools
	// that pad tar files to whole records.
	RequireExactEnd bool
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
	pending bool // a chunk waits for its checksum entry
	buf     []byte
	xxh     *xxhash.Digest
	sha     hash.Hash
	kinds   [2]bool

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
		if s.cur.Length <= s.keep {
			s.buf = append(s.buf, p...)
			break
		}
		if _, err := s.xxh.Write(p); err != nil {
			s.err = fmt.Errorf("hashing: %w", err)
		}
		if _, err := s.sha.Write(p); err != nil {
			s.err = fmt.Errorf("hashing: %w", err)
		}
	}
	return len(p)
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

// header takes a complete header block.
func (s *scanner) header() {
	s.entry = s.off - tarBlock
	if s.block == [tarBlock]byte{} {
		s.name = ""
		s.endBegins()
		return
	}
	h, err := parseHeader(&s.block)
	if err != nil {
		s.fail(s.explain(err, s.block[:]))
		return
	}
	if h.kind == tarPax || h.kind == tarPaxGlobal {
		s.paxHeader(h)
		return
	}
	if s.pax.set {
		if s.pax.path != "" {
			h.name = s.pax.path
		}
		if s.pax.size >= 0 {
			h.size = s.pax.size
		}
		s.pax = pax{}
	}
	s.name = h.name
	s.left, s.pad = h.size, int64(padding(h.size))
	switch {
	case s.ova == nil:
		s.ovaHeader(h)
	case s.pending:
		s.sumHeader(h)
	default:
		s.chunkHeader(h)
	}
}

func (s *scanner) paxHeader(h tarHeader) {
	s.name = h.name
	switch {
	case h.size > maxPax:
		s.fail(bad(ErrFormat, "pax header of %d bytes", h.size))
		return
	case h.kind == tarPax && s.pax.set:
		s.fail(bad(ErrFormat, "two pax headers for one entry"))
		return
	}
	s.step, s.global, s.body = inPax, h.kind == tarPaxGlobal, nil
	s.left, s.pad = h.size, int64(padding(h.size))
}

func (s *scanner) ovaHeader(h tarHeader) {
	switch {
	case h.name == ovaName && h.size <= MaxOVA:
		s.step, s.body = inOVA, nil
	case h.name == ovaName:
		s.fail(bad(ErrFormat, "ova.xml of %d bytes is longer than %d", h.size, MaxOVA))
	case strings.HasPrefix(h.name, "vdi/"):
		s.fail(bad(ErrUnsupported, "export of a single disk, not of a VM"))
	default:
		s.fail(bad(ErrFormat, "first entry is not ova.xml"))
	}
}

func (s *scanner) chunkHeader(h tarHeader) {
	dir, number, ok := blockNameParts(h.name)
	switch {
	case !ok && (strings.HasSuffix(h.name, SHA1.Suffix()) || strings.HasSuffix(h.name, XXHash.Suffix())):
		s.fail(bad(ErrFormat, "checksum entry that follows no chunk of its name"))
		return
	case !ok:
		s.fail(bad(ErrFormat, "entry that is no chunk of a disk"))
		return
	case h.size > MaxBlock:
		s.fail(bad(ErrFormat, "chunk of %d bytes is longer than %d", h.size, MaxBlock))
		return
	}
	offset, gap, err := s.place.place(dir, number, h.size)
	if err != nil {
		s.fail(err)
		return
	}
	s.cur = Block{Dir: dir, Number: number, Offset: offset, Length: h.size, gap: gap}
	s.pending, s.step = true, inChunk
	s.buf = s.buf[:0]
	if h.size > s.keep {
		if s.xxh == nil {
			s.xxh, s.sha = xxhash.New(), sha1.New()
		}
		s.xxh.Reset()
		s.sha.Reset()
	}
}

func (s *scanner) sumHeader(h tarHeader) {
	chunk := blockName(s.cur.Dir, s.cur.Number)
	switch h.name {
	case chunk + XXHash.Suffix():
		s.cur.Checksum = XXHash
	case chunk + SHA1.Suffix():
		s.cur.Checksum = SHA1
	default:
		s.fail(bad(ErrFormat, "chunk %s is not followed by its checksum", chunk))
		return
	}
	if h.size != int64(s.cur.Checksum.Len()) {
		s.fail(bad(ErrFormat, "%s checksum of %d bytes", s.cur.Checksum, h.size))
		return
	}
	s.step, s.have = inSum, 0
}

// entryDone acts on an entry that has passed with its padding.
func (s *scanner) entryDone() event {
	switch s.done {
	case inPax:
		p, err := parsePax(s.body, s.global)
		s.body = nil
		if err != nil {
			s.fail(err)
		} else if !s.global {
			s.pax = p
		}
	case inOVA:
		return s.ovaDone()
	case inSum:
		return s.sumDone()
	}
	return evNone
}

func (s *scanner) ovaDone() event {
	s.raw, s.body = s.body, nil
	ova, err := ParseOVA(s.raw)
	var disks []Disk
	if err == nil {
		disks, err = ova.Disks()
	}
	if err != nil {
		s.failWith(err)
		return evNone
	}
	s.ova, s.place = ova, newPlacer(disks)
	return evOVA
}

func (s *scanner) sumDone() event {
	want := string(s.block[:s.have])
	s.have = 0
	var got string
	switch {
	case s.cur.Length <= s.keep:
		got = s.cur.Checksum.Sum(s.buf)
	case s.cur.Checksum == SHA1:
		got = hex.EncodeToString(s.sha.Sum(nil))
	default:
		got = formatXXH64(s.xxh.Sum64())
	}
	if got != want {
		s.fail(&FormatError{Disk: s.cur.Dir, Err: ErrChecksum,
			Msg: fmt.Sprintf("chunk %d of disk %s is %s, its entry says %.40q", s.cur.Number, s.cur.Dir, got, want)})
		return evNone
	}
	s.cur.Sum, s.cur.Data = want, s.buf
	s.pending = false
	s.kinds[s.cur.Checksum] = true
	s.report.Blocks++
	if s.cur.Length == 0 {
		s.report.ZeroLength++
	}
	return evBlock
}

// endBegins takes the first zero block.
func (s *scanner) endBegins() {
	switch {
	case s.ova == nil:
		s.fail(bad(ErrFormat, "archive without ova.xml"))
	case s.pending:
		s.fail(bad(ErrFormat, "chunk %s is not followed by its checksum", blockName(s.cur.Dir, s.cur.Number)))
	case s.pax.set:
		s.fail(bad(ErrFormat, "pax header without an entry"))
	default:
		if err := s.place.finish(); err != nil {
			s.fail(err)
			return
		}
		s.step = inEnd
	}
}

func (s *scanner) end() {
	if s.block != [tarBlock]byte{} {
		s.fail(s.explain(bad(ErrFormat, "one zero block alone in the archive"), s.block[:]))
		return
	}
	s.step, s.have = inTail, 0
}

// finish is told that no bytes will come any more.
func (s *scanner) finish() error {
	if s.err != nil {
		return s.err
	}
	if s.step != inTail {
		what := bad(ErrTruncated, "no end of archive")
		if s.ova != nil {
			if missing := s.place.finish(); missing != nil {
				what.Disk, what.Msg = missing.Disk, missing.Msg
			}
		}
		s.fail(s.explain(what, s.block[:s.have]))
	}
	return s.err
}

// result gives the report of an archive that was found good.
func (s *scanner) result(c Compression) *Report {
	r := s.report
	r.Compression, r.ArchiveBytes = c, s.off
	r.OVA, r.RawOVA, r.Disks, r.unit = s.ova, s.raw, s.place.disks, s.place.unit
	switch {
	case s.kinds[XXHash] && s.kinds[SHA1]:
		r.Checksum = "mixed"
	case s.kinds[XXHash]:
		r.Checksum = XXHash.String()
	case s.kinds[SHA1]:
		r.Checksum = SHA1.String()
	}
	return &r
}

// explain gives a better reason where the bytes tell one: a host whose export
// fails after its answer has begun writes a second answer into the data.
func (s *scanner) explain(err *FormatError, b []byte) *FormatError {
	head := string(b)
	switch {
	case strings.HasPrefix(head, "HTTP/1."):
		line, _, _ := strings.Cut(strings.ToValidUTF8(head, ""), "\r")
		return bad(ErrTruncated, "the host broke off the export and answered %.80q", line)
	case s.entry == 0 && strings.Contains(head, "<appliance"):
		return bad(ErrUnsupported, "XVA version 0.1 (appliance), the format of XenServer before 4.1")
	}
	return err
}

// fail notes a fault and where it is.
func (s *scanner) fail(err *FormatError) {
	if err.Entry == "" {
		err.Entry = s.name
	}
	if err.Disk == "" && s.pending {
		err.Disk = s.cur.Dir
	}
	err.Offset = s.entry
	s.err = err
}

func (s *scanner) failWith(err error) {
	var fe *FormatError
	if errors.As(err, &fe) {
		s.fail(fe)
		return
	}
	s.err = err
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
