// Package ext4 makes the small file system that the simulator's disks begin
// with. It is a real one with real files, made by mke2fs where that is installed,
// else taken from a copy in this package that was made the same way.
package ext4

import (
	"bytes"
	"context"
	_ "embed" // for the copy
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/zstd"
)

//go:generate go run ./mkimage

// Size is the length in bytes of the file system.
const Size = 16 << 20

// PieceSize is the length in bytes of the pieces of SeedPlaces, and the block
// size of the file system.
const PieceSize = 4096

// seedPieces is the number of pieces of the file whose contents depend on a seed.
const seedPieces = 512

const uuid = "d0a7e5f4-0b5e-4c1e-9d7a-5ca1ab1e0001"

//go:embed image.zst
var packed []byte

// ErrNoTool says that mke2fs or debugfs is not installed.
var ErrNoTool = errors.New("mke2fs or debugfs is not installed")

// Image gives a file system of Size bytes: a new one where e2fsprogs is installed
// and able, else the copy. Which of both it was makes no difference to callers.
func Image(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if img, err := Make(ctx); err == nil {
		return img, nil
	}
	// A mke2fs that is too old for -d, or a full /tmp, is no reason to fail.
	return Packed()
}

// Packed gives the copy in this package.
func Packed() ([]byte, error) {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(2*Size))
	if err != nil {
		return nil, fmt.Errorf("unpacking the ext4 image: %w", err)
	}
	defer d.Close()
	img, err := d.DecodeAll(packed, make([]byte, 0, Size))
	if err != nil {
		return nil, fmt.Errorf("unpacking the ext4 image: %w", err)
	}
	return img, nil
}

// Pack gives the form in which the copy is kept.
func Pack(img []byte) ([]byte, error) {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, fmt.Errorf("packing the ext4 image: %w", err)
	}
	out := e.EncodeAll(img, nil)
	if err := e.Close(); err != nil {
		return nil, fmt.Errorf("packing the ext4 image: %w", err)
	}
	return out, nil
}

// Make runs mke2fs over a tree of files, and debugfs to take owners and times of
// this machine out again: one version of them gives the same bytes every time.
// Errors: ErrNoTool, and what the tools say.
func Make(ctx context.Context) (img []byte, err error) {
	mke2fs, err := find("mke2fs")
	if err != nil {
		return nil, err
	}
	debugfs, err := find("debugfs")
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "xensim-ext4-")
	if err != nil {
		return nil, fmt.Errorf("making an ext4 image: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	root, file, script := filepath.Join(dir, "root"), filepath.Join(dir, "image"), filepath.Join(dir, "script")
	entries, err := writeTree(root)
	if err != nil {
		return nil, fmt.Errorf("making an ext4 image: %w", err)
	}
	if err := os.WriteFile(script, normalise(entries), 0o600); err != nil {
		return nil, fmt.Errorf("making an ext4 image: %w", err)
	}
	if err := run(ctx, mke2fs, "-q", "-F", "-t", "ext4", "-b", fmt.Sprint(PieceSize), "-I", "256",
		"-L", "xensim", "-U", uuid,
		"-E", "hash_seed="+uuid+",root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,nodiscard",
		"-d", root, file, fmt.Sprint(Size/PieceSize)); err != nil {
		return nil, err
	}
	if err := run(ctx, debugfs, "-w", "-f", script, file); err != nil {
		return nil, err
	}
	img, err = os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("making an ext4 image: %w", err)
	}
	if len(img) != Size {
		return nil, fmt.Errorf("making an ext4 image: it has %d bytes, not %d", len(img), Size)
	}
	return img, nil
}

// normalise gives the commands for debugfs: mke2fs copies the times of the last
// change and access, which nobody can set on a host, and the owners.
func normalise(entries int) []byte {
	const root, firstFree = 2, 11
	inodes := []int{root}
	for i := range entries {
		inodes = append(inodes, firstFree+i) // lost+found and the tree, without its root
	}
	var b bytes.Buffer
	for _, i := range inodes {
		for _, field := range []string{"atime", "ctime"} {
			fmt.Fprintf(&b, "set_inode_field <%d> %s @%d\n", i, field, epoch().Unix())
		}
		fmt.Fprintf(&b, "set_inode_field <%d> uid 0\nset_inode_field <%d> gid 0\n", i, i)
	}
	return b.Bytes()
}

func run(ctx context.Context, tool string, args ...string) error {
	cmd := exec.CommandContext(ctx, tool, args...)
	stamp := fmt.Sprint(epoch().Unix())
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH="+stamp, "E2FSPROGS_FAKE_TIME="+stamp, "TZ=UTC", "LC_ALL=C")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("running %s: %w: %s", filepath.Base(tool), err, bytes.TrimSpace(out))
	}
	return nil
}

// find looks where an ordinary user's PATH does not lead, too.
func find(name string) (string, error) {
	for _, n := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if p, err := exec.LookPath(n); err == nil {
			return p, nil
		}
	}
	return "", ErrNoTool
}

func epoch() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) }

const seedPrefix = "xensim seed piece "

// seedMark is what a piece of the seed file begins with in an image.
func seedMark(n int) []byte { return fmt.Appendf(nil, seedPrefix+"%08d\n", n) }

// SeedPlaces gives the offsets in img of the pieces of the file srv/seed.bin, in
// the file's order. No metadata depends on their contents: any bytes may take
// their place. An error means that img was not made by this package.
func SeedPlaces(img []byte) ([]int64, error) {
	offsets := map[string]int64{}
	markLen := len(seedMark(0))
	for off := 0; off+PieceSize <= len(img); off += PieceSize {
		if bytes.HasPrefix(img[off:], []byte(seedPrefix)) {
			offsets[string(img[off:off+markLen])] = int64(off)
		}
	}
	places := make([]int64, seedPieces)
	for n := range places {
		off, ok := offsets[string(seedMark(n))]
		if !ok {
			return nil, fmt.Errorf("ext4 image: piece %d of its seed file is not there", n)
		}
		places[n] = off
	}
	return places, nil
}
