package controller

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/gofrs/flock"

	"github.com/dpxen/dpxen/internal/staging"
)

const (
	historyFile    = "history.json" // in STATE: what is known of earlier backups, whatever becomes of the files and reports
	historyLock    = "history.lock"
	historyVersion = 1
	maxHistory     = 256 << 20 // bytes
	maxPastVMs     = 100_000
	keptRuns       = 5                    // good backups of a VM that are remembered
	openFor        = 30 * 24 * time.Hour  // a session's post-exec may come so long after it
	forgetAfter    = 730 * 24 * time.Hour // a VM that no session has named for so long is forgotten
	historyWait    = 5 * time.Second
	historyPoll    = 50 * time.Millisecond
)

// history is what earlier sessions tell of VMs. Sessions are folded into it; it is a copy of what is in their reports, and can
// be made anew from those that are there.
type history struct {
	V        int                `json:"v"`
	Sessions map[string]bool    `json:"sessions"` // folded in; false = more may become known of it
	VMs      map[string]*pastVM `json:"vms"`      // by pool/UUID

	doubt string // why it is not what was written
}

// pastVM is what is known of the backups of one VM.
type pastVM struct {
	Name   string    `json:"name"`
	Pool   string    `json:"pool,omitempty"`
	Seen   time.Time `json:"seen"`             // the last session that named it
	Good   []pastRun `json:"good,omitempty"`   // the newest first
	Failed time.Time `json:"failed,omitzero"`  // the last session in which it was not good
	Reason string    `json:"reason,omitempty"` // why
}

// pastRun is one good backup of a VM.
type pastRun struct {
	Session string    `json:"session"`
	Time    time.Time `json:"time"` // of the snapshot or the shutdown
	Kind    Kind      `json:"kind"`
	Bytes   int64     `json:"bytes"`
	Seconds float64   `json:"seconds"`
	Agent   string    `json:"agent,omitempty"`
	Down    float64   `json:"down,omitempty"`    // for how many seconds the VM was off
	Brief   bool      `json:"brief,omitempty"`   // by --offline-snapshot
	Unsaved bool      `json:"unsaved,omitempty"` // Data Protector is known not to have saved it
}

func pastKey(pool, uuid string) string { return pool + "/" + uuid }

func (c *Controller) historyPath() string { return filepath.Join(c.cfg.State, historyFile) }

// history reads what is known, with all sessions that are over folded in. Nothing is written. The error is about the folder of
// sessions; a history that cannot be read is made anew of their reports, and says so.
func (c *Controller) history() (*history, error) { return c.historyAnew("") }

// historyAnew also folds in anew the session of the ID, of which more may have become known.
func (c *Controller) historyAnew(anew string) (*history, error) {
	h, err := readHistory(c.historyPath())
	if err != nil {
		h = newHistory()
		h.doubt = err.Error()
	}
	ids, err := c.sessionIDs()
	if err != nil {
		return h, err
	}
	for _, id := range ids {
		if h.Sessions[id] && id != anew {
			continue
		}
		r, err := c.Session(id)
		if err != nil || r.State == StateRunning {
			continue // dpxen sessions shows what cannot be read
		}
		h.fold(r, c.o.Now())
	}
	return h, nil
}

func newHistory() *history {
	return &history{V: historyVersion, Sessions: map[string]bool{}, VMs: map[string]*pastVM{}}
}

func readHistory(path string) (*history, error) {
	data, err := readBounded(path, maxHistory)
	if errors.Is(err, fs.ErrNotExist) {
		return newHistory(), nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the history of backups: %w", err)
	}
	h := newHistory()
	if err := json.Unmarshal(data, h); err != nil {
		return nil, fmt.Errorf("the history of backups %s is damaged: %w", path, err)
	}
	if h.V != historyVersion {
		return nil, fmt.Errorf("the history of backups %s is of version %d, this dpxen reads %d", path, h.V, historyVersion)
	}
	if h.Sessions == nil {
		h.Sessions = map[string]bool{}
	}
	for key, vm := range h.VMs {
		if vm == nil {
			delete(h.VMs, key)
		}
	}
	if h.VMs == nil {
		h.VMs = map[string]*pastVM{}
	}
	return h, nil
}

// fold takes a session's report in. It may be repeated: what is known of the session before is replaced.
func (h *history) fold(r *Report, now time.Time) {
	open := r.DP != nil && r.DP.Closed.IsZero() && now.Sub(r.Started) < openFor
	h.Sessions[r.ID] = !open
	if r.Action != ActionBackup {
		return
	}
	for i := range r.VMs {
		vm := &r.VMs[i]
		if vm.UUID == "" || vm.Status == StatusSkipped {
			continue
		}
		p := h.VMs[pastKey(vm.PoolUUID, vm.UUID)]
		if p == nil {
			p = &pastVM{}
			h.VMs[pastKey(vm.PoolUUID, vm.UUID)] = p
		}
		if !r.Started.Before(p.Seen) {
			p.Name, p.Pool, p.Seen = vm.Name, vm.Pool, r.Started
		}
		switch {
		case vm.Status == StatusGood:
			p.good(r, vm)
		case !r.Started.Before(p.Failed):
			p.Failed, p.Reason = r.Started, cmp.Or(vm.Reason, string(vm.Status))
		}
	}
}

func (p *pastVM) good(r *Report, vm *VMResult) {
	run := pastRun{Session: r.ID, Time: r.Started, Kind: r.Mode.Kind(), Bytes: vm.Bytes, Seconds: vm.Seconds, Agent: vm.Agent,
		Down: vm.DowntimeSeconds, Brief: r.Request != nil && r.Request.OfflineSnapshot,
		Unsaved: r.DP != nil && !r.DP.Closed.IsZero() && !r.DP.Saved}
	if name, err := staging.ParseName(vm.File); err == nil {
		run.Time = name.Time
	}
	p.Good = slices.DeleteFunc(p.Good, func(old pastRun) bool { return old.Session == r.ID })
	p.Good = append(p.Good, run)
	slices.SortFunc(p.Good, func(a, b pastRun) int { return cmp.Or(b.Time.Compare(a.Time), cmp.Compare(b.Session, a.Session)) })
	p.forget()
}

// forget keeps the newest runs, and beyond them the newest one that is not known to be lost.
func (p *pastVM) forget() {
	if len(p.Good) <= keptRuns {
		return
	}
	rest := p.Good[keptRuns:]
	p.Good = p.Good[:keptRuns:keptRuns]
	if _, ok := p.last(); ok {
		return
	}
	if i := slices.IndexFunc(rest, func(r pastRun) bool { return !r.Unsaved }); i >= 0 {
		p.Good = append(p.Good, rest[i])
	}
}

// last returns the newest good backup that is not known to be lost.
func (p *pastVM) last() (pastRun, bool) {
	if p != nil {
		for _, run := range p.Good {
			if !run.Unsaved {
				return run, true
			}
		}
	}
	return pastRun{}, false
}

// of returns what is known of a VM; nil where that is nothing.
func (h *history) of(vm *VM) *pastVM { return h.VMs[pastKey(vm.PoolUUID, vm.UUID)] }

// bound drops what is too old or too much, the oldest first, and sessions whose reports are gone.
func (h *history) bound(now time.Time, ids []string) {
	kept := make(map[string]bool, len(ids))
	for _, id := range ids {
		if final, folded := h.Sessions[id]; folded {
			kept[id] = final
		}
	}
	h.Sessions = kept
	keys := sortedKeys(h.VMs)
	slices.SortStableFunc(keys, func(a, b string) int { return h.VMs[b].Seen.Compare(h.VMs[a].Seen) })
	for i, key := range keys {
		if i >= maxPastVMs || now.Sub(h.VMs[key].Seen) > forgetAfter {
			delete(h.VMs, key)
		}
	}
}

// remember writes the history with all sessions that are over, and anew the one of the ID. Where it cannot, nothing is lost:
// whoever asks next folds their reports in.
func (c *Controller) remember(anew string) error {
	if _, err := os.Lstat(c.sessionsDir()); err != nil { // the file system of the state folder is gone: this is its mount point
		return fmt.Errorf("write the history of backups: %w", err)
	}
	lock := flock.New(filepath.Join(c.cfg.State, historyLock), flock.SetPermissions(modePrivate))
	ctx, cancel := context.WithTimeout(context.Background(), historyWait)
	defer cancel()
	if locked, err := lock.TryLockContext(ctx, historyPoll); err != nil || !locked {
		return fmt.Errorf("lock the history of backups: %w", err)
	}
	defer func() { _ = lock.Unlock() }() // it ends with the process at the latest
	h, err := c.historyAnew(anew)
	if err != nil {
		return err
	}
	if h.doubt != "" { // what cannot be read is kept for whoever wants to look at it
		if err := os.Rename(c.historyPath(), c.historyPath()+".unread"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("put the history of backups aside: %w", err)
		}
	}
	ids, err := c.sessionIDs()
	if err != nil {
		return err
	}
	h.bound(c.o.Now(), ids)
	return c.writeHistory(h)
}

func (c *Controller) writeHistory(h *history) error {
	data, err := json.Marshal(h)
	if err == nil {
		err = staging.RemoveTemporaries(c.historyPath())
	}
	if err == nil {
		err = staging.WriteFileDurable(c.historyPath(), append(data, '\n'), modePrivate)
	}
	if err != nil {
		return fmt.Errorf("write the history of backups: %w", err)
	}
	return nil
}
