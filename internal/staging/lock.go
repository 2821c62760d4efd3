package staging

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/gofrs/flock"
)

const (
	// lockPatience bridges the moment in which another process only looks whether the lock is held (see Dir.Holder).
	lockPatience = 250 * time.Millisecond
	lockRetry    = 25 * time.Millisecond

	maxHolder = 64 << 10 // bytes
)

// Holder is who works in the folder, as holder.json has it.
type Holder struct {
	Session string    `json:"session"`
	PID     int       `json:"pid"`
	Host    string    `json:"host"`
	Since   time.Time `json:"since"`
	Command string    `json:"command"`
}

// Lock is the right to work in the folder. The operating system drops it when the process dies.
type Lock struct {
	d  *Dir
	fl *flock.Flock
}

// Lock takes the folder's lock and writes holder.json, with the time and this process's number and host where
// Options.Holder leaves them empty. Where another process or another Lock has it, the error is a *LockedError at once
// (within a quarter of a second).
func (d *Dir) Lock() (*Lock, error) {
	if d.o.ReadOnly {
		return nil, fmt.Errorf("lock %s: %w", d.path, ErrReadOnly)
	}
	ctx, cancel := context.WithTimeout(context.Background(), lockPatience)
	defer cancel()
	fl := d.flock()
	got, err := fl.TryLockContext(ctx, lockRetry)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("lock %s: %w", d.path, err)
	}
	if !got {
		h, err := d.readHolder()
		return nil, &LockedError{Dir: d.path, Holder: h, Known: err == nil}
	}
	l := &Lock{d: d, fl: fl}
	if err := errors.Join(removeTemporaries(d.sys, d.meta(holderName)), removeTemporaries(d.sys, d.meta(markerName))); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", d.path, err), l.Unlock())
	}
	if err := d.writeHolder(); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", d.path, err), l.Unlock())
	}
	return l, nil
}

func (d *Dir) flock() *flock.Flock {
	return flock.New(d.meta(lockName), flock.SetFlag(os.O_CREATE|os.O_RDWR|openFlags), flock.SetPermissions(fileMode))
}

func (d *Dir) writeHolder() error {
	h := d.o.Holder
	if h.Since.IsZero() {
		h.Since = time.Now().UTC().Truncate(time.Second)
	}
	if h.PID == 0 {
		h.PID = os.Getpid()
	}
	if h.Host == "" {
		name, err := os.Hostname()
		if err != nil {
			name = "this host"
		}
		h.Host = name
	}
	data, err := json.Marshal(h)
	if err != nil {
		return err
	}
	return writeDurable(d.sys, d.meta(holderName), append(data, '\n'), fileMode)
}

// Unlock removes holder.json and gives the lock back. It may be repeated.
func (l *Lock) Unlock() error {
	if !l.fl.Locked() {
		return nil
	}
	err := l.d.sys.Remove(l.d.meta(holderName))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err = errors.Join(err, l.fl.Unlock()); err != nil {
		return fmt.Errorf("unlock %s: %w", l.d.path, err)
	}
	return nil
}

// Holder tells whether the lock is held, and by whom as far as holder.json says. It does not take the lock; a session
// whose report says running while held is false, or is another's, was interrupted.
func (d *Dir) Holder() (h Holder, held bool, err error) {
	if _, err := os.Lstat(d.meta(lockName)); errors.Is(err, fs.ErrNotExist) {
		return Holder{}, false, nil
	}
	fl := d.flock()
	free, err := fl.TryRLock()
	if err != nil {
		return Holder{}, false, fmt.Errorf("look at the lock of %s: %w", d.path, err)
	}
	if free {
		if err := fl.Unlock(); err != nil {
			return Holder{}, false, fmt.Errorf("look at the lock of %s: %w", d.path, err)
		}
		return Holder{}, false, nil
	}
	h, err = d.readHolder()
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // just taken, or about to be given back
	}
	return h, true, err
}

func (d *Dir) readHolder() (Holder, error) {
	f, _, err := openRegular(d.meta(holderName))
	if err != nil {
		return Holder{}, fmt.Errorf("read holder of the lock: %w", err)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxHolder))
	var h Holder
	if err = errors.Join(err, f.Close()); err == nil {
		err = json.Unmarshal(data, &h)
	}
	if err != nil {
		return Holder{}, fmt.Errorf("read holder of the lock: %w", err)
	}
	return h, nil
}
