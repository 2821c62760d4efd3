package staging

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"testing"
)

// For file systems without renameat2's flag.
func TestLinkNew(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	writeText(t, from, "new")
	writeText(t, to, "old")
	if err := linkNew(from, to); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a file: got %v, want %v", err, fs.ErrExist)
	}
	unlink(t, to)
	if err := linkNew(from, to); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(to); err != nil || string(got) != "new" {
		t.Errorf("target holds %q, %v", got, err)
	}
	if _, err := os.Lstat(from); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("source: %v, want it gone", err)
	}
}

func TestBlocksDoNotOverflow(t *testing.T) {
	for _, tt := range []struct {
		n    uint64
		size int64
		want int64
	}{{0, 4096, 0}, {10, 4096, 40960}, {math.MaxUint64, 4096, math.MaxInt64}, {math.MaxInt64/4096 + 1, 4096, math.MaxInt64}} {
		if got := blocks(tt.n, tt.size); got != tt.want {
			t.Errorf("%d blocks of %d: got %d, want %d", tt.n, tt.size, got, tt.want)
		}
	}
}
