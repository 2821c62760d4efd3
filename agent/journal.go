package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/dpxen/dpxen/internal/xapi"
)

// The journal's keys in pool.other_config are dpxen:VMUUID:STEP[.N] and
// dpxen:take:NONCE[.N]; every value is JSON of at most maxValue bytes (DESIGN
// section 3). Keys are added and removed, a value is never changed.
const (
	keyPrefix = "dpxen:"
	takeWord  = "take"
	maxValue  = 1024
	// journalVersion is record.V; records of another version are reported and never touched.
	journalVersion = 1
)

// Steps of the journal. Restore adds its own.
const (
	stepClaim    = "claim"
	stepPower    = "power"
	stepWatch    = "watch"
	stepAgain    = "again"
	stepSnapshot = "snapshot"
)

// store is what the journal needs of XAPI; *xapi.Client has it.
type store interface {
	PoolOtherConfig(ctx context.Context) (map[string]string, error)
	AddToPoolOtherConfig(ctx context.Context, key, value string) error
	RemoveFromPoolOtherConfig(ctx context.Context, key string) error
	ServerTime(ctx context.Context) (time.Time, error)
}

// owner says for whom a piece of work is done.
type owner struct {
	Session string // the controller's session
	Key     string // the transfer's key
	Nonce   string // the random name of the work, also in the controller's session state

	Controller string    // its name; may be empty
	Since      time.Time // when the work began, by the master's clock; set when it is claimed
}

// record is a value in the journal.
type record struct {
	V       int       `json:"v"`
	Agent   string    `json:"agent"`
	Session string    `json:"session"`
	Key     string    `json:"key"`
	Nonce   string    `json:"nonce"`
	ID      string    `json:"id"` // of the entry, in all its parts: some hosts let the same value be added twice
	Expires time.Time `json:"expires"`
	// Granted is when the claim's term began; zero in records of versions before it was told.
	Granted time.Time `json:"granted,omitzero"`
	// For whom and since when, for people; older agents write neither.
	Controller string    `json:"controller,omitempty"`
	Since      time.Time `json:"since,omitzero"`
	// Data is the step's data as JSON text; in several keys where it is too long for one.
	Data string `json:"data,omitempty"`
	Part int    `json:"part,omitempty"`
	Of   int    `json:"of,omitempty"`
}

// journal reads and writes the pool's journal for one agent.
type journal struct {
	store store
	agent string        // the agent's name
	ttl   time.Duration // how long a claim stands without renewal
	retry backoff

	ending sync.Mutex // held while keys of marked nonces are removed

	mu   sync.Mutex
	held map[string]bool      // VMs, by UUID, that this process works on
	mine map[string]bool      // nonces that this process has claimed for: of these no call of a dead agent's can come
	here map[string]bool      // nonces of work that this process has, or has had, in hand: also of such that a former life had begun
	seen map[string]time.Time // by ID, since when this process has seen a record unrenewed, by its own clock

	began time.Time // the master's clock when this process first read it

	doubts map[string][]doubt // by nonce
}

// newJournal returns the journal of an agent by name.
func newJournal(s store, agent string, t Timing) *journal {
	return &journal{store: s, agent: agent, ttl: t.Claim, retry: backoff{Min: t.RetryMin, Max: t.RetryMax}, held: map[string]bool{}, mine: map[string]bool{},
		here: map[string]bool{}, doubts: map[string][]doubt{}}
}

// hold marks a VM as worked on by this process. It is false where that is so
// already: then nobody else in the process touches the VM's entries.
func (j *journal) hold(vm string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.held[vm] {
		return false
	}
	j.held[vm] = true
	return true
}

// holds tells whether this process works on the VM.
func (j *journal) holds(vm string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.held[vm]
}

// begun tells whether this very process has claimed something for the nonce.
func (j *journal) begun(nonce string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.mine[nonce]
}

// setBegun notes that it has, or that the work is over.
func (j *journal) setBegun(nonce string, begun bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.mine, nonce)
	delete(j.here, nonce)
	if begun {
		j.mine[nonce] = true
		j.here[nonce] = true
	}
}

func (j *journal) unhold(vm string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.held, vm)
}

// now is the pool master's clock, the only one that the journal knows.
func (j *journal) now(ctx context.Context) (time.Time, error) {
	t, err := j.store.ServerTime(ctx)
	if errors.Is(err, xapi.ErrUnsupported) {
		return time.Now().UTC(), nil // an XAPI without host.get_servertime: this clock is the best there is
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("read the pool master's clock: %w", err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.began.IsZero() {
		j.began = t.UTC()
	}
	return t.UTC(), nil
}

// read returns the journal.
func (j *journal) read(ctx context.Context) (*ledger, error) {
	all, err := j.store.PoolOtherConfig(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	l := parseLedger(all)
	j.observe(l)
	return l, nil
}

// observe remembers since when each record has been there.
func (j *journal) observe(l *ledger) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.settle(l)
	seen := map[string]time.Time{}
	for _, e := range slices.Concat(l.entries, l.takes, l.overs) {
		since, ok := j.seen[e.Record.ID]
		if !ok {
			since = time.Now()
		}
		seen[e.Record.ID] = since
	}
	j.seen = seen
}

// until is the end of a record's term, by the master's clock, which says now. A term that begins in the future is from before
// the clock was set back. Whoever lives has begun another one since then, after a third of a term; so what counts is that the
// record has been there, unrenewed, for as long as the term is, by this process's own clock.
func (j *journal) until(r record, now time.Time) time.Time {
	if r.Granted.IsZero() || !r.Granted.After(now.Add(steadyClock)) {
		return r.Expires
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	term := r.Expires.Sub(r.Granted)
	if since, ok := j.seen[r.ID]; ok {
		term -= time.Since(since)
	}
	return now.Add(term)
}

// add adds a key and makes sure that its value is ours: where the answer was
// lost, or the key was there already, the journal is read again.
func (j *journal) add(ctx context.Context, key, value string) error {
	err := j.store.AddToPoolOtherConfig(ctx, key, value)
	if err == nil {
		return nil
	}
	if errors.Is(err, xapi.ErrDuplicateKey) || errors.Is(err, xapi.ErrUnreachable) {
		if l, readErr := j.read(ctx); readErr == nil && l.raw[key] == value {
			return nil
		}
	}
	return fmt.Errorf("add %s to the journal: %w", key, err)
}

func (j *journal) remove(ctx context.Context, keys ...string) error {
	for _, key := range keys {
		if err := j.store.RemoveFromPoolOtherConfig(ctx, key); err != nil {
			return fmt.Errorf("remove %s from the journal: %w", key, err)
		}
	}
	return nil
}

// values renders a record as one value, or as several where data is long.
func values(r record, data string) ([]string, error) {
	r.Data = data
	if v, err := marshal(r); err != nil || len(v) <= maxValue {
		return []string{v}, err
	}
	var pieces []string
	for len(data) > 0 {
		n, err := fitting(r, data)
		if err != nil {
			return nil, err
		}
		pieces, data = append(pieces, data[:n]), data[n:]
	}
	out := make([]string, len(pieces))
	for i, piece := range pieces {
		r.Data, r.Part, r.Of = piece, i, len(pieces)
		v, err := marshal(r)
		if err != nil {
			return nil, err
		}
		out[i] = v
	}
	return out, nil
}

// fitting returns how many bytes of data fit into one value.
func fitting(r record, data string) (int, error) {
	r.Part, r.Of = 999, 999 // room for the numbers
	for n := min(len(data), maxValue); n > 0; {
		for n > 0 && n < len(data) && !utf8.RuneStart(data[n]) {
			n--
		}
		r.Data = data[:n]
		v, err := marshal(r)
		if err != nil {
			return 0, err
		}
		if len(v) <= maxValue {
			return n, nil
		}
		n -= max((len(v)-maxValue)/2, 1)
	}
	return 0, errors.New("the names in a journal record are too long")
}

func marshal(r record) (string, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return "", fmt.Errorf("encode a journal record: %w", err)
	}
	return string(b), nil
}

// randomID returns 16 hexadecimal digits.
func randomID() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// validNonce tells whether s can stand in a key and in an object's name: 8 to
// 64 letters, digits and hyphens.
func validNonce(s string) bool {
	if len(s) < 8 || len(s) > 64 {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
}
