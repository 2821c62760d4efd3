package xensim

import (
	"encoding/xml"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/dpxen/dpxen/internal/xensim/model"
)

// serveDatabase answers GET /pool/xmldbdump with the database in XML, and PUT by
// restarting the master into the one that it is sent, or with dry_run by looking
// whether it could. PUT says 200 before it reads (pool_db_backup.ml).
func (h *simHost) serveDatabase(w http.ResponseWriter, r *http.Request) {
	known := r.Header.Get("Content-Length") != ""
	put := r.Method == http.MethodPut
	t := h.begin(w, r, "dump database")
	if t == nil {
		return
	}
	defer t.pool.busy()()
	if put && !known {
		t.bare("HTTP/1.1", "400 Bad Request")
		t.end("", nil) // XAPI's task does not tell
		return
	}
	err := t.stream.writeLines("HTTP/1.1 200 OK", "Connection: close", "Cache-Control: no-cache, no-store")
	if err == nil && !put {
		_, err = io.WriteString(t.stream.fast(), t.pool.databaseXML())
	}
	if err != nil {
		t.end("", t.broken(fail("CLIENT_ERROR", err.Error())))
		return
	}
	if put {
		records, err := t.receiveDatabase()
		if err != nil {
			t.refuse(err)
			return
		}
		if !t.args.flag("dry_run") {
			defer t.pool.restartInto(records) // once the client has its answer
		}
	}
	t.end("", t.broken(nil))
}

// databaseXML writes every record but those that are not kept.
func (p *Pool) databaseXML() string {
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	var b strings.Builder
	b.WriteString(`<?xml version="1.0" encoding="UTF-8"?><database><manifest>`)
	for _, kv := range [][2]string{
		{"schema_major_vsn", schemaMajor}, {"schema_minor_vsn", schemaMinor}, {"generation_count", strconv.FormatUint(p.db.gen, 10)},
	} {
		b.WriteString(`<pair key="` + kv[0] + `" value="` + kv[1] + `"/>`)
	}
	b.WriteString(`</manifest>`)
	for _, c := range p.db.model.Classes {
		if !kept(c.Name) {
			continue
		}
		b.WriteString(`<table name="` + c.Name + `">`)
		for _, o := range p.db.all(c.Name) {
			b.WriteString(`<row ref="` + o.ref + `"`)
			for i, f := range c.Fields {
				b.WriteString(" " + f.Name + `="`)
				_ = xml.EscapeText(&b, []byte(databaseValue(o.vals[i]))) // a Builder does not fail
				b.WriteString(`"`)
			}
			b.WriteString(`/>`)
		}
		b.WriteString(`</table>`)
	}
	b.WriteString(`</database>`)
	return b.String()
}

// schemaMajor and schemaMinor are the version of the database's form.
const (
	schemaMajor = "5"
	schemaMinor = "779"
)

// databaseValue gives a value as XAPI's database keeps it: sets and maps as
// S-expressions of quoted strings.
func databaseValue(v any) string {
	quote := func(s string) string { return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'" }
	var parts []string
	switch v := v.(type) {
	case []string:
		for _, s := range v {
			parts = append(parts, quote(s))
		}
	case []int64:
		for _, n := range v {
			parts = append(parts, quote(strconv.FormatInt(n, 10)))
		}
	case map[string]string:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			parts = append(parts, "("+quote(k)+" "+quote(v[k])+")")
		}
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			parts = append(parts, "("+quote(k)+" "+quote(databaseText(v[k]))+")")
		}
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64)
	case string, bool, int64, model.DateTime:
		return databaseText(v)
	}
	return "(" + strings.Join(parts, " ") + ")"
}
