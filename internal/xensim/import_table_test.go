package xensim

import (
	"archive/tar"
	"bytes"
	"crypto/sha1"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
)

// oldArchive makes of an export one as XenServer wrote before 4.1: with a table of
// checksums at its end and, for version 0, none between the chunks.
func oldArchive(t *testing.T, export []byte, exportVersion int, wrong string) []byte {
	t.Helper()
	var entries []string
	table := ""
	for r := tar.NewReader(bytes.NewReader(export)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		content := string(b)
		switch {
		case h.Name == "ova.xml":
			content = strings.Replace(content, "<name>export_vsn</name><value>2<", fmt.Sprintf("<name>export_vsn</name><value>%d<", exportVersion), 1)
		case strings.HasSuffix(h.Name, ".checksum"):
			if exportVersion == 0 {
				continue
			}
		default:
			sum := fmt.Sprintf("%x", sha1.Sum(b))
			if h.Name[strings.Index(h.Name, "/"):] == wrong {
				sum = strings.Repeat("0", 40)
			}
			if h.Name[strings.Index(h.Name, "/"):] != "/00000001" || wrong != "missing" {
				table += "<member><name>" + h.Name + "</name><value>" + sum + "</value></member>"
			}
		}
		entries = append(entries, h.Name, content)
	}
	return archiveOf(t, append(entries, "checksum.xml", "<value><struct>"+table+"</struct></value>")...)
}

func TestImportChecksumTable(t *testing.T) {
	for _, v := range []struct {
		product string
		version int
		wrong   string
		force   bool
		want    string
	}{
		{"7.6", 1, "", false, "success"},
		{"7.6", 0, "", false, "success"},
		{"7.6", 1, "/00000001", false, "[IMPORT_ERROR_SOME_CHECKSUMS_FAILED]"},
		{"7.6", 0, "/00000002", false, "[IMPORT_ERROR_SOME_CHECKSUMS_FAILED]"},
		{"7.6", 1, "missing", false, "[IMPORT_ERROR_SOME_CHECKSUMS_FAILED]"},
		{"7.6", 1, "/00000001", true, "success"},
		{"8.3", 1, "", false, "success"},
		{"8.3", 1, "/00000001", false, "[IMPORT_ERROR_SOME_CHECKSUMS_FAILED]"},
		// Where the kind is told by the entry after a chunk there must be one.
		{"8.3", 0, "", false, "[IMPORT_ERROR INTERNAL_ERROR: [ Stream_vdi.Failure("},
	} {
		t.Run(fmt.Sprint(v.product, " ", v.version, " ", v.wrong, v.force), func(t *testing.T) {
			p := startPool(t, demo, version(v.product), func(c *Config) { c.Checksum = "sha1" })
			c := p.login(t)
			vm := c.halt("archive")
			export := c.body(c.export("ref", vm))
			before := c.counts()
			args := []string{}
			if v.force {
				args = []string{"force", "true"}
			}
			task := c.imports(oldArchive(t, export, v.version, v.wrong), args...)
			if v.want != "success" {
				if got := fmt.Sprint(task["error_info"]); !strings.HasPrefix(got, v.want) {
					t.Errorf("%v", got)
				}
				if got := c.counts(); fmt.Sprint(got) != fmt.Sprint(before) {
					t.Errorf("it left something: %v, before %v", got, before)
				}
				return
			}
			refs := c.result(task)
			s := p.state(t)
			a, b := s.vm(t, c.str("VM.get_uuid", vm)).digests(), s.vm(t, c.str("VM.get_uuid", refs[0])).digests()
			if fmt.Sprint(a) != fmt.Sprint(b) || len(a) != 2 {
				t.Errorf("disks %v, they were %v", b, a)
			}
		})
	}
	// Without the table the archive ends too early.
	p := startPool(t, demo, version("7.6"))
	c := p.login(t)
	export := c.body(c.export("ref", c.halt("archive")))
	cut := oldArchive(t, export, 1, "")
	if got := c.imports(cut[:bytes.Index(cut, []byte("checksum.xml"))])["error_info"]; fmt.Sprint(got) != "[IMPORT_ERROR_PREMATURE_EOF]" {
		t.Errorf("without its table: %v", got)
	}
	if got := c.imports(slices.Concat(cut[:bytes.Index(cut, []byte("checksum.xml"))], archiveOf(t, "checksum.xml", "no xml")))["error_info"]; !strings.HasPrefix(fmt.Sprint(got), "[IMPORT_ERROR ") {
		t.Errorf("with a table that is none: %v", got)
	}
}
