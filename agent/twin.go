package agent

import "time"

// Somebody copies an agent's bundle to a second host, or starts an agent twice: two processes have one name, and to each of them the
// other's work looks like that of its own former life. At a start nobody can tell them apart, and a VM that is off because its
// agent has died must not wait. What has begun since is another matter.

// inHand notes that this process has work of the nonce in hand, until setBegun says that it is over.
func (j *journal) inHand(nonce string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.here[nonce] = true
}

// twin tells whether work of this agent's own name is another process's that lives: its last term began after this process
// did, which never had it in hand. Somebody has given two agents one name; they are to leave each other's work alone. What was
// granted in the future is from before the clock was set back.
func (j *journal) twin(w work, now time.Time) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return !j.here[w.nonce] && !j.began.IsZero() && w.granted.After(j.began) && !w.granted.After(now)
}
