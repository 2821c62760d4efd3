package controller

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/dpxen/dpxen/internal/staging"
	"github.com/dpxen/dpxen/internal/xva"
)

// Problem is what is wrong with a file.
type Problem string

// The problems. All but missing and unreadable are faults of the file itself.
const (
	ProblemMissing       Problem = "missing"       // there is no such file
	ProblemUnreadable    Problem = "unreadable"    // it cannot be read, or is no regular file
	ProblemManifest      Problem = "manifest"      // its manifest is damaged, or of a version that this dpxen does not read
	ProblemContradiction Problem = "contradiction" // name, manifest and contents do not agree
	ProblemDigest        Problem = "digest"        // its bytes are not those that were received
	ProblemTruncated     Problem = "truncated"
	ProblemChecksum      Problem = "checksum" // a block, or the compressed stream, differs from its checksum
	ProblemTrailing      Problem = "trailing" // something follows the end of the archive
	ProblemMissingData   Problem = "missing data"
	ProblemUnsupported   Problem = "unsupported" // a kind of XVA that is refused by name
	ProblemFormat        Problem = "format"      // not an XVA file
)

// VerifyResult is what reading a file again came to. Lengths are in bytes.
type VerifyResult struct {
	File     string  `json:"file"` // its path
	OK       bool    `json:"ok"`
	Problem  Problem `json:"problem,omitempty"`
	Error    string  `json:"error,omitempty"`
	Manifest bool    `json:"manifest"` // it was held to its manifest; else to its own contents only

	VM        string    `json:"vm,omitempty"`   // the true name
	UUID      string    `json:"uuid,omitempty"` // the VM's own where it is known, else as in ova.xml
	Kind      Kind      `json:"kind,omitempty"` // where name or manifest tells it
	Taken     time.Time `json:"taken,omitzero"`
	DPSession string    `json:"dp_session,omitempty"`
	Bytes     int64     `json:"bytes"`
	Digest    string    `json:"digest,omitempty"` // of the whole file, hexadecimal
	// DigestAlgorithm is the manifest's, and the default one where there is none.
	DigestAlgorithm string `json:"digest_algorithm,omitempty"`

	Compression string         `json:"compression,omitempty"`
	Checksum    string         `json:"checksum,omitempty"` // of the blocks: xxhash, sha1, mixed
	Blocks      int64          `json:"blocks"`
	Disks       []VerifiedDisk `json:"disks,omitempty"`
	Seconds     float64        `json:"seconds"`

	err error
}

// VerifiedDisk is a disk that is wholly in a file.
type VerifiedDisk struct {
	Dir        string `json:"dir"`
	UserDevice string `json:"userdevice,omitempty"`
	Name       string `json:"name,omitempty"`
	Size       int64  `json:"virtual_size"`
	Data       int64  `json:"data_bytes"`
	Blocks     int64  `json:"blocks"`
}

// Err returns nil for a good file, a UsageError for one that is not there, an IntegrityError for a fault of the file (also
// where only its manifest is there), and the system's error for one that cannot be read.
func (r *VerifyResult) Err() error {
	if r.OK {
		return nil
	}
	f := Failure{What: r.File, Err: r.err}
	switch {
	case r.Problem == ProblemMissing && !r.Manifest:
		return &UsageError{f}
	case r.Problem == ProblemUnreadable:
		return f
	}
	return &IntegrityError{f}
}

// fail notes what is wrong; the kind is told from the error where it is empty.
func (r *VerifyResult) fail(p Problem, err error) {
	if p == "" {
		p = problemOf(err)
	}
	r.OK, r.Problem, r.err, r.Error = false, p, err, err.Error()
}

func problemOf(err error) Problem {
	for _, k := range []struct {
		is error
		p  Problem
	}{
		{fs.ErrNotExist, ProblemMissing},
		{staging.ErrManifestDamaged, ProblemManifest}, {staging.ErrManifestFormat, ProblemManifest},
		{staging.ErrContradiction, ProblemContradiction}, {staging.ErrMismatch, ProblemDigest},
		{xva.ErrTruncated, ProblemTruncated}, {xva.ErrChecksum, ProblemChecksum}, {xva.ErrTrailing, ProblemTrailing},
		{xva.ErrMissingData, ProblemMissingData}, {xva.ErrUnsupported, ProblemUnsupported}, {xva.ErrFormat, ProblemFormat},
	} {
		if errors.Is(err, k.is) {
			return k.p
		}
	}
	return ProblemUnreadable
}

// VerifyFile reads a file again, every byte of it: tar structure, each block's own checksum, and that every disk is whole.
// A file with a manifest beside it is also held to the manifest: length, digest, and that name, manifest and ova.xml are of
// the same VM. Any file name will do; the name of a manifest stands for its export. When ctx ends the result is unreadable
// with ctx's error.
func VerifyFile(ctx context.Context, path string) VerifyResult {
	if stem, ok := strings.CutSuffix(path, ".json"); ok {
		if _, err := staging.ParseName(filepath.Base(path)); err == nil {
			path = stem + ".xva"
		}
	}
	r, _ := verifyEntry(ctx, staging.Inspect(path))
	return r
}

// verifyEntry also returns what was found, for sending; nil unless the file is good.
func verifyEntry(ctx context.Context, e staging.Entry) (VerifyResult, *xva.Report) {
	begin := time.Now()
	r := VerifyResult{File: e.Path, Bytes: e.Size, Kind: e.Name.Kind, UUID: e.Name.UUID, Taken: e.Name.Time,
		DigestAlgorithm: staging.DefaultDigest}
	defer func() { r.Seconds = time.Since(begin).Seconds() }()
	if m := e.Manifest; m != nil {
		r.Manifest, r.VM, r.DPSession, r.DigestAlgorithm = true, m.VM.Name, m.DP.Session, m.File.DigestAlgorithm
	}
	if e.State != staging.Complete && e.State != staging.NoManifest && e.State != staging.ForeignFile {
		r.fail("", e.Problem)
		return r, nil
	}
	f, err := e.Open()
	if err != nil {
		r.fail("", err)
		return r, nil
	}
	defer f.Close()
	report, err := r.read(ctx, f)
	if err == nil {
		r.describe(report)
		err = agree(e, &r, report)
	}
	if err != nil {
		r.fail("", err)
		return r, nil
	}
	r.OK = true
	return r, report
}

// readSize is how much is read at once, in bytes; a shorter file is read at once as a whole.
const readSize = 1 << 20

// read passes the file through the verifier and the digest, which run at the same time.
func (r *VerifyResult) read(ctx context.Context, f io.Reader) (*xva.Report, error) {
	past, _ := f.(io.ReaderAt)
	v := xva.NewVerifier(xva.ReaderOptions{RequireExactEnd: r.Manifest, Past: past})
	defer v.Abort()
	digest, err := staging.NewDigest(r.DigestAlgorithm)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, max(1, min(readSize, r.Bytes)))
	r.Bytes = 0
	for {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("verify: %w", err)
		}
		n, rerr := io.ReadFull(f, buf)
		var hashing sync.WaitGroup
		hashing.Go(func() { digest.Write(buf[:n]) })
		_, verr := v.Write(buf[:n])
		hashing.Wait()
		r.Bytes += int64(n)
		if verr != nil {
			return nil, verr
		}
		if errors.Is(rerr, io.EOF) || errors.Is(rerr, io.ErrUnexpectedEOF) {
			break
		}
		if rerr != nil {
			return nil, fmt.Errorf("read: %w", rerr)
		}
	}
	r.Digest = hex.EncodeToString(digest.Sum(nil))
	return v.Close()
}

// describe fills in what the contents say.
func (r *VerifyResult) describe(report *xva.Report) {
	r.Compression, r.Checksum, r.Blocks = string(report.Compression), report.Checksum, report.Blocks
	for _, d := range report.Disks {
		r.Disks = append(r.Disks, VerifiedDisk{Dir: d.Dir, UserDevice: d.UserDevice, Name: d.Name, Size: d.Size,
			Data: d.DataBytes, Blocks: d.Blocks})
	}
	vm := report.OVA.VM()
	if r.VM == "" {
		r.VM = vm.Name
	}
	if r.UUID == "" {
		r.UUID = canonicalUUID(vm.UUID)
	}
}

// agree holds the contents to the manifest. An online file is the export of a snapshot, so its ova.xml has the snapshot's
// UUID; so has an offline one that was taken from a snapshot of the halted VM.
func agree(e staging.Entry, r *VerifyResult, report *xva.Report) error {
	m := e.Manifest
	if m == nil {
		return nil
	}
	want := m.Snapshot.UUID
	if want == "" && e.Name.Kind == KindOffline {
		want = m.VM.UUID
	}
	got := report.OVA.VM().UUID
	switch {
	case r.Bytes != m.File.Bytes:
		return fmt.Errorf("%w: %d bytes were read, the manifest says %d", staging.ErrContradiction, r.Bytes, m.File.Bytes)
	case r.Digest != m.File.Digest:
		return fmt.Errorf("%w: %s is %s, the manifest says %s", staging.ErrMismatch, r.DigestAlgorithm, r.Digest, m.File.Digest)
	case want == "":
		return fmt.Errorf("%w: the manifest of an online file names no snapshot", staging.ErrContradiction)
	case canonicalUUID(got) != canonicalUUID(want):
		return fmt.Errorf("%w: ova.xml is of %.40q, by the manifest it should be of %s", staging.ErrContradiction, got, want)
	}
	return agreeDisks(m, report)
}

// agreeDisks holds that manifest and ova.xml do not tell different things of the disk at a position.
func agreeDisks(m *staging.Manifest, report *xva.Report) error {
	sizes := map[string]int64{}
	for _, d := range m.VM.Disks {
		sizes[d.Device] = d.Size
	}
	for _, d := range report.Disks {
		if size, ok := sizes[d.UserDevice]; ok && d.UserDevice != "" && size != d.Size {
			return fmt.Errorf("%w: disk %s has %d bytes, the manifest says %d", staging.ErrContradiction, d.UserDevice, d.Size, size)
		}
	}
	return nil
}

// VerifyFolder verifies every .xva in a folder, at most parallel (1 or 2) at the same time, and returns the results by file
// name. each, where given, is told every result as it comes, by one goroutine at a time. The error is about the folder, or
// ctx's.
func VerifyFolder(ctx context.Context, dir string, parallel int, each func(VerifyResult)) ([]VerifyResult, error) {
	folder, err := staging.Open(dir, staging.Options{ReadOnly: true})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &UsageError{Failure{What: "verify", Err: err}}
	}
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	entries, err := folder.List()
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	entries = slices.DeleteFunc(entries, func(e staging.Entry) bool { return !isExport(e) })
	results := make([]VerifyResult, len(entries))
	var g errgroup.Group
	g.SetLimit(min(max(parallel, 1), 2))
	var telling sync.Mutex
	for i, e := range entries {
		g.Go(func() error {
			r, _ := verifyEntry(ctx, e)
			telling.Lock()
			defer telling.Unlock()
			results[i] = r
			if each != nil && ctx.Err() == nil {
				each(r)
			}
			return nil
		})
	}
	return results, errors.Join(g.Wait(), ctx.Err())
}

// isExport tells whether an entry is an export, or the manifest of one that is missing, as against other files.
func isExport(e staging.Entry) bool {
	if e.State != staging.ForeignFile {
		return true
	}
	info, err := os.Lstat(e.Path)
	return err == nil && info.Mode().IsRegular() && filepath.Ext(e.Path) == ".xva"
}
