package transfer

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// KeepFinished is how long a Registry remembers a transfer that is over, so that a caller who missed the answer can ask
// again.
const KeepFinished = 10 * time.Minute

// maxRemembered bounds how many of them are remembered; the oldest go first.
const maxRemembered = 1024

// Registry holds an agent's transfers by their idempotency key.
type Registry[T any] struct {
	mu       sync.Mutex
	open     map[string]T
	finished memory[T]
	refused  memory[struct{}] // keys whose transfer could not be made
}

// NewRegistry returns an empty registry that remembers finished transfers for keep; KeepFinished when it is not positive.
func NewRegistry[T any](keep time.Duration) *Registry[T] {
	if keep <= 0 {
		keep = KeepFinished
	}
	return &Registry[T]{
		open:     make(map[string]T),
		finished: memory[T]{keep: keep, values: make(map[string]T)},
		refused:  memory[struct{}]{keep: keep, values: make(map[string]struct{})},
	}
}

// Open returns the transfer of key: one that is there already, open or finished (resumed), or the one that create
// returns. create is called under the registry's lock, so it must not block nor use the registry; when it fails no
// transfer is kept, and a later attempt may try again. Otherwise a key that is not known with an attempt above 1 is
// ErrGone: its transfer was here once, or on an agent that is gone.
func (r *Registry[T]) Open(key string, attempt uint32, create func() (T, error)) (t T, resumed bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t, ok := r.lookup(key); ok {
		return t, true, nil
	}
	if _, refused := r.refused.get(key); attempt > 1 && !refused {
		return t, false, fmt.Errorf("attach attempt %d: %w", attempt, ErrGone)
	}
	t, err = create()
	if err != nil {
		r.refused.put(key, struct{}{})
		return t, false, err
	}
	r.refused.drop(key)
	r.open[key] = t
	return t, false, nil
}

// OpenAt is Open for a caller who stands at offset of the logical stream. At 0 nothing is lost by a transfer made anew, so
// it is made whatever the attempt: the streams before may never have reached this agent.
func (r *Registry[T]) OpenAt(key string, attempt uint32, offset int64, create func() (T, error)) (t T, resumed bool, err error) {
	if offset == 0 {
		attempt = 1
	}
	return r.Open(key, attempt, create)
}

// Lookup returns the transfer of key, open or finished.
func (r *Registry[T]) Lookup(key string) (T, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lookup(key)
}

func (r *Registry[T]) lookup(key string) (T, bool) {
	if t, ok := r.open[key]; ok {
		return t, true
	}
	return r.finished.get(key)
}

// Remove makes the transfer a finished one, which is forgotten after a while. It may be repeated.
func (r *Registry[T]) Remove(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t, ok := r.open[key]; ok {
		delete(r.open, key)
		r.finished.put(key, t)
	}
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
	return maps.Clone(r.open)
}

// memory holds values for a while, and the newest of too many.
type memory[T any] struct {
	keep   time.Duration
	values map[string]T
	order  []remembered // of values, oldest first
}

type remembered struct {
	key string
	at  time.Time
}

func (m *memory[T]) get(key string) (T, bool) {
	m.purge()
	t, ok := m.values[key]
	return t, ok
}

func (m *memory[T]) put(key string, t T) {
	m.drop(key)
	m.values[key] = t
	m.order = append(m.order, remembered{key, time.Now()})
	m.purge()
}

func (m *memory[T]) drop(key string) {
	if _, ok := m.values[key]; ok {
		delete(m.values, key)
		m.order = slices.DeleteFunc(m.order, func(r remembered) bool { return r.key == key })
	}
}

// purge forgets what is old, and the oldest beyond the bound.
func (m *memory[T]) purge() {
	n := max(0, len(m.order)-maxRemembered)
	for n < len(m.order) && time.Since(m.order[n].at) >= m.keep {
		n++
	}
	for _, r := range m.order[:n] {
		delete(m.values, r.key)
	}
	m.order = slices.Delete(m.order, 0, n)
}
