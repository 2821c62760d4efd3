package e2e

import (
	"io/fs"
	"path/filepath"
	"runtime"
)

// ownerOnly checks that nobody but the owner can read or change what dpxen wrote: archives hold whole disks.
func (c *cell) ownerOnly() {
	c.t.Helper()
	if runtime.GOOS == "windows" {
		return // access is inherited from the folder there
	}
	for _, root := range []string{c.cfg.Staging, c.cfg.State, filepath.Join(c.dir, "ca")} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err == nil && info.Mode().Perm()&0o077 != 0 {
				c.t.Errorf("%s has mode %v", path, info.Mode())
			}
			return err
		})
		if err != nil {
			c.t.Error(err)
		}
	}
}
