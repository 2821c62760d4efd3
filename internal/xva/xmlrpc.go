package xva

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Bounds of an ova.xml. Real ones have some thousands of values, and up to some
// hundred KiB for NVRAM and vTPM contents.
const (
	// MaxOVA is the greatest length in bytes of an ova.xml.
	MaxOVA    = 64 << 20
	maxDepth  = 64
	maxTag    = 4096
	maxValues = 500_000
)

// xmlParser reads XML-RPC values. It knows the five entities of XML itself and
// refuses document types, so that nothing expands.
type xmlParser struct {
	d      *xml.Decoder
	values int
	names  map[string]string
}

// parseValue reads a document that is one XML-RPC value element.
func parseValue(b []byte) (Value, error) {
	if len(b) > MaxOVA {
		return Value{}, bad(ErrFormat, "ova.xml of %d bytes is longer than %d", len(b), MaxOVA)
	}
	if at, ok := longTag(b); ok {
		return Value{}, bad(ErrFormat, "ova.xml byte %d: markup longer than %d bytes", at, maxTag)
	}
	p := &xmlParser{d: xml.NewDecoder(bytes.NewReader(b)), names: map[string]string{}}
	root, err := p.start()
	if err != nil {
		return Value{}, err
	}
	switch root {
	case "value":
	case "appliance":
		return Value{}, bad(ErrUnsupported,
			"XVA version 0.1 (appliance), the format of XenServer before 4.1, which current hosts do not import either")
	default:
		return Value{}, bad(ErrFormat, "ova.xml begins with element %q instead of value", root)
	}
	v, err := p.value(1)
	if err != nil {
		return Value{}, err
	}
	for {
		switch t, err := p.token(); {
		case errors.Is(err, io.EOF):
			return v, nil
		case err != nil:
			return Value{}, err
		default:
			if c, ok := t.(xml.CharData); !ok || !blank(c) {
				return Value{}, p.bad("something follows the value")
			}
		}
	}
}

func (p *xmlParser) bad(format string, args ...any) error {
	line, column := p.d.InputPos()
	return bad(ErrFormat, "ova.xml line %d column %d: %s", line, column, fmt.Sprintf(format, args...))
}

// token gives the next token that matters. io.EOF comes bare, once all elements
// are closed.
func (p *xmlParser) token() (xml.Token, error) {
	for {
		t, err := p.d.Token()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil, io.EOF
			}
			return nil, p.bad("%.200s", err.Error())
		}
		switch t.(type) {
		case xml.Comment, xml.ProcInst:
		case xml.Directive:
			return nil, p.bad("document types are not allowed")
		default:
			return t, nil
		}
	}
}

// startOrEnd skips blanks and gives the name of the next start element, or ok =
// false at an end element.
func (p *xmlParser) startOrEnd() (name string, ok bool, err error) {
	for {
		t, err := p.token()
		if errors.Is(err, io.EOF) {
			return "", false, p.bad("ends too early")
		}
		if err != nil {
			return "", false, err
		}
		switch t := t.(type) {
		case xml.StartElement:
			return t.Name.Local, true, nil
		case xml.EndElement:
			return "", false, nil
		case xml.CharData:
			if !blank(t) {
				return "", false, p.bad("text where an element is due")
			}
		}
	}
}

func (p *xmlParser) start() (string, error) {
	name, ok, err := p.startOrEnd()
	if err == nil && !ok {
		err = p.bad("an element is missing")
	}
	return name, err
}

func (p *xmlParser) startNamed(want string) error {
	name, err := p.start()
	if err == nil && name != want {
		err = p.bad("element %q where %q is due", name, want)
	}
	return err
}

func (p *xmlParser) end() error {
	name, ok, err := p.startOrEnd()
	if err == nil && ok {
		err = p.bad("unexpected element %q", name)
	}
	return err
}

// value reads what follows a value's start element, to its end.
func (p *xmlParser) value(depth int) (Value, error) {
	if p.values++; p.values > maxValues {
		return Value{}, bad(ErrFormat, "ova.xml has more than %d values", maxValues)
	}
	if depth > maxDepth {
		return Value{}, p.bad("nested deeper than %d values", maxDepth)
	}
	var s strings.Builder
	for {
		t, err := p.token()
		if err != nil {
			return Value{}, err
		}
		switch t := t.(type) {
		case xml.CharData:
			s.Write(t)
		case xml.EndElement:
			return Value{text: s.String()}, nil
		case xml.StartElement:
			if !blank([]byte(s.String())) {
				return Value{}, p.bad("text and element %q in one value", t.Name.Local)
			}
			v, err := p.typed(t.Name.Local, depth)
			if err != nil {
				return Value{}, err
			}
			return v, p.end()
		}
	}
}

// typed reads the inside and end of a type element.
func (p *xmlParser) typed(tag string, depth int) (Value, error) {
	switch tag {
	case tagArray:
		return p.array(depth)
	case tagStruct:
		return p.structure(depth)
	case "string":
		s, err := p.text()
		return Value{text: s}, err
	case "int", "i4", "i8", tagBool, tagDouble, tagTime, "base64", tagNil:
		s, err := p.text()
		return Value{tag: tag, text: s}, err
	}
	return Value{}, p.bad("unknown type %q", tag)
}

func (p *xmlParser) text() (string, error) {
	var s strings.Builder
	for {
		t, err := p.token()
		if err != nil {
			return "", err
		}
		switch t := t.(type) {
		case xml.CharData:
			s.Write(t)
		case xml.EndElement:
			return s.String(), nil
		case xml.StartElement:
			return "", p.bad("element %q inside a text", t.Name.Local)
		}
	}
}

func (p *xmlParser) array(depth int) (Value, error) {
	out := Value{tag: tagArray}
	if err := p.startNamed("data"); err != nil {
		return out, err
	}
	for {
		name, ok, err := p.startOrEnd()
		if err != nil {
			return out, err
		}
		if !ok {
			return out, p.end()
		}
		if name != "value" {
			return out, p.bad("element %q in an array", name)
		}
		v, err := p.value(depth + 1)
		if err != nil {
			return out, err
		}
		out.kids = append(out.kids, v)
	}
}

func (p *xmlParser) structure(depth int) (Value, error) {
	out := Value{tag: tagStruct}
	seen := map[string]struct{}{}
	for {
		name, ok, err := p.startOrEnd()
		if err != nil || !ok {
			return out, err
		}
		if name != "member" {
			return out, p.bad("element %q in a struct", name)
		}
		key, v, err := p.member(depth)
		if err != nil {
			return out, err
		}
		if _, dup := seen[key]; dup {
			return out, p.bad("member %.64q appears twice in a struct", key)
		}
		seen[key] = struct{}{}
		out.names = append(out.names, key)
		out.kids = append(out.kids, v)
	}
}

func (p *xmlParser) member(depth int) (string, Value, error) {
	if err := p.startNamed("name"); err != nil {
		return "", Value{}, err
	}
	key, err := p.text()
	if err != nil {
		return "", Value{}, err
	}
	// The same few hundred names come again in every record.
	if known, ok := p.names[key]; ok {
		key = known
	} else {
		p.names[key] = key
	}
	if err := p.startNamed("value"); err != nil {
		return "", Value{}, err
	}
	v, err := p.value(depth + 1)
	if err != nil {
		return "", Value{}, err
	}
	return key, v, p.end()
}

// longTag finds markup that is longer than maxTag. XML-RPC has no attributes; a
// decoder would keep any number of them in memory, at many times their length.
func longTag(b []byte) (at int, found bool) {
	for at < len(b) {
		i := bytes.IndexByte(b[at:], '<')
		if i < 0 {
			return 0, false
		}
		at += i
		n := bytes.IndexByte(b[at:min(len(b), at+maxTag)], '>')
		if n < 0 {
			return at, len(b)-at > maxTag
		}
		at += n
	}
	return 0, false
}

func blank(b []byte) bool { return len(bytes.TrimSpace(b)) == 0 }
