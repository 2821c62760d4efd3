package xva

import (
	"fmt"
	"unicode/utf8"
)

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
