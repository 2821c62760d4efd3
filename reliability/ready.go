package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// ready does what its user does before a step: he deletes the VM that is to be made again, or a file is damaged.
func (h *history) ready(s *step) error {
	switch s.kind {
	case "recreate":
		t := h.vms[s.vm]
		if t == nil || t.replaced || h.mayExist(s.vm) > 1 {
			s.kind = "restore" // it is not there, or in the midst of something
			break
		}
		if err := h.deleteVM(s.vm); err != nil { // something still works on it
			h.note("the user could not delete VM %s: %v", s.vm, err)
			s.kind = "restore"
			break
		}
		t.remade = true
	case "damaged":
		return h.damage(s)
	}
	if s.brought {
		if err := h.bring(s.file); err != nil {
			return err
		}
	}
	if t := h.vms[s.vm]; t != nil && (s.kind == "restore" || s.kind == "recreate") {
		t.replaced = true
	}
	return nil
}

func (h *history) mayExist(uuid string) int { return len(h.vms[uuid].allowed) }

// narrow leaves a backup too little room, now and then: a limit on the length of files, in KiB, or a file system that is full.
func (h *history) narrow(s *step) (limit int) {
	if s.kind != "backup" || h.rng.IntN(10) > 0 {
		return 0
	}
	kib := 256 + h.rng.IntN(6144)
	if h.rng.IntN(2) == 0 {
		h.counts.add("limits on files", 1)
		h.note("files may have at most %d KiB", kib)
		return kib
	}
	if dir := h.site.smallFolder(kib); dir != "" {
		s.args = append(s.args, "--staging", dir)
		h.counts.add("full file systems", 1)
		h.note("the staging folder has %d KiB", kib)
	}
	return 0
}

// damage copies a file with something wrong, and makes a restore of it.
func (h *history) damage(s *step) error {
	data, err := os.ReadFile(s.file.path)
	if err != nil {
		return err
	}
	manifest, err := os.ReadFile(strings.TrimSuffix(s.file.path, ".xva") + ".json")
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a deletion was killed between the two: an ordinary restore has enough to say about it
	}
	if err != nil {
		return err
	}
	dir := h.site.path(fmt.Sprintf("damaged-%d", h.site.runs))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	what := "bit flips before a restore"
	all := h.present()
	other := all[h.rng.IntN(len(all))]
	switch n := h.rng.IntN(8); {
	case n == 0:
		manifest[h.rng.IntN(len(manifest)-1)] ^= 1 << h.rng.IntN(8)
	case n == 1:
		data, what = data[:h.rng.IntN(len(data))], "files cut short before a restore"
	case n == 2:
		data, what = append(data, make([]byte, 512*(1+h.rng.IntN(3)))...), "files with more at their end before a restore"
	case n == 3 && other != s.file:
		if manifest, err = os.ReadFile(strings.TrimSuffix(other.path, ".xva") + ".json"); err != nil {
			return err
		}
		what = "manifests of other files before a restore"
	default:
		data[h.rng.IntN(len(data))] ^= 1 << h.rng.IntN(8)
	}
	h.counts.add(what, 1)
	name := filepath.Join(dir, filepath.Base(s.file.path))
	if err := os.WriteFile(name, data, 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(strings.TrimSuffix(name, ".xva")+".json", manifest, 0o600); err != nil {
		return err
	}
	s.mode, s.args = s.file.kind, []string{"restore", "--mode", s.file.kind, name}
	return nil
}
