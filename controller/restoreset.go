package controller

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/dpxen/dpxen/internal/staging"
)

// RestoreSet is what a restore session uses of a folder, and why not the rest. Nothing but manifests and, of adopted files,
// the beginning was read; whether a file is sound is found when it is verified, before its first byte goes anywhere.
type RestoreSet struct {
	Folder  string        `json:"folder"`
	Items   []RestoreItem `json:"items"`             // by the VMs' names
	Skipped []SkippedFile `json:"skipped,omitempty"` // by file name
	Notes   []string      `json:"notes,omitempty"`
	Done    int           `json:"done,omitempty"` // skipped files that the VM was restored from already, see RestoreRequest.Spec

	sieve *sieve // for Data Protector; else nil
}

// RestoreItem is one file that is to be restored. One with a reason in Refused is not, and fails the session: it is damaged
// or contradictory, and what it holds would be restored otherwise.
type RestoreItem struct {
	File      string    `json:"file"` // its name
	Path      string    `json:"path"`
	UUID      string    `json:"uuid"` // the VM's own; of adopted files the one in ova.xml
	Name      string    `json:"name"`
	Kind      Kind      `json:"kind"`
	Taken     time.Time `json:"taken,omitzero"`
	Bytes     int64     `json:"bytes"`
	Pool      string    `json:"pool,omitempty"` // where it was
	PoolUUID  string    `json:"pool_uuid,omitempty"`
	DPSession string    `json:"dp_session,omitempty"`
	Adopted   bool      `json:"adopted,omitempty"` // it has no manifest

	Refused string `json:"refused,omitempty"`
	Reason  string `json:"reason,omitempty"` // its code
	Advice  string `json:"advice,omitempty"`

	Doubt string `json:"doubt,omitempty"` // why it may not be the newest

	// ofSnapshot: it has no manifest and is the export of a snapshot, so that nothing says what the VM itself was.
	ofSnapshot bool
	entry      staging.Entry
}

// SkippedFile is a file that a restore does not use.
type SkippedFile struct {
	File   string `json:"file"`
	Reason string `json:"reason"`
}

// Manifest returns the file's manifest; nil for an adopted one.
func (it *RestoreItem) Manifest() *staging.Manifest { return it.entry.Manifest }

// RestoreFiles says which files a restore would use: of the folder, those of the mode's kind, the newest of each VM, as far
// as At, DPSession and Files allow, whose VMs the selection names. Errors are UsageErrors where what was asked for is
// unknown, ambiguous or makes no sense or nothing is there to be restored, and an IntegrityError where a file that was asked
// for is damaged.
func (c *Controller) RestoreFiles(req RestoreRequest) (*RestoreSet, error) {
	set, err := c.restoreFiles(req, nil)
	if err != nil {
		return nil, err
	}
	return set, nil
}

// restoreFiles is RestoreFiles, for Data Protector where the folder's lock is given. It returns the set also with an error
// that says that it is empty.
func (c *Controller) restoreFiles(req RestoreRequest, lock *arrivalsLock) (*RestoreSet, error) {
	if err := req.check(c.cfg.Sets); err != nil {
		return nil, err
	}
	set := &RestoreSet{Folder: cmp.Or(req.From, c.cfg.Restore)}
	entries, files, err := set.entries(req.Files)
	if err != nil {
		return nil, err
	}
	if lock != nil {
		if set.sieve, err = c.newSieve(req, lock, entries); err != nil {
			return nil, err
		}
		entries, set.Skipped = set.sieve.pass(entries)
	}
	chosen, skipped, err := staging.Select(entries, staging.Criteria{
		Kind: req.Mode.Kind(), At: req.At, DPSession: req.DPSession, Files: files, Adopt: req.Adopt})
	if err != nil {
		return nil, selectError(err)
	}
	for _, e := range chosen {
		set.Items = append(set.Items, itemOf(e, req.Mode.Kind()))
	}
	set.sortOut(skipped, req, len(files) > 0)
	if err := set.narrow(req, c.cfg.Sets); err != nil {
		return set, err
	}
	return set, set.checkTwins(req)
}

// check is what can be said without looking at anything.
func (req *RestoreRequest) check(sets map[string]Set) error {
	sel := req.Selection
	if (len(req.Files) > 0 || req.Spec != "") && sel.Empty() && !req.Mode.All() {
		return nil // the files are the selection
	}
	if req.Adopt && len(req.Files) == 0 {
		return &UsageError{Failure{What: "--adopt needs the files named that it is about"}}
	}
	return sel.Check(req.Mode, sets)
}

// fits tells whether a file is of the kind that the mode restores and not later than asked for.
func (req *RestoreRequest) fits(e staging.Entry) bool {
	return e.Name.Kind == req.Mode.Kind() && (req.At.IsZero() || !e.Name.Time.After(req.At)) &&
		(req.DPSession == "" || e.Manifest != nil && e.Manifest.DP.Session == req.DPSession)
}

// selectError gives what is wrong with FILE arguments its class.
func selectError(err error) error {
	for _, damage := range []error{staging.ErrContradiction, staging.ErrManifestDamaged, staging.ErrManifestFormat} {
		if errors.Is(err, damage) {
			return &IntegrityError{Failure{What: "restore", Err: err, Advice: "see dpxen verify"}}
		}
	}
	f := Failure{What: "restore", Err: err}
	if errors.Is(err, staging.ErrNoManifest) || errors.Is(err, staging.ErrNotComplete) && !errors.Is(err, fs.ErrNotExist) {
		f.Advice = "restore a file that has no manifest with --adopt"
	}
	return &UsageError{f}
}

// sortOut deals with what was not chosen. A damaged or contradictory file that would have been chosen were it sound is
// refused, and what is older than it is not restored in its place unasked.
func (set *RestoreSet) sortOut(skipped []staging.Skipped, req RestoreRequest, named bool) {
	for _, s := range skipped {
		e := s.Entry
		bad := e.State == staging.ManifestDamaged || e.State == staging.Contradiction || e.State == staging.MissingData ||
			e.State == staging.NoManifest && set.sieve != nil
		wanted := req.fits(e) && req.DPSession == ""
		i := slices.IndexFunc(set.Items, func(it RestoreItem) bool { return it.UUID == e.Name.UUID })
		if named || !bad || !wanted || i >= 0 && !set.Items[i].Taken.Before(e.Name.Time) {
			set.Skipped = append(set.Skipped, SkippedFile{File: e.Base(), Reason: s.Reason})
			if i >= 0 && !named && req.fits(e) {
				set.Items[i].Doubt = cmp.Or(outOfOrder(set.Items[i].entry, e), set.Items[i].Doubt)
			}
			continue
		}
		it := RestoreItem{File: e.Base(), Path: e.Path, UUID: e.Name.UUID, Name: e.Name.Slug, Kind: e.Name.Kind,
			Taken: e.Name.Time, Bytes: e.Size, entry: e}
		if e.Manifest != nil {
			it.Name, it.Pool, it.PoolUUID = e.Manifest.VM.Name, e.Manifest.VM.Pool.Name, e.Manifest.VM.Pool.UUID
		}
		switch {
		case e.State == staging.NoManifest:
			it.refuse(ReasonNoManifest, s.Reason, adviceOverwrite)
		case set.sieve != nil:
			it.refuse(ReasonIntegrity, s.Reason, adviceOverwrite)
		default:
			it.refuse(ReasonIntegrity, s.Reason, "see dpxen verify; to restore an older backup of the VM, name its file")
		}
		if i < 0 {
			set.Items = append(set.Items, it)
			continue
		}
		older := set.Items[i]
		set.Skipped = append(set.Skipped, SkippedFile{File: older.File, Reason: "older than " + it.File + ", which is damaged"})
		if it.Name == e.Name.Slug {
			it.Name, it.Pool, it.PoolUUID = older.Name, older.Pool, older.PoolUUID
		}
		set.Items[i] = it
	}
}

// narrow leaves the items whose VMs the selection names, by the names and UUIDs in the manifests.
func (set *RestoreSet) narrow(req RestoreRequest, sets map[string]Set) error {
	if len(set.Items) == 0 {
		return set.nothing(req)
	}
	if len(req.Files) == 0 && (req.Spec == "" || len(req.Selection.Exclude) > 0) || !req.Selection.Empty() || req.Mode.All() {
		inv := set.inventory()
		mode := req.Mode
		if req.Spec != "" && req.Selection.Empty() {
			mode = allOf(mode) // what Data Protector restored is the selection
		}
		res, err := req.Selection.resolve(mode, inv, sets)
		if err != nil && set.sieve != nil {
			return set.none(fmt.Sprintf("restore from %s: %v", set.Folder, err))
		}
		if err != nil {
			return err
		}
		set.Notes = append(set.Notes, res.notes...)
		chosen := map[string]decision{}
		for i, d := range res.decisions {
			chosen[inv.VMs[i].Description] = d
		}
		var items []RestoreItem
		for _, it := range set.Items {
			if d := chosen[it.Path]; d.chosen {
				items = append(items, it)
			} else {
				set.Skipped = append(set.Skipped, SkippedFile{File: it.File, Reason: d.why})
			}
		}
		set.Items = items
	}
	set.dropRestored()
	slices.SortFunc(set.Items, func(a, b RestoreItem) int {
		return cmp.Or(cmp.Compare(a.Pool, b.Pool), cmp.Compare(a.Name, b.Name), cmp.Compare(a.UUID, b.UUID), cmp.Compare(a.Path, b.Path))
	})
	slices.SortStableFunc(set.Skipped, func(a, b SkippedFile) int { return cmp.Compare(a.File, b.File) })
	return nil
}

// dropRestored leaves out, for Data Protector, the files that the VM was restored from already.
func (set *RestoreSet) dropRestored() {
	set.Items = slices.DeleteFunc(set.Items, func(it RestoreItem) bool {
		why := set.sieve.restored(it.entry)
		if why != "" {
			set.Done++
			set.Skipped = append(set.Skipped, SkippedFile{File: it.File, Reason: why + ": not again (--again does it)"})
		}
		return why != ""
	})
}

// inventory makes the files' VMs what a selection is resolved over. The description of each holds its path.
func (set *RestoreSet) inventory() *Inventory {
	inv := &Inventory{ofFiles: true, limited: set.sieve != nil}
	for _, it := range set.Items {
		p := inv.PoolByUUID(it.PoolUUID)
		if p == nil {
			inv.Pools = append(inv.Pools, Pool{UUID: it.PoolUUID, Name: it.Pool})
			p = &inv.Pools[len(inv.Pools)-1]
		}
		vm := VM{UUID: it.UUID, Name: it.Name, PoolUUID: it.PoolUUID, Pool: it.Pool, Description: it.Path}
		if m := it.Manifest(); m != nil {
			vm.asBackedUp(m, p)
		}
		inv.VMs = append(inv.VMs, vm)
	}
	inv.sort()
	return inv
}

// asBackedUp fills in what a manifest says of the VM as it was.
func (v *VM) asBackedUp(m *staging.Manifest, p *Pool) {
	v.Power, v.Tags = m.VM.PowerStateBefore, m.VM.Tags
	if m.VM.Host.UUID != "" {
		v.HostUUID, v.Host = m.VM.Host.UUID, m.VM.Host.Name
		if p.Host(v.HostUUID) == nil {
			p.Hosts = append(p.Hosts, Host{UUID: v.HostUUID, Name: v.Host})
		}
	}
	disks := slices.Clone(m.VM.Disks)
	for _, d := range m.VM.ExcludedDisks {
		disks = append(disks, d.Disk)
	}
	for _, d := range disks {
		v.Disks = append(v.Disks, Disk{UserDevice: d.Device, VDI: d.VDI, Name: d.Name, Size: d.Size, SR: d.SRUUID, SRName: d.SRName})
		if p.SR(d.SRUUID) == nil {
			p.SRs = append(p.SRs, SR{UUID: d.SRUUID, Name: d.SRName})
		}
	}
}

// nothing says that there is no file to restore, with what is there.
func (set *RestoreSet) nothing(req RestoreRequest) error {
	return set.none(fmt.Sprintf("folder %s has no file that mode %s restores", set.Folder, req.Mode))
}

// none lists the skipped files.
func (set *RestoreSet) none(what string) error {
	f := Failure{What: what}
	for i, s := range set.Skipped {
		if i == maxCandidates {
			f.What += fmt.Sprintf("\n  and %d more", len(set.Skipped)-i)
			break
		}
		f.What += fmt.Sprintf("\n  %s: %s", s.File, s.Reason)
	}
	if len(set.Skipped) == 0 {
		f.Advice = "restore the files to it with Data Protector first, or name another folder by --from"
	}
	return &UsageError{f}
}

// checkTwins refuses two files of one VM, which only adopted files can be: both into one VM makes no sense.
func (set *RestoreSet) checkTwins(req RestoreRequest) error {
	seen := map[string]string{}
	for _, it := range set.Items {
		other, twice := seen[it.UUID]
		if twice && !req.AsNew && it.UUID != "" {
			return &UsageError{Failure{What: fmt.Sprintf("%s and %s are of the same VM %s (%s)", other, it.File, it.Name, it.UUID),
				Advice: "name one of them, or restore both with --as-new"}}
		}
		seen[it.UUID] = it.File
	}
	return nil
}
