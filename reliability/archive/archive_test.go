package archive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha1" //nolint:gosec // the format's own checksum
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

const ovaText = `<value><struct><member><name>version</name><value><struct/></value></member><member><name>objects</name><value><array><data>` +
	`<value><struct><member><name>class</name><value>VM</value></member><member><name>id</name><value>Ref:0</value></member><member><name>snapshot</name><value><struct>` +
	`<member><name>uuid</name><value>5c5a</value></member><member><name>name_label</name><value>web</value></member></struct></value></member></struct></value>` +
	`<value><struct><member><name>class</name><value>VBD</value></member><member><name>id</name><value>Ref:1</value></member><member><name>snapshot</name><value><struct>` +
	`<member><name>type</name><value>Disk</value></member><member><name>VDI</name><value>Ref:2</value></member><member><name>userdevice</name><value>0</value></member></struct></value></member></struct></value>` +
	`<value><struct><member><name>class</name><value>VDI</value></member><member><name>id</name><value>Ref:2</value></member><member><name>snapshot</name><value><struct>` +
	`<member><name>virtual_size</name><value><i8>3145828</i8></value></member></struct></value></member></struct></value>` +
	`</data></array></value></member></struct></value>`

// sample is an archive of one disk: a chunk, an absent one, an empty one (which takes a number and no room), one more and
// a short last one.
func sample(t *testing.T) (file []byte, disk []byte) {
	t.Helper()
	disk = make([]byte, 3<<20+100)
	for i := range 1 << 20 {
		disk[i], disk[2<<20+i] = byte(i*7), byte(i*5)
	}
	copy(disk[3<<20:], "the short end")
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(name string, data []byte) {
		if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(data)), Mode: 0o644, Format: tar.FormatUSTAR}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	chunk := func(n int, data []byte) {
		add(fmt.Sprintf("Ref:2/%08d", n), data)
		sum := sha1.Sum(data) //nolint:gosec // the format's own checksum
		add(fmt.Sprintf("Ref:2/%08d.checksum", n), []byte(hex.EncodeToString(sum[:])))
	}
	add("ova.xml", []byte(ovaText))
	chunk(0, disk[:1<<20])
	chunk(2, nil)
	chunk(3, disk[2<<20:3<<20])
	chunk(4, disk[3<<20:])
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), disk
}

func written(t *testing.T, data []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "x.xva")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestRead(t *testing.T) {
	data, disk := sample(t)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for name, file := range map[string][]byte{"plain": data, "gzip": packed.Bytes()} {
		t.Run(name, func(t *testing.T) {
			f, err := Read(written(t, file))
			if err != nil {
				t.Fatal(err)
			}
			sum, whole := sha256.Sum256(disk), sha256.Sum256(file)
			want := Disk{Device: "0", Size: int64(len(disk)), SHA256: hex.EncodeToString(sum[:])}
			if len(f.Disks) != 1 || f.Disks[0] != want || f.VM != "5c5a" || f.Name != "web" || f.SHA256 != hex.EncodeToString(whole[:]) ||
				f.Bytes != int64(len(file)) {
				t.Errorf("read %+v, want the disk %+v", f, want)
			}
		})
	}
}

func TestReadRefuses(t *testing.T) {
	data, _ := sample(t)
	flipped := bytes.Clone(data)
	flipped[bytes.Index(data, []byte("the short end"))] ^= 1
	for name, file := range map[string][]byte{
		"a wrong bit":      flipped,
		"no end":           data[:len(data)-1024],
		"half an end":      data[:len(data)-512],
		"something after":  append(bytes.Clone(data), 'x'),
		"an absent chunk":  data[:bytes.Index(data, []byte("Ref:2/00000004"))],
		"nothing":          nil,
		"something unlike": bytes.Repeat([]byte("x"), 2048),
	} {
		t.Run(name, func(t *testing.T) {
			if f, err := Read(written(t, file)); err == nil {
				t.Errorf("read %+v", f)
			}
		})
	}
}
