package controller

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/xxh3"

	"github.com/dpxen/dpxen/internal/staging"
	"github.com/dpxen/dpxen/internal/xva"
)

// testOVA is a smallest ova.xml: one VM with one disk of the given size.
func testOVA(uuid, name string, size int) []byte {
	object := func(class, id, members string) string {
		return fmt.Sprintf("<value><struct>%s%s<member><name>snapshot</name><value><struct>%s</struct></value></member></struct></value>",
			member("class", class), member("id", id), members)
	}
	objects := object("VM", "Ref:0", member("uuid", uuid)+member("name_label", name)+member("power_state", "Halted")) +
		object("VBD", "Ref:1", member("uuid", testUUID(71))+member("VM", "Ref:0")+member("VDI", "Ref:2")+member("userdevice", "0")+member("type", "Disk")) +
		object("VDI", "Ref:2", member("uuid", testUUID(72))+member("name_label", "root")+member("virtual_size", fmt.Sprint(size))+member("SR", "Ref:3")+member("type", "user")) +
		object("SR", "Ref:3", member("uuid", testUUID(73))+member("name_label", "nfs")+member("content_type", "user"))
	version := member("hostname", "xs1") + member("product_version", "8.3.0") + member("product_brand", "XCP-ng") +
		member("xapi_major", "1") + member("xapi_minor", "20") + member("export_vsn", "2")
	return fmt.Appendf(nil, "<value><struct><member><name>version</name><value><struct>%s</struct></value></member>"+
		"<member><name>objects</name><value><array><data>%s</data></array></value></member></struct></value>", version, objects)
}

func member(name, value string) string {
	return "<member><name>" + name + "</name><value>" + value + "</value></member>"
}

// testXVA is the export of such a VM, with a disk of 1 MiB and a short tail.
func testXVA(t *testing.T, uuid, name string) []byte {
	t.Helper()
	data := bytes.Repeat([]byte(uuid), 1<<20/36+200)[:1<<20+4096]
	return testXVAOf(t, testOVA(uuid, name, len(data)), data)
}

// testXVAOf is the export that an ova.xml describes, whose disk has that data.
func testXVAOf(t *testing.T, ova, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := xva.NewWriter(&b, xva.WriterOptions{})
	for _, err := range []error{
		w.WriteOVA(ova),
		w.WriteBlock("Ref:2", 0, data[:1<<20]),
		w.WriteBlock("Ref:2", 1, data[1<<20:]),
		w.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func testZstd(t *testing.T, data []byte) []byte {
	t.Helper()
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	return enc.EncodeAll(data, nil)
}

// stagedBackup is a backup that a test stages.
type stagedBackup struct {
	n        int    // the VM is testUUID(n)
	name     string // the VM's
	mode     Mode
	at       time.Time
	ova      string // the UUID in ova.xml; empty = as it should be
	snapshot string // the snapshot's UUID; empty = of an online file testUUID(n + 5000)
	session  string // Data Protector's
	of       string // the session's ID; empty = "s"
	spec     string // likewise
	pool     int
	compress bool
	size     int64 // of the disk as the manifest has it; 0 = as it is
}

var testTime = time.Date(2026, 11, 22, 20, 30, 0, 0, time.UTC)

// stage puts a complete backup into the folder and returns its path.
func (b stagedBackup) stage(t *testing.T, dir string) string {
	t.Helper()
	d, err := staging.Open(dir, staging.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if b.at.IsZero() {
		b.at = testTime
	}
	name, err := staging.NewName(b.name, testUUID(b.n), b.mode.Kind(), b.at)
	if err != nil {
		t.Fatal(err)
	}
	if b.snapshot == "" && b.mode.Kind() == KindOnline {
		b.snapshot = testUUID(b.n + 5000)
	}
	in := b.snapshot
	if in == "" {
		in = testUUID(b.n)
	}
	if b.ova != "" {
		in = b.ova
	}
	data := testXVA(t, in, b.name)
	if b.compress {
		data = testZstd(t, data)
	}
	p, err := d.Create(name, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Write(data); err != nil {
		t.Fatal(err)
	}
	if b.size == 0 {
		b.size = 1<<20 + 4096
	}
	sum := xxh3.Hash128(data).Bytes()
	path, err := p.Commit(t.Context(), staging.Expected{Bytes: int64(len(data)), Digest: hex.EncodeToString(sum[:])},
		staging.Manifest{DpxenVersion: "test", Session: cmp.Or(b.of, "s"), Mode: string(b.mode), Agent: "xs1", Started: b.at, Finished: b.at,
			DP: staging.DPSession{Session: b.session, Spec: b.spec},
			VM: staging.VM{UUID: testUUID(b.n), Name: b.name, Pool: staging.Ref{UUID: testUUID(b.pool), Name: fmt.Sprint("pool ", b.pool)},
				Disks: []staging.Disk{{Device: "0", Size: b.size}}},
			Snapshot: staging.Snapshot{UUID: b.snapshot, Time: b.at},
			File:     staging.File{Compression: "none", Checksum: "xxhash"}})
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func writeFile(t *testing.T, path string, data []byte) string {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// flip changes one bit of a file.
func flip(t *testing.T, path string, at int) {
	t.Helper()
	data := readFile(t, path)
	if at < 0 {
		at += len(data)
	}
	data[at] ^= 1
	writeFile(t, path, data)
}

func base(path string) string { return filepath.Base(path) }
