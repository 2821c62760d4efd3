package xensim

import (
	"bufio"
	"encoding/xml"
	"errors"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/dpxen/dpxen/internal/xensim/model"
)

// maxDatabase bounds a database that is restored, which is read into memory.
const maxDatabase = 256 << 20

// receiveDatabase reads a database from the request and makes the records of it
// that could take the place of ours.
func (t *transfer) receiveDatabase() (map[string]map[string]savedObject, error) {
	if t.stream.length > maxDatabase {
		return nil, internalError("a database of %d bytes is larger than %d", t.stream.length, maxDatabase)
	}
	defer t.unblock()()
	in := &databaseReader{
		p: t.pool, d: xml.NewDecoder(bufio.NewReader(io.LimitReader(t.stream, t.stream.length))),
		manifest: map[string]string{}, records: map[string]map[string]savedObject{},
	}
	if err := in.read(); err != nil {
		return nil, err
	}
	if in.manifest["schema_major_vsn"] != schemaMajor || in.manifest["schema_minor_vsn"] != schemaMinor {
		return nil, fail("RESTORE_INCOMPATIBLE_VERSION")
	}
	return in.records, in.complete()
}

// databaseReader makes records of a database in XML.
type databaseReader struct {
	p        *Pool
	d        *xml.Decoder
	manifest map[string]string
	records  map[string]map[string]savedObject
}

// kept says whether the tables of a class are part of a database on disk. Roles are
// part of the program.
func kept(class string) bool { return class != "session" && class != "task" && class != "role" }

func (in *databaseReader) read() error {
	for _, c := range in.p.db.model.Classes {
		if kept(c.Name) {
			in.records[c.Name] = map[string]savedObject{}
		}
	}
	var path []string
	var class *model.Class
	seen := false
	for {
		token, err := in.d.Token()
		if errors.Is(err, io.EOF) && seen {
			return nil
		}
		if err != nil {
			return internalError("the database cannot be read: %v", err)
		}
		switch e := token.(type) {
		case xml.StartElement:
			path = append(path, e.Name.Local)
			attrs := map[string]string{}
			for _, a := range e.Attr {
				attrs[a.Name.Local] = a.Value
			}
			switch strings.Join(path, "/") {
			case "database":
				seen = true
			case "database/manifest/pair":
				in.manifest[attrs["key"]] = attrs["value"]
			case "database/table":
				class = in.p.db.model.Class(attrs["name"])
			case "database/table/row":
				if class == nil || !kept(class.Name) {
					break // of a release that has other classes
				}
				if err := in.row(class, attrs); err != nil {
					return err
				}
			}
			if !seen {
				return internalError("the database cannot be read: it is %s", e.Name.Local)
			}
		case xml.EndElement:
			path = path[:len(path)-1]
		}
	}
}

// row makes one record. What it lacks has its default, what the class does not
// have is left out.
func (in *databaseReader) row(class *model.Class, attrs map[string]string) error {
	ref := attrs["ref"]
	if ref == "" {
		ref = attrs["_ref"]
	}
	if ref == "" {
		return internalError("the database cannot be read: a row of %s has no reference", class.Name)
	}
	vals := make([]any, len(class.Fields))
	for i, f := range class.Fields {
		vals[i] = f.Default
	}
	for name, text := range attrs {
		f := class.Field(strings.ReplaceAll(name, "__", "_")) // XAPI's own dumps double them
		if f == nil {
			continue
		}
		v, ok := parseDatabaseValue(f.Type, text)
		if !ok {
			return internalError("the database cannot be read: %s.%s of %s is %.100q", class.Name, f.Name, ref, text)
		}
		vals[f.Index] = v
	}
	in.records[class.Name][ref] = savedObject{&object{class: class, ref: ref}, vals}
	return nil
}

// parseDatabaseValue is the inverse of databaseValue.
func parseDatabaseValue(t *model.Type, text string) (any, bool) {
	switch t.Kind {
	case model.Bool:
		b, err := strconv.ParseBool(text)
		return b, err == nil
	case model.Float:
		f, err := strconv.ParseFloat(text, 64)
		return f, err == nil
	case model.Set, model.Map, model.RecordOf, model.Opaque:
		s := sexpr{text: text}
		v, ok := s.list(t.Kind != model.Set)
		if !ok || s.text != "" {
			return nil, false
		}
		return t.Coerce(v)
	}
	return t.Coerce(text)
}

// sexpr reads lists of quoted strings, or of pairs of them.
type sexpr struct{ text string }

func (s *sexpr) take(c byte) bool {
	s.text = strings.TrimLeft(s.text, " ")
	if s.text == "" || s.text[0] != c {
		return false
	}
	s.text = s.text[1:]
	return true
}

func (s *sexpr) list(pairs bool) (any, bool) {
	if !s.take('(') {
		return nil, false
	}
	set, m := []any{}, map[string]any{}
	for !s.take(')') {
		if pairs && !s.take('(') {
			return nil, false
		}
		first, ok := s.quoted()
		if !ok {
			return nil, false
		}
		set = append(set, first)
		if !pairs {
			continue
		}
		second, ok := s.quoted()
		if !ok || !s.take(')') {
			return nil, false
		}
		m[first] = second
	}
	if pairs {
		return m, true
	}
	return set, true
}

func (s *sexpr) quoted() (string, bool) {
	if !s.take('\'') {
		return "", false
	}
	var b strings.Builder
	for i := 0; i < len(s.text); i++ {
		switch c := s.text[i]; {
		case c == '\'':
			s.text = s.text[i+1:]
			return b.String(), true
		case c == '\\' && i+1 < len(s.text):
			i++
			b.WriteByte(s.text[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", false
}

// complete refuses a database of another pool, and takes what XAPI's garbage
// collection would: records that belong to nothing, references to nothing.
func (in *databaseReader) complete() error {
	p := in.p
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	has := func(class, ref string) bool { _, ok := in.records[class][ref]; return ok }
	if len(in.records["pool"]) != 1 {
		return internalError("the database has %d pools", len(in.records["pool"]))
	}
	for _, h := range p.hosts {
		if !has("host", h.ref) || !has("VM", h.dom0) {
			return internalError("the database is another pool's: it lacks host %s", h.uuid)
		}
	}
	hosts := map[string]savedObject{}
	for _, h := range p.hosts {
		s := in.records["host"][h.ref]
		field := func(name string) *any { return &s.vals[s.object.class.Field(name).Index] }
		if m, _ := (*field("metrics")).(string); !has("host_metrics", m) {
			return internalError("the database is damaged: it lacks the metrics of host %s", h.uuid)
		}
		*field("uuid"), *field("address") = h.uuid, h.address
		hosts[h.ref] = s
	}
	in.records["host"] = hosts
	for _, s := range in.records["pool"] {
		s.vals[s.object.class.Field("master").Index] = p.master().ref
	}
	in.collect(has)
	in.reconnect()
	return nil
}

// owners are references without which a record is nothing.
var owners = map[string][]string{
	"VBD": {"VM"}, "VIF": {"VM", "network"}, "VDI": {"SR"}, "PBD": {"host", "SR"}, "PIF": {"host", "network"}, "console": {"VM"},
	"VTPM": {"VM"}, "crashdump": {"VM", "VDI"},
}

func (in *databaseReader) collect(has func(class, ref string) bool) {
	for again := true; again; {
		again = false
		for class, fields := range owners {
			for ref, s := range in.records[class] {
				for _, name := range fields {
					f := s.object.class.Field(name)
					if owner, _ := s.vals[f.Index].(string); !has(f.Type.Name, owner) {
						delete(in.records[class], ref)
						again = true
					}
				}
			}
		}
	}
	for class, table := range in.records {
		for _, s := range table {
			for _, f := range s.object.class.Fields {
				in.blank(class, f, s.vals, has)
			}
		}
	}
}

// blank takes references to nothing out of a field.
func (in *databaseReader) blank(class string, f *model.Field, vals []any, has func(class, ref string) bool) {
	if mayDangle[class+"."+f.Name] {
		return
	}
	switch {
	case f.Type.Kind == model.Ref && in.p.db.tables[f.Type.Name] != nil:
		if ref, _ := vals[f.Index].(string); !has(f.Type.Name, ref) {
			vals[f.Index] = nullRef
		}
	case f.Type.Kind == model.Set && f.Type.Elem.Kind == model.Ref && in.p.db.tables[f.Type.Elem.Name] != nil:
		out := []string{}
		refs, _ := vals[f.Index].([]string)
		for _, ref := range refs {
			if has(f.Type.Elem.Name, ref) {
				out = append(out, ref)
			}
		}
		vals[f.Index] = out
	}
}

// reconnect makes the sets that mirror references agree with them.
func (in *databaseReader) reconnect() {
	want := map[inverse]map[string]map[string]bool{} // by field, target, and who names it
	for class, table := range in.records {
		for ref, s := range table {
			for _, f := range s.object.class.Fields {
				inv, ok := inverseOf(class, f.Name)
				if !ok {
					continue
				}
				target, _ := s.vals[f.Index].(string)
				if want[inv] == nil {
					want[inv] = map[string]map[string]bool{}
				}
				if want[inv][target] == nil {
					want[inv][target] = map[string]bool{}
				}
				want[inv][target][ref] = true
			}
		}
	}
	for class, table := range in.records {
		for ref, s := range table {
			for _, f := range s.object.class.Fields {
				if mirrors[class+"."+f.Name] {
					old, _ := s.vals[f.Index].([]string)
					s.vals[f.Index] = mirrored(old, want[inverse{class, f.Name}][ref])
				}
			}
		}
	}
}

// mirrored gives the members of a set, in the order that it had; want is used up.
func mirrored(old []string, want map[string]bool) []string {
	out := []string{}
	for _, ref := range old {
		if want[ref] {
			out = append(out, ref)
			delete(want, ref)
		}
	}
	return append(out, slices.Sorted(maps.Keys(want))...)
}
