package ext4

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// check looks at an image: every file of the tree is in it, the seed's pieces are
// where SeedPlaces says, and e2fsck and debugfs, where installed, agree.
func check(t *testing.T, img []byte) {
	t.Helper()
	if len(img) != Size || img[1024+56] != 0x53 || img[1024+57] != 0xef {
		t.Fatalf("%d bytes are not an ext4 file system of %d", len(img), Size)
	}
	starts := map[string]bool{} // of all blocks of the file system
	for off := 0; off < len(img); off += PieceSize {
		starts[string(img[off:off+16])] = true
	}
	for name, data := range Files() {
		if len(data) >= 16 && !starts[string(data[:16])] {
			t.Errorf("%s is not in the image", name)
		}
	}
	places, err := SeedPlaces(img)
	if err != nil {
		t.Fatal(err)
	}
	var seed []byte
	for _, p := range places {
		seed = append(seed, img[p:p+PieceSize]...)
	}
	if !bytes.Equal(seed, Files()[SeedFile]) {
		t.Error("the pieces are not the seed file")
	}
	file := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(file, img, 0o600); err != nil {
		t.Fatal(err)
	}
	if tool, err := find("e2fsck"); err == nil {
		if out, err := exec.CommandContext(t.Context(), tool, "-fn", file).CombinedOutput(); err != nil {
			t.Errorf("e2fsck: %v\n%s", err, out)
		}
	}
	if tool, err := find("debugfs"); err == nil {
		for _, name := range []string{SeedFile, "var/log/messages", "etc/hostname"} {
			out, err := exec.CommandContext(t.Context(), tool, "-R", "cat "+name, file).Output()
			if err != nil || !bytes.Equal(out, Files()[name]) {
				t.Errorf("debugfs reads another %s (%d bytes, error %v)", name, len(out), err)
			}
		}
	}
}

func TestPacked(t *testing.T) {
	img, err := Packed()
	if err != nil {
		t.Fatal(err)
	}
	check(t, img)
	if len(packed) > 200<<10 {
		t.Errorf("the copy takes %d bytes", len(packed))
	}
	again, err := Pack(img)
	if err != nil || len(again) > 200<<10 {
		t.Errorf("packing again gives %d bytes (%v)", len(again), err)
	}
}

func TestMake(t *testing.T) {
	a, err := Make(context.Background())
	if errors.Is(err, ErrNoTool) {
		_, err1 := exec.LookPath("mke2fs")
		_, err2 := exec.LookPath("debugfs")
		if err1 == nil && err2 == nil {
			t.Fatal("both tools are there but were not found")
		}
		return // Image then gives the copy, which TestPacked checks
	}
	if err != nil {
		t.Fatal(err)
	}
	check(t, a)
	b, err := Make(context.Background())
	if err != nil || !bytes.Equal(a, b) {
		t.Errorf("making it twice gives different bytes (%v)", err)
	}
}

// TestImageWithoutTool has no mke2fs that works.
func TestImageWithoutTool(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // mke2fs cannot be started
	img, err := Image(ctx)
	if err != nil {
		t.Fatal(err)
	}
	want, err := Packed()
	if err != nil || !bytes.Equal(img, want) {
		t.Errorf("not the copy (%v)", err)
	}
}

func TestSeedPlacesOfOther(t *testing.T) {
	if _, err := SeedPlaces(make([]byte, Size)); err == nil {
		t.Error("zeros were taken for an image of ours")
	}
}
