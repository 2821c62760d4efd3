package xapi

import (
	"bytes"
	"errors"
	"strconv"
	"unicode"
	"unicode/utf8"
)

// What a byte may be. Bytes beyond ASCII are nothing of this.
const (
	isPlain    = 1 << iota // means itself in text, whatever stands beside it
	inName                 // may be in a name
	startsName             // may be the first of one
)

// classes says what every byte may be.
var classes = func() (c [256]uint8) {
	for b := byte(' '); b < utf8.RuneSelf; b++ {
		c[b] = isPlain
	}
	c['\t'], c['\n'] = isPlain, isPlain
	for _, b := range []byte("<>&]") {
		c[b] = 0
	}
	for b := byte('0'); b <= 'z'; b++ {
		switch {
		case '0' <= b && b <= '9':
			c[b] |= inName
		case 'A' <= b && b <= 'Z', 'a' <= b, b == '_', b == ':':
			c[b] |= inName | startsName
		}
	}
	c['.'] |= inName
	c['-'] |= inName
	return c
}()

// plainText reads text up to the element that begins or ends next, or the end of the stream. What needs no work is not
// copied.
func (s *scanner) plainText() ([]byte, error) {
	for i, b := range s.buf[s.pos:s.end] {
		if classes[b]&isPlain != 0 {
			continue
		}
		if b == '<' {
			s.pos += i
			return s.buf[s.pos-i : s.pos], nil
		}
		break
	}
	return s.specialText(0)
}

// specialText reads text with whatever occurs in text: of an element, or of an attribute up to its closing quote.
func (s *scanner) specialText(quote byte) ([]byte, error) {
	out := s.scratch[:0]
	defer func() { s.scratch = out }()
	for {
		run := s.pos
		for run < s.end && classes[s.buf[run]]&isPlain != 0 && (quote == 0 || s.buf[run] != quote) {
			run++
		}
		out = append(out, s.buf[s.pos:run]...)
		s.pos = run
		b, err := s.byte()
		switch {
		case err != nil && (quote != 0 || !errors.Is(err, errEnds)):
			return nil, err
		case err != nil:
			return out, checkChars(out)
		case quote != 0 && b == quote:
			return out, checkChars(out)
		case b == '<' && quote != 0:
			return nil, malformed("< in an attribute")
		case b == '<':
			s.pos--
			return out, checkChars(out)
		case b == '&':
			out, err = s.reference(out)
		case b == '\r':
			out, err = s.lineEnd(out)
		case b == ']' && quote == 0:
			out, err = s.brackets(out)
		default:
			out = append(out, b)
		}
		if err != nil {
			return nil, err
		}
	}
}

// lineEnd reads the rest of a line's end: \r\n and \r mean \n.
func (s *scanner) lineEnd(out []byte) ([]byte, error) {
	out = append(out, '\n')
	b, err := s.byte()
	if err == nil && b != '\n' {
		s.pos--
	}
	if errors.Is(err, errEnds) { // which the next byte tells
		err = nil
	}
	return out, err
}

// brackets reads on after a closing bracket, and refuses the end of a CDATA section outside of one.
func (s *scanner) brackets(out []byte) ([]byte, error) {
	out = append(out, ']')
	for n := 1; ; n++ {
		b, err := s.byte()
		switch {
		case errors.Is(err, errEnds): // which the next byte tells
			return out, nil
		case err != nil:
			return out, err
		case b == '>' && n > 1:
			return out, malformed("]]> in text")
		case b != ']':
			s.pos--
			return out, nil
		}
		out = append(out, b)
	}
}

// reference reads the rest of a character reference. There are no others but the five of XML itself.
func (s *scanner) reference(out []byte) ([]byte, error) {
	var word []byte
	for {
		b, err := s.byte()
		switch {
		case err != nil:
			return out, err
		case b == ';':
			r, known := referred(string(word))
			if !known {
				return out, malformed("reference %q", clip(string(word)))
			}
			return utf8.AppendRune(out, r), nil
		case b != '#' && classes[b]&inName == 0:
			return out, malformed("reference %q without an end", clip(string(word)))
		case len(word) == maxName:
			return out, malformed("name of more than %d bytes", maxName)
		}
		word = append(word, b)
	}
}

// referred is the character that a reference means.
func referred(word string) (rune, bool) {
	switch word {
	case "lt":
		return '<', true
	case "gt":
		return '>', true
	case "amp":
		return '&', true
	case "apos":
		return '\'', true
	case "quot":
		return '"', true
	}
	base, digits := 10, ""
	switch {
	case len(word) > 2 && word[:2] == "#x":
		base, digits = 16, word[2:]
	case len(word) > 1 && word[0] == '#':
		digits = word[1:]
	}
	n, err := strconv.ParseUint(digits, base, 32)
	return rune(n), err == nil && n <= unicode.MaxRune
}

// checkChars refuses what is no UTF-8 or no character of XML.
func checkChars(text []byte) error {
	for len(text) > 0 {
		r, size := rune(text[0]), 1
		if r >= utf8.RuneSelf {
			if r, size = utf8.DecodeRune(text); r == utf8.RuneError && size == 1 {
				return malformed("invalid UTF-8")
			}
		}
		switch {
		case r < ' ' && r != '\t' && r != '\n' && r != '\r', r == 0xFFFE, r == 0xFFFF:
			return malformed("character %U", r)
		}
		text = text[size:]
	}
	return nil
}

// marked reads what begins with <!, of which only comments, which are passed over, and CDATA sections are taken: declarations
// could define entities. It reports whether there is text.
func (s *scanner) marked() (text bool, err error) {
	b, err := s.byte()
	rest := "CDATA["
	if b == '-' {
		rest = "-"
	} else if err == nil && b != '[' {
		return false, malformed("declaration in the reply")
	}
	for i := 0; err == nil && i < len(rest); i++ {
		var got byte
		if got, err = s.byte(); err == nil && got != rest[i] {
			err = malformed("declaration in the reply")
		}
	}
	if err != nil {
		return false, err
	}
	if b == '-' {
		return false, s.comment()
	}
	s.text, err = s.section()
	return true, err
}

// section reads the rest of a CDATA section.
func (s *scanner) section() ([]byte, error) {
	out := s.scratch[:0]
	defer func() { s.scratch = out }()
	for {
		b, err := s.byte()
		if err == nil && b == '\r' {
			out, err = s.lineEnd(out)
		} else if err == nil {
			out = append(out, b)
		}
		if err != nil {
			return nil, err
		}
		if text, ends := bytes.CutSuffix(out, []byte("]]>")); b == '>' && ends {
			return text, checkChars(text)
		}
	}
}

// comment passes over the rest of a comment.
func (s *scanner) comment() error {
	for dashes := 0; ; {
		b, err := s.byte()
		switch {
		case err != nil:
			return err
		case b == '>' && dashes >= 2:
			return nil
		case dashes >= 2:
			return malformed("-- in a comment")
		case b == '-':
			dashes++
		default:
			dashes = 0
		}
	}
}
