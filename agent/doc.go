// Package agent is the service beside a XenServer host: it backs virtual
// machines (VMs) up from, and restores them to, the pool of its host.
//
// A piece of work on one VM is a job. It lives on the agent's context, not on
// that of the gRPC stream that asked for it: streams come, are evicted by newer
// ones and go, while the job has a lease that runs out when none is attached.
// Whatever a job changes in the pool is written to the pool's journal first and
// undone by the job's cleanup, or, when the agent died, by a sweep.
//
//	journal.go, ledger.go               the journal in pool.other_config, written and read
//	claim.go, takeover.go, standing.go  claims, take-over; no change without a standing claim
//	sweep*.go, mend.go                  finishing or undoing the work of the dead
//	power.go, watch.go     stopping and starting VMs; shutdowns that were given up
//	snapshot.go            making, finding and deleting snapshots of ours
//	job.go                 a transfer's life: open, attach, lease, release, outcome
//	backup*.go             the backup procedure
//	service*.go            wire messages; nothing else knows them
//	errors.go              XAPI's failures as the reasons that callers decide on
//	config*.go, server.go  agent.yaml; listening, health, metrics, shutdown
//
// The rules that never bend are those of the design document, section 11.
package agent
