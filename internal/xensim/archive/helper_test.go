package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"

	"github.com/dpxen/dpxen/internal/xensim/disk"
)

const mib = BlockSize

func openStore(t testing.TB) *disk.Store {
	t.Helper()
	s, err := disk.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func newImage(t testing.TB, s *disk.Store, size int64, c disk.Content) *disk.Image {
	t.Helper()
	im, err := s.New(size, c)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

func digest(t testing.TB, im *disk.Image) string {
	t.Helper()
	d, err := im.Digest(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func export(t testing.TB, o ExportOptions) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Export(context.Background(), &b, o); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// memory is a disk in memory, for byte-exact cases.
type memory []byte

func (m memory) Size() int64 { return int64(len(m)) }

func (m memory) ReadBlock(i int64, _ []byte) ([]byte, bool, error) {
	data := m[i*mib : min(int64(len(m)), (i+1)*mib)]
	return data, len(bytes.Trim(data, "\x00")) == 0, nil
}

func (m memory) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(m)) {
		return 0, errors.New("outside the disk")
	}
	return copy(m[off:], p), nil
}

// entry is one file of a tar stream.
type entry struct {
	name string
	data []byte
}

// entries reads a plain archive with the standard library, and checks that it
// ends with exactly two zero blocks.
func entries(t testing.TB, b []byte) []entry {
	t.Helper()
	if len(b)%512 != 0 || len(b) < 1024 || len(bytes.Trim(b[len(b)-1024:], "\x00")) != 0 {
		t.Fatalf("%d bytes do not end as an archive", len(b))
	}
	var all []entry
	at := int64(0)
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Mode != 0o400 || h.Uid != 0 || h.Typeflag != tar.TypeReg || h.Format != tar.FormatUnknown {
			t.Errorf("header of %s: %+v", h.Name, h)
		}
		all = append(all, entry{h.Name, data})
		at += 512 + (h.Size+511)/512*512
	}
	if at+1024 != int64(len(b)) {
		t.Errorf("the archive has %d bytes, want %d", len(b), at+1024)
	}
	return all
}

// names gives the numbers of the chunks by disk, after checking that each chunk's
// checksum follows it.
func names(t testing.TB, all []entry) map[string][]string {
	t.Helper()
	if len(all) == 0 || all[0].name != "ova.xml" {
		t.Fatal("the archive does not begin with ova.xml")
	}
	m := map[string][]string{}
	var dirs []string
	for i := 1; i+1 < len(all); i += 2 {
		c, sum := all[i], all[i+1]
		want := map[string]string{
			c.name + ".xxhash":   fmt.Sprintf("%016X", xxhash.Sum64(c.data)),
			c.name + ".checksum": fmt.Sprintf("%x", sha1.Sum(c.data)),
		}[sum.name]
		if want == "" || want != string(sum.data) {
			t.Fatalf("%s is followed by %s %q", c.name, sum.name, sum.data)
		}
		dir, number, _ := strings.Cut(c.name, "/")
		m[dir] = append(m[dir], number)
		if !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	if !slices.IsSorted(dirs) {
		t.Errorf("disks come as %v", dirs)
	}
	return m
}

// put makes a tar stream of entries, in the format given.
func put(t testing.TB, format tar.Format, all ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range all {
		h := &tar.Header{Name: e.name, Mode: 0o644, Size: int64(len(e.data)), Format: format}
		if format == tar.FormatPAX { // which is only used where it is needed
			h.PAXRecords = map[string]string{"TEST.comment": "anything"}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// block gives a chunk and its checksum entry.
func block(name string, data []byte) []entry {
	return []entry{{name, data}, {name + ".xxhash", fmt.Appendf(nil, "%016X", xxhash.Sum64(data))}}
}

// pattern gives n bytes that are not zero.
func pattern(n int, c byte) []byte { return bytes.Repeat([]byte{c}, n) }

// imported reads b into disks in memory of the sizes given.
func imported(b []byte, sizes map[string]int, change func(*ImportOptions)) (map[string]memory, error) {
	got := map[string]memory{}
	o := ImportOptions{AllowXXHash: true, OVA: func([]byte) ([]Expected, error) {
		var want []Expected
		for dir, n := range sizes {
			got[dir] = make(memory, n)
			want = append(want, Expected{Dir: dir, Size: int64(n), Image: got[dir]})
		}
		return want, nil
	}}
	if change != nil {
		change(&o)
	}
	_, err := Import(context.Background(), bytes.NewReader(b), o)
	return got, err
}

// code gives the code of a Failure and its first parameter.
func code(err error) string {
	var f *Failure
	if !errors.As(err, &f) {
		return fmt.Sprint(err)
	}
	return f.Code + " " + strings.Join(f.Params, "; ")
}
