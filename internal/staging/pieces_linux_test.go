package staging

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestBehind: whatever the system has taken, the rest is what follows, and the pieces stay those of who gave them.
func TestBehind(t *testing.T) {
	data := []byte("some bytes in pieces")
	for _, size := range []int{1, 3, 7, len(data)} {
		pieces := cut(data, size)
		for n := range len(data) + 1 {
			if rest := bytes.Join(behind(pieces, n), nil); !bytes.Equal(rest, data[n:]) {
				t.Errorf("behind %d bytes of pieces of %d: %q", n, size, rest)
			}
			if diff := cmp.Diff(cut(data, size), pieces); diff != "" {
				t.Fatalf("behind %d bytes of pieces of %d:\n%s", n, size, diff)
			}
		}
	}
}
