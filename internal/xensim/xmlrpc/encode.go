// Package xmlrpc reads and writes XML-RPC as XAPI's server does: strings without
// a type tag, integers as strings of digits, floats with sixteen digits, no
// white space between tags.
package xmlrpc

import (
	"maps"
	"slices"
	"strconv"

	"github.com/dpxen/dpxen/internal/xensim/model"
)

// Raw is an encoded <value> that is written as it is.
type Raw string

// Int32 is the one integer that XAPI writes as <i4> (valid_ref_counts).
type Int32 int32

// Members is a struct with its members in a given order.
type Members []Member

// Member is one member of a struct.
type Member struct {
	Name  string
	Value any
}

// Record is a struct whose names several values share: Values[i] is that of
// Names[i].
type Record struct {
	Names  []string
	Values []any
}

// Append appends v as one <value> element to b. It knows the Go types that
// package model documents, Raw, Int32, Members and Record; anything else is written as
// an empty string.
func Append(b []byte, v any) []byte {
	switch v := v.(type) {
	case string:
		return append(appendText(append(b, "<value>"...), v), "</value>"...)
	case Raw:
		return append(b, v...)
	case int64:
		return append(strconv.AppendInt(append(b, "<value>"...), v, 10), "</value>"...)
	case Int32:
		return append(strconv.AppendInt(append(b, "<value><i4>"...), int64(v), 10), "</i4></value>"...)
	case float64:
		return append(AppendFloat(append(b, "<value><double>"...), v), "</double></value>"...)
	case bool:
		if v {
			return append(b, "<value><boolean>1</boolean></value>"...)
		}
		return append(b, "<value><boolean>0</boolean></value>"...)
	case model.DateTime:
		b = append(b, "<value><dateTime.iso8601>"...)
		return append(appendText(b, string(v)), "</dateTime.iso8601></value>"...)
	case []string:
		return appendArray(b, v)
	case []int64:
		return appendArray(b, v)
	case []any:
		return appendArray(b, v)
	case map[string]string:
		return appendMap(b, v)
	case map[string]any:
		return appendMap(b, v)
	case Members:
		b = append(b, "<value><struct>"...)
		for _, m := range v {
			b = appendMember(b, m.Name, m.Value)
		}
		return append(b, "</struct></value>"...)
	case Record:
		b = append(b, "<value><struct>"...)
		for i, name := range v.Names {
			b = appendMember(b, name, v.Values[i])
		}
		return append(b, "</struct></value>"...)
	default:
		return append(b, "<value></value>"...)
	}
}

func appendArray[T any](b []byte, v []T) []byte {
	b = append(b, "<value><array><data>"...)
	for _, e := range v {
		b = Append(b, e)
	}
	return append(b, "</data></array></value>"...)
}

func appendMap[T any](b []byte, m map[string]T) []byte {
	b = append(b, "<value><struct>"...)
	if len(m) > 0 {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			b = appendMember(b, k, m[k])
		}
	}
	return append(b, "</struct></value>"...)
}

func appendMember(b []byte, name string, v any) []byte {
	b = appendText(append(b, "<member><name>"...), name)
	b = append(b, "</name>"...)
	return append(Append(b, v), "</member>"...)
}

// AppendFloat appends f as C's "%.16g" prints it.
func AppendFloat(b []byte, f float64) []byte {
	return strconv.AppendFloat(b, f, 'g', 16, 64)
}

// escapes says how a byte is written: itself where there is no entry, nothing
// where the entry is empty (control characters, which XAPI drops).
var escapes = func() (t [256]*string) {
	drop, amp, lt, gt, quot := "", "&amp;", "&lt;", "&gt;", "&quot;"
	for c := range 0x20 {
		t[c] = &drop
	}
	t['\t'], t['\n'], t['\r'] = nil, nil, nil
	t['&'], t['<'], t['>'], t['"'] = &amp, &lt, &gt, &quot
	return t
}()

// appendText escapes s and drops the control characters that XAPI drops.
func appendText(b []byte, s string) []byte {
	start := 0
	for i := range len(s) {
		if esc := escapes[s[i]]; esc != nil {
			b = append(append(b, s[start:i]...), *esc...)
			start = i + 1
		}
	}
	return append(b, s[start:]...)
}

// room guesses the size of a result, so that large ones are not copied often.
func room(v any) int {
	switch v := v.(type) {
	case map[string]any:
		for _, e := range v {
			return 256 + len(v)*room(e)*5/4
		}
	case []any:
		if len(v) > 0 {
			return 256 + len(v)*room(v[0])*5/4
		}
	case Members:
		return len(v) * 90
	case Record:
		return len(v.Names) * 90
	}
	return 512
}

const (
	responseHead = `<?xml version="1.0"?><methodResponse><params><param>`
	responseTail = `</param></params></methodResponse>`
)

// AppendSuccess appends a whole response that carries the result v.
func AppendSuccess(b []byte, v any) []byte {
	b = append(slices.Grow(b, room(v)), responseHead...)
	b = Append(b, Members{{"Status", "Success"}, {"Value", v}})
	return append(b, responseTail...)
}

// AppendFailure appends a whole response that carries an error: its code and
// parameters.
func AppendFailure(b []byte, description []string) []byte {
	b = append(b, responseHead...)
	b = Append(b, Members{{"Status", "Failure"}, {"ErrorDescription", description}})
	return append(b, responseTail...)
}

// AppendBare appends a response without XAPI's envelope, as system.listMethods
// gives it.
func AppendBare(b []byte, v any) []byte {
	b = append(b, responseHead...)
	b = Append(b, v)
	return append(b, responseTail...)
}
