// Package archive reads exports of XenServer (.xva) with nothing but the standard library's tar reader, to prove staged
// files independently of dpxen's own reader: a mistake that writer and verifier share would hide otherwise.
package archive

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha1" //nolint:gosec // the format's own checksum
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/xxh3"
)

const unit = 1 << 20 // bytes of a whole chunk

// Disk is a disk as the archive holds it.
type Disk struct {
	Device string // VBD.userdevice
	Size   int64  // VDI.virtual_size in bytes
	SHA256 string // of the whole contents in hexadecimal, absent chunks read as zeros
}

// File is what a file holds.
type File struct {
	VM     string // VM.uuid of the record in ova.xml; for a snapshot that of the snapshot
	Name   string // VM.name_label there
	Bytes  int64
	SHA256 string // of the file, hexadecimal
	XXH3   string // of the file: the hash of 128 bits, hexadecimal
	Disks  []Disk // as ova.xml lists them
	Memory bool   // of a suspended VM is in it, whole
}

// Read reads a file to its last byte and proves it: the tar ends with two zero blocks and nothing after them, each
// chunk's checksum is there and right, and every disk is complete.
func Read(name string) (*File, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	other := xxh3.New()
	whole := &counted{r: io.TeeReader(f, other), sum: sha256.New()}
	out, err := decompressed(whole)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path.Base(name), err)
	}
	out.Bytes, out.SHA256 = whole.n, hex.EncodeToString(whole.sum.Sum(nil))
	short := other.Sum128().Bytes()
	out.XXH3 = hex.EncodeToString(short[:])
	return out, nil
}

// decompressed reads an archive that may be compressed, to the last byte of both.
func decompressed(whole io.Reader) (*File, error) {
	in := bufio.NewReader(whole)
	magic, err := in.Peek(4)
	if err != nil {
		return nil, err
	}
	var plain io.Reader = in
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		if plain, err = gzip.NewReader(in); err != nil {
			return nil, err
		}
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		d, err := zstd.NewReader(in)
		if err != nil {
			return nil, err
		}
		defer d.Close()
		plain = d
	}
	out, err := read(plain)
	if err != nil {
		return nil, err
	}
	if n, err := io.Copy(io.Discard, in); n > 0 || err != nil {
		return nil, fmt.Errorf("%d bytes follow the compressed archive: %w", n, err)
	}
	return out, nil
}

// counted sees every byte that tar reads, and remembers whether the last 1024 were zeros.
type counted struct {
	r     io.Reader
	sum   hash.Hash
	n     int64
	zeros int64 // at the end of what was read
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	c.sum.Write(p[:n])
	for _, b := range p[:n] {
		if b == 0 {
			c.zeros++
		} else {
			c.zeros = 0
		}
	}
	return n, err
}

// disk is one that is being read.
type disk struct {
	Disk
	sum  hash.Hash
	pos  int64
	last int64
}

func read(r io.Reader) (*File, error) {
	in := &counted{r: r, sum: sha256.New()} // of the archive without compression; only its zeros count
	t := tar.NewReader(in)
	var out *File
	var disks map[string]*disk
	var order []*disk
	var pending []byte // the chunk whose checksum is due
	var pendingName string
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(io.LimitReader(t, 64<<20))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", h.Name, err)
		}
		switch dir, base := path.Split(h.Name); {
		case h.Name == "ova.xml":
			if out, order, err = records(data); err != nil {
				return nil, err
			}
			disks = map[string]*disk{}
			for _, d := range order {
				disks[d.Device] = d // by directory, see records
			}
		case out == nil:
			return nil, fmt.Errorf("%s comes before ova.xml", h.Name)
		case strings.HasSuffix(base, ".checksum") || strings.HasSuffix(base, ".xxhash"):
			if err := check(h.Name, string(data), pendingName, pending); err != nil {
				return nil, err
			}
			pendingName, pending = "", nil
		default:
			if pendingName != "" {
				return nil, fmt.Errorf("%s has no checksum", pendingName)
			}
			d := disks[strings.TrimSuffix(dir, "/")]
			if d == nil {
				return nil, fmt.Errorf("%s is of no disk", h.Name)
			}
			if err := d.chunk(base, data); err != nil {
				return nil, fmt.Errorf("%s: %w", h.Name, err)
			}
			pendingName, pending = h.Name, data
		}
	}
	return finish(in, out, order, pendingName)
}

// finish proves the end of the archive and of its disks.
func finish(in *counted, out *File, order []*disk, pending string) (*File, error) {
	if out == nil {
		return nil, errors.New("there is no ova.xml")
	}
	if pending != "" {
		return nil, fmt.Errorf("%s has no checksum", pending)
	}
	if in.zeros < 1024 {
		return nil, errors.New("the archive does not end with two zero blocks")
	}
	end := in.n
	rest, err := io.ReadAll(in)
	if err != nil {
		return nil, err
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("%d bytes follow the archive's end at %d", len(rest), end)
	}
	for _, d := range order {
		if d.pos != d.Size {
			return nil, fmt.Errorf("disk %s has data up to %d of %d bytes", d.Device, d.pos, d.Size)
		}
		d.SHA256 = hex.EncodeToString(d.sum.Sum(nil))
	}
	for i, d := range order[:len(out.Disks)] { // the memory image is none of them
		d.Device = out.Disks[i].Device
		out.Disks[i] = d.Disk
	}
	return out, nil
}

// chunk adds a chunk by the importer's rule: n - last - 1 whole units of zeros lie before it.
func (d *disk) chunk(base string, data []byte) error {
	n, err := strconv.ParseInt(base, 10, 64)
	if err != nil || n <= d.last {
		return fmt.Errorf("no chunk can have this number after %d", d.last)
	}
	gap := (n - d.last - 1) * unit
	if d.pos+gap+int64(len(data)) > d.Size {
		return fmt.Errorf("it reaches beyond the disk's %d bytes", d.Size)
	}
	if _, err := io.CopyN(d.sum, zeros{}, gap); err != nil {
		return err
	}
	d.sum.Write(data)
	d.pos += gap + int64(len(data))
	d.last = n
	return nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// check compares a chunk with the checksum that follows it.
func check(name, want, chunk string, data []byte) error {
	stem := strings.TrimSuffix(strings.TrimSuffix(name, ".checksum"), ".xxhash")
	if stem != chunk {
		return fmt.Errorf("%s follows %q", name, chunk)
	}
	var got string
	if strings.HasSuffix(name, ".xxhash") {
		got = fmt.Sprintf("%016X", xxhash.Sum64(data))
	} else {
		sum := sha1.Sum(data) //nolint:gosec // the format's own checksum
		got = hex.EncodeToString(sum[:])
	}
	if got != want {
		return fmt.Errorf("%s says %s, the chunk has %s", name, want, got)
	}
	return nil
}
