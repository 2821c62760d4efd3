package xapi

import (
	"encoding/xml"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/amfranz/go-xmlrpc-client"
)

// methodName is what the library may be given: it does not escape it.
var methodName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)+$`)

// encodeArgs turns arguments into what the library writes correctly.
func encodeArgs(args []any) ([]any, error) {
	out := make([]any, len(args))
	for i, a := range args {
		v, err := encodeValue(a)
		if err != nil {
			return nil, fmt.Errorf("argument %d: %w", i+1, err)
		}
		out[i] = v
	}
	return out, nil
}

// encodeValue turns one argument into the library's types. Integers and times become strings, which XAPI takes for
// both (reference section 1.4): the library has no correct format for times, and real clients send integers so.
func encodeValue(a any) (any, error) {
	switch v := a.(type) {
	case string:
		return encodeString(v)
	case Ref:
		if v == "" {
			v = NullRef
		}
		return encodeString(string(v))
	case bool:
		return v, nil
	case int:
		return strconv.Itoa(v), nil
	case int64:
		return strconv.FormatInt(v, 10), nil
	case float64:
		return v, nil
	case time.Time:
		return formatTime(v), nil
	case []string:
		return encodeList(v)
	case []Ref:
		return encodeList(v)
	case []any:
		return encodeList(v)
	case map[string]string:
		return encodeStruct(v)
	case map[string]any:
		return encodeStruct(v)
	case Record:
		return encodeStruct(v)
	}
	return nil, fmt.Errorf("%T cannot be sent to XAPI", a)
}

func encodeString(s string) (string, error) {
	if !utf8.ValidString(s) {
		return "", errors.New("text is not UTF-8") // not shown: it may be a password
	}
	return s, nil
}

func encodeList[T any](list []T) ([]any, error) {
	out := make([]any, len(list))
	for i, x := range list {
		v, err := encodeValue(x)
		if err != nil {
			return nil, err
		}
		out[i] = v
	}
	return out, nil
}

// encodeStruct makes the library's struct type of a map. The library does not escape names, so that is done here.
func encodeStruct[T any](m map[string]T) (xmlrpc.Struct, error) {
	out := make(xmlrpc.Struct, len(m))
	for k, x := range m {
		v, err := encodeValue(x)
		if err != nil {
			return nil, fmt.Errorf("field %q: %w", k, err)
		}
		if _, err := encodeString(k); err != nil {
			return nil, err
		}
		var name strings.Builder
		if err := xml.EscapeText(&name, []byte(k)); err != nil {
			return nil, fmt.Errorf("field %q: %w", k, err)
		}
		out[name.String()] = v
	}
	return out, nil
}
