package xensim

import (
	"bufio"
	"encoding/xml"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/dpxen/dpxen/internal/xensim/model"
)

// serveDatabase answers GET /pool/xmldbdump with the database in XML, and PUT
// with dry_run by reading what it is sent (pool_db_backup.ml). A real restore,
// which would restart the master, is not simulated.
func (h *simHost) serveDatabase(w http.ResponseWriter, r *http.Request) {
	known := r.Header.Get("Content-Length") != ""
	put := r.Method == http.MethodPut
	t := h.begin(w, r, "dump database")
	if t == nil {
		return
	}
	defer t.pool.busy()()
	if put && !known {
		_ = t.stream.page("400 Bad Request", "") // the task tells as well
		t.end("", internalError("require a content-length"))
		return
	}
	if put {
		if err := t.checkDatabase(); err != nil {
			t.refuse(err)
			return
		}
	}
	err := t.stream.writeLines("HTTP/1.1 200 OK", "Connection: close", "Cache-Control: no-cache, no-store", "content-type:text/xml")
	if err == nil && !put {
		_, err = io.WriteString(t.stream.fast(), t.pool.databaseXML())
	}
	if err != nil {
		err = fail("CLIENT_ERROR", err.Error())
	}
	t.end("", t.broken(err))
}

func (t *transfer) checkDatabase() error {
	if t.args.get("dry_run") != "true" {
		return fail("NOT_IMPLEMENTED", "pool.xmldbdump")
	}
	d := xml.NewDecoder(bufio.NewReader(io.LimitReader(t.stream, t.stream.length)))
	root := ""
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) && root == "database" {
			return nil
		}
		if err != nil {
			return fail("RESTORE_SCRIPT_FAILED", "the database cannot be read")
		}
		if e, ok := token.(xml.StartElement); ok && root == "" {
			root = e.Name.Local
		}
	}
}

// databaseXML writes every record but sessions and tasks, which are not kept.
func (p *Pool) databaseXML() string {
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	var b strings.Builder
	b.WriteString(`<?xml version="1.0" encoding="UTF-8"?><database><manifest>`)
	for _, kv := range [][2]string{
		{"schema_major_vsn", "5"}, {"schema_minor_vsn", "779"}, {"generation_count", strconv.FormatUint(p.db.gen, 10)},
	} {
		b.WriteString(`<pair key="` + kv[0] + `" value="` + kv[1] + `"/>`)
	}
	b.WriteString(`</manifest>`)
	for _, c := range p.db.model.Classes {
		if c.Name == "session" || c.Name == "task" {
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
