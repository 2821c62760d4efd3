package controller

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"github.com/gofrs/flock"

	"github.com/dpxen/dpxen/internal/failpoint"
	"github.com/dpxen/dpxen/internal/staging"
)

const (
	sessionsDir  = "sessions" // below STATE
	reportExt    = ".json"
	lockExt      = ".lock"
	cancelExt    = ".cancel"
	modePrivate  = 0o600
	modeFolder   = 0o700
	idTimeLayout = "20060102T150405Z"
)

var sessionID = regexp.MustCompile(`^[0-9]{8}T[0-9]{6}Z-[0-9a-f]{6}$`)

// session is a running session: its report, kept durably in STATE/sessions/ID.json, and its lock. Its methods may be called
// from several goroutines.
type session struct {
	id   string
	dir  string
	lock *flock.Flock

	began time.Time // by the clock that nobody sets; zero where the session was taken over

	mu      sync.Mutex // of report and changes
	report  Report
	changes uint64

	writing sync.Mutex // held while the file is written
	written uint64     // the number of changes that are in the file
}

// newSession takes a new ID, its lock, and writes the first report. What of the header is empty in r is filled in. Errors are
// *PreflightErrors.
func (c *Controller) newSession(r Report) (*session, error) {
	dir := c.sessionsDir()
	doubt := c.stateDoubt()
	if err := staging.MakeFolders(dir); err != nil {
		return nil, &PreflightError{Failure{What: "state folder", Err: err, Advice: "let this user write to it"}}
	}
	now := c.o.Now().UTC()
	at, clock, err := c.inOrder(now)
	if err != nil {
		return nil, &PreflightError{Failure{What: "state folder", Err: err, Advice: "let this user read it"}}
	}
	r.V, r.State, r.Started = ReportVersion, StateRunning, now.Truncate(time.Second)
	r.Version = c.o.Version
	if r.RerunOf == "" { // else it is that of the former session
		r.DPSession, r.DPSpec = c.o.DPSession, c.o.DPSpec
	}
	if r.VMs == nil {
		r.VMs = []VMResult{}
	}
	for _, text := range []string{doubt, clock} {
		if text != "" {
			r.Warnings = append(r.Warnings, text)
		}
	}
	for {
		r.ID = newID(at)
		s := &session{id: r.ID, dir: dir, began: time.Now(), report: r, lock: newLock(filepath.Join(dir, r.ID+lockExt))}
		locked, err := s.lock.TryLock()
		if err != nil {
			return nil, &PreflightError{Failure{What: "state folder: lock session " + s.id, Err: err, Advice: adviceFor(ReasonState)}}
		}
		if _, err := os.Lstat(s.path(reportExt)); !locked || err == nil {
			_ = s.lock.Unlock() // somebody else's ID; the next one is tried
			continue
		}
		if err := s.update(func(*Report) {}); err != nil {
			return nil, errors.Join(&PreflightError{Failure{What: "state folder", Err: err, Advice: adviceFor(ReasonState)}}, s.unlock())
		}
		return s, nil
	}
}

// newID returns an ID that sorts after those of earlier milliseconds: post-exec and `last` mean the newest session, and two
// may begin within a second.
func newID(now time.Time) string {
	var random [2]byte
	rand.Read(random[:]) // never fails
	millis := now.Nanosecond() / int(time.Millisecond)
	return fmt.Sprintf("%s-%03x%03x", now.Format(idTimeLayout), millis, binary.BigEndian.Uint16(random[:])&0xfff)
}

func newLock(path string) *flock.Flock {
	return flock.New(path, flock.SetPermissions(modePrivate), flock.SetFlag(os.O_CREATE|os.O_RDWR))
}

func (c *Controller) sessionsDir() string { return filepath.Join(c.cfg.State, sessionsDir) }

func (s *session) path(ext string) string { return filepath.Join(s.dir, s.id+ext) }

// update changes the report and returns once the change is durable. Changes made at the same time share one write.
func (s *session) update(change func(*Report)) error {
	return s.flush(s.note(change))
}

// note changes the report in memory; the next update makes it durable as well. The result is for flush.
func (s *session) note(change func(*Report)) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.report)
	s.changes++
	return s.changes
}

// flush returns once the given number of changes is durable.
func (s *session) flush(upTo uint64) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.written >= upTo {
		return nil // another update has written it
	}
	s.mu.Lock()
	data, err := json.MarshalIndent(&s.report, "", " ")
	changes := s.changes
	s.mu.Unlock()
	if err := failpoint.Hit("controller/state/before-write"); err != nil {
		return err
	}
	if err == nil {
		err = staging.WriteFileDurable(s.path(reportExt), append(data, '\n'), modePrivate)
	}
	if err != nil {
		return &folderError{reason: ReasonState, err: fmt.Errorf("write state of session %s: %w", s.id, err)}
	}
	s.written = changes
	failpoint.Pass("controller/state/after-write")
	return nil
}

// header is what the session's manifests have of its report, all set before the first VM.
func (s *session) header() (h struct{ DPSession, DPSpec, RerunOf string }) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h.DPSession, h.DPSpec, h.RerunOf = s.report.DPSession, s.report.DPSpec, s.report.RerunOf
	return h
}

// snapshot returns a copy of the report that later updates do not change.
func (s *session) snapshot() *Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.report.clone()
}

// clone copies the report with its lists; what elements point to is never changed in place.
func (r *Report) clone() *Report {
	c := *r
	c.Agents = append([]AgentStatus(nil), r.Agents...)
	c.VMs = append([]VMResult{}, r.VMs...)
	c.Intents = append([]Intent(nil), r.Intents...)
	c.Warnings = append([]string(nil), r.Warnings...)
	c.Notes = append([]string(nil), r.Notes...)
	return &c
}

// intend makes the intent durable. Only after it has returned nil may an agent be told of it.
func (s *session) intend(i Intent) error {
	return s.update(func(r *Report) { r.Intents = append(r.Intents, i) })
}

// taken makes durable which disks the snapshot of an intent has: XAPI's database may forget them, and the journal with them.
func (s *session) taken(key string, disks []string) error {
	return s.update(func(r *Report) {
		for i := range r.Intents {
			if r.Intents[i].Key == key {
				r.Intents[i].Disks = disks
			}
		}
	})
}

// settle notes that nothing of the intent is left on any host.
func (s *session) settle(key string) error {
	return s.update(func(r *Report) {
		for i := range r.Intents {
			if r.Intents[i].Key == key {
				r.Intents[i].Done = true
			}
		}
	})
}

// vm changes the result of one VM durably; it adds the result where there is none.
func (s *session) vm(poolUUID, uuid string, change func(*VMResult)) error {
	return s.update(func(r *Report) { change(r.vm(poolUUID, uuid)) })
}

func (r *Report) vm(poolUUID, uuid string) *VMResult {
	for i := range r.VMs {
		if r.VMs[i].UUID == uuid && r.VMs[i].PoolUUID == poolUUID {
			return &r.VMs[i]
		}
	}
	r.VMs = append(r.VMs, VMResult{UUID: uuid, PoolUUID: poolUUID, Status: StatusPending})
	return &r.VMs[len(r.VMs)-1]
}

// finish makes the final state durable: code and RESULT line by the VMs and err. VMs that are still pending or running
// become cancelled or failed. It gives the lock back, and returns the final report whatever happens.
func (s *session) finish(now time.Time, err error) (*Report, error) {
	failpoint.Pass("controller/session/before-finish")
	werr := s.update(func(r *Report) {
		for i := range r.VMs {
			vm := &r.VMs[i]
			switch {
			case vm.Status != StatusPending && vm.Status != StatusRunning:
			case r.Cancelled:
				vm.Status, vm.Reason = StatusCancelled, ReasonCancelled
			default:
				vm.Status = StatusFailed
				if vm.Error == "" {
					vm.Error = "the session ended before it"
				}
			}
		}
		if err != nil && r.Error == "" {
			r.Error = err.Error()
		}
		if !s.began.IsZero() {
			r.Seconds = time.Since(s.began).Seconds()
		}
		r.close(now, ExitCode(r, err))
	})
	failpoint.Pass("controller/session/finished")
	return s.snapshot(), errors.Join(werr, s.unlock())
}

// close sets what a done report has.
func (r *Report) close(now time.Time, code int) {
	r.State, r.Ended, r.Code = StateDone, now.UTC(), code
	r.Result = ResultLine(r, code)
}

// unlock gives the lock back and removes the session's files beside the report. They go before the lock does, except on
// systems that cannot remove an open file.
func (s *session) unlock() error {
	os.Remove(s.path(cancelExt))
	// Of a process that was killed before this one took over.
	terr := errors.Join(staging.RemoveTemporaries(s.path(reportExt)), staging.RemoveTemporaries(s.path(cancelExt)))
	gone := os.Remove(s.path(lockExt))
	err := s.lock.Unlock()
	if gone != nil && !errors.Is(gone, fs.ErrNotExist) { // Windows keeps a file that is open; else it is somebody else's by now
		os.Remove(s.path(lockExt))
	}
	if err = errors.Join(err, terr); err != nil {
		return fmt.Errorf("unlock session %s: %w", s.id, err)
	}
	return nil
}

// cancelRequested tells whether somebody has asked the session to end.
func (s *session) cancelRequested() bool {
	_, err := os.Lstat(s.path(cancelExt))
	return err == nil
}
