package xensim

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
)

// transferred makes a handler's request and waits for its task.
func (c *client) transferred(method, path string, body io.Reader) (*http.Response, []byte, map[string]any) {
	c.t.Helper()
	task := c.str("task.create", "raw", "")
	res := c.do(method, path+"&session_id="+c.session+"&task_id="+task, body)
	data, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return res, data, c.task(task)
}

func TestRawVDI(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	sr := c.str("VDI.get_SR", c.str("VBD.get_VDI", c.list("VM.get_VBDs", c.vm("web-01"))[0]))
	want := make([]byte, 2<<20+512*5)
	_, _ = rand.Read(want)

	_, _, task := c.transferred(http.MethodPut, "/import_raw_vdi?sr_id="+sr, bytes.NewReader(want))
	if task["status"] != "success" {
		t.Fatalf("import: %v", task["error_info"])
	}
	vdi := strings.TrimSuffix(strings.TrimPrefix(task["result"].(string), "<value>"), "</value>")
	r := c.record("VDI", vdi)
	if r["name_label"] != "Imported VDI" || r["virtual_size"] != "2099712" {
		t.Errorf("made %v of %v bytes", r["name_label"], r["virtual_size"])
	}
	export := func() []byte {
		res, data, task := c.transferred(http.MethodGet, "/export_raw_vdi?format=raw&vdi="+r["uuid"].(string), nil)
		if task["status"] != "success" || res.Header.Get("Content-Disposition") != `attachment; filename="`+r["uuid"].(string)+`.raw"` {
			t.Errorf("export: %v, %v", task["error_info"], res.Header)
		}
		return data
	}
	if !bytes.Equal(export(), want) {
		t.Error("what was exported is not what was imported")
	}

	var chunked bytes.Buffer
	chunk := func(at uint64, data []byte) {
		head := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint64(nil, at), uint32(len(data)))
		chunked.Write(append(head, data...))
	}
	change := bytes.Repeat([]byte{7}, 1<<20+512)
	chunk(1<<20-512, change)
	chunk(0, nil)
	copy(want[1<<20-512:], change)
	if _, _, task := c.transferred(http.MethodPut, "/import_raw_vdi?chunked&vdi="+vdi, &chunked); task["status"] != "success" {
		t.Fatalf("chunks: %v", task["error_info"])
	}
	if !bytes.Equal(export(), want) {
		t.Error("the chunks were not written where they belong")
	}

	for path, status := range map[string]int{
		"/export_raw_vdi?format=floppy&vdi=" + vdi: http.StatusNotFound,
		"/export_raw_vdi?vdi=none":                 http.StatusInternalServerError,
	} {
		if res, _, task := c.transferred(http.MethodGet, path, nil); res.StatusCode != status || task["status"] != "failure" {
			t.Errorf("%s: %s, task %v", path, res.Status, task["status"])
		}
	}
	if _, _, task := c.transferred(http.MethodPut, "/import_raw_vdi?vdi="+vdi, bytes.NewReader(want[:1<<20])); task["status"] != "failure" {
		t.Errorf("a short upload: %v", task["status"])
	}
	chunked.Reset()
	chunk(1<<62, []byte{1})
	if _, _, task := c.transferred(http.MethodPut, "/import_raw_vdi?chunked&vdi="+vdi, &chunked); task["status"] != "failure" {
		t.Errorf("a chunk outside the disk: %v", task["status"])
	}
}

func TestDatabaseDump(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	res, data, _ := c.transferred(http.MethodGet, "/pool/xmldbdump?x", nil)
	if res.StatusCode != http.StatusOK || res.ContentLength != -1 {
		t.Errorf("%s, %d bytes", res.Status, res.ContentLength)
	}
	rows, d := map[string]int{}, xml.NewDecoder(bytes.NewReader(data))
	table := ""
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "table" {
			table = e.Attr[0].Value
		} else if ok && e.Name.Local == "row" {
			rows[table]++
		}
	}
	if rows["VM"] != len(c.list("VM.get_all")) || rows["VDI"] != len(c.list("VDI.get_all")) || rows["session"] != 0 {
		t.Errorf("rows %v", rows)
	}
	if res, _, task := c.transferred(http.MethodPut, "/pool/xmldbdump?dry_run=true", bytes.NewReader(data)); res.StatusCode != http.StatusOK || task["status"] != "success" {
		t.Errorf("dry run: %s, %v", res.Status, task["error_info"])
	}
	if _, _, task := c.transferred(http.MethodPut, "/pool/xmldbdump?dry_run=true", strings.NewReader("<database><x>")); task["status"] != "failure" {
		t.Errorf("half a database: %v", task["status"])
	}
}
