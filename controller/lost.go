package controller

import (
	"context"
	"slices"
)

// settleLost settles what agents that are gone were told to do with a VM, once another one has taken it over and is done with
// it: where that one, asked, finds nothing left of it. Else it stays for repair.
func (r *runner) settleLost(conn *agentConn, intent Intent) {
	var lost []Intent
	for _, i := range r.s.snapshot().Unfinished() {
		if i.VMUUID == intent.VMUUID && i.PoolUUID == intent.PoolUUID && i.Agent != intent.Agent {
			i.Session = r.s.id
			lost = append(lost, i)
		}
	}
	if len(lost) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), r.c.cfg.Timing.CallTimeout)
	defer cancel()
	actions, err := conn.sweep(ctx, true, lost, nil, nil)
	if err != nil {
		return // the report says that repair is to be run
	}
	for _, i := range lost {
		if slices.ContainsFunc(actions, func(a SweepAction) bool { return a.concerns(i) }) {
			continue
		}
		if err := r.s.settle(i.Key); err != nil {
			r.unwritten(err)
		}
	}
}
