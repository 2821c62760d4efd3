package controller

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/dpxen/dpxen/certs"
	"github.com/dpxen/dpxen/internal/staging"
)

const (
	certSoon  = 30 * 24 * time.Hour // a certificate that ends within is told of
	stateRoom = 256 << 20           // bytes that the state folder should have free
)

// certificates looks at the controller's own files.
func (d *doctor) certificates() {
	tls := d.cfg.TLS
	for _, f := range []struct{ name, path, renew string }{
		{"certificate", tls.Cert, "dpxen certs renew of the controller's"},
		{"authority", tls.CA, "make another authority, and issue every certificate anew"},
	} {
		ends, err := certEnds(f.path)
		if err != nil {
			d.fail(f.name, "", "see dpxen certs list", "%v", err)
			continue
		}
		d.certificate(f.name, "", ends, f.renew)
	}
	if _, err := certs.NewSource(certs.Files{CA: tls.CA, Cert: tls.Cert, Key: tls.Key, CRL: tls.CRL}); err != nil {
		d.fail("TLS files", "", "see dpxen certs list", "%v", err)
		return
	}
	info, err := os.Stat(tls.Key)
	if err == nil && runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		d.warn("TLS files", "", "chmod 600 "+tls.Key, "others can read the key %s (mode %04o)", tls.Key, info.Mode().Perm())
		return
	}
	d.pass("TLS files", "", "certificate, key, authority and revocation list belong together")
}

// certificate tells the days that one has left.
func (d *doctor) certificate(name, subject string, ends time.Time, renew string) {
	left := ends.Sub(d.o.Now())
	text := fmt.Sprintf("valid until %s, %d days", ends.UTC().Format(time.DateOnly), int(left/(24*time.Hour)))
	switch {
	case left <= 0:
		d.fail(name, subject, renew, "it ended on %s", ends.UTC().Format(time.DateOnly))
	case left < certSoon:
		d.warn(name, subject, renew, "%s", text)
	default:
		d.pass(name, subject, "%s", text)
	}
}

// certEnds returns when the first of the certificates in a file ends.
func certEnds(path string) (ends time.Time, err error) {
	data, err := readBounded(path, maxConfig)
	if err != nil {
		return ends, err
	}
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return ends, fmt.Errorf("read %s: %w", path, err)
		}
		if ends.IsZero() || cert.NotAfter.Before(ends) {
			ends = cert.NotAfter
		}
	}
	if ends.IsZero() {
		return ends, fmt.Errorf("read %s: there is no certificate in it", path)
	}
	return ends, nil
}

// folders looks at the staging, restore and state folders.
func (d *doctor) folders() {
	c := &Controller{cfg: d.cfg, o: d.o.Options}
	known, err := c.knownFolders()
	if err != nil {
		d.fail("state folder", d.cfg.State, "look at it, then remove that file", "%v", err)
	}
	d.staging(slices.Contains(known, d.cfg.Staging))
	folders := []string{d.cfg.Restore}
	for _, name := range sortedKeys(d.cfg.Specs) {
		if r := d.cfg.Specs[name].Restore; r != "" {
			folders = appendNew(folders, r)
		}
	}
	for _, folder := range folders {
		d.restoreFolder(folder)
	}
	free, err := roomOf(d.cfg.State)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.warn("state folder", d.cfg.State, "create it, or let the first session do so", "it is not there yet")
	case err != nil:
		d.fail("state folder", d.cfg.State, "let this user read and write it", "%v", err)
	case free < stateRoom:
		d.warn("state folder", d.cfg.State, "free room: without it no session can begin", "%s free", size(free))
	default:
		d.pass("state folder", d.cfg.State, "%s free", size(free))
	}
}

// roomOf returns the free bytes where a folder is.
func roomOf(folder string) (int64, error) {
	dir, err := staging.Open(folder, staging.Options{ReadOnly: true})
	if err != nil {
		return 0, err
	}
	free, _, err := dir.Room()
	return free, err
}

// staging looks at the staging folder; used tells whether a session has written to it before.
func (d *doctor) staging(used bool) {
	path := d.cfg.Staging
	dir, err := staging.Open(path, staging.Options{ReadOnly: true, RequireMarker: true})
	switch {
	case err == nil:
	case used:
		d.fail("staging folder", path, "mount its file system; if the folder was emptied on purpose, remove "+filepath.Join(d.cfg.State, foldersFile),
			"it carries no marker of ours: %v", err)
		return
	case errors.Is(err, staging.ErrNoMarker), errors.Is(err, fs.ErrNotExist):
		d.warn("staging folder", path, "mount its file system before the first backup, which marks the folder", "it was never used: %v", err)
	default:
		d.fail("staging folder", path, "let this user read and write it", "%v", err)
		return
	}
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if dir != nil {
		d.inStaging(dir)
	}
	if err := staging.Probe(path); err == nil {
		d.pass("staging write", path, "create, write, fsync, rename and fsync of the folder work")
	} else {
		d.fail("staging write", path, "let this user write to it; see its file system's options", "%v", err)
	}
	root := filepath.VolumeName(path) + string(filepath.Separator)
	if runtime.GOOS == "windows" {
		root = os.Getenv("SystemDrive") + `\`
	}
	if same, ok := staging.SameFileSystem(path, root); ok && same {
		d.warn("staging mount", path, "give it a file system of its own", "it is on the system's file system: a full staging folder would stop this machine")
	} else if ok {
		d.pass("staging mount", path, "it has a file system of its own")
	}
}

// inStaging tells who works in the folder and what lies there.
func (d *doctor) inStaging(dir *staging.Dir) {
	free, total, err := dir.Room()
	if err != nil {
		d.fail("staging folder", dir.Path(), "see its file system", "%v", err)
		return
	}
	entries, err := dir.List()
	if err != nil {
		d.fail("staging folder", dir.Path(), "let this user read it", "%v", err)
		return
	}
	var bytes int64
	bad := 0
	for _, e := range entries {
		bytes += e.Size
		if e.State != staging.Complete {
			bad++
		}
	}
	text := fmt.Sprintf("marked; %s of %s free; %d backups, %s", size(free), size(total), len(entries)-bad, size(bytes))
	if h, held, err := dir.Holder(); err == nil && held {
		text += fmt.Sprintf("; session %s is at work in it", h.Session)
	}
	if bad > 0 {
		d.warn("staging folder", dir.Path(), "see dpxen verify; remove what nobody needs: Data Protector saves it each time",
			"%s; %d more files are no complete backup", text, bad)
		return
	}
	d.pass("staging folder", dir.Path(), "%s", text)
}

// restoreFolder looks at a folder that Data Protector restores to.
func (d *doctor) restoreFolder(path string) {
	dir, err := staging.Open(path, staging.Options{ReadOnly: true})
	var entries []staging.Entry
	var free int64
	if err == nil {
		entries, err = dir.List()
	}
	if err == nil {
		free, _, err = dir.Room()
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.warn("restore folder", path, "create it, on a file system with room for the files of a restore", "it is not there yet")
	case err != nil:
		d.fail("restore folder", path, "let this user read it", "%v", err)
	case len(entries) > 0:
		d.warn("restore folder", path, "empty it before the next restore: Data Protector keeps newer files that lie there",
			"%d files of earlier restores lie there; %s free", len(entries), size(free))
	default:
		d.pass("restore folder", path, "it is empty; %s free", size(free))
	}
}

// sessions looks for what dead sessions have left.
func (d *doctor) sessions() {
	c := &Controller{cfg: d.cfg, o: d.o.Options}
	all, err := c.Sessions()
	if err != nil {
		d.fail("sessions", "", "let this user read the state folder", "%v", err)
		return
	}
	var left, damaged, running []string
	for _, s := range all {
		switch {
		case s.Error != "":
			damaged = append(damaged, s.ID)
		case s.State == StateRunning:
			running = append(running, s.ID)
		case s.State == StateInterrupted && s.Ended.IsZero(), s.Open > 0:
			left = append(left, s.ID)
		}
	}
	switch {
	case len(left) > 0:
		d.warn("sessions", "", "dpxen repair; VMs may be off or blocked until then", "%d died or left work behind, the last %s", len(left), left[len(left)-1])
	case len(damaged) > 0:
		d.warn("sessions", "", "see dpxen sessions, and remove the files if nothing of them is needed", "the files of %d cannot be read, such as %s", len(damaged), damaged[0])
	case len(running) > 0:
		d.pass("sessions", "", "%d, none left anything; %s runs", len(all), running[0])
	default:
		d.pass("sessions", "", "%d, none left anything", len(all))
	}
}
