package agent

import (
	"context"
	"slices"
)

// endSessions ends the transfers of sessions that peer, their controller, knows to be dead, and waits until they have
// cleaned up or ctx ends: nobody comes back to them, so their leases need not run out first.
func (a *Agent) endSessions(ctx context.Context, peer string, sessions []string) {
	var ended []*job
	for _, j := range a.jobs.All() {
		if j.Peer == peer && slices.Contains(sessions, j.Session) {
			j.log.Info("transfer ended: its session is dead", "peer", peer)
			j.release()
			ended = append(ended, j)
		}
	}
	for _, j := range ended {
		j.awaitResult(ctx)
	}
}
