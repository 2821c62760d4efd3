package agent

import (
	"slices"
	"time"

	"github.com/dpxen/dpxen/internal/rpc"
)

// backupSpec says what to back up and how.
type backupSpec struct {
	Offline         bool
	Excluded        []string // VDIs to leave out, by UUID
	ForceOff        bool
	WithMemory      bool
	ShutdownTimeout time.Duration // 0: the default
	Compression     string        // "", "gzip" or "zstd"
	Place           place
	WirePacked      bool // frames are compressed on the wire
	FromSnapshot    bool // offline: of a VM that runs, export a snapshot of it as it was halted
}

// same tells whether two specs ask for the same.
func (s backupSpec) same(o backupSpec) bool {
	return s.Offline == o.Offline && slices.Equal(s.Excluded, o.Excluded) && s.ForceOff == o.ForceOff &&
		s.WithMemory == o.WithMemory && s.ShutdownTimeout == o.ShutdownTimeout && s.Compression == o.Compression &&
		slices.Equal(s.Place.Hosts, o.Place.Hosts) && slices.Equal(s.Place.SRs, o.Place.SRs) &&
		s.FromSnapshot == o.FromSnapshot && s.WirePacked == o.WirePacked
}

// admits refuses power states that the kind of backup has no way for (the table
// of DESIGN section 1).
func (s backupSpec) admits(state string) error {
	switch {
	case state == running || state == halted:
		return nil
	case state != suspended:
		return rpc.Errorf(rpc.PowerState, "the VM is %s", state)
	case !s.Offline:
		return nil
	case !s.WithMemory:
		return rpc.Errorf(rpc.PowerState,
			"the VM is suspended; it is backed up offline only together with its memory image (--with-memory)")
	case len(s.Excluded) > 0:
		return rpc.Errorf(rpc.Invalid, "a suspended VM with its memory image can only be backed up with all its disks")
	}
	return nil
}
