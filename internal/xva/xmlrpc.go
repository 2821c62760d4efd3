package xva

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Bounds of an ova.xml. Real ones have some thousands of values, and up to some
// hundred KiB for NVRAM and vTPM contents.
const (
	// MaxOVA is the greatest length in bytes of an ova.xml.
	MaxOVA    = 64 << 20
	maxDepth  = 64
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
			return nil, p.bad("%v", err)
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

func blank(b []byte) bool { return len(bytes.TrimSpace(b)) == 0 }

// appendValue writes v as XAPI does: no blanks, strings untyped.
func appendValue(b []byte, v Value) []byte {
	b = append(b, "<value>"...)
	switch v.tag {
	case "":
		b = appendText(b, v.text)
	case tagStruct:
		b = append(b, "<struct>"...)
		for i, n := range v.names {
			b = append(b, "<member><name>"...)
			b = appendText(b, n)
			b = append(b, "</name>"...)
			b = appendValue(b, v.kids[i])
			b = append(b, "</member>"...)
		}
		b = append(b, "</struct>"...)
	case tagArray:
		b = append(b, "<array><data>"...)
		for _, k := range v.kids {
			b = appendValue(b, k)
		}
		b = append(b, "</data></array>"...)
	case tagNil:
		b = append(b, "<nil/>"...)
	default:
		b = append(append(append(b, '<'), v.tag...), '>')
		b = appendText(b, v.text)
		b = append(append(append(b, "</"...), v.tag...), '>')
	}
	return append(b, "</value>"...)
}

// appendText escapes what XML asks for, and the carriage return, which a reader
// would turn into a line feed.
func appendText(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '&':
			b = append(b, "&amp;"...)
		case '<':
			b = append(b, "&lt;"...)
		case '>':
			b = append(b, "&gt;"...)
		case '\r':
			b = append(b, "&#13;"...)
		default:
			b = append(b, c)
		}
	}
	return b
}

// checkText tells whether s can stand in an XML document.
func checkText(what, s string) error {
	if !utf8.ValidString(s) {
		return fmt.Errorf("xva: %s %q is not UTF-8", what, s)
	}
	for _, r := range s {
		if r < 0x20 && r != '\t' && r != '\n' && r != '\r' || r == 0xFFFE || r == 0xFFFF {
			return fmt.Errorf("xva: %s %q has a character that XML cannot hold", what, s)
		}
	}
	return nil
}
