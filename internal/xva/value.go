package xva

import (
	"strconv"
	"strings"
)

// Value is one XML-RPC value of ova.xml: a scalar, a set or a struct. The zero
// Value is the empty string. Values are never changed once made and may be
// shared between goroutines.
type Value struct {
	tag   string   // type element, "" for an untyped string
	text  string   // of a scalar, as written
	names []string // member names of a struct
	kids  []Value  // members of a struct, items of an array
}

const (
	tagStruct  = "struct"
	tagArray   = "array"
	tagBool    = "boolean"
	tagDouble  = "double"
	tagTime    = "dateTime.iso8601"
	tagNil     = "nil"
	nullRef    = "OpaqueRef:NULL"
	neverStamp = "19700101T00:00:00Z"
)

// String gives the text of a scalar, and "" of a set or struct.
func (v Value) String() string { return v.text }

// IsStruct tells whether v is a struct: a record or a map.
func (v Value) IsStruct() bool { return v.tag == tagStruct }

// IsSet tells whether v is an array.
func (v Value) IsSet() bool { return v.tag == tagArray }

// Int gives an integer, which XAPI writes as a string of digits and others as
// int, i4 or i8; false if v is not one.
func (v Value) Int() (int64, bool) {
	n, err := strconv.ParseInt(strings.TrimSpace(v.text), 10, 64)
	return n, err == nil && len(v.kids) == 0
}

// Float gives a double, or an integer as one; false if v is neither.
func (v Value) Float() (float64, bool) {
	f, err := strconv.ParseFloat(strings.TrimSpace(v.text), 64)
	return f, err == nil && len(v.kids) == 0
}

// Bool gives a boolean, also one written as the string true or false; the
// second result is false if v is not one.
func (v Value) Bool() (value, ok bool) {
	switch strings.TrimSpace(v.text) {
	case "1", "true":
		return true, true
	case "0", "false":
		return false, true
	}
	return false, false
}

// Field gives a member of a struct.
func (v Value) Field(name string) (Value, bool) {
	for i, n := range v.names {
		if n == name {
			return v.kids[i], true
		}
	}
	return Value{}, false
}

// Names gives a copy of the member names of a struct, in the file's order.
func (v Value) Names() []string { return append([]string(nil), v.names...) }

// Map gives a copy of a struct whose members are scalars, as text; members that
// are not are left out. It is never nil.
func (v Value) Map() map[string]string {
	m := make(map[string]string, len(v.names))
	for i, n := range v.names {
		if k := v.kids[i]; !k.IsStruct() && !k.IsSet() {
			m[n] = k.text
		}
	}
	return m
}

// Items gives a copy of the items of a set.
func (v Value) Items() []Value {
	if !v.IsSet() {
		return nil
	}
	return append([]Value(nil), v.kids...)
}

// Set gives the items of a set as text.
func (v Value) Set() []string {
	if !v.IsSet() {
		return nil
	}
	s := make([]string, len(v.kids))
	for i, k := range v.kids {
		s[i] = k.text
	}
	return s
}

func (v Value) str(name string) string {
	f, _ := v.Field(name)
	return f.text
}

func (v Value) boolean(name string) bool {
	f, _ := v.Field(name)
	b, _ := f.Bool()
	return b
}

func (v Value) integer(name string) int64 {
	f, _ := v.Field(name)
	n, _ := f.Int()
	return n
}

func (v Value) stringMap(name string) map[string]string {
	f, _ := v.Field(name)
	return f.Map()
}

func (v Value) stringSet(name string) []string {
	f, _ := v.Field(name)
	return f.Set()
}

// with gives a copy of a struct with a member replaced, or added at the end.
func (v Value) with(name string, value Value) Value {
	kids := append([]Value(nil), v.kids...)
	for i, n := range v.names {
		if n == name {
			kids[i] = value
			return Value{tag: tagStruct, names: v.names, kids: kids}
		}
	}
	names := append(append([]string(nil), v.names...), name)
	return Value{tag: tagStruct, names: names, kids: append(kids, value)}
}

// replacing is with for a member that is there, and v where it is not.
func (v Value) replacing(name string, value Value) Value {
	if _, ok := v.Field(name); !ok {
		return v
	}
	return v.with(name, value)
}

// without gives a copy of a struct that lacks the members which drop names.
func (v Value) without(drop func(name string) bool) Value {
	out := Value{tag: tagStruct}
	for i, n := range v.names {
		if !drop(n) {
			out.names = append(out.names, n)
			out.kids = append(out.kids, v.kids[i])
		}
	}
	return out
}

// keeping gives a copy of a set with only the items whose text keep accepts.
func (v Value) keeping(keep func(text string) bool) Value {
	out := Value{tag: tagArray}
	for _, k := range v.kids {
		if keep(k.text) {
			out.kids = append(out.kids, k)
		}
	}
	return out
}

func text(s string) Value      { return Value{text: s} }
func number(n int64) Value     { return Value{text: strconv.FormatInt(n, 10)} }
func stamp(s string) Value     { return Value{tag: tagTime, text: s} }
func double(s string) Value    { return Value{tag: tagDouble, text: s} }
func set(items ...Value) Value { return Value{tag: tagArray, kids: items} }

func boolean(b bool) Value {
	if b {
		return Value{tag: tagBool, text: "1"}
	}
	return Value{tag: tagBool, text: "0"}
}

// member is a named value of a struct that is being made.
type member struct {
	name  string
	value Value
}

func structOf(members ...member) Value {
	v := Value{tag: tagStruct}
	for _, m := range members {
		v.names = append(v.names, m.name)
		v.kids = append(v.kids, m.value)
	}
	return v
}
