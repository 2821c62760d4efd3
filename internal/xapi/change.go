package xapi

import (
	"context"
	"fmt"
	"strings"
)

// Change is a call that changes something at XAPI, after it was made.
type Change struct {
	// Method is the call without "Async.", or "import" for an archive sent to /import.
	Method string
	// Object is the reference that the call is about and, of a map's entry, its key; never values. It may be empty.
	Object []string
	// Err is why it failed; nil also for a task that was accepted and may fail later. With ErrUnreachable the call may
	// have been carried out.
	Err error
}

// objectLength bounds what Change tells of an argument, in bytes.
const objectLength = 128

// tell hands a call that is no reading one to Config.Changed.
func (c *Client) tell(ctx context.Context, method string, args []any, err error) {
	if c.cfg.Changed == nil || !changes(method) {
		return
	}
	change := Change{Method: strings.TrimPrefix(method, "Async."), Err: err}
	if len(args) > 0 {
		if ref, ok := args[0].(Ref); ok {
			change.Object = append(change.Object, shortened(string(ref)))
		}
	}
	if _, verb, _ := strings.Cut(change.Method, "."); len(args) > 1 && entryCall(verb) {
		if key, ok := args[1].(string); ok {
			change.Object = append(change.Object, shortened(key))
		}
	}
	c.cfg.Changed(ctx, change)
}

// admit asks Config.Admit about a call that is no reading one.
func (c *Client) admit(ctx context.Context, method string) error {
	if c.cfg.Admit == nil || !changes(method) {
		return nil
	}
	if err := c.cfg.Admit(ctx, strings.TrimPrefix(method, "Async.")); err != nil {
		return fmt.Errorf("not called: %w", err)
	}
	return nil
}

// changes tells whether a call changes more than this client's own session and tasks, by XAPI's naming of its calls.
func changes(method string) bool {
	class, verb, _ := strings.Cut(strings.TrimPrefix(method, "Async."), ".")
	switch class {
	case "session", "event":
		return false
	case "task":
		return verb == "cancel"
	}
	return !strings.HasPrefix(verb, "get_") && !strings.HasPrefix(verb, "assert_")
}

// entryCall tells whether a call's second argument is the key of a map's entry or a member of a set, no value.
func entryCall(verb string) bool {
	return strings.HasPrefix(verb, "add_") || strings.HasPrefix(verb, "remove_")
}

func shortened(s string) string {
	if len(s) <= objectLength {
		return s
	}
	return strings.ToValidUTF8(s[:objectLength], "") + "…"
}
