package xapi

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Ref names an object of XAPI until the object is deleted: "OpaqueRef:" and a UUID.
type Ref string

// NullRef is the reference to nothing.
const NullRef Ref = "OpaqueRef:NULL"

// Null reports whether the reference names nothing; old fields have "" for it (reference section 1.4).
func (r Ref) Null() bool { return r == "" || r == NullRef }

// Record is a struct as it was decoded or is to be sent. Decoded values are string, int64, float64, bool, time.Time,
// []any, map[string]any or nil; integers of XAPI come as strings of digits as a rule.
type Record map[string]any

// Get gives a field; that of an absent one is the zero Value.
func (r Record) Get(field string) Value { return Value{r[field]} }

// Value is a decoded value of XML-RPC. The zero Value stands for nothing and converts to every zero value.
type Value struct{ v any }

// Any gives the value as it was decoded; see Record for the types.
func (v Value) Any() any { return v.v }

// errType is why a value cannot be read as wanted.
var errType = errors.New("has another type")

func (v Value) mismatch(want string) error {
	return fmt.Errorf("%w than %s: %T: %w", errType, want, v.v, ErrProtocol)
}

// String gives strings, and numbers, booleans and times in XAPI's way of writing them; "" for all else.
func (v Value) String() string {
	switch x := v.v.(type) {
	case string:
		return x
	case int64:
		return strconv.FormatInt(x, 10)
	case float64:
		return strconv.FormatFloat(x, 'g', -1, 64)
	case bool:
		return strconv.FormatBool(x)
	case time.Time:
		return formatTime(x)
	}
	return ""
}

// Text gives a string, or an error that is ErrProtocol for what is none.
func (v Value) Text() (string, error) {
	switch v.v.(type) {
	case []any, map[string]any:
		return "", v.mismatch("a string")
	}
	return v.String(), nil
}

// Int gives an integer, which may have come as one, as a string of digits or as a float without fraction. Errors are
// ErrProtocol.
func (v Value) Int() (int64, error) {
	switch x := v.v.(type) {
	case nil:
		return 0, nil
	case int64:
		return x, nil
	case float64:
		if x == math.Trunc(x) && math.Abs(x) < 1<<53 {
			return int64(x), nil
		}
	case string:
		s := strings.TrimSpace(x)
		if s == "" {
			return 0, nil
		}
		if n, err := strconv.ParseInt(s, 10, 64); err == nil {
			return n, nil
		}
	}
	return 0, v.mismatch("an integer")
}

// Float gives a number. Errors are ErrProtocol.
func (v Value) Float() (float64, error) {
	switch x := v.v.(type) {
	case nil:
		return 0, nil
	case float64:
		return x, nil
	case int64:
		return float64(x), nil
	case string:
		s := strings.TrimSpace(x)
		if s == "" {
			return 0, nil
		}
		if f, err := strconv.ParseFloat(s, 64); err == nil {
			return f, nil
		}
	}
	return 0, v.mismatch("a number")
}

// Bool gives a boolean; 1, 0, true and false also as strings. Errors are ErrProtocol.
func (v Value) Bool() (bool, error) {
	switch x := v.v.(type) {
	case nil:
		return false, nil
	case bool:
		return x, nil
	case int64:
		return x != 0, nil
	case string:
		switch strings.ToLower(strings.TrimSpace(x)) {
		case "1", "true":
			return true, nil
		case "0", "false", "":
			return false, nil
		}
	}
	return false, v.mismatch("a boolean")
}

// Time gives a time in UTC. What XAPI writes for never, 1970-01-01, and nothing are the zero time. Errors are
// ErrProtocol.
func (v Value) Time() (time.Time, error) {
	switch x := v.v.(type) {
	case nil:
		return time.Time{}, nil
	case time.Time:
		return never(x), nil
	case string:
		s := strings.TrimSpace(x)
		if s == "" {
			return time.Time{}, nil
		}
		if t, ok := parseTime(s); ok {
			return never(t), nil
		}
	}
	return time.Time{}, v.mismatch("a time")
}

func never(t time.Time) time.Time {
	if t.Unix() == 0 {
		return time.Time{}
	}
	return t.UTC()
}

// Ref gives a reference. Errors are ErrProtocol.
func (v Value) Ref() (Ref, error) {
	s, err := v.Text()
	return Ref(s), err
}

// Strings gives a set of strings. Errors are ErrProtocol.
func (v Value) Strings() ([]string, error) {
	items, err := v.items()
	if err != nil || len(items) == 0 {
		return nil, err
	}
	out := make([]string, len(items))
	for i, x := range items {
		if out[i], err = (Value{x}).Text(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Refs gives a set of references. Errors are ErrProtocol.
func (v Value) Refs() ([]Ref, error) {
	items, err := v.items()
	if err != nil || len(items) == 0 {
		return nil, err
	}
	out := make([]Ref, len(items))
	for i, x := range items {
		if out[i], err = (Value{x}).Ref(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (v Value) items() ([]any, error) {
	switch x := v.v.(type) {
	case nil:
		return nil, nil
	case []any:
		return x, nil
	case string:
		if x == "" {
			return nil, nil
		}
	}
	return nil, v.mismatch("a set")
}

// Map gives a map of strings; never nil without an error. Errors are ErrProtocol.
func (v Value) Map() (map[string]string, error) {
	r, err := v.Record()
	if err != nil {
		return nil, err
	}
	out := make(map[string]string, len(r))
	for k, x := range r {
		if out[k], err = (Value{x}).Text(); err != nil {
			return nil, fmt.Errorf("key %q: %w", k, err)
		}
	}
	return out, nil
}

// Record gives a struct. Errors are ErrProtocol.
func (v Value) Record() (Record, error) {
	switch x := v.v.(type) {
	case nil:
		return Record{}, nil
	case map[string]any:
		return x, nil
	case string:
		if x == "" {
			return Record{}, nil
		}
	}
	return nil, v.mismatch("a struct")
}

// timeLayouts are the ways of writing times that occur: XAPI's own, and those its importer takes as well.
var timeLayouts = []string{
	"20060102T15:04:05Z07:00", "20060102T15:04:05", "2006-01-02T15:04:05Z07:00", "2006-01-02T15:04:05",
	"20060102T150405Z07:00", "20060102T150405", "2006-01-02",
}

// parseTime reads a time; one without zone is UTC.
func parseTime(s string) (time.Time, bool) {
	for _, layout := range timeLayouts {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UTC(), true
		}
	}
	return time.Time{}, false
}

func formatTime(t time.Time) string { return t.UTC().Format("20060102T15:04:05Z") }
