package xapi

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Bounds of a reply. The records of all VMs of a large pool, with their NVRAM, stay far below.
const (
	maxReply  = 256 << 20 // bytes
	maxDepth  = 64        // nested values
	maxValues = 16 << 20  // values in a reply
)

var errMalformed = errors.New("malformed XML-RPC")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %w: %s", ErrProtocol, errMalformed, fmt.Sprintf(format, args...))
}

// decodeReply reads a methodResponse. A failure of XAPI is *Error; all else that is wrong is ErrProtocol, or the
// reader's own error. system.listMethods, whose answer has no envelope, is not among the calls made here.
func decodeReply(r io.Reader) (Value, error) {
	d := newDecoder(r)
	for _, name := range []string{"methodResponse", "params|fault"} {
		el, err := d.start()
		if err != nil {
			return Value{}, err
		}
		if !strings.Contains("|"+name+"|", "|"+el+"|") {
			return Value{}, malformed("element %q where %s is due", el, name)
		}
		if el == "fault" {
			return Value{}, d.fault()
		}
	}
	if err := d.startOf("param"); err != nil {
		return Value{}, err
	}
	v, err := d.soleValue("param")
	if err != nil {
		return Value{}, err
	}
	for _, name := range []string{"params", "methodResponse"} {
		if err := d.end(name); err != nil {
			return Value{}, err
		}
	}
	if err := d.nothing(); err != nil {
		return Value{}, err
	}
	return openEnvelope(v)
}

// decodeFragment reads a single value, as in the result of a task.
func decodeFragment(text string) (Value, error) {
	d := newDecoder(strings.NewReader(text))
	if err := d.startOf("value"); err != nil {
		return Value{}, err
	}
	v, err := d.value(0)
	if err != nil {
		return Value{}, err
	}
	return Value{v}, d.nothing()
}

// openEnvelope takes the value out of {Status, Value} or the failure out of {Status, ErrorDescription}.
func openEnvelope(v any) (Value, error) {
	env, ok := v.(map[string]any)
	if !ok {
		return Value{}, malformed("reply is no struct")
	}
	switch env["Status"] {
	case "Success":
		return Value{env["Value"]}, nil
	case "Failure":
		words, err := (Value{env["ErrorDescription"]}).Strings()
		if err != nil || len(words) == 0 || words[0] == "" {
			return Value{}, malformed("failure without a description")
		}
		return Value{}, &Error{Code: words[0], Params: words[1:]}
	}
	return Value{}, malformed("reply has no status")
}

// decoder reads XML-RPC values from a stream of tokens. Names of name spaces are ignored.
type decoder struct {
	x      *xml.Decoder
	src    *source
	values int
}

// source keeps the reader's error apart from those that the XML decoder finds in the text.
type source struct {
	r   io.Reader
	err error
}

// Read implements io.Reader.
func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

func newDecoder(r io.Reader) *decoder {
	src := &source{r: r}
	x := xml.NewDecoder(src)
	x.Entity = map[string]string{}
	return &decoder{x: x, src: src}
}

// token gives the next token that means something: no comments or processing instructions. Declarations, which could
// define entities, are refused.
func (d *decoder) token() (xml.Token, error) {
	for {
		tok, err := d.x.Token()
		if err != nil {
			return nil, d.tokenError(err)
		}
		switch tok.(type) {
		case xml.Comment, xml.ProcInst:
			continue
		case xml.Directive:
			return nil, malformed("declaration in the reply")
		}
		return tok, nil
	}
}

// tokenError keeps errors of the reader apart from those of the text.
func (d *decoder) tokenError(err error) error {
	switch {
	case d.src.err != nil:
		return d.src.err
	case errors.Is(err, io.EOF):
		return malformed("it ends too early")
	}
	return malformed("%s", clip(err.Error()))
}

// start gives the name of the element that begins next; only blanks may stand before it.
func (d *decoder) start() (string, error) {
	for {
		tok, err := d.token()
		if err != nil {
			return "", err
		}
		switch t := tok.(type) {
		case xml.StartElement:
			return t.Name.Local, nil
		case xml.CharData:
			if blank(t) {
				continue
			}
		}
		return "", malformed("an element is missing")
	}
}

// startOf reads the start of the element of that name.
func (d *decoder) startOf(name string) error {
	el, err := d.start()
	if err == nil && el != name {
		err = malformed("element %q where %s is due", clip(el), name)
	}
	return err
}

// end reads the end of an element; only blanks may stand before it.
func (d *decoder) end(name string) error {
	for {
		tok, err := d.token()
		if err != nil {
			return err
		}
		switch t := tok.(type) {
		case xml.EndElement:
			return nil // the XML decoder has seen to it that it is the one of name
		case xml.CharData:
			if blank(t) {
				continue
			}
		}
		return malformed("more in %s than is due", name)
	}
}

// nothing makes sure that nothing follows.
func (d *decoder) nothing() error {
	for {
		tok, err := d.x.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return d.tokenError(err)
		}
		if t, ok := tok.(xml.CharData); ok && blank(t) {
			continue
		}
		if _, ok := tok.(xml.Comment); ok {
			continue
		}
		return malformed("something follows the reply")
	}
}

func blank(b []byte) bool { return strings.TrimSpace(string(b)) == "" }

// soleValue reads the one value in an element, and the element's end.
func (d *decoder) soleValue(in string) (any, error) {
	if err := d.startOf("value"); err != nil {
		return nil, err
	}
	v, err := d.value(0)
	if err != nil {
		return nil, err
	}
	return v, d.end(in)
}

// fault gives the error that an XML-RPC fault is: XAPI never answers one.
func (d *decoder) fault() error {
	v, err := d.soleValue("fault")
	if err != nil {
		return err
	}
	m, _ := v.(map[string]any)
	return fmt.Errorf("%w: fault %s: %s", ErrProtocol, Value{m["faultCode"]}, clip(Value{m["faultString"]}.String()))
}

// clip shortens a text of a peer for a message.
func clip(s string) string {
	const most = 300
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return strings.Join(strings.Fields(s), " ")
}
