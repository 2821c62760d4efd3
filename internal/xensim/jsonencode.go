package xensim

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strconv"

	"github.com/dpxen/dpxen/internal/xensim/model"
	"github.com/dpxen/dpxen/internal/xensim/xmlrpc"
)

// encodeJSON writes the answer to a JSON-RPC call, in the version of its request.
func encodeJSON(in jsonCall, v any, err error) []byte {
	b := make([]byte, 0, 1024)
	v2 := in.v2
	if v2 {
		b = append(b, `{"jsonrpc":"2.0",`...)
	} else {
		b = append(b, '{')
	}
	switch {
	case err == nil:
		b = appendJSON(append(b, `"result":`...), v)
		if !v2 {
			b = append(b, `,"error":null`...)
		}
	case v2:
		f := failureOf(err)
		b = appendJSON(append(b, `"error":`...), xmlrpc.Members{
			{Name: "code", Value: int64(1)}, {Name: "message", Value: f.Code}, {Name: "data", Value: f.Params},
		})
	default:
		b = appendJSON(append(b, `"result":null,"error":`...), failureOf(err).description())
	}
	return append(append(append(b, `,"id":`...), in.ID...), '}')
}

// appendJSON appends v as XAPI writes it: dates as strings, nothing as an empty
// string. It knows the types that xmlrpc.Append knows.
func appendJSON(b []byte, v any) []byte {
	switch v := v.(type) {
	case string:
		return appendJSONString(b, v)
	case model.DateTime:
		return appendJSONString(b, string(v))
	case int64:
		return strconv.AppendInt(b, v, 10)
	case xmlrpc.Int32:
		return strconv.AppendInt(b, int64(v), 10)
	case float64:
		return appendJSONFloat(b, v)
	case bool:
		return strconv.AppendBool(b, v)
	case []string:
		return appendJSONArray(b, v)
	case []int64:
		return appendJSONArray(b, v)
	case []any:
		return appendJSONArray(b, v)
	case map[string]string:
		return appendJSONMap(b, v)
	case map[string]any:
		return appendJSONMap(b, v)
	case xmlrpc.Members:
		b = append(b, '{')
		for i, m := range v {
			b = appendJSONMember(b, i, m.Name, m.Value)
		}
		return append(b, '}')
	case xmlrpc.Record:
		b = append(b, '{')
		for i, name := range v.Names {
			b = appendJSONMember(b, i, name, v.Values[i])
		}
		return append(b, '}')
	}
	return append(b, `""`...)
}

// appendJSONFloat appends a number that is seen to be a float: clients in typed
// languages tell 1.0 from 1.
func appendJSONFloat(b []byte, f float64) []byte {
	start := len(b)
	b = xmlrpc.AppendFloat(b, f)
	if bytes.ContainsAny(b[start:], ".e") {
		return b
	}
	return append(b, ".0"...)
}

func appendJSONArray[T any](b []byte, v []T) []byte {
	b = append(b, '[')
	for i, e := range v {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendJSON(b, e)
	}
	return append(b, ']')
}

func appendJSONMap[T any](b []byte, m map[string]T) []byte {
	b = append(b, '{')
	if len(m) > 0 {
		for i, k := range slices.Sorted(maps.Keys(m)) {
			b = appendJSONMember(b, i, k, m[k])
		}
	}
	return append(b, '}')
}

func appendJSONMember(b []byte, i int, name string, v any) []byte {
	if i > 0 {
		b = append(b, ',')
	}
	return appendJSON(append(appendJSONString(b, name), ':'), v)
}

// appendJSONString quotes s; what needs escapes is left to package json.
func appendJSONString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' {
			q, err := json.Marshal(s)
			if err != nil { // a string always has a form in JSON
				return append(b, `""`...)
			}
			return append(b, q...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}
