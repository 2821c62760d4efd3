package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/dpxen/dpxen/reliability/archive"
)

// manifest is what we hold against the file.
type manifest struct {
	Session string `json:"session"`
	DP      struct {
		Spec string `json:"spec"`
	} `json:"dp"`
	Mode string `json:"mode"`
	VM   struct {
		UUID  string `json:"uuid"`
		Name  string `json:"name"`
		Disks []struct {
			Device string `json:"device"`
			Size   int64  `json:"size"`
		} `json:"disks"`
	} `json:"vm"`
	Snapshot struct {
		UUID string `json:"uuid"`
	} `json:"snapshot"`
	File struct {
		Name            string `json:"name"`
		Bytes           int64  `json:"bytes"`
		Digest          string `json:"digest"`
		DigestAlgorithm string `json:"digest_algorithm"`
		Compression     string `json:"compression"`
	} `json:"file"`
}

// collect proves the files that are new in the staging folder.
func (h *history) collect() error {
	h.untouched()
	var names []string
	for _, folder := range append([]string{h.site.path("staging"), h.site.path("rival-staging")}, h.site.mounts...) {
		found, err := filepath.Glob(filepath.Join(folder, "*.xva"))
		if err != nil {
			return err
		}
		names = append(names, found...)
	}
	for _, name := range names {
		if slices.ContainsFunc(h.files, func(f *staged) bool { return f.path == name && !f.gone }) {
			continue
		}
		if _, err := os.Stat(strings.TrimSuffix(name, ".xva") + ".json"); errors.Is(err, fs.ErrNotExist) {
			h.note("%s has no manifest", filepath.Base(name))
			if _, err := archive.Read(name); err != nil {
				h.violation("%s has its final name and is not whole: %v", filepath.Base(name), err)
			}
			continue
		}
		f, err := h.prove(name)
		if err != nil {
			h.violation("%s has its final name and a manifest, but %v", filepath.Base(name), err)
			continue
		}
		h.files = append(h.files, f)
		h.counts.add("files proven independently", 1)
		h.note("proven %s: %s", filepath.Base(name), f.disks)
	}
	return nil
}

// prove reads a file and its manifest without any code of dpxen's, and holds them against what was on the VM's disks.
func (h *history) prove(name string) (*staged, error) {
	data, err := os.ReadFile(strings.TrimSuffix(name, ".xva") + ".json")
	if err != nil {
		return nil, err
	}
	var m manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("its manifest: %w", err)
	}
	x, err := archive.Read(name)
	if err != nil {
		return nil, err
	}
	digest := map[string]string{"sha256": x.SHA256, "xxh3-128": x.XXH3}[m.File.DigestAlgorithm]
	if m.File.Name != filepath.Base(name) || m.File.Bytes != x.Bytes || digest == "" || m.File.Digest != digest {
		return nil, fmt.Errorf("its manifest says %q of %d bytes with the %s %s; it has %d with %s", m.File.Name, m.File.Bytes,
			m.File.DigestAlgorithm, m.File.Digest, x.Bytes, digest)
	}
	allowed, ok := h.mayHold(m.VM.UUID, m.VM.Name)
	if !ok {
		return nil, fmt.Errorf("it is of VM %s %q, which there was not", m.VM.UUID, m.VM.Name)
	}
	if x.VM != m.VM.UUID && x.VM != m.Snapshot.UUID {
		return nil, fmt.Errorf("it holds VM %s instead of %s or its snapshot %s", x.VM, m.VM.UUID, m.Snapshot.UUID)
	}
	f := &staged{path: name, vm: m.VM.UUID, name: m.VM.Name, kind: "online", session: m.Session, spec: m.DP.Spec, disks: contents{}, bytes: x.Bytes, sha: x.SHA256}
	if strings.Contains(strings.ToLower(m.Mode), "offline") {
		f.kind = "offline"
	}
	f.memory = x.Memory
	if t := h.vms[f.vm]; t != nil && len(t.resets) == 0 {
		f.vifs = h.before.vm(f.vm).interfaces()
	}
	for _, d := range x.Disks {
		f.disks[d.Device] = d.SHA256
	}
	if !slices.ContainsFunc(allowed, func(c contents) bool { return c != nil && differ(c, f.disks) == "" }) {
		return nil, fmt.Errorf("its disks are %s; the VM's were %v", f.disks, allowed)
	}
	f.stamp, err = stamp(name)
	return f, err
}

// mayHold tells what a file of a VM may hold: one that was there, or one that a restore has made beside.
func (h *history) mayHold(uuid, name string) ([]contents, bool) {
	if was, t := h.before.vm(uuid), h.vms[uuid]; was != nil && t != nil {
		own := was.Name == name || slices.ContainsFunc(t.resets, func(f *staged) bool { return f.name == name })
		allowed := slices.Clone(t.allowed)
		if h.rivals { // whose snapshot may be older than the restore
			allowed = append(allowed, t.seen...)
		}
		if h.firsts[uuid] { // taken after the death of a restore that had deleted the old disks: with a warning
			allowed = append(allowed, contents{})
		}
		return allowed, own
	}
	if f := h.adds[name]; f != nil {
		return []contents{f.disks}, true
	}
	if f := h.back[uuid]; f != nil {
		return []contents{f.disks}, f.name == name
	}
	return nil, false
}

// differ says where two contents differ, or nothing.
func differ(a, b contents) string {
	for device, sum := range a {
		if b[device] != sum {
			return device
		}
	}
	for device := range b {
		if _, ok := a[device]; !ok {
			return device
		}
	}
	return ""
}

// stamp changes when a file is replaced or written to.
func stamp(name string) (string, error) {
	info, err := os.Stat(name)
	if err != nil {
		return "", err
	}
	sys, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "", errors.New("no inode")
	}
	return fmt.Sprintf("%d %d %s", sys.Ino, info.Size(), info.ModTime()), nil
}

// inode is that of a stamp.
func inode(stamp string) string {
	ino, _, _ := strings.Cut(stamp, " ")
	return ino
}

// untouched holds that no final file was replaced or written to.
func (h *history) untouched() {
	for _, f := range h.files {
		if f.gone {
			continue
		}
		now, err := stamp(f.path)
		// One of the same second, by a session after that which deleted it, has the same name and is another file.
		if (errors.Is(err, fs.ErrNotExist) || err == nil && inode(now) != inode(f.stamp)) && h.mayBeDeleted(f) {
			f.gone = true
			h.counts.add("files deleted by pre-exec or post-exec", 1)
			continue
		}
		if err != nil || now != f.stamp {
			h.violation("%s was %s and is %s: %v", filepath.Base(f.path), f.stamp, now, err)
		}
	}
}

// proveAgain reads every file once more at the end.
func (h *history) proveAgain() error {
	for _, f := range h.present() {
		x, err := archive.Read(f.path)
		if err != nil {
			h.violation("at the end: %v", err)
		} else if x.SHA256 != f.sha {
			h.violation("%s has changed", filepath.Base(f.path))
		}
	}
	out, code, err := h.site.run(stepLimit, "verify")
	if err == nil && code != 0 && h.verifiable() {
		h.violation("dpxen verify ended with %d on files that are proven: %s", code, lastLine(out))
	}
	return err
}
