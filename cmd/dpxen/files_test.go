package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/dpxen/dpxen/controller"
	"github.com/dpxen/dpxen/internal/staging"
	"github.com/dpxen/dpxen/internal/xva"
)

// diskSize is that of a test's disk in bytes: one block and a short tail.
const diskSize = 1<<20 + 4096

// exportOf is the export of a VM with one disk.
func exportOf(uuid, name string) ([]byte, error) {
	data := bytes.Repeat([]byte(uuid), diskSize/len(uuid)+1)[:diskSize]
	var b bytes.Buffer
	w := xva.NewWriter(&b, xva.WriterOptions{})
	if err := w.WriteOVA(ovaOf(uuid, name)); err != nil {
		return nil, err
	}
	if err := w.WriteBlock("Ref:2", 0, data[:xva.BlockSize]); err != nil {
		return nil, err
	}
	if err := w.WriteBlock("Ref:2", 1, data[xva.BlockSize:]); err != nil {
		return nil, err
	}
	err := w.Close()
	return b.Bytes(), err
}

// ovaOf is a smallest ova.xml: what the importer needs to know of one VM with one disk.
func ovaOf(uuid, name string) []byte {
	member := func(name, value string) string {
		return "<member><name>" + name + "</name><value>" + value + "</value></member>"
	}
	structure := func(members ...string) string { return "<struct>" + strings.Join(members, "") + "</struct>" }
	object := func(class, id string, members ...string) string {
		return "<value>" + structure(member("class", class), member("id", id), member("snapshot", structure(members...))) + "</value>"
	}
	version := structure(member("hostname", "xs1"), member("product_version", "8.3.0"), member("product_brand", "XCP-ng"),
		member("xapi_major", "1"), member("xapi_minor", "20"), member("export_vsn", "2"))
	objects := "<array><data>" +
		object("VM", "Ref:0", member("uuid", uuid), member("name_label", name), member("power_state", "Halted")) +
		object("VBD", "Ref:1", member("uuid", testUUID(71)), member("VM", "Ref:0"), member("VDI", "Ref:2"), member("userdevice", "0"), member("type", "Disk")) +
		object("VDI", "Ref:2", member("uuid", testUUID(72)), member("name_label", "root"), member("virtual_size", fmt.Sprint(diskSize)), member("SR", "Ref:3"), member("type", "user")) +
		object("SR", "Ref:3", member("uuid", testUUID(73)), member("name_label", "nfs"), member("content_type", "user")) +
		"</data></array>"
	return []byte("<value>" + structure(member("version", version), member("objects", objects)) + "</value>")
}

func scriptXVA(ts *testscript.TestScript, neg bool, args []string) {
	wantArgs(ts, neg, args, 1, "xva FILE [zstd]")
	data, err := exportOf(testUUID(5), "foreign")
	ts.Check(err)
	if len(args) > 1 {
		enc, err := zstd.NewWriter(nil)
		ts.Check(err)
		data = enc.EncodeAll(data, nil)
		ts.Check(enc.Close())
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), data, 0o600))
}

func scriptStage(ts *testscript.TestScript, neg bool, args []string) {
	wantArgs(ts, neg, args, 3, "stage DIR NAME MODE")
	mode, err := controller.ParseMode(args[2])
	ts.Check(err)
	dir := ts.MkAbs(args[0])
	ts.Check(staging.Init(dir))
	folder, err := staging.Open(dir, staging.Options{RequireMarker: true})
	ts.Check(err)
	at := time.Date(2026, 11, 22, 20, 30, 0, 0, time.UTC)
	name, err := staging.NewName(args[1], vmUUID(args[1]), mode.Kind(), at)
	ts.Check(err)
	m := staging.Manifest{DpxenVersion: "test", Session: "s", Mode: string(mode), Agent: "xs1", Started: at, Finished: at,
		VM: staging.VM{UUID: name.UUID, Name: args[1], Pool: staging.Ref{UUID: testUUID(1), Name: "pool"},
			Disks: []staging.Disk{{Device: "0", Size: diskSize}}},
		Snapshot: staging.Snapshot{Time: at}, File: staging.File{Compression: "none", Checksum: "xxhash"}}
	within := m.VM.UUID
	if mode.Kind() == controller.KindOnline {
		m.Snapshot.UUID = testUUID(99)
		within = m.Snapshot.UUID
	}
	data, err := exportOf(within, args[1])
	ts.Check(err)
	partial, err := folder.Create(name, nil)
	ts.Check(err)
	_, err = partial.Write(data)
	ts.Check(err)
	path, err := partial.Commit(context.Background(), staging.Expected{Bytes: int64(len(data))}, m)
	ts.Check(err)
	ts.Setenv("STAGED", path)
}
