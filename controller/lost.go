package controller

import (
	"context"
	"slices"

	"github.com/dpxen/dpxen/internal/rpc"
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

// settleEarlier has the agent finish what earlier attempts of its own had begun, and the last one did not hear of: XAPI's database
// may have fallen back between them, and the journal with it. Then disks of a snapshot may be left, or the VM may be off that
// the last attempt found off. It returns the keys of those attempts of which something stays for repair.
func (r *runner) settleEarlier(slot int, conn *agentConn, intent Intent, d departure) (open []string) {
	var earlier []Intent
	for _, i := range r.s.snapshot().Unfinished() {
		if i.Nonce == intent.Nonce && i.Agent == intent.Agent && i.Key != intent.Key && i.unheard(intent, d) {
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
	started := slices.ContainsFunc(actions, func(a SweepAction) bool {
		return a.VMUUID == intent.VMUUID && a.Action == rpc.ActionStartVM && a.Done && !a.Open()
	})
	off := d.After != PowerRunning && slices.ContainsFunc(earlier, Intent.stopped)
	left := err != nil || off && !started || slices.ContainsFunc(actions, func(a SweepAction) bool { return a.Left() && a.concerns(intent) })
	r.result(slot, func(res *VMResult) {
		if started {
			res.PowerAfter, res.PowerNotRestored = PowerRunning, false
		}
		if left {
			res.Warnings = appendNew(res.Warnings, "what an earlier attempt has left on the host may still be there; dpxen repair removes it")
		}
	})
	if !left {
		return nil
	}
	return open
}

// unheard tells whether something of an attempt may be left after the last one, which left the VM as d says.
func (i Intent) unheard(last Intent, d departure) bool {
	disk := func(disk string) bool { return !slices.Contains(last.Disks, disk) }
	return slices.ContainsFunc(i.Disks, disk) || i.stopped() && d.After != PowerRunning
}

// stopped tells whether the VM ran before the attempt, which may have stopped it.
func (i Intent) stopped() bool { return i.StopsVM && i.PowerBefore == PowerRunning }
