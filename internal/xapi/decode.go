package xapi

import (
	"bytes"
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
func decodeReply(r io.Reader) (Value, error) { return decodeRecords(r, nil) }

// decodeRecords is decodeReply for a map of records of which only the fields keep are wanted; nil for all.
func decodeRecords(r io.Reader, keep map[string]bool) (Value, error) {
	d := newDecoder(r)
	defer d.release()
	d.keep = keep
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
		if err := d.ends(name); err != nil {
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
	defer d.release()
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

// decoder reads XML-RPC values. Names of name spaces are ignored.
type decoder struct {
	*scanner
	values int
	// keep names the fields of records that are wanted, in a reply that is a map of records; nil keeps all. Values of the others
	// are checked like all, and dropped.
	keep     map[string]bool
	dropping bool
	part     []byte            // of a text
	words    map[string]string // short texts that occurred: names and states come by the thousand
}

func newDecoder(r io.Reader) *decoder {
	return &decoder{scanner: newScanner(r), words: map[string]string{}}
}

// start gives the name of the element that begins next; only blanks may stand before it.
func (d *decoder) start() (string, error) {
	for {
		tok, err := d.next()
		switch {
		case err != nil:
			return "", err
		case tok == tokenStart:
			return d.name, nil
		case tok == tokenNone:
			return "", errEnds
		case tok == tokenEnd || !blank(d.text):
			return "", malformed("an element is missing")
		}
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

// ends reads the end of the element of that name; only blanks may stand before it.
func (d *decoder) ends(name string) error {
	for {
		tok, err := d.next()
		switch {
		case err != nil:
			return err
		case tok == tokenEnd:
			return nil // the scanner has seen to it that it is the one of name
		case tok == tokenNone:
			return errEnds
		case tok == tokenStart || !blank(d.text):
			return malformed("more in %s than is due", name)
		}
	}
}

// nothing makes sure that nothing follows.
func (d *decoder) nothing() error {
	for {
		tok, err := d.next()
		switch {
		case err != nil:
			return err
		case tok == tokenNone:
			return nil
		case tok != tokenText || !blank(d.text):
			return malformed("something follows the reply")
		}
	}
}

func blank(b []byte) bool { return len(bytes.TrimSpace(b)) == 0 }

// soleValue reads the one value in an element, and the element's end.
func (d *decoder) soleValue(in string) (any, error) {
	if err := d.startOf("value"); err != nil {
		return nil, err
	}
	v, err := d.value(0)
	if err != nil {
		return nil, err
	}
	return v, d.ends(in)
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
