package rpc

// Texts of a sweep's actions by which a controller knows them; those of all others are for people alone. They are part of the
// wire contract: agents and controllers of neighbouring versions work together.
const (
	// ActionStartVM is what a sweep does with a VM that the work had shut down.
	ActionStartVM = "start VM"
	// ActionTellMade is what a sweep leaves for later where a VM was made as new and its controller has not heard of it.
	ActionTellMade = "tell of the VM that was made as new"
	// ActionKeepMade tells of such a VM; the object ends with its UUID.
	ActionKeepMade = "keep the VM that was made completely, as new, and that its session does not know of"
)
