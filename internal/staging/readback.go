package staging

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// Of a file that is read back so much stays in the page cache, as early writing leaves of it: a longer one would push out what
// others need.
const (
	dropLag  = 64 << 20
	dropStep = 8 << 20 // so much of it is dropped at a time
)

// readBacks is how often a file is read back that somebody touches meanwhile, as a scanner does that sets its times.
const readBacks = 3

// readBack holds what lies on the disk against the digest of what was to be written: disks, controllers, network file systems
// and other programs change bytes that a sync was good for. It follows the close of the file and comes right before its final
// name, where Options ask for it. The error is ErrMismatch where it is not what was written.
func (p *Partial) readBack(ctx context.Context) error {
	if !p.d.o.ReadBack {
		return nil
	}
	for range readBacks {
		got, before, err := p.onItsDisk(ctx)
		if err != nil {
			return fmt.Errorf("read it back: %w", err)
		}
		after, err := os.Lstat(p.path)
		switch {
		case err != nil:
			return fmt.Errorf("read it back: %w", err)
		case !os.SameFile(p.written, before), !os.SameFile(before, after):
			return fmt.Errorf("%w: another program replaced the file", ErrMismatch)
		case got != p.sum:
			return fmt.Errorf("%w: digest %s on disk, %s received: the disk or its file system is bad, or another program wrote to the file",
				ErrMismatch, got, p.sum)
		case before.Size() == after.Size() && before.ModTime().Equal(after.ModTime()):
			return nil
		}
	}
	return fmt.Errorf("%w: another program changes the file again and again", ErrMismatch)
}

// onItsDisk reads the whole file, from the disk as far as the system can be told to, and returns its digest and what it was
// when that began.
func (p *Partial) onItsDisk(ctx context.Context) (digest string, info fs.FileInfo, err error) {
	h, err := NewDigest(p.d.o.Digest)
	if err != nil {
		return "", nil, err
	}
	f, info, err := openRegular(p.path)
	if err != nil {
		return "", nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	uncache(f, 0, 0)
	buf := p.buf[:writeSize] // nothing waits in it any more
	for at, dropped := int64(0), int64(0); ; {
		if err := ctx.Err(); err != nil {
			return "", nil, err
		}
		n, err := f.Read(buf)
		h.Write(buf[:n])
		at += int64(n)
		if behind := at - dropLag - dropped; behind >= dropStep {
			uncache(f, dropped, behind)
			dropped += behind
		}
		switch {
		case errors.Is(err, io.EOF):
			return hex.EncodeToString(h.Sum(nil)), info, nil
		case err != nil:
			return "", nil, err
		}
	}
}
