package model

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// NullRef is the reference to nothing.
const NullRef = "OpaqueRef:NULL"

// Epoch is what XAPI writes for "never".
const Epoch DateTime = "19700101T00:00:00Z"

// DateTime is a point in time in XAPI's form, for example 20260101T00:00:00Z.
type DateTime string

// Kind says what sort of value a Type describes.
type Kind uint8

// The kinds of types in XAPI's data model.
const (
	Void Kind = iota
	String
	Int
	Float
	Bool
	Date
	Enum
	Ref
	RecordOf
	Set
	Map
	Opaque
)

// Type is a type of the data model. Values of it are held in Go as follows:
// String, Enum and Ref as string; Int as int64; Float as float64; Bool as bool;
// Date as DateTime; a set of string-like values as []string, of ints as []int64,
// anything else as []any; a map as map[string]string where its values are
// string-like, else as map[string]any; records as map[string]any.
type Type struct {
	Kind Kind
	// Name is the class of a Ref or RecordOf, or the name of an Enum.
	Name string
	// Key and Elem are the parts of a Map; Elem is also that of a Set.
	Key, Elem *Type
	// Values are those that an Enum may have; nil where they are not known.
	Values []string
}

// ParseType reads a type as XAPI's API description spells it, for example
// "(string -> enum vm_operations) map" or "VDI ref set".
func ParseType(s string) (*Type, error) {
	switch s {
	case "void":
		return &Type{Kind: Void}, nil
	case "string":
		return &Type{Kind: String}, nil
	case "int":
		return &Type{Kind: Int}, nil
	case "float":
		return &Type{Kind: Float}, nil
	case "bool":
		return &Type{Kind: Bool}, nil
	case "datetime":
		return &Type{Kind: Date}, nil
	case "an event batch":
		return &Type{Kind: Opaque}, nil
	}
	if _, ok := strings.CutSuffix(s, " option"); ok { // only results of calls are optional
		return &Type{Kind: Opaque}, nil
	}
	if in, ok := strings.CutSuffix(s, " set"); ok {
		elem, err := ParseType(in)
		return &Type{Kind: Set, Elem: elem}, err
	}
	if in, ok := strings.CutSuffix(s, ") map"); ok && strings.HasPrefix(in, "(") {
		k, v, found := strings.Cut(in[1:], " -> ")
		if !found {
			return nil, fmt.Errorf("model: map type %q has no arrow", s)
		}
		key, err := ParseType(k)
		if err != nil {
			return nil, err
		}
		elem, err := ParseType(v)
		return &Type{Kind: Map, Key: key, Elem: elem}, err
	}
	if in, ok := strings.CutSuffix(s, " ref"); ok {
		return &Type{Kind: Ref, Name: in}, nil
	}
	if in, ok := strings.CutSuffix(s, " record"); ok {
		return &Type{Kind: RecordOf, Name: in}, nil
	}
	if in, ok := strings.CutPrefix(s, "enum "); ok {
		return &Type{Kind: Enum, Name: in}, nil
	}
	return nil, fmt.Errorf("model: unknown type %q", s)
}

func (t *Type) stringLike() bool {
	return t.Kind == String || t.Kind == Enum || t.Kind == Ref
}

// Zero gives the value that a field of the type has when the model names no
// default. Sets and maps are never nil.
func (t *Type) Zero(enums map[string][]string) any {
	switch t.Kind {
	case Int:
		return int64(0)
	case Float:
		return float64(0)
	case Bool:
		return false
	case Date:
		return Epoch
	case Enum:
		if v := enums[t.Name]; len(v) > 0 {
			return v[0]
		}
		return ""
	case Ref:
		return NullRef
	case RecordOf, Opaque:
		return map[string]any{}
	case Set:
		if t.Elem.stringLike() {
			return []string{}
		}
		if t.Elem.Kind == Int {
			return []int64{}
		}
		return []any{}
	case Map:
		if t.Elem.stringLike() {
			return map[string]string{}
		}
		return map[string]any{}
	default:
		return ""
	}
}

// Coerce turns a value as a codec decoded it (string, int64, float64, bool,
// DateTime, []any, map[string]any) into the form that Type documents. It reports
// false where the value is of another type.
func (t *Type) Coerce(v any) (any, bool) {
	switch t.Kind {
	case String:
		s, ok := v.(string)
		return s, ok
	case Enum:
		return t.coerceEnum(v)
	case Ref:
		s, ok := v.(string)
		if s == "" {
			s = NullRef
		}
		return s, ok
	case Int:
		return coerceInt(v)
	case Float:
		f, ok := v.(float64)
		if n, isInt := v.(int64); isInt {
			return float64(n), true
		}
		return f, ok
	case Bool:
		b, ok := v.(bool)
		return b, ok
	case Date:
		return coerceDate(v)
	case RecordOf, Opaque:
		m, ok := v.(map[string]any)
		return m, ok
	case Set:
		return t.coerceSet(v)
	case Map:
		return t.coerceMap(v)
	default:
		return "", true
	}
}

// coerceEnum finds a value of the enum whatever the case of its letters, as XAPI
// does.
func (t *Type) coerceEnum(v any) (any, bool) {
	s, ok := v.(string)
	if !ok || t.Values == nil {
		return s, ok
	}
	for _, known := range t.Values {
		if strings.EqualFold(known, s) {
			return known, true
		}
	}
	return nil, false
}

func coerceInt(v any) (any, bool) {
	switch n := v.(type) {
	case int64:
		return n, true
	case string:
		i, err := strconv.ParseInt(strings.TrimSpace(n), 10, 64)
		return i, err == nil
	case float64:
		if n != math.Trunc(n) || math.Abs(n) > 1<<53 {
			return nil, false
		}
		return int64(n), true
	}
	return nil, false
}

func coerceDate(v any) (any, bool) {
	switch d := v.(type) {
	case DateTime:
		return d, true
	case string:
		return DateTime(d), len(d) >= len("20060102T15:04:05")
	}
	return nil, false
}

func (t *Type) coerceSet(v any) (any, bool) {
	in, ok := v.([]any)
	if !ok {
		return nil, false
	}
	strs, ints, others := []string{}, []int64{}, []any{}
	for _, e := range in {
		c, ok := t.Elem.Coerce(e)
		if !ok {
			return nil, false
		}
		switch c := c.(type) {
		case string:
			if !slices.Contains(strs, c) {
				strs = append(strs, c)
			}
		case int64:
			ints = append(ints, c)
		default:
			others = append(others, c)
		}
	}
	if t.Elem.stringLike() {
		return strs, true
	}
	if t.Elem.Kind == Int {
		return ints, true
	}
	return others, true
}

func (t *Type) coerceMap(v any) (any, bool) {
	in, ok := v.(map[string]any)
	if !ok {
		return nil, false
	}
	if !t.Elem.stringLike() {
		out := make(map[string]any, len(in))
		for _, k := range slices.Sorted(maps.Keys(in)) {
			key, known := t.coerceKey(k)
			c, ok := t.Elem.Coerce(in[k])
			if !ok || !known {
				return nil, false
			}
			out[key] = c
		}
		return out, true
	}
	out := make(map[string]string, len(in))
	for k, e := range in {
		key, known := t.coerceKey(k)
		c, ok := t.Elem.Coerce(e)
		if !ok || !known {
			return nil, false
		}
		out[key], _ = c.(string)
	}
	return out, true
}

// coerceKey checks the key of a map, which stays a string on the wire.
func (t *Type) coerceKey(k string) (string, bool) {
	switch t.Key.Kind {
	case Enum:
		v, ok := t.Key.coerceEnum(k)
		s, _ := v.(string)
		return s, ok
	case Int:
		_, ok := coerceInt(k)
		return k, ok
	default:
		return k, true
	}
}

// learn fills in the values of the enums that t is made of.
func (t *Type) learn(enums map[string][]string) {
	if t == nil {
		return
	}
	if t.Kind == Enum {
		t.Values = enums[t.Name]
	}
	t.Key.learn(enums)
	t.Elem.learn(enums)
}

// ParseDefault reads a default as XAPI's API description prints it.
func (t *Type) ParseDefault(s string) (any, error) {
	switch t.Kind {
	case String:
		return strconv.Unquote(s)
	case Int:
		return strconv.ParseInt(s, 10, 64)
	case Float:
		return strconv.ParseFloat(strings.TrimSuffix(s, "."), 64)
	case Bool:
		return strconv.ParseBool(s)
	case Date:
		return DateTime(s), nil
	case Enum, Ref:
		return s, nil
	case Set, Map:
		return t.parseCollection(s)
	default:
		return nil, fmt.Errorf("model: no default %q possible here", s)
	}
}

func (t *Type) parseCollection(s string) (any, error) {
	body := strings.TrimSuffix(strings.TrimPrefix(s, "{"), "}")
	if body == "" {
		return t.Zero(nil), nil
	}
	parts := strings.Split(body, ", ")
	if t.Kind == Set && t.Elem.Kind == Int {
		out := make([]int64, 0, len(parts))
		for _, p := range parts {
			n, err := strconv.ParseInt(p, 10, 64)
			if err != nil {
				return nil, fmt.Errorf("model: default %q: %w", s, err)
			}
			out = append(out, n)
		}
		return out, nil
	}
	if t.Kind == Set && t.Elem.Kind == Ref {
		return parts, nil
	}
	if t.Kind != Map || t.Elem.Kind != String {
		return nil, fmt.Errorf("model: default %q is of an unknown form", s)
	}
	out := map[string]string{}
	for _, p := range parts {
		k, v, _ := strings.Cut(p, " -> ")
		key, err := strconv.Unquote(k)
		if err != nil {
			return nil, fmt.Errorf("model: default %q: %w", s, err)
		}
		if out[key], err = strconv.Unquote(v); err != nil {
			return nil, fmt.Errorf("model: default %q: %w", s, err)
		}
	}
	return out, nil
}
