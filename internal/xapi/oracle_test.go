package xapi

import (
	"encoding/xml"
	"errors"
	"io"
	"strconv"
	"strings"
)

// The decoder below reads replies by encoding/xml, as dpxen did at first. Tests hold the one in use against it: what this one
// refuses is refused, and what is read is read alike.

func oracleReply(r io.Reader) (Value, error) {
	d := newOracle(r)
	for _, name := range []string{"methodResponse", "params|fault"} {
		el, err := d.start()
		if err != nil {
			return Value{}, err
		}
		if !strings.Contains("|"+name+"|", "|"+el+"|") {
			return Value{}, malformed("element %q where %s is due", el, name)
		}
		if el == "fault" {
			return Value{}, malformed("fault")
		}
	}
	if err := d.startOf("param"); err != nil {
		return Value{}, err
	}
	v, err := d.soleValue("param")
	if err != nil {
		return Value{}, err
	}
	for _, name := range []string{"params", "methodResponse"} {
		if err := d.end(name); err != nil {
			return Value{}, err
		}
	}
	if err := d.nothing(); err != nil {
		return Value{}, err
	}
	return openEnvelope(v)
}

// oracle reads XML-RPC values from a stream of tokens. Names of name spaces are ignored.
type oracle struct {
	x      *xml.Decoder
	src    *source
	values int
}

// source keeps the reader's error apart from those that the XML decoder finds in the text.
type source struct {
	r   io.Reader
	err error
}

// Read implements io.Reader.
func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

func newOracle(r io.Reader) *oracle {
	src := &source{r: r}
	x := xml.NewDecoder(src)
	x.Entity = map[string]string{}
	return &oracle{x: x, src: src}
}

// token gives the next token that means something: no comments or processing instructions. Declarations, which could
// define entities, are refused.
func (d *oracle) token() (xml.Token, error) {
	for {
		tok, err := d.x.Token()
		if err != nil {
			return nil, d.tokenError(err)
		}
		switch tok.(type) {
		case xml.Comment, xml.ProcInst:
			continue
		case xml.Directive:
			return nil, malformed("declaration in the reply")
		}
		return tok, nil
	}
}

// tokenError keeps errors of the reader apart from those of the text.
func (d *oracle) tokenError(err error) error {
	switch {
	case d.src.err != nil:
		return d.src.err
	case errors.Is(err, io.EOF):
		return malformed("it ends too early")
	}
	return malformed("%s", clip(err.Error()))
}

// start gives the name of the element that begins next; only blanks may stand before it.
func (d *oracle) start() (string, error) {
	for {
		tok, err := d.token()
		if err != nil {
			return "", err
		}
		switch t := tok.(type) {
		case xml.StartElement:
			return t.Name.Local, nil
		case xml.CharData:
			if blank(t) {
				continue
			}
		}
		return "", malformed("an element is missing")
	}
}

// startOf reads the start of the element of that name.
func (d *oracle) startOf(name string) error {
	el, err := d.start()
	if err == nil && el != name {
		err = malformed("element %q where %s is due", clip(el), name)
	}
	return err
}

// end reads the end of an element; only blanks may stand before it.
func (d *oracle) end(name string) error {
	for {
		tok, err := d.token()
		if err != nil {
			return err
		}
		switch t := tok.(type) {
		case xml.EndElement:
			return nil // the XML decoder has seen to it that it is the one of name
		case xml.CharData:
			if blank(t) {
				continue
			}
		}
		return malformed("more in %s than is due", name)
	}
}

// nothing makes sure that nothing follows.
func (d *oracle) nothing() error {
	for {
		tok, err := d.x.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return d.tokenError(err)
		}
		if t, ok := tok.(xml.CharData); ok && blank(t) {
			continue
		}
		if _, ok := tok.(xml.Comment); ok {
			continue
		}
		return malformed("something follows the reply")
	}
}

// soleValue reads the one value in an element, and the element's end.
func (d *oracle) soleValue(in string) (any, error) {
	if err := d.startOf("value"); err != nil {
		return nil, err
	}
	v, err := d.value(0)
	if err != nil {
		return nil, err
	}
	return v, d.end(in)
}

// value reads the rest of a value whose start was read.
func (d *oracle) value(depth int) (any, error) {
	if d.values++; d.values > maxValues {
		return nil, malformed("more than %d values", maxValues)
	}
	if depth > maxDepth {
		return nil, malformed("nested more than %d deep", maxDepth)
	}
	var text []byte
	for {
		tok, err := d.token()
		if err != nil {
			return nil, err
		}
		switch t := tok.(type) {
		case xml.CharData:
			text = append(text, t...)
		case xml.EndElement:
			return string(text), nil
		case xml.StartElement:
			if !blank(text) {
				return nil, malformed("text before element %q", t.Name.Local)
			}
			v, err := d.typed(t.Name.Local, depth)
			if err != nil {
				return nil, err
			}
			return v, d.end("value")
		}
	}
}

// typed reads the rest of the element that says a value's type.
func (d *oracle) typed(name string, depth int) (any, error) {
	switch name {
	case "struct":
		return d.members(depth)
	case "array":
		return d.array(depth)
	}
	text, err := d.text(name)
	if err != nil {
		return nil, err
	}
	word := strings.TrimSpace(text)
	switch name {
	case "string", "base64":
		return text, nil
	case "nil":
		return nil, nil
	case "int", "i4", "i8":
		n, err := strconv.ParseInt(word, 10, 64)
		if err != nil {
			return nil, malformed("integer %q", clip(word))
		}
		return n, nil
	case "boolean":
		b, err := (Value{word}).Bool()
		if err != nil || word == "" {
			return nil, malformed("boolean %q", clip(word))
		}
		return b, nil
	case "double":
		f, err := strconv.ParseFloat(word, 64)
		if err != nil {
			return nil, malformed("double %q", clip(word))
		}
		return f, nil
	case "dateTime.iso8601":
		if t, ok := parseTime(word); ok {
			return t, nil
		}
		return word, nil // an error only where a time is wanted
	}
	return nil, malformed("type %q", clip(name))
}

// text reads the text of an element up to its end.
func (d *oracle) text(name string) (string, error) {
	var text []byte
	for {
		tok, err := d.token()
		if err != nil {
			return "", err
		}
		switch t := tok.(type) {
		case xml.CharData:
			text = append(text, t...)
		case xml.EndElement:
			return string(text), nil
		default:
			return "", malformed("element in %s", clip(name))
		}
	}
}

// members reads the rest of a struct.
func (d *oracle) members(depth int) (any, error) {
	out := map[string]any{}
	for {
		more, err := d.next("member")
		if err != nil || !more {
			return out, err
		}
		if err := d.startOf("name"); err != nil {
			return nil, err
		}
		name, err := d.text("name")
		if err != nil {
			return nil, err
		}
		if err := d.startOf("value"); err != nil {
			return nil, err
		}
		if out[name], err = d.value(depth + 1); err != nil {
			return nil, err
		}
		if err := d.end("member"); err != nil {
			return nil, err
		}
	}
}

// array reads the rest of an array.
func (d *oracle) array(depth int) (any, error) {
	out := []any{}
	more, err := d.next("data")
	if err != nil || !more {
		return out, err
	}
	for {
		more, err := d.next("value")
		if err != nil {
			return nil, err
		}
		if !more {
			return out, d.end("array")
		}
		v, err := d.value(depth + 1)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
}

// next reads the start of the next element of a list, which must have that name; false at the list's end.
func (d *oracle) next(name string) (bool, error) {
	for {
		tok, err := d.token()
		if err != nil {
			return false, err
		}
		switch t := tok.(type) {
		case xml.EndElement:
			return false, nil
		case xml.StartElement:
			if t.Name.Local != name {
				return false, malformed("element %q where %s is due", clip(t.Name.Local), name)
			}
			return true, nil
		case xml.CharData:
			if blank(t) {
				continue
			}
		}
		return false, malformed("text where %s is due", name)
	}
}
