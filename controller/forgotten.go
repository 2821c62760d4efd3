package controller

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// forgotten are the sessions that died and of which nothing is known any more, since their files are gone or damaged: only
// their locks, which who ends a session removes, tell that they were there. What they had begun is in the pools' journals, and
// need not wait there until its claims run out. Their locks are held.
func (c *Controller) forgotten(rep *RepairReport) ([]*session, error) {
	entries, err := os.ReadDir(c.sessionsDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list sessions: %w", err)
	}
	var lost []*session
	for _, e := range entries {
		id, isLock := strings.CutSuffix(e.Name(), lockExt)
		if !isLock || !sessionID.MatchString(id) {
			continue
		}
		s := &session{id: id, dir: c.sessionsDir()}
		s.lock = newLock(s.path(lockExt))
		_, why := s.load()
		if why == nil {
			continue // see brokenSessions
		}
		if locked, err := s.lock.TryLock(); err != nil || !locked {
			continue // it lives, or is about to begin
		}
		if _, why = s.load(); why == nil || !s.lockIsCurrent() {
			_ = s.lock.Unlock() // it has begun and ended meanwhile
			continue
		}
		lost = append(lost, s)
		rep.Notes = append(rep.Notes, fmt.Sprintf("what a session had begun that died is known from the pools alone: %s", why))
	}
	return lost, nil
}

// release gives the locks of such sessions back, for good where nothing of them is left. Else the next repair is to find them.
func (r *RepairReport) release(forgotten []*session, forGood bool) {
	for _, s := range forgotten {
		unlock := s.lock.Unlock
		if forGood {
			unlock = s.unlock
		}
		if err := unlock(); err != nil {
			r.Notes = append(r.Notes, err.Error())
		}
	}
}
