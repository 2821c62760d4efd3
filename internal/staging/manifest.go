package staging

import "time"

// ManifestFormat is the format that this version writes, and the only one it reads.
const ManifestFormat = 1

// Manifest describes one staged export; MANIFEST.md is the format for a stranger. Encode brings times to whole seconds of
// UTC and nil lists to empty ones, so that Decode gives back what was encoded.
type Manifest struct {
	// Format is ManifestFormat; Encode sets it.
	Format int `json:"format"`
	// Requires names what a reader must know beyond the format; this version knows and writes nothing.
	Requires []string `json:"requires"`
	// DpxenVersion is the writer's.
	DpxenVersion string `json:"dpxen_version"`

	DP       DPSession `json:"dp"`
	Session  string    `json:"session"`            // dpxen's own session
	RerunOf  string    `json:"rerun_of,omitempty"` // the session whose failed VMs that one ran again
	Mode     string    `json:"mode"`               // online, allOnline, offline or allOffline
	Agent    string    `json:"agent"`              // that made the export
	Started  time.Time `json:"started"`            // work on this VM
	Finished time.Time `json:"finished"`           // last byte verified

	VM       VM       `json:"vm"`
	Snapshot Snapshot `json:"snapshot"`
	File     File     `json:"file"`
	Product  Product  `json:"product"`
	Warnings []string `json:"warnings"`
}

// DPSession is the Data Protector session that the backup belongs to; empty for one started by hand.
type DPSession struct {
	Session string `json:"session"`
	Spec    string `json:"spec"`
}

// Ref names an object of the pool.
type Ref struct {
	UUID string `json:"uuid"`
	Name string `json:"name"`
}

// VM is the machine as it was before the backup.
type VM struct {
	UUID             string         `json:"uuid"`
	Name             string         `json:"name"` // as in XAPI, any Unicode
	PowerStateBefore string         `json:"power_state_before"`
	Pool             Ref            `json:"pool"`
	Host             Ref            `json:"host"`
	VIFs             []VIF          `json:"vifs"`
	Disks            []Disk         `json:"disks"`
	ExcludedDisks    []ExcludedDisk `json:"excluded_disks"`
	Tags             []string       `json:"tags,omitempty"`
	// Settings are those of the VM that a snapshot resets, by XAPI's names, where the export is of a snapshot.
	Settings map[string]string `json:"settings,omitempty"`
	// Record is the VM's own record where an offline export is of a snapshot, in XAPI's names: strings, booleans, numbers,
	// lists and maps of strings. It takes the place of what the export says of the snapshot.
	Record map[string]any `json:"record,omitempty"`
}

// VIF is a network interface.
type VIF struct {
	Device  string `json:"device"`
	MAC     string `json:"mac"`
	Network Ref    `json:"network"`
}

// Disk is a disk that the export holds.
type Disk struct {
	Device   string `json:"device"` // userdevice: the position, a number
	VDI      string `json:"vdi_uuid"`
	Name     string `json:"name"`
	Size     int64  `json:"size"` // virtual size in bytes
	SRUUID   string `json:"sr_uuid"`
	SRName   string `json:"sr_name"`
	Bootable bool   `json:"bootable"`
	Mode     string `json:"mode"` // RO or RW
	Type     string `json:"type"` // of the VDI: system, user, suspend …
}

// ExcludedDisk is a disk that the export does not hold.
type ExcludedDisk struct {
	Disk
	Reason string `json:"reason"`
}

// Snapshot is the moment that the backup shows.
type Snapshot struct {
	UUID string    `json:"uuid"` // empty for an offline backup
	Time time.Time `json:"time"` // of the snapshot, or of the shutdown; the time in the file's name
}

// File is the export itself. Commit fills in name, bytes, digest and its algorithm.
type File struct {
	Name            string `json:"name"`
	Bytes           int64  `json:"bytes"`
	DigestAlgorithm string `json:"digest_algorithm"`
	Digest          string `json:"digest"`        // of all bytes of the file, hexadecimal
	ArchiveBytes    int64  `json:"archive_bytes"` // of the tar archive, which differs when it is compressed
	Compression     string `json:"compression"`   // none, gzip or zstd
	BlocksVerified  int64  `json:"blocks_verified"`
	Checksum        string `json:"checksum"` // of the blocks: xxhash, sha1 or mixed
}

// Product is what exported the VM.
type Product struct {
	Brand   string `json:"brand"`
	Version string `json:"version"`
}

// KindOf returns the kind of backup that a mode makes; false where the mode is none.
func KindOf(mode string) (Kind, bool) {
	switch mode {
	case "online", "allOnline":
		return Online, true
	case "offline", "allOffline":
		return Offline, true
	}
	return "", false
}
