package staging

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// State is what a file in the folder turned out to be.
type State string

// The states. Only Complete is a backup.
const (
	Complete        State = "complete"         // name, manifest and size agree
	NoManifest      State = "no manifest"      // an export alone: not a backup unless adopted
	ManifestDamaged State = "manifest damaged" // or of an unknown format
	MissingData     State = "missing data"     // a manifest alone
	Contradiction   State = "contradiction"    // name, manifest and size do not agree
	ForeignFile     State = "foreign file"     // not a name of ours, or not a regular file
)

// Entry is one backup in the folder, or what looks like one.
type Entry struct {
	Name     Name      // zero for a ForeignFile
	Path     string    // of the export, also where only the manifest is there
	Size     int64     // of the export in bytes
	Manifest *Manifest // nil where there is none that can be read
	State    State
	Problem  error // why it is not Complete; nil when it is
}

// Base returns the file name of the export.
func (e Entry) Base() string { return filepath.Base(e.Path) }

// Bereft tells whether this is a manifest of dpxen's, whole, whose export somebody has taken away.
func (e Entry) Bereft() bool {
	return e.State == MissingData && e.Manifest != nil && e.Manifest.File.Name == e.Base() && errors.Is(e.Problem, fs.ErrNotExist)
}

// List returns what the folder holds, by file name: one entry for each .xva or .json file, both together where they belong
// together. Other files and folders are left out. No digest is computed here.
func (d *Dir) List() ([]Entry, error) {
	files, err := os.ReadDir(d.path) // sorted
	if err != nil {
		return nil, fmt.Errorf("list staging folder: %w", err)
	}
	var all []Entry
	for _, f := range files {
		ext := filepath.Ext(f.Name())
		if ext != extXVA && ext != extManifest || strings.HasPrefix(f.Name(), ".") {
			continue
		}
		n, err := ParseName(f.Name())
		if err == nil && ext == extManifest {
			if _, err := os.Lstat(d.final(n.XVA())); !errors.Is(err, fs.ErrNotExist) {
				continue // listed with its export
			}
			all = append(all, Inspect(d.final(n.XVA())))
			continue
		}
		all = append(all, Inspect(d.final(f.Name())))
	}
	return all, nil
}

// Inspect looks at one export, in any folder, with the manifest beside it. It reads no data.
func Inspect(path string) Entry {
	e := Entry{Path: path}
	if e.State, e.Problem = e.inspect(); e.Problem != nil {
		e.Problem = fmt.Errorf("%s: %s: %w", e.Base(), e.State, e.Problem)
	}
	return e
}

func (e *Entry) inspect() (State, error) {
	info, dataErr := os.Lstat(e.Path)
	if dataErr == nil {
		e.Size = info.Size()
		if !info.Mode().IsRegular() {
			return ForeignFile, ErrIrregular
		}
	}
	n, err := ParseName(e.Base())
	if err != nil {
		return ForeignFile, errors.Join(err, dataErr)
	}
	if filepath.Ext(e.Path) != extXVA {
		return ForeignFile, fmt.Errorf("%w: a manifest is not an export", ErrName)
	}
	e.Name = n
	e.Manifest, err = readManifest(filepath.Join(filepath.Dir(e.Path), n.Manifest()))
	switch {
	case dataErr != nil:
		return MissingData, dataErr
	case errors.Is(err, fs.ErrNotExist):
		return NoManifest, fmt.Errorf("%w: %w", ErrNoManifest, err)
	case errors.Is(err, ErrContradiction):
		return Contradiction, err
	case err != nil:
		return ManifestDamaged, err
	case e.Manifest.File.Name != e.Base():
		return Contradiction, fmt.Errorf("%w: the manifest is of %s", ErrContradiction, e.Manifest.File.Name)
	case e.Manifest.File.Bytes != e.Size:
		return Contradiction, fmt.Errorf("%w: the file has %d bytes, the manifest says %d",
			ErrContradiction, e.Size, e.Manifest.File.Bytes)
	}
	return Complete, nil
}

// Open opens the export for reading. It never follows a symbolic link and opens regular files only (ErrIrregular). The size
// must still be what it was when the entry was made (ErrContradiction).
func (e Entry) Open() (*os.File, error) {
	f, info, err := openRegular(e.Path)
	if err != nil {
		return nil, fmt.Errorf("open staged file: %w", err)
	}
	if info.Size() != e.Size {
		return nil, errors.Join(fmt.Errorf("open staged file %s: %w: it had %d bytes, now %d",
			e.Base(), ErrContradiction, e.Size, info.Size()), f.Close())
	}
	return f, nil
}

// openRegular opens path for reading where it is a regular file itself. Looking before and after catches what was put in
// its place between, on systems that cannot refuse to follow links.
func openRegular(path string) (*os.File, fs.FileInfo, error) {
	before, err := os.Lstat(path)
	if err != nil {
		return nil, nil, err
	}
	if !before.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s: %w", path, ErrIrregular)
	}
	f, err := os.OpenFile(path, openFlags, 0)
	if err != nil {
		return nil, nil, err
	}
	after, err := f.Stat()
	if err == nil && (!after.Mode().IsRegular() || !os.SameFile(before, after)) {
		err = fmt.Errorf("%s: %w: it was replaced meanwhile", path, ErrIrregular)
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, after, nil
}
