package xensim

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/dpxen/dpxen/internal/xensim/model"
)

// call is one API call in execution.
type call struct {
	pool *Pool
	// ctx ends when the pool closes or the call's task is cancelled; a client that
	// hangs up does not end a call, as in XAPI.
	ctx  context.Context
	host *simHost
	// local says that the call came over the unix socket, byHA that HA makes it.
	local   bool
	byHA    bool
	session string
	// task is the reference under which the call holds objects busy.
	task   string
	method string
}

// handler runs a call. Its arguments have the types that the model documents.
type handler func(c *call, args []any) (any, error)

// method is an entry of the dispatcher's table.
type method struct {
	name    string
	session bool
	async   bool
	// member says that a pool member answers too, not only the master.
	member bool
	params []model.Param
	// void says that the result is nothing, so that a task's result stays empty.
	void bool
	run  handler
}

// request is a call as a protocol decoded it.
type request struct {
	host   *simHost
	local  bool
	method string
	params []any
}

// listMethods is the one call whose XML-RPC answer has no envelope.
const listMethods = "system.listMethods"

// dispatch runs a call of any protocol and gives its result or a *Failure.
func (p *Pool) dispatch(r request) (any, error) {
	p.count(r.method)
	if r.method == listMethods {
		return p.methodNames(), nil
	}
	if err := p.lag(p.ctx, r.host.ref); err != nil {
		return nil, fail("HOST_STILL_BOOTING")
	}
	if err := p.faultOnCall(r); err != nil {
		return nil, err
	}
	name, async := strings.CutPrefix(r.method, "Async.")
	m := p.methods[name]
	if m == nil || async && !m.async {
		return nil, fail("MESSAGE_METHOD_UNKNOWN", r.method)
	}
	session, args, err := m.arguments(r.method, r.params)
	if err != nil {
		return nil, err
	}
	c := &call{pool: p, ctx: p.ctx, host: r.host, local: r.local, session: session, method: name}
	if m.session {
		if err := c.checkSession(m.member, args); err != nil {
			return nil, err
		}
	}
	if async {
		return p.startAsync(c, m, args)
	}
	c.task = "DummyRef:|" + randomUUID() + "|" + name
	defer p.checkAfter(m.name)
	return m.run(c, args)
}

// arguments takes the session off, counts and types the rest.
func (m *method) arguments(name string, params []any) (string, []any, error) {
	required := 0
	for _, p := range m.params {
		if !p.Optional {
			required++
		}
	}
	session, received := "", len(params)
	if m.session {
		received--
	}
	if received < required || received > len(m.params) {
		return "", nil, fail("MESSAGE_PARAMETER_COUNT_MISMATCH", name, strconv.Itoa(required), strconv.Itoa(received))
	}
	if m.session {
		s, ok := params[0].(string)
		if !ok {
			return "", nil, fail("FIELD_TYPE_ERROR", "session_id")
		}
		session, params = s, params[1:]
	}
	args := make([]any, len(m.params))
	for i, p := range m.params {
		if i >= len(params) {
			args[i] = p.Default
			continue
		}
		v, ok := p.Type.Coerce(params[i])
		if !ok {
			return "", nil, fail("FIELD_TYPE_ERROR", p.Name)
		}
		args[i] = v
	}
	return session, args, nil
}

// register adds the methods of the model that the simulator implements, those
// made from fields, and NOT_IMPLEMENTED for the rest.
func (p *Pool) register() {
	p.methods = map[string]*method{}
	for _, c := range p.db.model.Classes {
		for _, msg := range c.Messages {
			if !p.db.model.Has(p.api, msg.Since) {
				continue
			}
			name := c.Name + "." + msg.Name
			params := slices.Clone(msg.Params)
			params = slices.DeleteFunc(params, func(q model.Param) bool {
				return q.Optional && !p.db.model.Has(p.api, q.Since)
			})
			p.methods[name] = &method{
				name: name, session: msg.Session, async: c.Name != "session" && c.Name != "event",
				params: params, void: msg.Result.Kind == model.Void, run: notImplemented,
			}
			if msg.Removed != "" && p.db.model.Has(p.api, msg.Removed) {
				p.methods[name].run = removed
			}
			if run := p.plainAccessor(c, msg); run != nil && msg.Removed == "" {
				p.quick(name, run)
			}
		}
		p.registerImplicit(c)
	}
	p.registerAll()
}

func notImplemented(c *call, _ []any) (any, error) {
	return nil, fail("NOT_IMPLEMENTED", c.method)
}

// plainAccessor serves messages that the model declares by hand but that only
// write a field, for example VDI.set_name_label or VIF.add_ipv4_allowed.
func (p *Pool) plainAccessor(c *model.Class, msg *model.Message) handler {
	for prefix, write := range map[string]func(o *object, f *model.Field, args []any) error{
		"set_":         func(o *object, f *model.Field, args []any) error { p.db.set(o, f.Name, args[0]); return nil },
		"add_to_":      p.addToMap,
		"remove_from_": p.removeFromMap,
		"add_":         p.addToSet,
		"remove_":      p.removeFromSet,
	} {
		name, ok := strings.CutPrefix(msg.Name, prefix)
		f := c.Field(name)
		if !ok || f == nil || !writes(prefix, msg, f) || msg.Params[0].Type.Name != c.Name {
			continue
		}
		return p.accessor(c, f, write)
	}
	return nil
}

// writes says whether a message has the parameters of an accessor of the field.
func writes(prefix string, msg *model.Message, f *model.Field) bool {
	switch prefix {
	case "set_":
		return len(msg.Params) == 2
	case "add_to_":
		return len(msg.Params) == 3 && f.Type.Kind == model.Map
	case "remove_from_":
		return len(msg.Params) == 2 && f.Type.Kind == model.Map
	default:
		return len(msg.Params) == 2 && f.Type.Kind == model.Set
	}
}

func removed(*call, []any) (any, error) { return nil, fail("MESSAGE_REMOVED") }

// slow sets the implementation of a message that locks by itself.
func (p *Pool) slow(name string, run handler) {
	if m := p.methods[name]; m != nil {
		m.run = run
	}
}

// quick sets the implementation of a message that runs with the database locked.
func (p *Pool) quick(name string, run handler) {
	p.slow(name, func(c *call, args []any) (any, error) {
		p.db.mu.Lock()
		defer p.db.mu.Unlock()
		return run(c, args)
	})
}

// onMember lets members of a pool answer the message as well.
func (p *Pool) onMember(names ...string) {
	for _, n := range names {
		if m := p.methods[n]; m != nil {
			m.member = true
		}
	}
}

func (p *Pool) methodNames() []string {
	out := make([]string, 0, 2*len(p.methods))
	for name, m := range p.methods {
		out = append(out, name)
		if m.async {
			out = append(out, "Async."+name)
		}
	}
	out = append(out, listMethods)
	slices.Sort(out)
	return out
}

func (c *call) String() string { return fmt.Sprintf("%s (%s)", c.method, c.task) }
