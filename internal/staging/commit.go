package staging

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/dpxen/dpxen/internal/failpoint"
)

// Expected is what the file must turn out to be.
type Expected struct {
	Bytes  int64  // received
	Digest string // of the folder's algorithm, in hexadecimal; not compared when empty
}

// Commit puts the file under its final name and writes its manifest after it: m, with File.Name, Bytes, DigestAlgorithm and
// Digest filled in. It returns the path. When it returns nil, both are on disk for good. Otherwise nothing of either is
// left, neither under a final name nor as a partial file, and the error is ErrMismatch, ErrExists, ErrNoRoom, what
// Manifest.Encode finds wrong, or the system's. Where Options.ReadBack says so, the export is read back from the disk right
// before it gets its final name. Cancelling ctx has effect until then.
func (p *Partial) Commit(ctx context.Context, want Expected, m Manifest) (string, error) {
	if p.closed {
		return "", errors.Join(fmt.Errorf("commit %s: %w", p.name.XVA(), fs.ErrClosed), p.err)
	}
	path, err := p.commit(ctx, want, m)
	if err != nil {
		return "", errors.Join(fmt.Errorf("commit %s: %w", p.name.XVA(), noRoom(err)), p.Abort())
	}
	p.closed = true
	return path, nil
}

func (p *Partial) commit(ctx context.Context, want Expected, m Manifest) (string, error) {
	manifest, err := p.finish(want, m)
	if err != nil {
		return "", err
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if err := failpoint.Hit("staging/commit/synced"); err != nil {
		return "", err
	}
	temp := p.d.partial(p.name.Manifest())
	if err := writeNew(p.d.sys, temp, manifest, fileMode); err != nil {
		return "", fmt.Errorf("manifest: %w", err)
	}
	failpoint.Pass("staging/commit/manifest-written")
	if err := p.readBack(ctx); err != nil {
		return "", errors.Join(err, p.d.sys.Remove(temp))
	}
	if err := failpoint.Hit("staging/commit/read-back"); err != nil {
		return "", errors.Join(err, p.d.sys.Remove(temp))
	}
	path, err := p.publish(p.path, p.name.XVA())
	if err != nil {
		return "", errors.Join(err, p.d.sys.Remove(temp))
	}
	failpoint.Pass("staging/commit/published")
	if _, err := p.publish(temp, p.name.Manifest()); err != nil {
		return "", errors.Join(fmt.Errorf("manifest: %w", err), removeAny(p.d.sys, temp), p.withdraw(path))
	}
	return path, nil
}

// finish brings the data to disk, compares, closes the file and returns the encoded manifest.
func (p *Partial) finish(want Expected, m Manifest) ([]byte, error) {
	if p.err == nil && len(p.buf) > 0 {
		p.flush(p.buf)
		p.buf = p.buf[:0]
	}
	if p.err != nil {
		return nil, p.err
	}
	if err := failpoint.Hit("staging/commit/before-sync"); err != nil {
		return nil, err
	}
	if err := p.f.Sync(); err != nil {
		return nil, err
	}
	p.sum = hex.EncodeToString(p.digest.Sum(nil))
	switch {
	case p.bytes != want.Bytes:
		return nil, fmt.Errorf("%w: %d bytes written, %d received", ErrMismatch, p.bytes, want.Bytes)
	case want.Digest != "" && p.sum != want.Digest:
		return nil, fmt.Errorf("%w: digest %s written, %.80q received", ErrMismatch, p.sum, want.Digest)
	}
	var err error
	if p.written, err = checkLength(p.f, p.bytes); err != nil {
		return nil, err
	}
	f := p.f
	p.f = nil
	if err := f.Close(); err != nil {
		return nil, err
	}
	m.File.Name, m.File.Bytes = p.name.XVA(), p.bytes
	m.File.DigestAlgorithm, m.File.Digest = cmp.Or(p.d.o.Digest, DefaultDigest), p.sum
	return m.Encode()
}

// publish gives a synced file its final name, durably. After an error it is not under that name.
func (p *Partial) publish(from, name string) (string, error) {
	to := p.d.final(name)
	if err := p.d.sys.RenameNew(from, to); err != nil {
		return "", exists(err)
	}
	failpoint.Pass("staging/publish/renamed")
	if err := p.d.sys.SyncDir(p.d.path); err != nil {
		return "", errors.Join(err, p.withdraw(to))
	}
	return to, nil
}

// withdraw removes a file from its final name again.
func (p *Partial) withdraw(path string) error {
	return errors.Join(p.d.sys.Remove(path), p.d.sys.SyncDir(filepath.Dir(path)))
}
