package agent

import "context"

// recall finds out what earlier attempts of the same work have noted: their agent died, or a shutdown was given up. From here on
// the cleanup undoes that, too; b.vm is the VM as it was last seen.
func (b *backup) recall(ctx context.Context) error {
	l, err := b.claim.check(ctx)
	if err != nil {
		return err
	}
	steps := l.steps(b.claim.vm, b.claim.work.Nonce)
	if b.taken, err = takenDisks(steps); err != nil {
		return err
	}
	snapshot, again := "", false
	var earlier *powerNote
	for _, e := range steps {
		switch {
		case !e.Complete:
		case e.Step == stepSnapshot:
			snapshot = snapshotPrefix + b.claim.work.Nonce
		case e.Step == stepAgain:
			again = true
		case e.Step == stepPower && earlier == nil:
			earlier = &powerNote{}
			if err := e.decode(earlier); err != nil {
				return err
			}
		}
	}
	if earlier != nil {
		b.before, b.powerNoted, b.asked = earlier.Before, true, true
		// What shut it down may not have reached XAPI when the agent died, and may yet.
		b.unanswered = again || b.claim.inherited() && b.vm.PowerState == running && !earlier.startedSince(b.vm)
	}
	b.snapshot, b.recalled = snapshot, true
	return nil
}
