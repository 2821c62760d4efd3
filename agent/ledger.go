package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

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
	overs   []entry           // marks of finished work, see overData
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

// aboutPower tells whether a step is about the VM's power state: such steps go along with the watch on a VM.
func aboutPower(step string) bool { return step == stepPower || step == stepAgain }

// watched tells whether nothing is noted for a piece of work but the VM's power state and the watch on it.
func (l *ledger) watched(vm, nonce string) bool {
	found := false
	for _, e := range l.steps(vm, nonce) {
		if !aboutPower(e.Step) && e.Step != stepWatch || !e.Complete {
			return false
		}
		found = found || e.Step == stepWatch
	}
	return found
}

// readable returns the key that a new claim or take-over has to add: stem, or, where somebody has put a value there that is
// none of the journal's, the first of stem.N without such a value. It is the same for all who try.
func (l *ledger) readable(stem string) string {
	key := stem
	for n := 1; ; n++ {
		if _, strange := l.unknown[key]; !strange {
			return key
		}
		key = stem + "." + strconv.Itoa(n)
	}
}

// freeAfter returns a key for stem that is not in use and has a higher number than the former ones.
func (l *ledger) freeAfter(stem string, former []entry) string {
	if len(former) == 0 {
		return l.free(stem)
	}
	n := 0
	for _, e := range former {
		n = max(n, e.n+1)
	}
	for ; ; n++ {
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
		if e.isMark() {
			l.overs = append(l.overs, e)
		} else if e.Step == takeWord {
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
		if p.rec.Part >= 0 && p.rec.Part < of {
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
