package transfer

import (
	"fmt"
	"sync"
	"time"
)

// KeepFinished is how long a Registry remembers a transfer that is over, so that a caller who missed the answer can ask
// again.
const KeepFinished = 10 * time.Minute

// maxFinished bounds how many of them are remembered; the oldest go first.
const maxFinished = 1024

// Registry holds an agent's transfers by their idempotency key.
type Registry[T any] struct {
	keep time.Duration

	mu       sync.Mutex
	open     map[string]T
	finished map[string]T
	order    []finishedKey // of finished, oldest first
}

type finishedKey struct {
	key string
	at  time.Time
}

// NewRegistry returns an empty registry that remembers finished transfers for keep; KeepFinished when it is not positive.
func NewRegistry[T any](keep time.Duration) *Registry[T] {
	if keep <= 0 {
		keep = KeepFinished
	}
	return &Registry[T]{keep: keep, open: make(map[string]T), finished: make(map[string]T)}
}

// Open returns the transfer of key: one that is there already, open or finished (resumed), or the one that create
// returns. create is called under the registry's lock, so it must not block nor use the registry; when it fails nothing
// is kept. A key that is not known with an attempt above 1 is ErrGone: its transfer was here once, or on an agent that
// is gone.
func (r *Registry[T]) Open(key string, attempt uint32, create func() (T, error)) (t T, resumed bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t, ok := r.lookup(key); ok {
		return t, true, nil
	}
	if attempt > 1 {
		return t, false, fmt.Errorf("attach attempt %d: %w", attempt, ErrGone)
	}
	t, err = create()
	if err != nil {
		return t, false, err
	}
	r.open[key] = t
	return t, false, nil
}

// Lookup returns the transfer of key, open or finished.
func (r *Registry[T]) Lookup(key string) (T, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lookup(key)
}

func (r *Registry[T]) lookup(key string) (T, bool) {
	r.purge()
	if t, ok := r.open[key]; ok {
		return t, true
	}
	t, ok := r.finished[key]
	return t, ok
}

// Remove makes the transfer a finished one, which is forgotten after a while. It may be repeated.
func (r *Registry[T]) Remove(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t, ok := r.open[key]
	if !ok {
		return
	}
	delete(r.open, key)
	r.finished[key] = t
	r.order = append(r.order, finishedKey{key, time.Now()})
	r.purge()
}

// Len returns the number of open transfers.
func (r *Registry[T]) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.open)
}

// All returns the open transfers by key, as a map of the caller's own.
func (r *Registry[T]) All() map[string]T {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make(map[string]T, len(r.open))
	for k, t := range r.open {
		all[k] = t
	}
	return all
}

// purge forgets finished transfers whose time is over, and the oldest beyond the bound. The lock is held.
func (r *Registry[T]) purge() {
	n := max(0, len(r.order)-maxFinished)
	for n < len(r.order) && time.Since(r.order[n].at) >= r.keep {
		n++
	}
	for _, f := range r.order[:n] {
		delete(r.finished, f.key)
	}
	r.order = append(r.order[:0], r.order[n:]...)
}
