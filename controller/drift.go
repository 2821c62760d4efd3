package controller

import (
	"fmt"
	"time"
)

// Drift lists VMs that ought to be backed up and may not be. VMs with a mark against backups are none of them.
type Drift struct {
	// Uncovered VMs are chosen by no set and no specification of the configuration; absent where there is none of either.
	Uncovered []DriftVM `json:"uncovered,omitempty"`
	// Never are VMs of which no good backup is known.
	Never []DriftVM `json:"never,omitempty"`
	// Old are VMs whose last good backup is older than MaxAge.
	Old    []DriftVM `json:"old,omitempty"`
	MaxAge Duration  `json:"max_age,omitempty"` // max_age of the configuration, 0 = off
}

// DriftVM is one VM of a Drift.
type DriftVM struct {
	UUID     string    `json:"uuid"`
	Name     string    `json:"name"`
	Pool     string    `json:"pool"`
	PoolUUID string    `json:"pool_uuid"`
	LastGood time.Time `json:"last_good,omitzero"`
	Session  string    `json:"session,omitempty"` // whose it is
	Why      string    `json:"why,omitempty"`     // what is known beyond that
}

// Duration is written as text, such as 48h0m0s.
type Duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("read a duration: %w", err)
	}
	*d = Duration(v)
	return nil
}

// Empty tells whether there is nothing in it.
func (d *Drift) Empty() bool {
	return d == nil || len(d.Uncovered)+len(d.Never)+len(d.Old) == 0
}

// drift compares what exists with what the configuration covers and what the history knows.
func (c *Controller) drift(inv *Inventory, h *history) *Drift {
	d := &Drift{MaxAge: Duration(c.cfg.MaxAge)}
	covered := c.covered(inv)
	now := c.o.Now()
	for i := range inv.VMs {
		vm := &inv.VMs[i]
		if vm.mark() != "" {
			continue
		}
		p := h.of(vm)
		last, good := p.last()
		one := DriftVM{UUID: vm.UUID, Name: vm.Name, Pool: vm.Pool, PoolUUID: vm.PoolUUID, LastGood: last.Time, Session: last.Session,
			Why: p.trouble(last.Time)}
		switch {
		case !good:
			d.Never = append(d.Never, one)
		case c.cfg.MaxAge > 0 && now.Sub(last.Time) > c.cfg.MaxAge:
			d.Old = append(d.Old, one)
		}
		if covered != nil && !covered[i] {
			d.Uncovered = append(d.Uncovered, one)
		}
	}
	return d
}

// trouble says what has happened to a VM's backups since its last good one.
func (p *pastVM) trouble(since time.Time) string {
	switch {
	case p == nil:
		return ""
	case p.Failed.After(since):
		return fmt.Sprintf("tried at %s: %s", p.Failed.UTC().Format(time.RFC3339), p.Reason)
	case len(p.Good) > 0 && p.Good[0].Unsaved && p.Good[0].Time.After(since):
		return fmt.Sprintf("staged at %s, but Data Protector has not saved it", p.Good[0].Time.UTC().Format(time.RFC3339))
	}
	return ""
}

// covered returns which VMs some set or specification of the configuration chooses; nil where there is none of either. What
// a set names that is not there any more is no fault here.
func (c *Controller) covered(inv *Inventory) []bool {
	if len(c.cfg.Sets)+len(c.cfg.Specs) == 0 {
		return nil
	}
	covered := make([]bool, len(inv.VMs))
	r := newResolver(inv, c.cfg.Sets)
	r.limited, r.marks = true, false
	take := func(criteria criteria, all bool) {
		for i := range r.evaluate(criteria, all) {
			covered[i] = true
		}
	}
	for _, name := range sortedKeys(c.cfg.Sets) {
		take(c.cfg.Sets[name].criteria(setPrefix+name), false)
	}
	for _, name := range sortedKeys(c.cfg.Specs) {
		spec := c.cfg.Specs[name]
		if mode, err := ParseMode(spec.Mode); err == nil {
			take(spec.Selection(name, mode).criteria(), mode.All())
		}
	}
	return covered
}

// without returns the drift as it is after these VMs were backed up.
func (d *Drift) without(good map[vmKey]bool) *Drift {
	if d == nil {
		return nil
	}
	left := func(all []DriftVM) []DriftVM {
		var out []DriftVM
		for _, vm := range all {
			if !good[vmKey{vm.PoolUUID, vm.UUID}] {
				out = append(out, vm)
			}
		}
		return out
	}
	return &Drift{Uncovered: d.Uncovered, Never: left(d.Never), Old: left(d.Old), MaxAge: d.MaxAge}
}
