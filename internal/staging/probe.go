package staging

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Probe tries in a folder, with a small file of its own that it removes again, what staging needs: create, write, fsync,
// rename over nothing, fsync of the folder, read. The folder need not be a staging folder.
func Probe(dir string) error {
	sys := osFS{}
	name := ".dpxen-probe-" + rand.Text()
	temp, final := filepath.Join(dir, name+".tmp"), filepath.Join(dir, name)
	data := []byte("dpxen looks whether it can write here. This file may be removed.\n")
	if err := writeNew(sys, temp, data, fileMode); err != nil {
		return fmt.Errorf("write and fsync: %w", noRoom(err))
	}
	if err := sys.RenameNew(temp, final); err != nil {
		return errors.Join(fmt.Errorf("rename: %w", err), sys.Remove(temp))
	}
	err := sys.SyncDir(dir)
	if err != nil {
		err = fmt.Errorf("fsync of the folder: %w", err)
	}
	if err == nil {
		var back []byte
		if back, err = os.ReadFile(final); err == nil && !bytes.Equal(back, data) {
			err = fmt.Errorf("read back: %w", ErrMismatch)
		}
	}
	if rerr := sys.Remove(final); rerr != nil {
		return errors.Join(err, fmt.Errorf("remove: %w", rerr))
	}
	return errors.Join(err, sys.SyncDir(dir))
}

// MayWrite looks whether this user may make and move files where they are received and where they are staged. What else may be
// wrong with the folder, such as no room, is met file by file.
func (d *Dir) MayWrite() error {
	for _, dir := range []string{d.meta(partialName), d.path} {
		if err := Probe(dir); errors.Is(err, fs.ErrPermission) {
			return err
		}
	}
	return nil
}

// SameFileSystem tells whether two paths are on one file system; known is false where that cannot be told.
func SameFileSystem(a, b string) (same, known bool) {
	da, errA := device(a)
	db, errB := device(b)
	return da == db, errA == nil && errB == nil
}
