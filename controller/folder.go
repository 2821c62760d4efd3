package controller

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/dpxen/dpxen/internal/staging"
)

// foldersFile, below STATE, remembers the staging folders that were made. One that was made once must have its marker
// ever after: without it, the file system that holds it is not mounted, and what lies there is the mount point.
const foldersFile = "folders.json"

// openStaging opens the staging folder for writing and takes its lock. A folder that this controller never used is made.
// Errors are a *LockedError and *PreflightErrors.
func (c *Controller) openStaging(sessionID string) (*staging.Dir, *staging.Lock, error) {
	path := c.cfg.Staging
	fail := func(err error, advice string) (*staging.Dir, *staging.Lock, error) {
		return nil, nil, &PreflightError{Failure{What: "staging folder " + path, Err: err, Advice: advice}}
	}
	known, err := c.knownFolders()
	if err != nil {
		return fail(err, "see the state folder")
	}
	if !slices.Contains(known, path) {
		if err := staging.Init(path); err != nil {
			return fail(err, "create it, or let this user do so")
		}
		if err := c.rememberFolder(append(known, path)); err != nil {
			return fail(err, "let this user write to the state folder")
		}
	}
	d, err := staging.Open(path, staging.Options{RequireMarker: true, Digest: c.cfg.Digest, ReadBack: c.cfg.ReadBack,
		Holder: staging.Holder{Session: sessionID, Command: "dpxen"}})
	switch {
	case errors.Is(err, staging.ErrNoMarker), errors.Is(err, fs.ErrNotExist):
		return fail(err, "mount its file system; if the folder was emptied on purpose, remove "+filepath.Join(c.cfg.State, foldersFile))
	case err != nil:
		return fail(err, "")
	}
	lock, err := d.Lock()
	if errors.Is(err, staging.ErrLocked) {
		return nil, nil, &LockedError{Failure{What: "another session is at work", Err: err, Advice: "wait for it, or use dpxen cancel"}}
	}
	if err == nil {
		// Else that would be found out when VMs have been shut down and exported.
		if err = d.MayWrite(); err != nil {
			err = errors.Join(err, lock.Unlock())
		}
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fail(err, "let this user write to it, and to all in its .dpxen")
	case err != nil:
		return fail(err, "")
	}
	return d, lock, nil
}

// stateDoubt says, or not, that the state folder looks like the empty mount point of a file system that is not mounted: no
// session was ever kept in it, but the staging folder was used before. What earlier sessions have left is then not known.
func (c *Controller) stateDoubt() string {
	if _, err := os.Lstat(c.sessionsDir()); !errors.Is(err, fs.ErrNotExist) {
		return "" // what else is wrong with it, whoever uses it finds out
	}
	dir, err := staging.Open(c.cfg.Staging, staging.Options{ReadOnly: true, RequireMarker: true})
	if err != nil {
		return "" // never used, or not there either
	}
	return fmt.Sprintf("state folder %s held no sessions, but staging folder %s was used before: is its file system mounted? "+
		"What earlier sessions have left is not known here", c.cfg.State, dir.Path())
}

func (c *Controller) knownFolders() ([]string, error) {
	data, err := readBounded(filepath.Join(c.cfg.State, foldersFile), maxConfig)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var known []string
	if err := json.Unmarshal(data, &known); err != nil {
		return nil, fmt.Errorf("read %s: %w", foldersFile, err)
	}
	return known, nil
}

func (c *Controller) rememberFolder(known []string) error {
	if err := staging.MakeFolders(c.cfg.State); err != nil {
		return err
	}
	data, err := json.MarshalIndent(known, "", " ")
	if err != nil {
		return err
	}
	return staging.WriteFileDurable(filepath.Join(c.cfg.State, foldersFile), append(data, '\n'), modePrivate)
}
