package xensim

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha1"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"

	"github.com/dpxen/dpxen/internal/xensim/disk"
)

// readVHD reads a VHD with nothing but the specification: its kind, its size, and
// the blocks of 2 MiB that it has.
func readVHD(t *testing.T, b []byte) (kind uint32, size int64, blocks map[int64][]byte) {
	t.Helper()
	be := binary.BigEndian
	if len(b) < 2560 || string(b[:8]) != "conectix" || !bytes.Equal(b[:512], b[len(b)-512:]) || string(b[512:520]) != "cxsparse" {
		t.Fatalf("no VHD: %d bytes, %q", len(b), b[:min(len(b), 64)])
	}
	kind, size = be.Uint32(b[60:]), int64(be.Uint64(b[48:]))
	table := b[be.Uint64(b[528:]):]
	blocks = map[int64][]byte{}
	for i := range int64(be.Uint32(b[540:])) {
		at := int64(be.Uint32(table[4*i:]))
		if at == 1<<32-1 {
			continue
		}
		if bitmap := b[at*512:][:512]; !bytes.Equal(bitmap, bytes.Repeat([]byte{0xff}, 512)) {
			t.Errorf("block %d has not all of its sectors", i)
		}
		blocks[i] = b[at*512+512:][:2<<20]
	}
	return kind, size, blocks
}

// overlay puts blocks on a disk.
func overlay(disk []byte, blocks map[int64][]byte) []byte {
	out := slices.Clone(disk)
	for i, b := range blocks {
		copy(out[i*2<<20:], b)
	}
	return out
}

// rawDisk makes a VDI on an SR with the given contents.
func (c *client) rawDisk(sr string, data []byte) string {
	c.t.Helper()
	_, _, task := c.transferred(http.MethodPut, "/import_raw_vdi?sr_id="+sr, bytes.NewReader(data))
	if task["status"] != "success" {
		c.t.Fatalf("making a disk: %v", task["error_info"])
	}
	return strings.TrimSuffix(strings.TrimPrefix(task["result"].(string), "<value>"), "</value>")
}

func (c *client) rawExport(path string) []byte {
	c.t.Helper()
	res, data, task := c.transferred(http.MethodGet, path, nil)
	if res.StatusCode != http.StatusOK || task["status"] != "success" {
		c.t.Fatalf("%s: %s, %v", path, res.Status, task["error_info"])
	}
	return data
}

func (c *client) rawImport(path string, data []byte) {
	c.t.Helper()
	res, answer, task := c.transferred(http.MethodPut, path, bytes.NewReader(data))
	if res.StatusCode != http.StatusOK || len(answer) > 0 || task["status"] != "success" {
		c.t.Fatalf("%s: %s, %q, %v", path, res.Status, answer, task["error_info"])
	}
}

// sharedSR is one that all hosts of the demo see.
func (c *client) sharedSR() string {
	return c.str("VDI.get_SR", c.disks(c.vm("archive"))["0"])
}

func TestExportVHD(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	const size = 9<<20 + 1024
	data := make([]byte, size)
	for _, at := range []int{0, 4 << 20, 9<<20 + 1023} {
		data[at] = 7
	}
	vdi := c.rawDisk(c.sharedSR(), make([]byte, size))
	c.rawImport("/import_raw_vdi?vdi="+vdi, data)
	uuid := c.str("VDI.get_uuid", vdi)

	res, b, task := c.transferred(http.MethodGet, "/export_raw_vdi?format=VHD&vdi="+uuid, nil)
	if task["status"] != "success" || res.Proto != "HTTP/1.1" || res.ContentLength != -1 ||
		res.Header.Get("Content-Type") != "application/vhd" || res.Header.Get("Content-Disposition") != `attachment; filename="`+uuid+`.vhd"` {
		t.Errorf("%v, %s, %v", task["error_info"], res.Proto, res.Header)
	}
	kind, virtual, blocks := readVHD(t, b)
	if kind != 3 || virtual != size || len(blocks) != 5 {
		t.Errorf("type %d of %d bytes with %d blocks", kind, virtual, len(blocks)) // all were written, if only with zeros
	}
	if !bytes.Equal(overlay(make([]byte, size), blocks), data) {
		t.Error("the VHD holds something else than the disk")
	}

	snap := c.str("VDI.snapshot", vdi)
	at := int64(4<<20 + 12345)
	var chunk bytes.Buffer
	for _, piece := range []int64{at, 8 << 20} {
		_ = binary.Write(&chunk, binary.LittleEndian, piece)
		_ = binary.Write(&chunk, binary.LittleEndian, uint32(3))
		chunk.WriteString("new")
	}
	chunk.Write(make([]byte, 12))
	c.detached(vdi)
	c.rawImport("/import_raw_vdi?chunked&vdi="+vdi, chunk.Bytes())
	changed := slices.Clone(data)
	copy(changed[at:], "new")
	copy(changed[8<<20:], "new")
	diff := c.rawExport("/export_raw_vdi?format=vhd&vdi=" + vdi + "&base=" + snap)
	kind, virtual, blocks = readVHD(t, diff)
	if kind != 4 || virtual != size || len(blocks) != 2 || blocks[2] == nil || blocks[4] == nil {
		t.Errorf("type %d of %d bytes with %d blocks", kind, virtual, len(blocks))
	}
	if !bytes.Equal(overlay(data, blocks), changed) {
		t.Error("the difference on the base is not the disk")
	}
	sr := c.record("SR", c.sharedSR())
	name := "/run/sr-mount/" + sr["uuid"].(string) + "/" + c.str("VDI.get_uuid", snap) + ".vhd"
	if strings.HasPrefix(sr["type"].(string), "lvm") {
		name = "/dev/VG_XenStorage-" + sr["uuid"].(string) + "/VHD-" + c.str("VDI.get_uuid", snap)
	}
	var wide []byte
	for _, r := range name {
		wide = append(wide, 0, byte(r))
	}
	if !bytes.HasPrefix(diff[576:], append(wide, 0, 0)) {
		t.Errorf("the parent is called %q", diff[576:576+200])
	}

	// Applied on a copy of the base it makes the disk.
	clone := c.str("VDI.copy", snap, c.sharedSR())
	c.rawImport("/import_raw_vdi?format=vhd&vdi="+clone, diff)
	c.detached(clone)
	if !bytes.Equal(c.rawExport("/export_raw_vdi?vdi="+clone), changed) {
		t.Error("the copy of the base with the difference is not the disk")
	}
	// And the whole VHD makes it on an empty one.
	empty := c.rawDisk(c.sharedSR(), make([]byte, size))
	c.rawImport("/import_raw_vdi?format=vhd&vdi="+empty, b)
	c.detached(empty)
	if !bytes.Equal(c.rawExport("/export_raw_vdi?vdi="+empty), data) {
		t.Error("the VHD on an empty disk is not the disk")
	}
	// In raw, what does not differ is zero.
	want := overlay(make([]byte, size), map[int64][]byte{2: changed[4<<20 : 6<<20], 4: changed[8<<20:]})
	if !bytes.Equal(c.rawExport("/export_raw_vdi?vdi="+vdi+"&base="+snap), want) {
		t.Error("the raw difference is something else")
	}
}

func TestExportVHDSparse(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vdi := c.str("VDI.create", map[string]any{"SR": c.sharedSR(), "virtual_size": "12582912", "name_label": "sparse", "type": "user"})
	if _, _, blocks := readVHD(t, c.rawExport("/export_raw_vdi?format=vhd&vdi="+vdi)); len(blocks) != 0 {
		t.Errorf("a disk that was never written has %d blocks", len(blocks))
	}
	c.detached(vdi)
	c.ok("VDI.resize", vdi, "12582913")
	if b := c.rawExport("/export_raw_vdi?format=vhd&vdi=" + vdi); binary.BigEndian.Uint32(b[540:]) != 7 || binary.BigEndian.Uint64(b[48:]) != 12582913 {
		t.Errorf("%d entries for %d bytes", binary.BigEndian.Uint32(b[540:]), binary.BigEndian.Uint64(b[48:]))
	}
	// Too large for a VHD, which is told after the head.
	big := c.str("VDI.create", map[string]any{"SR": c.sharedSR(), "virtual_size": fmt.Sprint(int64(2040<<30 + 1)), "name_label": "big", "type": "user"})
	res, data, task := c.transferred(http.MethodGet, "/export_raw_vdi?format=vhd&vdi="+big, nil)
	if want := []any{"VDI_TOO_LARGE", big, "2190433320960"}; res.StatusCode != http.StatusOK || fmt.Sprint(task["error_info"]) != fmt.Sprint(want) ||
		!strings.HasPrefix(string(data), "HTTP/1.1 500 Internal Error\r\n") {
		t.Errorf("%s, %v, %.60q", res.Status, task["error_info"], data)
	}
	c.detached(big)
	for base, code := range map[string]string{"none": "UUID_INVALID", c.list("SR.get_VDIs", c.list("SR.get_by_name_label", "ISO library")[0])[0]: "INTERNAL_ERROR"} {
		c.detached(vdi)
		if _, _, task := c.transferred(http.MethodGet, "/export_raw_vdi?format=vhd&vdi="+vdi+"&base="+base, nil); task["error_info"].([]any)[0] != code {
			t.Errorf("base %s: %v", base, task["error_info"])
		}
	}
}

// An ISO has no VHD behind it: its blocks are those that are not zero.
func TestExportVHDOfISO(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	iso := c.list("SR.get_VDIs", c.list("SR.get_by_name_label", "ISO library")[0])[0]
	raw := c.rawExport("/export_raw_vdi?vdi=" + iso)
	kind, size, blocks := readVHD(t, c.rawExport("/export_raw_vdi?format=vhd&vdi="+iso))
	if kind != 3 || size != (int64(len(raw))+2<<20-1)/(2<<20)*(2<<20) || !bytes.Equal(overlay(make([]byte, len(raw)), blocks), raw) {
		t.Errorf("type %d of %d bytes, %d blocks", kind, size, len(blocks))
	}
}

// TestImportForeignVHD imports what qemu-img made.
func TestImportForeignVHD(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	f, err := os.Open("vhd/testdata/qemu-img.vhd.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	vhd, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	vdi := c.rawDisk(c.sharedSR(), make([]byte, 7<<20))
	c.rawImport("/import_raw_vdi?format=vhd&vdi="+vdi, vhd)
	c.detached(vdi)
	got := c.rawExport("/export_raw_vdi?vdi=" + vdi)
	want := make([]byte, 7<<20)
	copy(want[1<<20:], bytes.Repeat([]byte{0x5a}, 3072))
	copy(want[4190720:], bytes.Repeat([]byte{0xc3}, 9216))
	copy(want[7339520:], bytes.Repeat([]byte{0x77}, 512))
	if !bytes.Equal(got, want) {
		t.Error("the disk is not what the VHD holds")
	}
	c.detached(vdi)
	// Cut in the middle, it fails, and what came before stays.
	_, answer, task := c.transferred(http.MethodPut, "/import_raw_vdi?format=vhd&vdi="+vdi, bytes.NewReader(vhd[:len(vhd)-600]))
	if fmt.Sprint(task["error_info"]) != "[VDI_IO_ERROR Device I/O errors]" || !bytes.Contains(answer, []byte("\r\n\r\nHTTP/1.1 500 Internal Error\r\n")) {
		t.Errorf("cut: %v, %.80q", task["error_info"], answer)
	}
}

func TestTarVDI(t *testing.T) {
	for product, want := range map[string]struct{ ext, sum string }{
		"8.0": {".checksum", "sha1"}, "8.3": {".xxhash", "xxhash"},
	} {
		t.Run(product, func(t *testing.T) {
			p := startPool(t, demo, version(product))
			c := p.login(t)
			data := make([]byte, 3<<20+512)
			copy(data[2<<20+5:], "something")
			copy(data[3<<20:], "the end")
			vdi := c.rawDisk(c.sharedSR(), data)
			res, b, task := c.transferred(http.MethodGet, "/export_raw_vdi?format=tar&vdi="+vdi, nil)
			if task["status"] != "success" || res.Header.Get("Content-Type") != "application/x-tar" || !strings.HasSuffix(res.Header.Get("Content-Disposition"), `.tar"`) {
				t.Errorf("%v, %v", task["error_info"], res.Header)
			}
			if !bytes.Equal(b[len(b)-1024:], make([]byte, 1024)) {
				t.Error("the tar does not end with two blocks of zeros")
			}
			var names []string
			last := []byte{}
			for r := tar.NewReader(bytes.NewReader(b)); ; {
				h, err := r.Next()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				names = append(names, h.Name)
				content, err := io.ReadAll(r)
				if err != nil {
					t.Fatal(err)
				}
				if strings.HasSuffix(h.Name, want.ext) {
					sha, xx := sha1.Sum(last), fmt.Sprintf("%016X", xxhash.Sum64(last))
					if s := string(content); s != xx && s != hex.EncodeToString(sha[:]) || (s == xx) != (want.sum == "xxhash") {
						t.Errorf("%s holds %s", h.Name, s)
					}
				}
				last = content
			}
			e := want.ext
			if want := []string{"vdi/00000000", "vdi/00000000" + e, "vdi/00000002", "vdi/00000002" + e, "vdi/00000003", "vdi/00000003" + e}; !slices.Equal(names, want) {
				t.Errorf("entries %v", names)
			}
			to := c.rawDisk(c.sharedSR(), make([]byte, len(data)))
			c.rawImport("/import_raw_vdi?format=tar&vdi="+to, b)
			c.detached(to)
			if !bytes.Equal(c.rawExport("/export_raw_vdi?vdi="+to), data) {
				t.Error("the disk is not what the tar holds")
			}
			c.detached(to)
			bad := slices.Clone(b)
			bad[600] = 1
			if _, _, task := c.transferred(http.MethodPut, "/import_raw_vdi?format=tar&vdi="+to, bytes.NewReader(bad)); !strings.Contains(fmt.Sprint(task["error_info"]), "[INTERNAL_ERROR Stream_vdi.Invalid_checksum") {
				t.Errorf("a wrong checksum: %v", task["error_info"])
			}
		})
	}
	p := startPool(t, demo, version("7.6"))
	c := p.login(t)
	if res, _, task := c.transferred(http.MethodGet, "/export_raw_vdi?format=tar&vdi="+c.disks(c.vm("archive"))["0"], nil); res.StatusCode != http.StatusNotFound || task["status"] != "failure" {
		t.Errorf("tar of 7.6: %s, %v", res.Status, task["error_info"])
	}
}

// A read error after the head is told within the body.
func TestExportVHDReadError(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vdi := c.rawDisk(c.sharedSR(), bytes.Repeat([]byte{1}, 6*disk.BlockSize))
	if err := p.Inject(Fault{Name: "export-read-error", After: 3 << 20}); err != nil {
		t.Fatal(err)
	}
	res, data, task := c.transferred(http.MethodGet, "/export_raw_vdi?format=vhd&vdi="+vdi, nil)
	if res.StatusCode != http.StatusOK || fmt.Sprint(task["error_info"]) != "[VDI_IO_ERROR Device I/O errors]" {
		t.Errorf("%s, %v", res.Status, task["error_info"])
	}
	if at := bytes.Index(data, []byte("HTTP/1.1 500 Internal Error\r\n")); at != 2560+512+2<<20 {
		t.Errorf("the second answer begins at %d", at)
	}
}
