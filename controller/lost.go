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

// settleEarlier has the agent delete the disks of snapshots that earlier attempts of its own had made, and that the last one did
// not hear of: XAPI's database may have fallen back between them, and the journal with it. It returns the keys of those attempts
// of which something stays for repair.
func (r *runner) settleEarlier(slot int, conn *agentConn, intent Intent) (open []string) {
	var earlier []Intent
	for _, i := range r.s.snapshot().Unfinished() {
		unheard := func(disk string) bool { return !slices.Contains(intent.Disks, disk) }
		if i.Nonce == intent.Nonce && i.Agent == intent.Agent && i.Key != intent.Key && slices.ContainsFunc(i.Disks, unheard) {
			i.Session = r.s.id
			earlier, open = append(earlier, i), append(open, i.Key)
		}
	}
	if len(earlier) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), r.c.cfg.Timing.CallTimeout)
	defer cancel()
	actions, err := conn.sweep(ctx, false, earlier, nil, nil)
	if err == nil && !slices.ContainsFunc(actions, func(a SweepAction) bool { return a.Left() && a.concerns(intent) }) {
		return nil
	}
	r.result(slot, func(res *VMResult) {
		res.Warnings = appendNew(res.Warnings, "disks of the snapshot of an earlier attempt may be left on the host; dpxen repair removes them")
	})
	return open
}
