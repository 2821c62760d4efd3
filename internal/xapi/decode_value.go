package xapi

import (
	"strconv"
	"strings"
)

// recordDepth is how deep the fields of records are nested in a reply that is a map of records: in a record, in the map, in
// the envelope.
const recordDepth = 2

// value reads the rest of a value whose start was read. Where values are dropped, what it gives means nothing.
func (d *decoder) value(depth int) (any, error) {
	if d.values++; d.values > maxValues {
		return nil, malformed("more than %d values", maxValues)
	}
	if depth > maxDepth {
		return nil, malformed("nested more than %d deep", maxDepth)
	}
	text, ended, err := d.chars()
	switch {
	case err != nil:
		return nil, err
	case ended && d.dropping:
		return nil, nil
	case ended:
		return d.keepText(text), nil
	case !blank(text):
		return nil, malformed("text before element %q", clip(d.name))
	}
	v, err := d.typed(d.name, depth)
	if err != nil {
		return nil, err
	}
	return v, d.ends("value")
}

// chars reads text up to the end of the element that it is in, or to the start of another, whose name is d.name. The text
// is valid until the next one is read.
func (d *decoder) chars() (text []byte, ended bool, err error) {
	d.part = d.part[:0]
	for {
		tok, err := d.next()
		switch {
		case err != nil:
			return nil, false, err
		case tok == tokenNone:
			return nil, false, errEnds
		case tok != tokenText:
			return d.part, tok == tokenEnd, nil
		}
		d.part = append(d.part, d.text...) // comments and CDATA sections part a text
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
	text, ended, err := d.chars()
	if err == nil && !ended {
		err = malformed("element in %s", clip(name))
	}
	if err != nil {
		return nil, err
	}
	switch name {
	case "string", "base64":
		if d.dropping {
			return nil, nil
		}
		return d.keepText(text), nil
	case "nil":
		return nil, nil
	case "dateTime.iso8601":
		if d.dropping {
			return nil, nil
		}
		word := strings.TrimSpace(string(text))
		if t, ok := parseTime(word); ok {
			return t, nil
		}
		return word, nil // an error only where a time is wanted
	}
	return number(name, strings.TrimSpace(d.keepText(text)))
}

// number reads what can be misspelt.
func number(kind, word string) (any, error) {
	switch kind {
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
	}
	return nil, malformed("type %q", clip(kind))
}

const (
	maxWord  = 40   // bytes of a text that is kept once for all its occurrences: references, which are many, are longer
	maxWords = 8192 // of them
)

// keepText makes a string of a text.
func (d *decoder) keepText(text []byte) string {
	if len(text) > maxWord {
		return string(text)
	}
	word, known := d.words[string(text)]
	if !known {
		word = string(text)
		if len(d.words) < maxWords {
			d.words[word] = word
		}
	}
	return word
}

// members reads the rest of a struct; empty where values are dropped.
func (d *decoder) members(depth int) (any, error) {
	out := d.emptyStruct(depth)
	for {
		more, err := d.another("member")
		if err != nil || !more {
			return out, err
		}
		name, err := d.memberName()
		if err != nil {
			return nil, err
		}
		outer := d.dropping
		d.dropping = outer || depth == recordDepth && d.keep != nil && !d.keep[name]
		v, err := d.value(depth + 1)
		if err != nil {
			return nil, err
		}
		if !d.dropping {
			out[name] = v
		}
		d.dropping = outer
		if err := d.ends("member"); err != nil {
			return nil, err
		}
	}
}

func (d *decoder) emptyStruct(depth int) map[string]any {
	switch {
	case d.dropping:
		return nil
	case depth == recordDepth && d.keep != nil:
		return make(map[string]any, len(d.keep))
	}
	return map[string]any{}
}

// memberName reads the name of a member, and the start of its value.
func (d *decoder) memberName() (string, error) {
	if err := d.startOf("name"); err != nil {
		return "", err
	}
	text, ended, err := d.chars()
	if err == nil && !ended {
		err = malformed("element in name")
	}
	if err != nil {
		return "", err
	}
	return d.keepText(text), d.startOf("value")
}

// array reads the rest of an array; empty where values are dropped.
func (d *decoder) array(depth int) (any, error) {
	out := []any{}
	more, err := d.another("data")
	if err != nil || !more {
		return out, err
	}
	for {
		more, err := d.another("value")
		if err != nil {
			return nil, err
		}
		if !more {
			return out, d.ends("array")
		}
		v, err := d.value(depth + 1)
		if err != nil {
			return nil, err
		}
		if !d.dropping {
			out = append(out, v)
		}
	}
}

// another reads the start of the next element of a list, which must have that name; false at the list's end.
func (d *decoder) another(name string) (bool, error) {
	for {
		tok, err := d.next()
		switch {
		case err != nil:
			return false, err
		case tok == tokenEnd:
			return false, nil
		case tok == tokenNone:
			return false, errEnds
		case tok == tokenStart && d.name != name:
			return false, malformed("element %q where %s is due", clip(d.name), name)
		case tok == tokenStart:
			return true, nil
		case !blank(d.text):
			return false, malformed("text where %s is due", name)
		}
	}
}
