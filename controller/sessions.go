package controller

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/dpxen/dpxen/internal/staging"
)

// maxReport bounds a session's file in bytes.
const maxReport = 1 << 30

// SessionSummary is a session in a list.
type SessionSummary struct {
	ID        string    `json:"id"`
	Action    Action    `json:"action,omitempty"`
	Mode      Mode      `json:"mode,omitempty"`
	State     State     `json:"state,omitempty"`
	Started   time.Time `json:"started,omitzero"`
	Ended     time.Time `json:"ended,omitzero"`
	DPSession string    `json:"dp_session,omitempty"`
	DPSpec    string    `json:"dp_spec,omitempty"`
	Seconds   float64   `json:"seconds,omitempty"` // as in Report
	RerunOf   string    `json:"rerun_of,omitempty"`
	Counts    Counts    `json:"counts"`
	Open      int       `json:"open_intents"` // work that may be left on hosts
	Code      int       `json:"code"`
	Result    string    `json:"result,omitempty"`
	Error     string    `json:"error,omitempty"` // why its file cannot be read
}

// Took is as Report's.
func (s *SessionSummary) Took() time.Duration { return lasted(s.Seconds, s.Started, s.Ended) }

// Sessions returns every session, the oldest first. One whose file is damaged is in the list with its Error; the error is
// about the folder.
func (c *Controller) Sessions() ([]SessionSummary, error) {
	ids, err := c.sessionIDs()
	if err != nil {
		return nil, err
	}
	all := make([]SessionSummary, 0, len(ids))
	for _, id := range ids {
		r, err := c.Session(id)
		if err != nil {
			all = append(all, SessionSummary{ID: id, Error: err.Error()})
			continue
		}
		all = append(all, SessionSummary{ID: r.ID, Action: r.Action, Mode: r.Mode, State: r.State, Started: r.Started,
			Ended: r.Ended, Seconds: r.Seconds, DPSession: r.DPSession, DPSpec: r.DPSpec, RerunOf: r.RerunOf, Counts: r.Counts(), Open: len(r.Unfinished()),
			Code: r.Code, Result: r.Result})
	}
	return all, nil
}

func (c *Controller) sessionIDs() ([]string, error) {
	entries, err := os.ReadDir(c.sessionsDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list sessions: %w", err)
	}
	var ids []string
	for _, e := range entries {
		id, isReport := strings.CutSuffix(e.Name(), reportExt)
		if isReport && sessionID.MatchString(id) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// Session returns a session's report. One that says running while nobody holds its lock reads as interrupted. An id that is
// none, or of no session, is a UsageError.
func (c *Controller) Session(id string) (*Report, error) {
	s, err := c.session(id)
	if err != nil {
		return nil, err
	}
	r, err := s.load()
	if err != nil || r.State != StateRunning {
		return r, err
	}
	alive, err := s.alive()
	if err != nil || alive {
		return r, err
	}
	// It may have ended between the two looks; what its file says now is final.
	if r, err = s.load(); err == nil && r.State == StateRunning {
		r.State = StateInterrupted
		r.neverStarted()
		r.Code = codeOfDead(r)
	}
	return r, err
}

// session returns the handle of an existing session, without its lock and report.
func (c *Controller) session(id string) (*session, error) {
	if !sessionID.MatchString(id) {
		return nil, &UsageError{Failure{What: fmt.Sprintf("%.80q is not a session's ID", id), Advice: "see dpxen sessions"}}
	}
	s := &session{id: id, dir: c.sessionsDir()}
	s.lock = newLock(s.path(lockExt))
	if _, err := os.Lstat(s.path(reportExt)); err != nil {
		return nil, &UsageError{Failure{What: "there is no session " + id, Advice: "see dpxen sessions"}}
	}
	return s, nil
}

func (s *session) load() (*Report, error) {
	data, err := readBounded(s.path(reportExt), maxReport)
	if err != nil {
		return nil, fmt.Errorf("session %s: %w", s.id, err)
	}
	var r Report
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("session %s: its file %s is damaged: %w", s.id, filepath.Base(s.path(reportExt)), err)
	}
	switch {
	case r.V != ReportVersion:
		return nil, fmt.Errorf("session %s: its file is of version %d (by dpxen %s), this dpxen reads %d", s.id, r.V, r.Version, ReportVersion)
	case r.ID != s.id:
		return nil, fmt.Errorf("session %s: its file is damaged: it is of session %.80q", s.id, r.ID)
	}
	return &r, nil
}

// alive tells whether somebody holds the session's lock. Lookers share the lock, so that they do not see each other.
func (s *session) alive() (bool, error) {
	if _, err := os.Lstat(s.path(lockExt)); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	free, err := s.lock.TryRLock()
	if err != nil {
		return false, fmt.Errorf("look at the lock of session %s: %w", s.id, err)
	}
	if !free {
		return true, nil
	}
	return false, s.lock.Unlock()
}

// How long a session's lock is waited for: the first bridges the moment in which somebody looks whether the session lives, the
// second the one in which another process changes the report of one that is over.
const (
	lookPatience  = 250 * time.Millisecond
	amendPatience = 10 * time.Second
	lockRetry     = 10 * time.Millisecond
)

// takeOver locks a session that died and loads its report, so that repair can go on with it. One that lives, and does so for
// as long as the patience lasts, is a LockedError. The caller ends it with retire.
func (c *Controller) takeOver(id string, patience time.Duration) (*session, error) {
	s, err := c.session(id)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(patience); ; time.Sleep(lockRetry) {
		locked, err := s.lock.TryLock()
		if err == nil && locked && !s.lockIsCurrent() {
			locked = false
			err = s.lock.Unlock()
		}
		if err != nil {
			return nil, fmt.Errorf("lock session %s: %w", id, err)
		}
		if locked {
			break
		}
		if time.Now().After(end) {
			return nil, &LockedError{Failure{What: "session " + id + " is running", Advice: "wait for it, or dpxen cancel " + id}}
		}
	}
	r, err := s.load()
	if err != nil {
		return nil, errors.Join(err, s.lock.Unlock())
	}
	s.report = *r
	return s, nil
}

// lockIsCurrent tells whether the lock held is on the file that others see: who ends a session removes it.
func (s *session) lockIsCurrent() bool {
	held, err := s.lock.Stat()
	if err != nil {
		return false
	}
	seen, err := os.Stat(s.path(lockExt))
	return err == nil && os.SameFile(held, seen)
}

// retire ends a session that was taken over: what says running becomes interrupted, with the code that its VMs make; VMs
// that were not finished have failed. A session that was done keeps its state.
func (s *session) retire(now time.Time) error {
	err := s.update(func(r *Report) {
		if r.State == StateDone {
			return
		}
		for i := range r.VMs {
			if vm := &r.VMs[i]; vm.Status == StatusPending || vm.Status == StatusRunning {
				asNew := vm.Status == StatusRunning && r.RestoreRequest != nil && r.RestoreRequest.AsNew
				vm.Status, vm.Error = StatusFailed, "the session died before it was done"
				switch {
				case asNew && vm.NewUUID != "":
					vm.Warnings = appendNew(vm.Warnings, "the VM was made as new, as "+vm.NewUUID+", and is kept: look at its settings and power state")
				case asNew: // only its agent knew, and forgets it in time
					vm.Warnings = appendNew(vm.Warnings, "the VM that was being made as new may be there, complete and even running: look for it")
				}
			}
		}
		r.neverStarted()
		r.close(now, codeOfDead(r))
		r.State = StateInterrupted
	})
	return errors.Join(err, s.unlock())
}

// codeOfDead is the code that the VMs of a session make which died.
func codeOfDead(r *Report) int {
	code := ExitCode(r, nil)
	if r.Counts().Selected == 0 && code != CodeCancelled {
		return CodeNone // it died before it knew its VMs: nothing is good
	}
	return code
}

// requestCancel asks a session to end by its request file. Whether it is alive is the caller's to find out.
func (c *Controller) requestCancel(id string) error {
	s, err := c.session(id)
	if err != nil {
		return err
	}
	text := fmt.Sprintf("cancel requested at %s\n", c.o.Now().UTC().Format(time.RFC3339))
	if err := staging.WriteFileDurable(s.path(cancelExt), []byte(text), modePrivate); err != nil {
		return fmt.Errorf("request cancel of session %s: %w", id, err)
	}
	return nil
}
