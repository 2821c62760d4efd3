package archive

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

const (
	tarBlock = 512
	// maxExtended bounds the content of a pax or GNU long-name header.
	maxExtended = 64 << 10
)

// header is what counts of a tar header.
type header struct {
	name string
	size int64
	flag byte
}

func (h header) padding() int { return int(-h.size & (tarBlock - 1)) }

// next reads the next header. One zero block is passed over, two end the archive,
// which the importer never expects.
func (in *input) next() (header, error) {
	for zeros := 0; zeros < 2; zeros++ {
		if err := in.read(in.block[:]); err != nil {
			return header{}, err
		}
		if in.block != [tarBlock]byte{} {
			return in.header(in.block[:])
		}
	}
	return header{}, internal(nil, "Tar.Header.End_of_stream")
}

// header reads a header from b, and the extended ones before it if they count.
func (in *input) header(b []byte) (header, error) {
	h, err := parseHeader(b)
	if err != nil || !in.pax || !extended(h.flag) {
		return h, err
	}
	in.extended = true
	var name string
	size := int64(-1)
	for extended(h.flag) {
		if h.size > maxExtended {
			return header{}, internal(nil, "extended header of %d bytes is larger than %d", h.size, maxExtended)
		}
		content, err := in.content(h.size)
		if err != nil {
			return header{}, err
		}
		if err := in.skip(h.padding()); err != nil {
			return header{}, err
		}
		if err := applyExtended(h.flag, content, &name, &size); err != nil {
			return header{}, err
		}
		if err := in.read(in.block[:]); err != nil {
			return header{}, err
		}
		if h, err = parseHeader(in.block[:]); err != nil {
			return header{}, err
		}
	}
	if name != "" {
		h.name = name
	}
	if size >= 0 {
		h.size = size
	}
	return h, nil
}

func extended(flag byte) bool { return flag == 'x' || flag == 'g' || flag == 'L' || flag == 'K' }

// applyExtended takes name and size from a pax header or GNU long name. Global
// headers and long link names say nothing about a chunk.
func applyExtended(flag byte, content []byte, name *string, size *int64) error {
	switch flag {
	case 'L':
		*name = string(bytes.TrimRight(content, "\x00"))
	case 'x':
		for len(content) > 0 {
			key, value, rest, ok := paxRecord(content)
			if !ok {
				return failure("Failure", "Failed to parse pax header")
			}
			content = rest
			switch key {
			case "path":
				*name = value
			case "size":
				n, err := strconv.ParseInt(value, 10, 64)
				if err != nil || n < 0 {
					return failure("Failure", "Failed to parse pax header")
				}
				*size = n
			}
		}
	}
	return nil
}

// paxRecord takes one "LENGTH KEY=VALUE\n" off b.
func paxRecord(b []byte) (key, value string, rest []byte, ok bool) {
	digits, _, ok := strings.Cut(string(b[:min(len(b), 8)]), " ")
	n, err := strconv.Atoi(digits)
	if !ok || err != nil || n <= len(digits)+2 || n > len(b) || b[n-1] != '\n' {
		return "", "", nil, false
	}
	key, value, ok = strings.Cut(string(b[len(digits)+1:n-1]), "=")
	return key, value, b[n:], ok
}

// parseHeader reads a V7 or ustar header.
func parseHeader(b []byte) (header, error) {
	var sum int64 = 8 * ' '
	for i, c := range b[:tarBlock] {
		if i < 148 || i >= 156 {
			sum += int64(c)
		}
	}
	want, ok := octal(b[148:156])
	if !ok || want != sum {
		return header{}, internal(nil, "Tar.Header.Checksum_mismatch")
	}
	size, ok := octal(b[124:136])
	if !ok {
		return header{}, internal(nil, "%s", `Failure("Int64.of_string")`)
	}
	name := cstring(b[:100])
	if prefix := cstring(b[345:500]); prefix != "" && string(b[257:263]) == "ustar\x00" {
		name = fmt.Sprintf("%s/%s", prefix, name)
	}
	return header{name: name, size: size, flag: b[156]}, nil
}

// octal reads digits up to the first space or NUL; none are 0.
func octal(b []byte) (int64, bool) {
	b = bytes.TrimLeft(b, " ")
	if i := bytes.IndexAny(b, " \x00"); i >= 0 {
		b = b[:i]
	}
	if len(b) == 0 {
		return 0, true
	}
	n, err := strconv.ParseUint(string(b), 8, 62)
	return int64(n), err == nil
}

func cstring(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
