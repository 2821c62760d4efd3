package staging

import (
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Kind tells which sessions can restore a file. The two never mix.
type Kind string

// The kinds of backup: of a snapshot, or of a VM that was shut down.
const (
	Online  Kind = "online"
	Offline Kind = "offline"
)

const (
	extXVA      = ".xva"
	extManifest = ".json"

	timeLayout = "20060102T150405Z"
)

// Name is what a staged file's name says. Two equal Names have equal file names.
type Name struct {
	Slug string    // of the VM's name, see Slug
	UUID string    // the VM's own, in lower case
	Kind Kind      //
	Time time.Time // of the snapshot or shutdown, UTC, whole seconds
}

// NewName builds the name of a backup of the VM called vmName. The error is ErrName where UUID, kind or time cannot stand
// in a name.
func NewName(vmName, vmUUID string, kind Kind, at time.Time) (Name, error) {
	n := Name{Slug: Slug(vmName), UUID: strings.ToLower(vmUUID), Kind: kind, Time: at.UTC().Truncate(time.Second)}
	return n, n.validate()
}

// validate holds n to what ParseName gives back.
func (n Name) validate() error {
	parsed, err := ParseName(n.XVA())
	if err != nil {
		return err
	}
	if parsed != n {
		return fmt.Errorf("%.200q: %w", n.XVA(), ErrName)
	}
	return nil
}

// XVA returns the file name of the export.
func (n Name) XVA() string { return n.base() + extXVA }

// Manifest returns the file name of the export's manifest.
func (n Name) Manifest() string { return n.base() + extManifest }

func (n Name) base() string {
	return strings.Join([]string{n.Slug, n.UUID, string(n.Kind), n.Time.UTC().Format(timeLayout)}, ".")
}

// ParseName reads the file name of an export or a manifest. It accepts exactly what XVA and Manifest write; anything else
// is an error with ErrName.
func ParseName(base string) (Name, error) {
	bad := func(why string) (Name, error) { return Name{}, fmt.Errorf("%.200q: %w: %s", base, ErrName, why) }
	stem, ok := strings.CutSuffix(base, extXVA)
	if !ok {
		if stem, ok = strings.CutSuffix(base, extManifest); !ok {
			return bad("want .xva or .json at the end")
		}
	}
	parts := strings.Split(stem, ".")
	if len(parts) != 4 {
		return bad("want SLUG.UUID.KIND.TIME")
	}
	if Slug(parts[0]) != parts[0] {
		return bad("the slug is not one")
	}
	if !isUUID(parts[1]) {
		return bad("no UUID in second place")
	}
	kind := Kind(parts[2])
	if kind != Online && kind != Offline {
		return bad("want online or offline in third place")
	}
	at, err := time.Parse(timeLayout, parts[3])
	if err != nil || at.Format(timeLayout) != parts[3] {
		return bad("want a time like 20261122T203000Z in fourth place")
	}
	return Name{Slug: parts[0], UUID: parts[1], Kind: kind, Time: at}, nil
}

// isUUID tells whether s is a UUID as XAPI writes them: 36 characters, lower case.
func isUUID(s string) bool {
	id, err := uuid.Parse(s)
	return err == nil && id.String() == s
}
