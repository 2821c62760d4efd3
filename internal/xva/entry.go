package xva

import (
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

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
	s.begin()
}

// begin makes ready for the bytes of a chunk.
func (s *scanner) begin() {
	s.buf = s.buf[:0]
	switch {
	case s.cur.Length > s.keep, s.o.Past != nil && s.report.Blocks == 0: // before the first chunk there is none to go by
		s.way = hashed
	case s.o.Past != nil && s.owed == nil:
		s.way, s.start = bet, s.off
	default:
		s.way = kept
		if s.cur.Length <= BlockSize { // what a header says is not believed beyond that
			s.buf = slices.Grow(s.buf, int(s.cur.Length))
		}
		return
	}
	s.xxh.Reset()
	if s.sha == nil {
		s.sha = sha1.New()
	}
	s.sha.Reset()
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
	if s.way == bet && s.cur.Checksum != s.last {
		s.owed = &owed{chunk: s.cur, start: s.start, want: want, entry: s.name, at: s.entry}
	} else if got := s.sum(); got != want {
		s.fail(wrongSum(s.cur, got, want))
		return evNone
	}
	s.last = s.cur.Checksum
	s.cur.Sum, s.cur.Data = want, s.buf
	s.pending = false
	s.kinds[s.cur.Checksum] = true
	s.report.Blocks++
	if s.cur.Length == 0 {
		s.report.ZeroLength++
	}
	return evBlock
}

// sum is the checksum of the chunk that has passed.
func (s *scanner) sum() string {
	switch {
	case s.way == kept:
		return s.cur.Checksum.Sum(s.buf)
	case s.cur.Checksum == SHA1:
		return hex.EncodeToString(s.sha.Sum(nil))
	}
	return formatXXH64(s.xxh.Sum64())
}

func wrongSum(chunk Block, got, want string) *FormatError {
	return &FormatError{Disk: chunk.Dir, Err: ErrChecksum,
		Msg: fmt.Sprintf("chunk %d of disk %s is %s, its entry says %.40q", chunk.Number, chunk.Dir, got, want)}
}

// settle reads the chunk again whose checksum is not yet proven.
func (s *scanner) settle() error {
	o := s.owed
	if o == nil {
		return nil
	}
	data := make([]byte, o.chunk.Length) // no more than s.keep
	if _, err := io.ReadFull(io.NewSectionReader(s.o.Past, o.start, o.chunk.Length), data); err != nil {
		return fmt.Errorf("read chunk %d of disk %s again: %w", o.chunk.Number, o.chunk.Dir, err)
	}
	if got := o.chunk.Checksum.Sum(data); got != o.want {
		err := wrongSum(o.chunk, got, o.want)
		err.Entry, err.Offset = o.entry, o.at
		return err
	}
	s.owed = nil
	return nil
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
