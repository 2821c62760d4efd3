package controller

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dpxen/dpxen/internal/staging"
	"github.com/dpxen/dpxen/internal/xva"
)

// entries lists the folder, and whatever files are asked for beyond it. It returns the files as absolute paths.
func (set *RestoreSet) entries(files []string) ([]staging.Entry, []string, error) {
	dir, err := staging.Open(set.Folder, staging.Options{ReadOnly: true})
	outside := len(files) > 0 && !slices.ContainsFunc(files, func(f string) bool { return isBare(f) && !isThere(f) })
	var entries []staging.Entry
	switch {
	case err == nil:
		set.Folder = dir.Path()
		if entries, err = dir.List(); err != nil {
			return nil, nil, fmt.Errorf("restore: %w", err)
		}
	case outside && errors.Is(err, fs.ErrNotExist): // the folder does not matter
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, &UsageError{Failure{What: "folder " + set.Folder, Err: err, Advice: "name the folder with the files by --from"}}
	default:
		return nil, nil, fmt.Errorf("restore: %w", err)
	}
	var paths []string
	for _, f := range files {
		path, err := set.find(f)
		if err != nil {
			return nil, nil, err
		}
		paths = append(paths, path)
		if !slices.ContainsFunc(entries, func(e staging.Entry) bool { return e.Path == path }) {
			entries = append(entries, staging.Inspect(path))
		}
	}
	return entries, paths, nil
}

func isThere(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// isBare tells whether a file is given by its name alone.
func isBare(file string) bool { return filepath.Base(file) == file }

// find returns the export's path of a FILE argument: a name in the folder, or a path, of the export or its manifest. A name
// that is in the folder means that file, whatever is in the working folder.
func (set *RestoreSet) find(file string) (string, error) {
	path := file
	if inFolder := filepath.Join(set.Folder, file); isBare(file) && (isThere(inFolder) || !isThere(file)) {
		path = inFolder
	}
	path, err := filepath.Abs(path)
	if err == nil {
		var folder string
		if folder, err = filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
			path = filepath.Join(folder, filepath.Base(path))
		}
	}
	if err != nil {
		return "", &UsageError{Failure{What: "file " + file, Err: err}}
	}
	if stem, ok := strings.CutSuffix(path, ".json"); ok {
		path = stem + ".xva"
	}
	return path, nil
}

// itemOf describes a file; of an adopted one it reads ova.xml.
func itemOf(e staging.Entry, kind Kind) RestoreItem {
	it := RestoreItem{File: e.Base(), Path: e.Path, UUID: e.Name.UUID, Name: e.Name.Slug, Kind: cmp.Or(e.Name.Kind, kind),
		Taken: e.Name.Time, Bytes: e.Size, entry: e}
	if m := e.Manifest; m != nil {
		it.Name, it.Pool, it.PoolUUID = m.VM.Name, m.VM.Pool.Name, m.VM.Pool.UUID
		it.DPSession = m.DP.Session
		return it
	}
	it.Adopted = true
	vm, err := peek(e)
	uuid, advice := canonicalUUID(vm.UUID), "see dpxen verify"
	switch {
	case err != nil:
	case it.UUID == "":
		if it.UUID = uuid; uuid == "" {
			err, advice = fmt.Errorf("its ova.xml has no usable UUID (%.40q)", vm.UUID), "" // the archive itself may be sound
		}
	case !ofSnapshot(vm) && uuid != it.UUID: // a snapshot has a UUID of its own
		err = fmt.Errorf("by its name it is of VM %s, by its ova.xml of %.40q", it.UUID, vm.UUID)
		advice = "find out which of the two it is; under a name that is not like ours it is the VM of its ova.xml"
	}
	if err != nil { // the VM may have no name to tell it by
		it.refuse(ReasonIntegrity, fmt.Sprintf("file %s: %v", it.File, err), advice)
		return it
	}
	it.ofSnapshot = ofSnapshot(vm)
	if it.Name == "" || !it.ofSnapshot { // a snapshot's name is nobody's
		it.Name = vm.Name
	}
	return it
}

// ofSnapshot tells whether an export is of a snapshot of ours. Its record says so only where others have exported it.
func ofSnapshot(vm xva.VMInfo) bool {
	return vm.IsSnapshot || strings.HasPrefix(vm.Name, xva.SnapshotPrefix)
}

// warnOfSnapshot says of an adopted file that is the export of a snapshot what of the VM is not in it.
func (t *target) warnOfSnapshot(req *RestoreRequest) {
	if !t.ofSnapshot {
		return
	}
	const lost = "its name, start order, delays and HA priority"
	text := fmt.Sprintf("file %s has no manifest and is the export of a snapshot: ", t.File)
	switch {
	case t.vm != nil && !req.AsNew && t.Kind == KindOnline:
		return // its disks alone are restored
	case t.vm != nil && !req.AsNew:
		text += "the VM keeps " + lost + " as they are now; its other settings are the snapshot's"
	case t.entry.Name.UUID != "":
		text += fmt.Sprintf("the VM is named %q, as the file is; set %s, which were in the manifest", cmp.Or(t.wish.name, t.Name), lost)
	case req.AsNew:
		text += fmt.Sprintf("the VM is named %q; set %s, which were in the manifest", cmp.Or(t.wish.name, t.Name), lost)
	default:
		text += fmt.Sprintf("it is restored as VM %s with the snapshot's UUID and name %q; to restore the VM itself, give the file the name "+
			"that it was staged under (NAME.UUID.KIND.TIME.xva)", t.UUID, t.Name)
	}
	t.warnings = append(t.warnings, text)
}

// peek reads the beginning of a file up to the end of its ova.xml.
func peek(e staging.Entry) (xva.VMInfo, error) {
	ova, _, err := peekOVA(e)
	if err != nil {
		return xva.VMInfo{}, err
	}
	return ova.VM(), nil
}

// peekOVA is peek for all of ova.xml, and its bytes.
func peekOVA(e staging.Entry) (*xva.OVA, []byte, error) {
	f, err := e.Open()
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	r, err := xva.NewReader(f, xva.ReaderOptions{})
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	return r.OVA(), r.RawOVA(), nil
}

func (it *RestoreItem) refuse(reason, why, advice string) {
	it.Refused, it.Reason, it.Advice = why, reason, advice
}
