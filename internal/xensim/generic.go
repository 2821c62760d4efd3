package xensim

import (
	"maps"
	"slices"

	"github.com/dpxen/dpxen/internal/xensim/model"
	"github.com/dpxen/dpxen/internal/xensim/xmlrpc"
)

// record gives an object as it goes over the wire: the fields that a host of the
// declared version has.
func (p *Pool) record(o *object) xmlrpc.Record {
	visible := p.visible[o.class]
	out := xmlrpc.Record{Names: p.fieldNames[o.class], Values: make([]any, len(visible))}
	for i, f := range visible {
		out.Values[i] = o.vals[f.Index]
	}
	return out
}

func (p *Pool) records(class string, keep func(*object) bool) map[string]any {
	out := map[string]any{}
	for ref, o := range p.db.tables[class] {
		if keep == nil || keep(o) {
			out[ref] = p.record(o)
		}
	}
	return out
}

// registerImplicit adds the messages that follow from a class's fields.
func (p *Pool) registerImplicit(c *model.Class) {
	add := func(name string, run handler, params ...model.Param) {
		full := c.Name + "." + name
		p.methods[full] = &method{name: full, session: true, params: params, run: func(c *call, args []any) (any, error) {
			p.db.mu.Lock()
			defer p.db.mu.Unlock()
			return run(c, args)
		}}
	}
	self := model.Param{Name: "self", Type: &model.Type{Kind: model.Ref, Name: c.Name}}
	if p.db.model.Has(p.api, c.Since) {
		p.registerObjects(c, self, add)
	}
	for _, f := range p.visible[c] {
		adding := add
		if f.Removed != "" && p.db.model.Has(p.api, f.Removed) { // it stays in the records
			adding = func(name string, _ handler, params ...model.Param) { add(name, removed, params...) }
		}
		p.registerField(c, f, self, adding)
	}
}

// registerObjects adds what makes, finds and destroys the objects of a class. The
// records of a removed class can still be read as a whole, which is more than a
// host allows: who lists all classes need not know which they are.
func (p *Pool) registerObjects(c *model.Class, self model.Param, add func(string, handler, ...model.Param)) {
	str := &model.Type{Kind: model.String}
	named := func(n string) model.Param { return model.Param{Name: n, Type: str} }
	class := c.Name
	if c.Implicit["get_all"] || class == "VDI" || class == "message" {
		add("get_all", func(*call, []any) (any, error) {
			return slices.Sorted(maps.Keys(p.db.tables[class])), nil
		})
	}
	if c.Implicit["get_all_records"] || class == "message" {
		add("get_all_records", func(*call, []any) (any, error) { return p.records(class, nil), nil })
		add("get_all_records_where", func(_ *call, args []any) (any, error) {
			keep, err := parseWhere(c, args[0].(string))
			if err != nil {
				return nil, err
			}
			return p.records(class, keep), nil
		}, named("expr"))
	}
	if c.Implicit["get_record"] || class == "message" {
		add("get_record", func(_ *call, args []any) (any, error) {
			o, err := p.db.need(class, args[0].(string))
			if err != nil {
				return nil, err
			}
			return p.record(o), nil
		}, self)
	}
	if c.Implicit["get_by_uuid"] || class == "message" {
		add("get_by_uuid", func(_ *call, args []any) (any, error) {
			if o := p.db.byUUID[class][args[0].(string)]; o != nil {
				return o.ref, nil
			}
			return nil, fail("UUID_INVALID", class, args[0].(string))
		}, named("uuid"))
	}
	if c.Implicit["get_by_name_label"] {
		add("get_by_name_label", func(_ *call, args []any) (any, error) {
			out := []string{}
			for _, o := range p.db.all(class) {
				if o.name() == args[0].(string) {
					out = append(out, o.ref)
				}
			}
			return out, nil
		}, named("label"))
	}
	if c.Implicit["create"] {
		full := class + ".create"
		record := model.Param{Name: "args", Type: &model.Type{Kind: model.RecordOf, Name: class}}
		p.methods[full] = &method{name: full, session: true, async: true, params: []model.Param{record}, run: notImplemented}
	}
	if c.Implicit["destroy"] {
		full := class + ".destroy"
		p.methods[full] = &method{name: full, session: true, async: true, void: true, params: []model.Param{self}, run: notImplemented}
	}
}

func (p *Pool) registerField(c *model.Class, f *model.Field, self model.Param, add func(string, handler, ...model.Param)) {
	class := c.Name
	if c.Implicit["get_"+f.Name] {
		add("get_"+f.Name, func(_ *call, args []any) (any, error) {
			o, err := p.db.need(class, args[0].(string))
			if err != nil {
				return nil, err
			}
			return o.vals[f.Index], nil
		}, self)
	}
	value := func(n string, t *model.Type) model.Param { return model.Param{Name: n, Type: t} }
	if c.Implicit["set_"+f.Name] {
		add("set_"+f.Name, p.accessor(c, f, func(o *object, f *model.Field, args []any) error {
			p.db.set(o, f.Name, args[0])
			return nil
		}), self, value("value", f.Type))
	}
	if f.Type.Kind == model.Map && c.Implicit["add_to_"+f.Name] {
		add("add_to_"+f.Name, p.accessor(c, f, p.addToMap), self, value("key", f.Type.Key), value("value", f.Type.Elem))
		add("remove_from_"+f.Name, p.accessor(c, f, p.removeFromMap), self, value("key", f.Type.Key))
	}
	if f.Type.Kind == model.Set && c.Implicit["add_"+f.Name] {
		add("add_"+f.Name, p.accessor(c, f, p.addToSet), self, value("value", f.Type.Elem))
		add("remove_"+f.Name, p.accessor(c, f, p.removeFromSet), self, value("value", f.Type.Elem))
	}
}

// accessor makes a message of what it does to a field; args are those after self.
func (p *Pool) accessor(c *model.Class, f *model.Field, write func(o *object, f *model.Field, args []any) error) handler {
	return func(_ *call, args []any) (any, error) {
		o, err := p.db.need(c.Name, args[0].(string))
		if err != nil {
			return nil, err
		}
		if err := write(o, f, args[1:]); err != nil {
			return nil, err
		}
		p.afterChange(o, f.Name)
		return "", nil
	}
}

func (p *Pool) addToMap(o *object, f *model.Field, args []any) error {
	return p.addTo(o, f.Name, args[0].(string), args[1].(string))
}

func (p *Pool) removeFromMap(o *object, f *model.Field, args []any) error {
	p.db.drop(o, f.Name, args[0].(string))
	return nil
}

func (p *Pool) addToSet(o *object, f *model.Field, args []any) error {
	value := args[0].(string)
	// NBD with TLS and without it exclude each other on a network.
	for _, purpose := range []string{"nbd", "insecure_nbd"} {
		if f.Name == "purpose" && value != purpose && slices.Contains(o.refs(f.Name), purpose) {
			return fail("NETWORK_INCOMPATIBLE_PURPOSES", value, purpose)
		}
	}
	if !slices.Contains(o.refs(f.Name), value) {
		p.db.set(o, f.Name, append(slices.Clone(o.refs(f.Name)), value))
	}
	return nil
}

func (p *Pool) removeFromSet(o *object, f *model.Field, args []any) error {
	p.db.set(o, f.Name, without(o.refs(f.Name), args[0].(string)))
	return nil
}

// addTo adds a key to a map field. A key that is there is MAP_DUPLICATE_KEY,
// unless the pool is idempotent and the value is the same.
func (p *Pool) addTo(o *object, field, key, value string) error {
	if old, ok := o.m(field)[key]; ok {
		if p.cfg.IdempotentMaps && old == value {
			return nil
		}
		return fail("MAP_DUPLICATE_KEY", o.class.Name, field, o.ref, key)
	}
	p.db.put(o, field, key, value)
	return nil
}

// afterChange recomputes what follows from a field that a client wrote.
func (p *Pool) afterChange(o *object, field string) {
	if o.class.Name == "VM" && (field == "blocked_operations" || field == "is_a_template") {
		p.updateAllowed(o)
	}
}
