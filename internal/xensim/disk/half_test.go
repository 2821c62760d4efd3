package disk

import (
	"testing"

	"github.com/klauspost/compress/zstd"
)

// TestHalfCompressesToAHalf, in every block and in any piece of one.
func TestHalfCompressesToAHalf(t *testing.T) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	data := contents(t, newImage(t, openStore(t), 3*mib, Content{Half, 5}))
	for at := 0; at < len(data); at += mib / 4 {
		piece := data[at : at+mib/4]
		if n := len(enc.EncodeAll(piece, nil)); n < len(piece)*45/100 || n > len(piece)*60/100 {
			t.Errorf("at %d: %d bytes of %d", at, n, len(piece))
		}
	}
}
