package staging

import (
	"errors"
	"fmt"
	"time"
)

// What a caller decides on; found with errors.Is.
var (
	// ErrName: not the name of a staged file.
	ErrName = errors.New("not the name of a staged file")
	// ErrExists: a file of that name is there already; it is never overwritten.
	ErrExists = errors.New("file exists already")
	// ErrNoMarker: the folder was not made by Init, or the file system that holds it is not mounted.
	ErrNoMarker = errors.New("no dpxen marker in the folder")
	// ErrReadOnly: the folder was opened for reading only.
	ErrReadOnly = errors.New("folder opened for reading only")
	// ErrLocked: another session works in the folder; errors.As finds the *LockedError that tells which.
	ErrLocked = errors.New("staging folder is locked")
	// ErrNoRoom: the disk is full, or what is free is reserved.
	ErrNoRoom = errors.New("not enough room")
	// ErrMismatch: what was written is not what should have been, by length or checksum.
	ErrMismatch = errors.New("written data differ from what was received")
	// ErrIrregular: a symbolic link, folder, device or the like where a file is wanted.
	ErrIrregular = errors.New("not a regular file")
	// ErrNotComplete: a file that is not a complete backup was asked for.
	ErrNotComplete = errors.New("not a complete backup")
	// ErrCriteria: a file that was asked for by name does not fit what else was asked for.
	ErrCriteria = errors.New("file does not fit what was asked for")
	// ErrNotFound: a file that was asked for is not in the folder.
	ErrNotFound = errors.New("no such staged file")
	// ErrAmbiguous: two files were asked for that are of the same VM.
	ErrAmbiguous = errors.New("several files of the same VM")

	// ErrNoManifest: the export has no manifest beside it.
	ErrNoManifest = errors.New("there is no manifest beside it")
	// ErrManifestDamaged: the manifest's own digest is wrong, or it cannot be read.
	ErrManifestDamaged = errors.New("manifest is damaged")
	// ErrManifestFormat: the manifest's format or one of its requirements is unknown to this version of dpxen.
	ErrManifestFormat = errors.New("manifest format is not known")
	// ErrContradiction: the manifest contradicts itself, its file's name or its file's size.
	ErrContradiction = errors.New("manifest and file contradict each other")
)

// LockedError says who holds the lock. It is ErrLocked.
type LockedError struct {
	Dir    string
	Holder Holder
	Known  bool // holder.json could be read; else Holder is empty
}

// Error names the holder, and since when.
func (e *LockedError) Error() string {
	if !e.Known {
		return fmt.Sprintf("%s: %v by another session", e.Dir, ErrLocked)
	}
	return fmt.Sprintf("%s: %v by session %s (%s, process %d on %s) since %s", e.Dir, ErrLocked,
		e.Holder.Session, e.Holder.Command, e.Holder.PID, e.Holder.Host, e.Holder.Since.UTC().Format(time.RFC3339))
}

// Is makes errors.Is(err, ErrLocked) true.
func (e *LockedError) Is(target error) bool { return target == ErrLocked }
