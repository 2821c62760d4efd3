package xva

import (
	"archive/tar"
	"bytes"
	"crypto/sha1"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"
)

// importModel does what XAPI's importer does with a plain archive, written down
// again from its source (recv_all_vdi) over the standard library's tar reader:
// the unit is the length of the first chunk of the file, whatever that is, and
// reading stops with the last disk. Only the list of disks comes from this
// package.
func importModel(b []byte) (map[string][]byte, error) {
	tr := tar.NewReader(bytes.NewReader(b))
	next := func() (string, []byte, error) {
		h, err := tr.Next()
		if err != nil {
			return "", nil, err
		}
		data, err := io.ReadAll(tr)
		return h.Name, data, err
	}
	name, xml, err := next()
	if err != nil || name != "ova.xml" {
		return nil, fmt.Errorf("first entry %q: %w", name, err)
	}
	o, err := ParseOVA(xml)
	if err != nil {
		return nil, err
	}
	disks, err := o.Disks()
	if err != nil {
		return nil, err
	}
	unit := -1
	out := map[string][]byte{}
	for _, d := range disks {
		content := make([]byte, d.Size)
		last, offset := "-1", 0
		for offset < len(content) {
			name, data, err := next()
			if err != nil {
				return nil, err
			}
			if unit < 0 {
				unit = len(data)
			}
			if !strings.HasPrefix(name, d.Dir) {
				return nil, fmt.Errorf("expected a chunk prefixed %s, got %s", d.Dir, name)
			}
			suffix := name[len(d.Dir)+1:]
			if suffix <= last {
				return nil, fmt.Errorf("suffix %s after %s", suffix, last)
			}
			n, err1 := strconv.Atoi(suffix)
			m, err2 := strconv.Atoi(last)
			if err := errors.Join(err1, err2); err != nil {
				return nil, err
			}
			offset += (n - m - 1) * unit
			if offset+len(data) > len(content) {
				return nil, errors.New("no space left on device")
			}
			offset += copy(content[offset:], data)
			last = suffix
			if err := checkModelSum(next, name, data); err != nil {
				return nil, err
			}
		}
		out[d.Dir] = content
	}
	return out, nil
}

func checkModelSum(next func() (string, []byte, error), chunk string, data []byte) error {
	name, sum, err := next()
	if err != nil {
		return err
	}
	want := ""
	switch path.Ext(name) {
	case ".xxhash":
		want = fmt.Sprintf("%016X", xxhash.Sum64(data))
	case ".checksum":
		want = fmt.Sprintf("%x", sha1.Sum(data))
	}
	if strings.TrimSuffix(name, path.Ext(name)) != chunk || string(sum) != want {
		return fmt.Errorf("checksum entry %s of %s says %s, want %s", name, chunk, sum, want)
	}
	return nil
}
