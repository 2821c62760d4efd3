package controller

import "time"

// downtimes adds up for how long the attempts at a VM kept it down.
type downtimes struct {
	sum     time.Duration
	unknown bool // an agent that may have shut it down has not told
}

// add counts an attempt that might shut the VM down; heard says that its agent has taken it up.
func (d *downtimes) add(left departure, heard bool) {
	d.sum += left.Downtime
	d.unknown = d.unknown || heard && (left.err != nil || left.Deduced)
}

// total is 0 where it is not known.
func (d *downtimes) total() time.Duration {
	if d.unknown {
		return 0
	}
	return d.sum
}
