package agent

import (
	"context"

	"github.com/hashicorp/go-hclog"

	"github.com/dpxen/dpxen/internal/xapi"
)

// actor is on whose behalf something is done. Without a controller it is the agent itself: its sweeps and watches.
type actor struct {
	Controller  string // the name in its certificate
	Session, VM string // where one is known
}

type actorKey struct{}

// on returns a context whose changes are done for the actor.
func (by actor) on(ctx context.Context) context.Context {
	return context.WithValue(ctx, actorKey{}, by)
}

// audit writes a line for every call of a controller that may change something, and for every change at XAPI that came
// of it: who, for which session and VM, what, and with what result. The lines go to the agent's log under the name
// "audit", at level info, which can be kept apart by that name. Values that are written to XAPI are never in them.
type audit struct{ log hclog.Logger }

// called notes a controller's call, before anything is done for it.
func (t audit) called(what string, by actor, more ...any) {
	t.log.Info("called", append([]any{"call", what, "by", by.Controller, "session", by.Session, "vm", by.VM}, more...)...)
}

// changed notes a change at XAPI, after the call.
func (t audit) changed(ctx context.Context, c xapi.Change) {
	by, _ := ctx.Value(actorKey{}).(actor)
	line := []any{"call", c.Method, "object", c.Object, "by", by.Controller, "session", by.Session, "vm", by.VM, "ok", c.Err == nil}
	if c.Err != nil {
		line = append(line, "err", c.Err)
	}
	t.log.Info("changed", line...)
}
