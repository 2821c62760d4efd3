package disk

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/dpxen/dpxen/internal/xensim/disk/ext4"
)

// TestExt4Disk checks disks of several seeds, scribbled on and copied, by the
// file system's magic, by the file that the seed fills, and by e2fsck where there
// is one.
func TestExt4Disk(t *testing.T) {
	s := openStore(t)
	im := newImage(t, s, MinExt4Size+3*mib+512, Content{Ext4, 5})
	other := newImage(t, s, MinExt4Size, Content{Ext4, 6})
	scribbled, err := im.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	imported := newImage(t, s, im.Size(), Content{})
	copyImage(t, imported, im)
	for _, im := range []*Image{scribbled, imported} {
		if err := im.Scribble(9, 40); err != nil {
			t.Fatal(err)
		}
	}
	if digest(t, scribbled) != digest(t, imported) || digest(t, scribbled) == digest(t, im) {
		t.Error("scribbling does not do the same to a copy")
	}
	for _, im := range []*Image{im, other, scribbled} {
		checkExt4(t, contents(t, im))
	}
	base, err := s.fs()
	if err != nil {
		t.Fatal(err)
	}
	a, b := seedFile(t, contents(t, im), base), seedFile(t, contents(t, scribbled), base)
	if bytes.Equal(a, b) || bytes.Contains(a, []byte("xensim seed piece")) {
		t.Error("the seed file is not what scribbling changes and a seed fills")
	}
}

func seedFile(t *testing.T, data []byte, fs *fileSystem) []byte {
	t.Helper()
	var b []byte
	for _, p := range fs.places {
		b = append(b, data[p:p+ext4.PieceSize]...)
	}
	return b
}

// checkExt4 checks a whole disk's bytes.
func checkExt4(t *testing.T, data []byte) {
	t.Helper()
	if data[1024+56] != 0x53 || data[1024+57] != 0xef {
		t.Fatal("there is no superblock")
	}
	tool, ok := lookTool("e2fsck")
	if !ok {
		return
	}
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), tool, "-fn", file).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
}

func lookTool(name string) (string, bool) {
	for _, n := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if p, err := exec.LookPath(n); err == nil {
			return p, true
		}
	}
	return "", false
}
