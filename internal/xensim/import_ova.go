package xensim

import (
	"fmt"
	"strconv"
)

// ovaObject is an object of ova.xml.
type ovaObject struct {
	class, id string
	fields    map[string]any
}

func (o ovaObject) str(name string) string { s, _ := o.fields[name].(string); return s }
func (o ovaObject) is(name string) bool    { b, _ := o.fields[name].(bool); return b }

func (o ovaObject) num(name string) int64 {
	switch v := o.fields[name].(type) {
	case int64:
		return v
	case string:
		n, err := strconv.ParseInt(v, 10, 64)
		if err == nil {
			return n
		}
	}
	return 0
}

func (o ovaObject) strMap(name string) map[string]string {
	out := map[string]string{}
	in, _ := o.fields[name].(map[string]any)
	for k, v := range in {
		if s, ok := v.(string); ok {
			out[k] = s
		}
	}
	return out
}

// parse reads the objects and holds the archive's version against this host's.
func (im *importer) parse(v any) error {
	top, _ := v.(map[string]any)
	list, ok := top["objects"].([]any)
	if !ok {
		return fail("IMPORT_ERROR", "Invalid XVA file")
	}
	version, _ := top["version"].(map[string]any)
	head := ovaObject{fields: version}
	im.exportVersion = head.num("export_vsn")
	has := [2]int{int(head.num("xapi_major")), int(head.num("xapi_minor"))}
	if own := im.p.release.xapi; has[0] > own[0] || has[0] == own[0] && has[1] > own[1] {
		return fail("IMPORT_INCOMPATIBLE_VERSION")
	}
	for _, e := range list {
		m, _ := e.(map[string]any)
		o := ovaObject{fields: map[string]any{}}
		o.class, _ = m["class"].(string)
		o.id, _ = m["id"].(string)
		if f, ok := m["snapshot"].(map[string]any); ok {
			o.fields = f
		}
		im.objects = append(im.objects, o)
	}
	return nil
}

func (im *importer) class(name string) []ovaObject {
	var out []ovaObject
	for _, o := range im.objects {
		if o.class == name {
			out = append(out, o)
		}
	}
	return out
}

func (im *importer) find(class, id string) (ovaObject, bool) {
	for _, o := range im.objects {
		if o.class == class && o.id == id {
			return o, true
		}
	}
	return ovaObject{}, false
}

// typed gives the fields of an archive's object in the database's types.
func (im *importer) typed(o ovaObject) (map[string]any, error) {
	out := map[string]any{}
	for _, f := range im.p.db.model.Class(o.class).Fields {
		x, ok := o.fields[f.Name]
		if !ok {
			continue
		}
		v, ok := f.Type.Coerce(x)
		if !ok {
			return nil, fail("IMPORT_ERROR", fmt.Sprintf("INTERNAL_ERROR: [ field %s of %s %s ]", f.Name, o.class, o.id))
		}
		out[f.Name] = v
	}
	return out, nil
}

func stringSet(v any) []string {
	out := []string{}
	list, _ := v.([]any)
	for _, e := range list {
		if s, ok := e.(string); ok {
			out = append(out, s)
		}
	}
	return out
}
