package xva

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

func TestChecksumVectors(t *testing.T) {
	mib := make([]byte, BlockSize)
	for _, c := range []struct {
		kind ChecksumKind
		data []byte
		want string
	}{
		{XXHash, nil, "EF46DB3751D8E999"},
		{SHA1, nil, "da39a3ee5e6b4b0d3255bfef95601890afd80709"},
		{XXHash, mib, "87D2A1B6E1163EF1"},
		{SHA1, mib, "3b71f43ff30f4b15b5cd85dd9e95ebc7e84eb5a3"},
	} {
		if got := c.kind.Sum(c.data); got != c.want {
			t.Errorf("%s of %d bytes = %s, want %s", c.kind, len(c.data), got, c.want)
		}
	}
}

// TestWriterBytes holds the writer to reference 4.1 byte by byte.
func TestWriterBytes(t *testing.T) {
	var buf bytes.Buffer
	w := NewWriter(&buf, WriterOptions{OVAModTime: time.Unix(0o12345670123, 0)})
	for _, err := range []error{w.WriteOVA([]byte("<value/>")), w.WriteBlock("Ref:7", 3, []byte("abc")), w.Close(), w.Close()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	header := func(name, size, mtime, sum string) string {
		h := name + strings.Repeat("\x00", 100-len(name)) + "0000400\x000000000\x000000000\x00" + size + "\x00" + mtime + "\x00" + sum + "\x00"
		return h + strings.Repeat("\x00", 512-len(h))
	}
	body := func(s string) string { return s + strings.Repeat("\x00", 512-len(s)) }
	want := header("ova.xml", "00000000010", "12345670123", "0005774") + body("<value/>") +
		header("Ref:7/00000003", "00000000003", "00000000000", "0006127") + body("abc") +
		header("Ref:7/00000003.xxhash", "00000000020", "00000000000", "0007430") + body("44BC2CF5AD770999") +
		strings.Repeat("\x00", 1024)
	if got := buf.String(); got != want {
		for i := 0; i < len(got) && i < len(want); i += 512 {
			if got[i:i+512] != want[i:i+512] {
				t.Errorf("tar block %d:\n got %q\nwant %q", i/512, got[i:i+512], want[i:i+512])
			}
		}
		t.Fatalf("wrote %d bytes, want %d", len(got), len(want))
	}
	if w.Written() != int64(len(want)) {
		t.Errorf("Written() = %d, want %d", w.Written(), len(want))
	}
	if err := w.WriteBlock("Ref:7", 4, nil); err == nil {
		t.Error("a closed Writer accepted a block")
	}
}

func TestWriterRefuses(t *testing.T) {
	w := NewWriter(io.Discard, WriterOptions{})
	for _, dir := range []string{"", "a/b", "a\nb", strings.Repeat("x", maxDir+1)} {
		if err := w.WriteBlock(dir, 0, nil); err == nil {
			t.Errorf("directory %q accepted", dir)
		}
	}
	for _, n := range []int64{-1, MaxBlockNumber + 1} {
		if err := w.WriteBlock("Ref:1", n, nil); err == nil {
			t.Errorf("number %d accepted", n)
		}
	}
	if err := w.WriteBlockSum("Ref:1", 0, nil, "00"); err == nil {
		t.Error("short checksum accepted")
	}
	if err := w.WriteBlock(strings.Repeat("x", maxDir), MaxBlockNumber, nil); err != nil {
		t.Error(err)
	}
	if err := w.WriteOVA(nil); err == nil {
		t.Error("a second first entry accepted")
	}
}

type failingWriter struct{ left int }

var errFull = errors.New("full")

func (f *failingWriter) Write(p []byte) (int, error) {
	if len(p) > f.left {
		return f.left, errFull
	}
	f.left -= len(p)
	return len(p), nil
}

func TestWriterKeepsItsError(t *testing.T) {
	w := NewWriter(&failingWriter{left: 700}, WriterOptions{})
	if err := w.WriteBlock("Ref:1", 0, make([]byte, 1000)); !errors.Is(err, errFull) {
		t.Fatalf("got %v, want the writer's error", err)
	}
	if err := w.Close(); !errors.Is(err, errFull) || IsBad(err) {
		t.Fatalf("Close after an error: %v", err)
	}
}

func BenchmarkWriter(b *testing.B) {
	data := bytes.Repeat([]byte{1, 2, 3, 4}, BlockSize/4)
	for _, k := range []ChecksumKind{XXHash, SHA1} {
		b.Run(k.String(), func(b *testing.B) {
			w := NewWriter(io.Discard, WriterOptions{Checksum: k})
			b.SetBytes(BlockSize)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if err := w.WriteBlock("Ref:1", int64(i%1000), data); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
