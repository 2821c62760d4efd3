package xensim

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
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
	end := c.task(task)
	if end["status"] == "success" { // dom0 may hold the disk a moment longer, and the next transfer would be refused
		vdi := strings.TrimSuffix(strings.TrimPrefix(end["result"].(string), "<value>"), "</value>")
		if _, query, ok := strings.Cut(path, "?"); ok && vdi == "" {
			q, err := url.ParseQuery(query)
			if err != nil {
				c.t.Fatal(err)
			}
			vdi = q.Get("vdi")
		}
		if strings.HasPrefix(vdi, "OpaqueRef:") {
			c.detached(vdi)
		}
	}
	return res, data, end
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
		c.detached(vdi)
		return data
	}
	if !bytes.Equal(export(), want) {
		t.Error("what was exported is not what was imported")
	}

	chunk := func(to []byte, at uint64, data []byte) []byte {
		to = binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint64(to, at), uint32(len(data)))
		return append(to, data...)
	}
	change := bytes.Repeat([]byte{7}, 1<<20+512)
	chunks := chunk(chunk(nil, 1<<20-512, change), 0, nil)
	copy(want[1<<20-512:], change)
	if _, _, task := c.transferred(http.MethodPut, "/import_raw_vdi?chunked&vdi="+vdi, bytes.NewReader(chunks)); task["status"] != "success" {
		t.Fatalf("chunks: %v", task["error_info"])
	}
	if !bytes.Equal(export(), want) {
		t.Error("the chunks were not written where they belong")
	}

	// Offset and length both zero end the protocol, neither alone.
	chunks = chunk(nil, 512, nil)
	chunks = chunk(chunks, 0, []byte("start"+strings.Repeat("x", 507)))
	chunks = chunk(chunks, 0, nil)
	copy(want, "start"+strings.Repeat("x", 507))
	if _, _, task := c.transferred(http.MethodPut, "/import_raw_vdi?chunked&vdi="+vdi, bytes.NewReader(chunks)); task["status"] != "success" || !bytes.Equal(export(), want) {
		t.Errorf("an empty chunk: %v", task["error_info"])
	}
	// Content-Length says how much is written, not the disk.
	copy(want, bytes.Repeat([]byte{9}, 1<<20))
	if _, _, task := c.transferred(http.MethodPut, "/import_raw_vdi?vdi="+vdi, bytes.NewReader(want[:1<<20])); task["status"] != "success" || !bytes.Equal(export(), want) {
		t.Errorf("a short upload: %v", task["error_info"])
	}
}

// rawRefusals are requests that are answered before, or with, a failure.
func TestRawRefusals(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vdi := c.disks(c.vm("archive"))["0"]
	sr := c.str("VDI.get_SR", vdi)
	const head10, head11 = "HTTP/1.0 404 Not Found|Connection: close|Cache-Control: no-cache, no-store||", "HTTP/1.1 400 Bad Request|Connection: close|Cache-Control: no-cache, no-store||"
	for _, v := range []struct {
		name, method, path, headers, body string
		answer                            string // its beginning, lines parted by |
		task                              []string
	}{
		{"unknown format", "GET", "/export_raw_vdi?format=Floppy&vdi=" + vdi, "", "", head10, []string{"INTERNAL_ERROR", "Unknown format Floppy"}},
		{"unknown format in", "PUT", "/import_raw_vdi?format=ova&vdi=" + vdi, "Content-Length: 0|", "", head10, []string{"INTERNAL_ERROR", "Unknown format ova"}},
		{"too early a format", "GET", "/export_raw_vdi?format=qcow2&vdi=" + vdi, "", "", head10, []string{"INTERNAL_ERROR", "Unknown format qcow2"}},
		{"chunked VHD", "PUT", "/import_raw_vdi?format=vhd&chunked&vdi=" + vdi, "Content-Length: 0|", "", head10, []string{"INTERNAL_ERROR", "Cannot handle chunked VHD"}},
		{"transfer encoding", "PUT", "/import_raw_vdi?vdi=" + vdi, "Transfer-Encoding: chunked|", "0||", head10, []string{"INTERNAL_ERROR", "Cannot handle encoding: chunked"}},
		{"neither VDI nor SR", "PUT", "/import_raw_vdi?x=1", "Content-Length: 5|", "12345", head11, []string{"VDI_MISSING"}},
		{"VHD onto an SR", "PUT", "/import_raw_vdi?format=vhd&sr_id=" + sr, "Content-Length: 5|", "12345", "HTTP/1.0 400 Bad Request|", []string{"INTERNAL_ERROR", "Importing a VHD directly into an SR not yet supported"}},
		{"tar onto an SR", "PUT", "/import_raw_vdi?format=tar&sr_id=" + sr, "Content-Length: 5|", "12345", "HTTP/1.0 400 Bad Request|", []string{"INTERNAL_ERROR", "Not enough info supplied to import"}},
		{"no length onto an SR", "PUT", "/import_raw_vdi?sr_id=" + sr, "", "12345", "HTTP/1.0 400 Bad Request|", []string{"INTERNAL_ERROR", "Not enough info supplied to import"}},
		{"unknown SR", "PUT", "/import_raw_vdi?sr_uuid=none", "Content-Length: 5|", "12345", head11 + "HTTP/1.1 500 Internal Error|", []string{"UUID_INVALID", "SR", "none"}},
		{"longer than the disk", "PUT", "/import_raw_vdi?vdi=" + vdi, "Content-Length: 99999999|", "", "HTTP/1.1 200 OK|Connection: close|Cache-Control: no-cache, no-store|task-id:TASK|content-type: application/octet-stream||" + head11 + "HTTP/1.1 500 Internal Error|", []string{"VDI_IO_ERROR", "Device I/O errors"}},
		{"a chunk outside the disk", "PUT", "/import_raw_vdi?chunked&vdi=" + vdi, "", "\x00\x00\x00\x00\x00\x00\x00\x40\x01\x00\x00\x00x", "HTTP/1.1 200 OK|", []string{"VDI_IO_ERROR", "Device I/O errors"}},
		{"no VHD", "PUT", "/import_raw_vdi?format=vhd&vdi=" + vdi, "Content-Length: 512|", strings.Repeat("x", 512), "HTTP/1.1 200 OK|", []string{"VDI_IO_ERROR", "Device I/O errors"}},
		{"no tar", "PUT", "/import_raw_vdi?format=tar&vdi=" + vdi, "Content-Length: 512|", strings.Repeat("x", 512), "HTTP/1.1 200 OK|", []string{"INTERNAL_ERROR", "Tar.Header.Checksum_mismatch"}},
		{"a tar that ends", "PUT", "/import_raw_vdi?format=tar&vdi=" + vdi, "Content-Length: 5|", "vdi/0", "HTTP/1.1 200 OK|", []string{"INTERNAL_ERROR", "End_of_file"}},
	} {
		t.Run(v.name, func(t *testing.T) {
			task := c.str("task.create", "raw", "")
			answer := c.handled(v.method+" "+v.path+"&session_id="+c.session+"&task_id="+task+" HTTP/1.1|"+v.headers, v.body)
			if want := strings.ReplaceAll(strings.ReplaceAll(v.answer, "|", "\r\n"), "TASK", task); !strings.HasPrefix(answer, want) {
				t.Errorf("answered %q", answer)
			}
			if got := c.task(task)["error_info"]; fmt.Sprint(got) != fmt.Sprint(v.task) {
				t.Errorf("the task tells %v", got)
			}
		})
	}
	// What fails before the handler takes the task over leaves it alone.
	for _, path := range []string{"/export_raw_vdi?vdi=none", "/export_raw_vdi?x", "/import_raw_vdi?vdi=none", "/export?uuid=none"} {
		task := c.str("task.create", "raw", "")
		method := "GET"
		if strings.HasPrefix(path, "/import") {
			method = "PUT"
		}
		answer := c.handled(method+" "+path+"&session_id="+c.session+"&task_id="+task+" HTTP/1.1|Content-Length: 0|", "")
		if !strings.HasPrefix(answer, "HTTP/1.1 500 Internal Error\r\n") || c.record("task", task)["status"] != "pending" {
			t.Errorf("%s: %.40q, task %v", path, answer, c.record("task", task)["status"])
		}
	}
}

// detached waits until dom0 has let go of a disk.
func (c *client) detached(vdi string) {
	c.t.Helper()
	eventually(c.t, "dom0 lets go of the disk", func() bool {
		for _, vbd := range c.list("VDI.get_VBDs", vdi) {
			// It may go between the two calls.
			r, err := c.call("VBD.get_record", vbd)
			if err != nil {
				continue
			}
			if r := r.(map[string]any); r["currently_attached"] == true && c.ok("VM.get_is_control_domain", r["VM"]) == true {
				return false
			}
		}
		return true
	})
}

// handled sends a request, head and body, and reads all of the answer.
func (c *client) handled(head, body string) string {
	c.t.Helper()
	conn := c.dial()
	if _, err := io.WriteString(conn, strings.ReplaceAll(head+"Host: x||", "|", "\r\n")+strings.ReplaceAll(body, "|", "\r\n")); err != nil {
		c.t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		c.t.Fatal(err)
	}
	b, _ := io.ReadAll(conn) // a reset after the answer is as good as its end
	return string(b)
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
