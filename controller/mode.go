package controller

import (
	"fmt"
	"strings"

	"github.com/dpxen/dpxen/internal/staging"
)

// Mode says which VMs a session is about and how they are treated.
type Mode string

// The modes, as users write them; ParseMode accepts any case.
const (
	// Online takes the selected VMs as snapshots; their power state is untouched.
	Online Mode = "online"
	// AllOnline does so with every VM.
	AllOnline Mode = "allOnline"
	// Offline shuts the selected VMs down for their export.
	Offline Mode = "offline"
	// AllOffline does so with every VM.
	AllOffline Mode = "allOffline"
)

// Modes returns every mode, in the order of the documentation.
func Modes() []Mode { return []Mode{Online, AllOnline, Offline, AllOffline} }

// ParseMode reads a mode in any case; what is none is a UsageError.
func ParseMode(s string) (Mode, error) {
	for _, m := range Modes() {
		if strings.EqualFold(s, string(m)) {
			return m, nil
		}
	}
	return "", &UsageError{Failure: Failure{
		What:   fmt.Sprintf("mode %q is unknown", s),
		Advice: "use one of online, allOnline, offline, allOffline",
	}}
}

// All tells whether the mode is about every VM.
func (m Mode) All() bool { return m == AllOnline || m == AllOffline }

// Kind returns the kind of files that the mode makes and restores.
func (m Mode) Kind() Kind {
	if m == Offline || m == AllOffline {
		return KindOffline
	}
	return KindOnline
}

// Kind is the kind of a backup file, as it stands in its name and manifest: the two never mix.
type Kind = staging.Kind

// The kinds.
const (
	KindOnline  = staging.Online
	KindOffline = staging.Offline
)
