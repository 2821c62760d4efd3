package staging

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// Names inside the staging folder.
const (
	// MetaDir is the folder to leave out of Data Protector's backup.
	MetaDir     = ".dpxen"
	lockName    = "lock"
	holderName  = "holder.json"
	markerName  = "marker"
	partialName = "partial"

	markerText = "This marks a staging folder of dpxen. Do not remove: it proves that the file system is mounted.\n"

	// Exports hold whole disks: for the owner only.
	dirMode  fs.FileMode = 0o700
	fileMode fs.FileMode = 0o600
)

// Options of Open.
type Options struct {
	// RequireMarker refuses a folder without the marker that Init makes (ErrNoMarker), such as the empty mount point of
	// a file system that is not mounted.
	RequireMarker bool
	// ReadOnly creates nothing, for a folder that Data Protector has restored: Lock and Create give ErrReadOnly.
	ReadOnly bool
	// Digest names the digest of the files that Create makes, see NewDigest; empty is DefaultDigest.
	Digest string
	// ReadBack has Commit read each file back from the disk and compare its digest before it gets its final name.
	ReadBack bool
	// Holder is what Lock tells others.
	Holder Holder
}

// Dir is an open staging folder. Its methods may be called from several goroutines.
type Dir struct {
	path string // absolute, links resolved
	o    Options
	sys  fileSystem

	mu       sync.Mutex // guards reserved
	reserved map[*Reservation]struct{}
}

// Init makes dir a staging folder: the folder where missing, what dpxen keeps in it, and the marker. It may be repeated.
func Init(dir string) error { return initFolder(osFS{}, dir) }

func initFolder(sys fileSystem, dir string) error {
	if err := makeFolders(sys, dir); err != nil {
		return fmt.Errorf("create staging folder: %w", err)
	}
	d, err := openFolder(sys, dir, Options{})
	if err != nil {
		return err
	}
	if info, err := os.Lstat(d.meta(markerName)); err == nil && info.Mode().IsRegular() {
		return nil
	}
	if err := writeDurable(sys, d.meta(markerName), []byte(markerText), fileMode); err != nil {
		return fmt.Errorf("create staging folder: %w", err)
	}
	return nil
}

// Open opens the staging folder dir, which must exist; dir itself may be a symbolic link, .dpxen may not. Unless ReadOnly,
// .dpxen is created where missing.
func Open(dir string, o Options) (*Dir, error) { return openFolder(osFS{}, dir, o) }

func openFolder(sys fileSystem, dir string, o Options) (*Dir, error) {
	path, err := filepath.Abs(dir)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err == nil {
		err = isFolder(path)
	}
	if err != nil {
		return nil, fmt.Errorf("open staging folder %s: %w", dir, err)
	}
	d := &Dir{path: path, o: o, sys: sys, reserved: map[*Reservation]struct{}{}}
	if o.RequireMarker {
		info, err := os.Lstat(d.meta(markerName))
		if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
			return nil, fmt.Errorf("open staging folder %s: %w: is its file system mounted? `dpxen init` makes a new one",
				dir, ErrNoMarker)
		}
		if err != nil {
			return nil, fmt.Errorf("open staging folder %s: %w", dir, err)
		}
	}
	if o.ReadOnly {
		return d, nil
	}
	for _, sub := range []string{d.meta(""), d.meta(partialName)} {
		if err := makeFolder(sys, sub); err != nil {
			return nil, fmt.Errorf("open staging folder: %w", err)
		}
		if err := isFolder(sub); err != nil {
			return nil, fmt.Errorf("open staging folder: %w", err)
		}
	}
	return d, nil
}

func isFolder(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return &fs.PathError{Op: "open", Path: path, Err: errors.New("not a folder")}
	}
	return nil
}

// Path returns the folder's absolute path.
func (d *Dir) Path() string { return d.path }

func (d *Dir) meta(name string) string { return filepath.Join(d.path, MetaDir, name) }

func (d *Dir) partial(name string) string { return filepath.Join(d.path, MetaDir, partialName, name) }

func (d *Dir) final(name string) string { return filepath.Join(d.path, name) }

// CleanPartials removes what transfers that were killed have left in .dpxen/partial, and returns the names. Only the holder
// of the lock may call it, before its first Create.
func (d *Dir) CleanPartials() ([]string, error) {
	if d.o.ReadOnly {
		return nil, ErrReadOnly
	}
	names, err := d.Partials()
	if err != nil {
		return nil, err
	}
	var removed []string
	var errs []error
	for _, name := range names {
		if err := d.sys.Remove(d.partial(name)); err != nil {
			errs = append(errs, fmt.Errorf("clean partial files: %w", err))
			continue
		}
		removed = append(removed, name)
	}
	return removed, errors.Join(errs...)
}

// Partials returns the names of the unfinished files in .dpxen/partial: of transfers under way, or of such as were killed.
func (d *Dir) Partials() ([]string, error) {
	entries, err := os.ReadDir(d.meta(partialName))
	if err != nil {
		return nil, fmt.Errorf("list partial files: %w", err)
	}
	var names []string
	for _, e := range entries {
		if !e.IsDir() { // a folder is not of our making
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Remove deletes a backup: the manifest first and durably, then the export. A crash between leaves an export that is not a
// backup, never a manifest that names a missing file. What is gone already is no error. Of a manifest that was alone
// (MissingData) the export is not touched that may have come meanwhile. Entries of another folder, and what was not written
// by dpxen (ForeignFile), are refused.
func (d *Dir) Remove(e Entry) error {
	if d.o.ReadOnly {
		return ErrReadOnly
	}
	if e.State == ForeignFile || filepath.Dir(e.Path) != d.path {
		return fmt.Errorf("remove %s: %w", e.Path, ErrName)
	}
	if err := e.Name.validate(); err != nil {
		return fmt.Errorf("remove %s: %w", e.Path, err)
	}
	names := []string{e.Name.Manifest(), e.Name.XVA()}
	if e.State == MissingData {
		names = names[:1]
	}
	for _, name := range names {
		err := d.sys.Remove(d.final(name))
		if err == nil {
			err = d.sys.SyncDir(d.path)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove %s: %w", name, err)
		}
	}
	return nil
}
