package xmlrpc

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/transform"

	"github.com/dpxen/dpxen/internal/xensim/model"
)

// ErrMalformed says that a text is not the XML-RPC that was expected.
var ErrMalformed = errors.New("malformed XML-RPC")

// maxDepth bounds the nesting of values.
const maxDepth = 64

type decoder struct {
	x *xml.Decoder
}

func newDecoder(b []byte) *decoder {
	x := xml.NewDecoder(bytes.NewReader(bytes.TrimPrefix(b, []byte("\ufeff"))))
	x.CharsetReader = charset
	return &decoder{x}
}

// charset reads the encodings other than UTF-8 that XAPI's XML parser knows and
// that clients declare.
func charset(name string, in io.Reader) (io.Reader, error) {
	switch strings.ToLower(name) {
	case "us-ascii", "ascii":
		return in, nil
	case "iso-8859-1", "latin1":
		return transform.NewReader(in, charmap.ISO8859_1.NewDecoder()), nil
	}
	return nil, fmt.Errorf("encoding %s is not known", name)
}

// DecodeCall reads a <methodCall>: its name and parameters. Values come as
// string, int64, float64, bool, model.DateTime, []any and map[string]any; base64
// as the encoded string.
func DecodeCall(b []byte) (method string, params []any, err error) {
	d := newDecoder(b)
	if err := d.open("methodCall"); err != nil {
		return "", nil, err
	}
	if err := d.open("methodName"); err != nil {
		return "", nil, err
	}
	if method, err = d.text(); err != nil {
		return "", nil, err
	}
	params = []any{}
	start, err := d.next()
	if err != nil || start == nil {
		return strings.TrimSpace(method), params, err
	}
	if start.Name.Local != "params" {
		return "", nil, unexpected(start)
	}
	for {
		start, err = d.next()
		if err != nil {
			return "", nil, err
		}
		if start == nil {
			return strings.TrimSpace(method), params, nil
		}
		if start.Name.Local != "param" {
			return "", nil, unexpected(start)
		}
		v, err := d.valueElement(0)
		if err != nil {
			return "", nil, err
		}
		params = append(params, v)
		if err := d.end(); err != nil {
			return "", nil, err
		}
	}
}

// DecodeValue reads one <value> element, for example an ova.xml.
func DecodeValue(b []byte) (any, error) {
	return newDecoder(b).valueElement(0)
}

func unexpected(s *xml.StartElement) error {
	return fmt.Errorf("%w: unexpected element %s", ErrMalformed, s.Name.Local)
}

func (d *decoder) token() (xml.Token, error) {
	t, err := d.x.Token()
	if errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: it ends too early", ErrMalformed)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return t, nil
}

// next gives the next start element, or nil at the end of the enclosing one.
func (d *decoder) next() (*xml.StartElement, error) {
	for {
		t, err := d.token()
		if err != nil {
			return nil, err
		}
		switch t := t.(type) {
		case xml.StartElement:
			return &t, nil
		case xml.EndElement:
			return nil, nil
		case xml.CharData:
			if len(bytes.TrimSpace(t)) > 0 {
				return nil, fmt.Errorf("%w: unexpected text", ErrMalformed)
			}
		case xml.Directive:
			// A document type may be named; what it declares is not read, so that
			// entities cannot grow.
			if !bytes.HasPrefix(t, []byte("DOCTYPE")) || bytes.ContainsRune(t, '[') {
				return nil, fmt.Errorf("%w: directives are refused", ErrMalformed)
			}
		}
	}
}

func (d *decoder) open(name string) error {
	s, err := d.next()
	if err != nil {
		return err
	}
	if s == nil || s.Name.Local != name {
		return fmt.Errorf("%w: no element %s", ErrMalformed, name)
	}
	return nil
}

func (d *decoder) end() error {
	s, err := d.next()
	if err == nil && s != nil {
		return unexpected(s)
	}
	return err
}

// text reads the character data up to the end of the present element.
func (d *decoder) text() (string, error) {
	var sb strings.Builder
	for {
		t, err := d.token()
		if err != nil {
			return "", err
		}
		switch t := t.(type) {
		case xml.CharData:
			sb.Write(t)
		case xml.EndElement:
			return sb.String(), nil
		case xml.StartElement:
			return "", unexpected(&t)
		}
	}
}

func (d *decoder) valueElement(depth int) (any, error) {
	if err := d.open("value"); err != nil {
		return nil, err
	}
	return d.value(depth)
}

// value reads the inside of a <value> and its end tag.
func (d *decoder) value(depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("%w: nested too deeply", ErrMalformed)
	}
	var sb strings.Builder
	for {
		t, err := d.token()
		if err != nil {
			return nil, err
		}
		switch t := t.(type) {
		case xml.CharData:
			sb.Write(t)
		case xml.EndElement:
			return sb.String(), nil
		case xml.StartElement:
			v, err := d.typed(t.Name.Local, depth)
			if err != nil {
				return nil, err
			}
			return v, d.end()
		}
	}
}

func (d *decoder) typed(kind string, depth int) (any, error) {
	switch kind {
	case "array":
		return d.array(depth)
	case "struct":
		return d.structure(depth)
	}
	s, err := d.text()
	if err != nil {
		return nil, err
	}
	switch kind {
	case "string", "base64":
		return s, nil
	case "nil":
		return "", nil
	case "int", "i4", "i8":
		n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%w: integer: %w", ErrMalformed, err)
		}
		return n, nil
	case "boolean":
		switch strings.TrimSpace(s) {
		case "1", "true":
			return true, nil
		case "0", "false":
			return false, nil
		}
		return nil, fmt.Errorf("%w: boolean %q", ErrMalformed, s)
	case "double":
		f, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
		if err != nil {
			return nil, fmt.Errorf("%w: double: %w", ErrMalformed, err)
		}
		return f, nil
	case "dateTime.iso8601":
		return model.DateTime(strings.TrimSpace(s)), nil
	}
	return nil, fmt.Errorf("%w: unknown type %s", ErrMalformed, kind)
}

func (d *decoder) array(depth int) (any, error) {
	start, err := d.next()
	if err != nil || start == nil { // <array/> is an empty one
		return []any{}, err
	}
	if start.Name.Local != "data" {
		return nil, unexpected(start)
	}
	out := []any{}
	for {
		s, err := d.next()
		if err != nil {
			return nil, err
		}
		if s == nil {
			return out, d.end()
		}
		if s.Name.Local != "value" {
			return nil, unexpected(s)
		}
		v, err := d.value(depth + 1)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
}

func (d *decoder) structure(depth int) (any, error) {
	out := map[string]any{}
	for {
		s, err := d.next()
		if err != nil {
			return nil, err
		}
		if s == nil {
			return out, nil
		}
		if s.Name.Local != "member" {
			return nil, unexpected(s)
		}
		if err := d.open("name"); err != nil {
			return nil, err
		}
		name, err := d.text()
		if err != nil {
			return nil, err
		}
		if out[name], err = d.valueElement(depth + 1); err != nil {
			return nil, err
		}
		if err := d.end(); err != nil {
			return nil, err
		}
	}
}
