package controller

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"

	"github.com/dpxen/dpxen/internal/staging"
)

const (
	arrivalsDir     = "arrivals" // below STATE
	arrivalsVersion = 1
	maxArrivals     = 64 << 20 // bytes
	lockLook        = 100 * time.Millisecond
)

// arrivals is what restores for Data Protector have found in one folder: STATE/arrivals/KEY.json. Data Protector does not say
// which restore starts the command, so that one is told from the next by what has arrived: whenever a file is there that no
// run has seen, a new wave begins, and what earlier runs have seen is not of this restore. See docs/adr/0010.
type arrivals struct {
	V      int                `json:"v"`
	Folder string             `json:"folder"`
	Wave   int                `json:"wave"`
	Files  map[string]arrived `json:"files"` // by the export's name
}

// arrived is a file that some run has seen.
type arrived struct {
	ID   string    `json:"id"` // staging.Arrival's
	Wave int       `json:"wave"`
	Seen time.Time `json:"seen"` // first

	time time.Time // of its arrival; of files that are there now
}

// note brings the list up to what is in the folder now, and tells whether anything changed. What is no file of ours does not
// count.
func (a *arrivals) note(entries []staging.Entry, now time.Time) (changed bool, err error) {
	found := map[string]arrived{}
	fresh := false
	for _, e := range entries {
		if e.State == staging.ForeignFile {
			continue
		}
		at, err := e.Arrival()
		if err != nil {
			return false, err
		}
		before, known := a.Files[e.Base()]
		if !known || before.ID != at.ID {
			fresh = true
			before = arrived{ID: at.ID, Wave: a.Wave + 1, Seen: now.UTC()}
		}
		before.time = at.Time
		found[e.Base()] = before
	}
	changed = fresh || len(found) != len(a.Files)
	if fresh {
		a.Wave++
	}
	a.Files = found
	return changed, nil
}

// arrivalsLock is the right to restore from a folder for Data Protector, whose restore objects may start several commands at
// the same time.
type arrivalsLock struct {
	c      *Controller
	folder string
	path   string // without its extensions
	fl     *flock.Flock
}

// lockArrivals takes the folder's lock; while somebody else has it, it waits for timing.lock_wait at most. told is called once
// where it has to wait. Errors are a LockedError, a PreflightError and ctx's.
func (c *Controller) lockArrivals(ctx context.Context, folder, session string, told func(holder string)) (*arrivalsLock, error) {
	if path, err := filepath.EvalSymlinks(folder); err == nil {
		folder = path // as staging.Dir.Path has it
	}
	dir := filepath.Join(c.cfg.State, arrivalsDir)
	if err := os.MkdirAll(dir, modeFolder); err != nil {
		return nil, &PreflightError{Failure{What: "state folder", Err: err, Advice: "let this user write to it"}}
	}
	key := sha256.Sum256([]byte(folder))
	l := &arrivalsLock{c: c, folder: folder, path: filepath.Join(dir, hex.EncodeToString(key[:8]))}
	l.fl = newLock(l.path + lockExt)
	locked, err := l.fl.TryLock()
	if err == nil && !locked {
		told(l.holder())
		waiting, cancel := context.WithTimeout(ctx, c.cfg.Timing.LockWait)
		defer cancel()
		locked, err = l.fl.TryLockContext(waiting, lockLook)
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			err = nil
		}
	}
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, &PreflightError{Failure{What: "lock restores from " + folder, Err: err}}
	case !locked:
		return nil, &LockedError{Failure{What: fmt.Sprintf("another restore from %s is at work: %s", folder, l.holder()),
			Advice: "wait for it, or use dpxen cancel"}}
	}
	h := staging.Holder{Session: session, PID: os.Getpid(), Since: c.o.Now().UTC().Truncate(time.Second)}
	data, err := json.Marshal(h)
	if err == nil {
		err = staging.WriteFileDurable(l.path+".holder", append(data, '\n'), modePrivate)
	}
	if err != nil {
		return nil, errors.Join(&PreflightError{Failure{What: "lock restores from " + folder, Err: err}}, l.unlock())
	}
	return l, nil
}

// holder says who has the lock, as far as is known.
func (l *arrivalsLock) holder() string {
	data, err := readBounded(l.path+".holder", maxConfig)
	var h staging.Holder
	if err == nil {
		err = json.Unmarshal(data, &h)
	}
	if err != nil {
		return "by whom is not known"
	}
	if h.Session == "" {
		return fmt.Sprintf("a listing (process %d) since %s", h.PID, h.Since.Format(time.RFC3339))
	}
	return fmt.Sprintf("session %.40s (process %d) since %s", h.Session, h.PID, h.Since.Format(time.RFC3339))
}

func (l *arrivalsLock) unlock() error {
	err := os.Remove(l.path + ".holder")
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err = errors.Join(err, l.fl.Unlock()); err != nil {
		return fmt.Errorf("unlock restores from %s: %w", l.folder, err)
	}
	return nil
}

// look returns what has arrived in the folder, of which the entries are what is there now. What it finds is durable before
// it returns, so that nothing is restored that the next run takes for new.
func (l *arrivalsLock) look(entries []staging.Entry) (*arrivals, error) {
	fail := func(err error, advice string) (*arrivals, error) {
		return nil, &PreflightError{Failure{What: "what has arrived in " + l.folder, Err: err, Advice: advice}}
	}
	a := &arrivals{}
	data, err := readBounded(l.path+reportExt, maxArrivals)
	switch {
	case err == nil:
		if err := json.Unmarshal(data, a); err != nil || a.V != arrivalsVersion || a.Folder != l.folder {
			return fail(fmt.Errorf("%s is damaged, or of another version (%d): %w", l.path+reportExt, a.V, err),
				"look at what is in the folder, then remove this file: all that is there counts as new then")
		}
	case !errors.Is(err, fs.ErrNotExist):
		return fail(err, "")
	}
	a.V, a.Folder = arrivalsVersion, l.folder
	changed, err := a.note(entries, l.c.o.Now())
	if err != nil || !changed {
		return a, err
	}
	if data, err = json.MarshalIndent(a, "", " "); err == nil {
		err = staging.WriteFileDurable(l.path+reportExt, append(data, '\n'), modePrivate)
	}
	if err != nil {
		return fail(err, "let this user write to the state folder")
	}
	return a, nil
}
