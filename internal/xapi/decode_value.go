package xapi

import (
	"encoding/xml"
	"strconv"
	"strings"
)

// value reads the rest of a value whose start was read.
func (d *decoder) value(depth int) (any, error) {
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
func (d *decoder) typed(name string, depth int) (any, error) {
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
func (d *decoder) text(name string) (string, error) {
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
func (d *decoder) members(depth int) (any, error) {
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
func (d *decoder) array(depth int) (any, error) {
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
func (d *decoder) next(name string) (bool, error) {
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
