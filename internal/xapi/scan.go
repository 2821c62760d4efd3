package xapi

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"strings"
	"sync"
)

// scanner splits XML-RPC into elements and text. It knows of XML what XML-RPC needs (docs/adr/0015): elements, attributes,
// character references, CDATA, comments, and a declaration of UTF-8. It refuses the rest, declarations of types and
// entities first of all, and holds no more of the stream than a buffer and one text.
type scanner struct {
	r        io.Reader
	lent     *[scanBuffer]byte
	buf      []byte   // all of lent
	pos, end int      // what is in buf and not used yet
	err      error    // of the reader; told when all that it gave is used
	open     []string // elements that were begun and have not ended, as they were written
	begun    bool     // an element was
	closed   bool     // the element that was begun last has no more than its start
	name     string   // of the element that begins, without its name space
	text     []byte   // until the next token
	scratch  []byte   // for texts that are not in buf as they are meant
}

// token is a kind of thing in the stream.
type token int

const (
	tokenEnd   token = iota // the end of the element that was begun last
	tokenStart              // of the element scanner.name
	tokenText               // scanner.text; a text may come in several parts
	tokenNone               // the end of the stream, outside all elements
)

const (
	scanBuffer = 16 << 10 // bytes
	maxName    = 256      // bytes of the name of an element or attribute, or of a character reference
)

// scanBuffers are lent from call to call: there are many, and most replies are short.
var scanBuffers = sync.Pool{New: func() any { return new([scanBuffer]byte) }}

// newScanner returns a scanner of r, which is released when all that is wanted was read.
func newScanner(r io.Reader) *scanner {
	lent := scanBuffers.Get().(*[scanBuffer]byte)
	return &scanner{r: r, lent: lent, buf: lent[:]}
}

// release gives the buffer back. What was read stays, but for text and words that are valid until the next token only.
func (s *scanner) release() {
	scanBuffers.Put(s.lent)
	s.lent, s.buf, s.text = nil, nil, nil
}

// next gives the next token. Errors are ErrProtocol, or the reader's.
func (s *scanner) next() (token, error) {
	if s.closed {
		s.closed = false
		return s.pop(), nil
	}
	for {
		b, err := s.byte()
		switch {
		case err == nil:
		case errors.Is(err, errEnds) && len(s.open) == 0:
			return tokenNone, nil
		default:
			return 0, err
		}
		if b != '<' {
			s.pos--
			s.text, err = s.plainText()
			return tokenText, err
		}
		if b, err = s.byte(); err != nil {
			return 0, err
		}
		switch b {
		case '/':
			return s.endTag()
		case '?':
			err = s.instruction()
		case '!':
			var text bool
			if text, err = s.marked(); text {
				return tokenText, err
			}
		default:
			s.pos--
			return s.startTag()
		}
		if err != nil {
			return 0, err
		}
	}
}

// errEnds is the end of the stream.
var errEnds = malformed("it ends too early")

// more reads on, and keeps what was not used; s.pos is 0 then.
func (s *scanner) more() error {
	if s.err != nil {
		return s.err
	}
	s.end = copy(s.buf, s.buf[s.pos:s.end])
	s.pos = 0
	for range 100 { // as often as bufio bears with a reader that gives nothing
		n, err := s.r.Read(s.buf[s.end:])
		s.end += n
		if errors.Is(err, io.EOF) {
			err = errEnds
		}
		s.err = err
		if n > 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
	s.err = io.ErrNoProgress
	return s.err
}

// byte takes the next one.
func (s *scanner) byte() (byte, error) {
	if s.pos == s.end {
		if err := s.more(); err != nil {
			return 0, err
		}
	}
	s.pos++
	return s.buf[s.pos-1], nil
}

// afterSpace takes the next byte that is no white space.
func (s *scanner) afterSpace() (byte, error) {
	for {
		b, err := s.byte()
		if err != nil || b != ' ' && b != '\n' && b != '\r' && b != '\t' {
			return b, err
		}
	}
}

// word takes the longest word of name bytes, which may be empty and is valid until the next byte is taken.
func (s *scanner) word() ([]byte, error) {
	for n := 0; ; {
		for s.pos+n < s.end && classes[s.buf[s.pos+n]]&inName != 0 {
			n++
		}
		if n > maxName {
			return nil, malformed("name of more than %d bytes", maxName)
		}
		if s.pos+n < s.end {
			s.pos += n
			return s.buf[s.pos-n : s.pos], nil
		}
		if err := s.more(); err != nil {
			return nil, err
		}
	}
}

// localName is a name without its name space. It fails for what is no name of an element.
func localName(name string) (string, error) {
	if name == "" || classes[name[0]]&startsName == 0 || strings.Count(name, ":") > 1 {
		return "", malformed("element with the name %q", name)
	}
	if space, local, found := strings.Cut(name, ":"); found && space != "" && local != "" {
		return local, nil
	}
	return name, nil
}

// startTag reads the rest of an element's start, from its name on.
func (s *scanner) startTag() (token, error) {
	word, err := s.word()
	if err != nil {
		return 0, err
	}
	raw, known := usual(word)
	if s.name = raw; !known {
		raw = string(word)
		if s.name, err = localName(raw); err != nil {
			return 0, err
		}
	}
	s.open = append(s.open, raw)
	s.begun = true
	for {
		b, err := s.afterSpace()
		if err == nil && b == '/' {
			s.closed = true
			if b, err = s.byte(); err == nil && b != '>' {
				err = malformed("start of element %q", clip(raw))
			}
		}
		if err != nil || b == '>' {
			return tokenStart, err
		}
		s.pos--
		if err := s.attribute(); err != nil {
			return 0, err
		}
	}
}

// usual gives a name that needs no look and no memory.
func usual(name []byte) (string, bool) {
	switch string(name) {
	case "value":
		return "value", true
	case "member":
		return "member", true
	case "name":
		return "name", true
	case "boolean":
		return "boolean", true
	case "struct":
		return "struct", true
	case "array":
		return "array", true
	case "data":
		return "data", true
	case "dateTime.iso8601":
		return "dateTime.iso8601", true
	}
	return "", false
}

// attribute reads an attribute, which means nothing here.
func (s *scanner) attribute() error {
	word, err := s.word()
	if err == nil {
		_, err = localName(string(word))
	}
	if err != nil {
		return err
	}
	if b, err := s.afterSpace(); err != nil || b != '=' {
		return orMalformed(err, "attribute without a value")
	}
	quote, err := s.afterSpace()
	if err != nil || quote != '"' && quote != '\'' {
		return orMalformed(err, "attribute without quotes")
	}
	_, err = s.specialText(quote)
	return err
}

func orMalformed(err error, text string) error {
	if err == nil {
		err = malformed("%s", text)
	}
	return err
}

// endTag reads the rest of an element's end, from its name on.
func (s *scanner) endTag() (token, error) {
	word, err := s.word()
	if err != nil {
		return 0, err
	}
	if n := len(s.open); n == 0 || s.open[n-1] != string(word) {
		return 0, malformed("end of element %q, which is not the one to end", clip(string(word)))
	}
	if b, err := s.afterSpace(); err != nil || b != '>' {
		return 0, orMalformed(err, "end of an element that does not end")
	}
	return s.pop(), nil
}

func (s *scanner) pop() token {
	s.open = s.open[:len(s.open)-1]
	return tokenEnd
}

// xmlDeclaration is what may stand between <?xml and ?>.
var xmlDeclaration = regexp.MustCompile(`^version=("1\.0"|'1\.0')(\s+encoding=("(?i:utf-8)"|'(?i:utf-8)'))?(\s+standalone=("yes"|'yes'|"no"|'no'))?\s*$`)

// instruction passes over a processing instruction, and refuses a declaration of another version or encoding.
func (s *scanner) instruction() error {
	word, err := s.word()
	if err != nil {
		return err
	}
	target := string(word)
	if _, err := localName(target); err != nil {
		return err
	}
	if s.begun && len(s.open) == 0 {
		return malformed("something follows the reply")
	}
	const most = 1024
	var text []byte
	for !bytes.HasSuffix(text, []byte("?>")) {
		b, err := s.byte()
		if err != nil {
			return err
		}
		if text = append(text, b); len(text) > most {
			return malformed("processing instruction of more than %d bytes", most)
		}
	}
	if text := strings.TrimSpace(strings.TrimSuffix(string(text), "?>")); target == "xml" && !xmlDeclaration.MatchString(text) {
		return malformed("XML declaration %q", clip(text))
	}
	return nil
}
