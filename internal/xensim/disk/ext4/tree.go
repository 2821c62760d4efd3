package ext4

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// SeedFile is the path of the file whose contents depend on a disk's seed.
const SeedFile = "srv/seed.bin"

// Files gives the files of the tree by path, as they are before a seed is put in.
func Files() map[string][]byte {
	files := map[string][]byte{
		"etc/hostname":   []byte("guest\n"),
		"etc/os-release": []byte("NAME=\"xensim guest\"\nID=xensim\nVERSION_ID=1\n"),
		"etc/fstab":      []byte("LABEL=xensim / ext4 defaults 0 1\n"),
		"root/empty":     nil,
	}
	var log bytes.Buffer
	for i := range 20000 {
		fmt.Fprintf(&log, "2026-01-01T00:%02d:%02dZ guest kernel: message number %d\n", i/60%60, i%60, i)
	}
	files["var/log/messages"] = log.Bytes()
	for i := range 120 {
		name := fmt.Sprintf("home/user/documents/%02d/note-%03d.txt", i/10, i)
		files[name] = bytes.Repeat(fmt.Appendf(nil, "note %d\n", i), i*i/4)
	}
	var seed bytes.Buffer
	for i := range seedPieces {
		piece := make([]byte, PieceSize)
		copy(piece, seedMark(i))
		seed.Write(piece)
	}
	files[SeedFile] = seed.Bytes()
	return files
}

// writeTree makes the tree and gives the number of its files and folders.
func writeTree(root string) (entries int, err error) {
	for name, data := range Files() {
		p := filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			return 0, err
		}
		if err := os.WriteFile(p, data, 0o600); err != nil {
			return 0, err
		}
	}
	// Afterwards, because making files changes the times of their folders.
	err = filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		entries++
		mode := fs.FileMode(0o644)
		if e.IsDir() {
			mode = 0o755
		}
		if err := os.Chmod(p, mode); err != nil { // whatever the umask is
			return err
		}
		return os.Chtimes(p, epoch(), epoch())
	})
	return entries, err
}
