package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
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
	// Data is the step's data as JSON text; in several keys where it is too long for one.
	Data string `json:"data,omitempty"`
	Part int    `json:"part,omitempty"`
	Of   int    `json:"of,omitempty"`
}

// entry is one step in the journal, its parts put together.
type entry struct {
	VM   string // empty for a take-over
	Step string // stepClaim, …, or takeWord
	// Old is the nonce that a take-over is about; empty for steps.
	Old    string
	Record record   // of the first part
	Keys   []string // all keys of the entry
	// Complete is false while parts are missing: the writer died between them and has not acted on the step.
	Complete bool
	// Data is the step's data, "" where it has none or is not complete.
	Data string
	n    int // the highest number among the keys
}

// decode unmarshals the step's data.
func (e entry) decode(v any) error {
	if !e.Complete {
		return fmt.Errorf("journal entry %s of VM %s: parts are missing", e.Step, e.VM)
	}
	if err := json.Unmarshal([]byte(e.Data), v); err != nil {
		return fmt.Errorf("journal entry %s of VM %s: %w", e.Step, e.VM, err)
	}
	return nil
}

// ledger is the journal as it was at one reading.
type ledger struct {
	entries []entry           // steps and claims, by VM, then step, then nonce
	takes   []entry           // take-overs
	unknown map[string]string // keys under our prefix that are not ours to understand, with the reason
	raw     map[string]string // every key under our prefix
}

// claims returns the claims on a VM: one, none, or several in the moment of a renewal.
func (l *ledger) claims(vm string) []entry {
	return filter(l.entries, func(e entry) bool { return e.VM == vm && e.Step == stepClaim })
}

// steps returns what is noted for a VM besides claims; of one nonce, or of all when nonce is empty.
func (l *ledger) steps(vm, nonce string) []entry {
	return filter(l.entries, func(e entry) bool {
		return e.VM == vm && e.Step != stepClaim && (nonce == "" || e.Record.Nonce == nonce)
	})
}

// takesOf returns the take-overs of a nonce.
func (l *ledger) takesOf(nonce string) []entry {
	return filter(l.takes, func(e entry) bool { return e.Old == nonce })
}

// free returns a key for stem that is not in use: stem itself or stem.N.
func (l *ledger) free(stem string) string {
	if _, used := l.raw[stem]; !used {
		return stem
	}
	for n := 1; ; n++ {
		key := stem + "." + strconv.Itoa(n)
		if _, used := l.raw[key]; !used {
			return key
		}
	}
}

func filter(in []entry, keep func(entry) bool) []entry {
	var out []entry
	for _, e := range in {
		if keep(e) {
			out = append(out, e)
		}
	}
	return out
}

// journal reads and writes the pool's journal for one agent.
type journal struct {
	store store
	agent string        // the agent's name
	ttl   time.Duration // how long a claim stands without renewal
	retry backoff

	mu   sync.Mutex
	held map[string]bool // VMs, by UUID, that this process works on
}

// newJournal returns the journal of an agent by name.
func newJournal(s store, agent string, t Timing) *journal {
	return &journal{store: s, agent: agent, ttl: t.Claim, retry: backoff{Min: t.RetryMin, Max: t.RetryMax}, held: map[string]bool{}}
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
	return t.UTC(), nil
}

// read returns the journal.
func (j *journal) read(ctx context.Context) (*ledger, error) {
	all, err := j.store.PoolOtherConfig(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	return parseLedger(all), nil
}

// parseLedger picks the journal out of pool.other_config. What is under our
// prefix and cannot be understood is kept aside with the reason.
func parseLedger(all map[string]string) *ledger {
	l := &ledger{unknown: map[string]string{}, raw: map[string]string{}}
	groups := map[string][]part{}
	for _, key := range slices.Sorted(maps.Keys(all)) {
		if !strings.HasPrefix(key, keyPrefix) {
			continue
		}
		l.raw[key] = all[key]
		p, err := parsePart(key, all[key])
		if err != nil {
			l.unknown[key] = err.Error()
			continue
		}
		id := strings.Join([]string{p.vm, p.step, p.old, p.rec.Nonce, p.rec.ID}, ":")
		groups[id] = append(groups[id], p)
	}
	for _, id := range slices.Sorted(maps.Keys(groups)) {
		e := join(groups[id])
		if e.Step == takeWord {
			l.takes = append(l.takes, e)
		} else {
			l.entries = append(l.entries, e)
		}
	}
	return l
}

// part is one key and its value.
type part struct {
	key, vm, step, old string
	n                  int
	rec                record
}

func parsePart(key, value string) (part, error) {
	p := part{key: key}
	first, second, ok := strings.Cut(strings.TrimPrefix(key, keyPrefix), ":")
	if !ok || first == "" || second == "" {
		return p, errors.New("not a key of the journal")
	}
	stem := second
	if i := strings.LastIndexByte(second, '.'); i >= 0 {
		n, err := strconv.ParseUint(second[i+1:], 10, 31)
		if err != nil {
			return p, errors.New("not a key of the journal")
		}
		p.n, stem = int(n), second[:i]
	}
	if first == takeWord {
		p.step, p.old = takeWord, stem
	} else {
		p.vm, p.step = first, stem
	}
	if len(value) > maxValue {
		return p, fmt.Errorf("value of %d bytes", len(value))
	}
	if err := json.Unmarshal([]byte(value), &p.rec); err != nil {
		return p, fmt.Errorf("value is not of the journal: %w", err)
	}
	if p.rec.V != journalVersion {
		return p, fmt.Errorf("written by another version of dpxen: format %d", p.rec.V)
	}
	if !validNonce(p.rec.Nonce) || p.rec.Agent == "" {
		return p, errors.New("value without nonce or agent")
	}
	return p, nil
}

// join puts the parts of one step together. A part that is there twice, after
// an answer was lost, counts once.
func join(parts []part) entry {
	first := parts[0]
	e := entry{VM: first.vm, Step: first.step, Old: first.old, Record: first.rec}
	of := max(first.rec.Of, 1)
	pieces := map[int]string{}
	for _, p := range parts {
		e.Keys = append(e.Keys, p.key)
		e.n = max(e.n, p.n)
		if p.rec.Part < of {
			pieces[p.rec.Part] = p.rec.Data
		}
	}
	if len(pieces) != of {
		return e
	}
	e.Complete = true
	for i := range of {
		e.Data += pieces[i]
	}
	return e
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
