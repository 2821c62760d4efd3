package agent

import (
	"context"
	"maps"
	"slices"
)

// endSessions ends the transfers of sessions that peer, their controller, knows to be dead, and waits until they have
// cleaned up or ctx ends: nobody comes back to them, so their leases need not run out first.
func (a *Agent) endSessions(ctx context.Context, peer string, sessions []string) {
	ended := a.jobsOf(peer, sessions)
	for _, j := range ended {
		j.log.Info("transfer ended: its session is dead", "peer", peer)
		j.release()
	}
	for _, j := range ended {
		j.awaitResult(ctx)
	}
}

// jobsOf are the transfers of sessions that are peer's.
func (a *Agent) jobsOf(peer string, sessions []string) []*job {
	all := slices.Collect(maps.Values(a.jobs.All()))
	return slices.DeleteFunc(all, func(j *job) bool { return j.Peer != peer || !slices.Contains(sessions, j.Session) })
}

// ending are the subjects of transfers that endSessions would end and that are still at work: a VM's UUID, or the nonce of
// one that does not exist yet.
func (a *Agent) ending(peer string, sessions []string) map[string]bool {
	out := map[string]bool{}
	for _, j := range a.jobsOf(peer, sessions) {
		if _, over := j.result(); !over {
			out[j.VM], out[j.Nonce] = true, true
		}
	}
	return out
}
