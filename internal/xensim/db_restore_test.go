package xensim

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/dpxen/dpxen/internal/xensim/model"
)

func (c *client) dump() string {
	c.t.Helper()
	return string(c.body(c.do(http.MethodGet, "/pool/xmldbdump?"+c.query(), nil)))
}

// restored sends a database and gives the answer and what the task tells.
func (c *client) restored(dump string, args ...string) (answer, info string) {
	c.t.Helper()
	task := c.str("task.create", "restore", "")
	answer = c.exchange(fmt.Sprintf("PUT /pool/xmldbdump?%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s",
		c.query(append(args, "task_id", task)...), len(dump), dump))
	r := c.task(task)
	return answer, fmt.Sprint(r["status"], " ", r["error_info"])
}

const restoreHead = "HTTP/1.1 200 OK\r\nConnection: close\r\nCache-Control: no-cache, no-store\r\n\r\n"

// patient leaves the time to ask for the task before the host restarts.
func patient(c *Config) { c.Speedup = 100 }

func TestDatabaseRestore(t *testing.T) {
	p := startPool(t, demo, patient)
	c := p.login(t)
	records := func() map[string]any {
		t.Helper()
		out := map[string]any{}
		for _, class := range []string{"VM", "VBD", "VIF", "SR", "network", "PBD", "VM_metrics"} {
			for ref, r := range c.ok(class + ".get_all_records").(map[string]any) {
				m := r.(map[string]any)
				// These follow the domains and the storage.
				for _, live := range []string{
					"power_state", "resident_on", "domid", "currently_attached", "allowed_operations", "consoles", "VDIs",
					"physical_utilisation", "virtual_allocation", "scheduled_to_be_resident_on",
				} {
					delete(m, live)
				}
				out[ref] = m
			}
		}
		return out
	}
	member := c.vm("installer") // runs on the second host
	master := c.vm("web-01")
	if c.str("VM.get_resident_on", member) == c.str("VM.get_resident_on", master) {
		t.Fatal("both run on one host")
	}
	before, dump := records(), c.dump()

	c.ok("VM.set_name_label", member, "renamed")
	c.ok("VM.add_to_other_config", member, "later", "yes")
	clone := c.str("VM.clone", c.vm("archive"), "clone")
	cloned := slices.Sorted(func(yield func(string) bool) {
		for _, vdi := range c.disks(clone) {
			if !yield(c.str("VDI.get_uuid", vdi)) {
				return
			}
		}
	})
	lost := c.disks(c.vm("archive"))["1"]
	c.ok("VDI.destroy", lost)

	answer, info := c.restored(dump)
	if answer != restoreHead || info != "success []" {
		t.Fatalf("%q, %s", answer, info)
	}
	eventually(t, "the master is gone", func() bool {
		_, err := c.call("VM.get_all")
		return err != nil
	})
	eventually(t, "the master is back", func() bool {
		s, err := c.raw("session.login_with_password", "root", testPassword)
		if err == nil {
			c.session = s.(string)
		}
		return err == nil
	})
	after := records()
	// The disk that was destroyed is gone, and its VBD with it.
	archive := after[c.vm("archive")].(map[string]any)
	gone := before[c.vm("archive")].(map[string]any)
	if len(archive["VBDs"].([]any)) != len(gone["VBDs"].([]any))-1 {
		t.Errorf("VBDs %v, before %v", archive["VBDs"], gone["VBDs"])
	}
	for _, vbd := range gone["VBDs"].([]any) {
		if _, ok := after[vbd.(string)]; !ok {
			delete(before, vbd.(string))
		}
	}
	gone["VBDs"] = archive["VBDs"]
	if d := cmp.Diff(before, after); d != "" {
		t.Errorf("the records are not those of the dump:\n%s", d)
	}
	for vm, state := range map[string]string{member: "Running", master: "Halted"} {
		if got := c.str("VM.get_power_state", vm); got != state {
			t.Errorf("%s is %s", c.str("VM.get_name_label", vm), got)
		}
	}
	orphans := []string{}
	for _, o := range p.state(t).Orphans {
		if slices.Contains(cloned, o.UUID) {
			orphans = append(orphans, o.UUID)
		}
	}
	if len(cloned) == 0 || !slices.Equal(slices.Sorted(slices.Values(orphans)), cloned) {
		t.Errorf("disks of the lost clone: %v, there were %v", orphans, cloned)
	}
	c.ok("VM.start", master, false, false)
}

func TestDatabaseRefused(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	dump := c.dump()
	host := c.list("host.get_all")[0]
	other := startPool(t, demo, func(cfg *Config) { cfg.Seed = 99 }).login(t).dump()
	generation := func() string { dump := c.dump(); return dump[strings.Index(dump, "<table name=\"VM\""):] }
	before := generation()
	for name, v := range map[string]struct{ dump, info string }{
		"nothing":            {"", "failure [INTERNAL_ERROR the database cannot be read: EOF]"},
		"cut":                {dump[:len(dump)/2], "failure [INTERNAL_ERROR the database cannot be read: "},
		"not a database":     {"<html></html>", "failure [INTERNAL_ERROR the database cannot be read: it is html]"},
		"an empty one":       {"<database></database>", "failure [RESTORE_INCOMPATIBLE_VERSION]"},
		"of another version": {strings.Replace(dump, `key="schema_minor_vsn" value="779"`, `key="schema_minor_vsn" value="780"`, 1), "failure [RESTORE_INCOMPATIBLE_VERSION]"},
		"of another pool":    {other, "failure [INTERNAL_ERROR the database is another pool's: it lacks host "},
		"without its host":   {strings.ReplaceAll(dump, `<row ref="`+host+`"`, `<row ref="OpaqueRef:else"`), "failure [INTERNAL_ERROR the database is another pool's"},
		"a number of letters": {strings.Replace(dump, ` memory_static_max="`, ` memory_static_max="x`, 1),
			"failure [INTERNAL_ERROR the database cannot be read: VM.memory_static_max of OpaqueRef:"},
		"half a map": {strings.Replace(dump, ` other_config="(`, ` other_config="((`, 1), "failure [INTERNAL_ERROR the database cannot be read: "},
		"two pools":  {strings.Replace(dump, `<table name="pool">`, `<table name="pool"><row ref="OpaqueRef:second"/>`, 1), "failure [INTERNAL_ERROR the database has 2 pools]"},
	} {
		for _, dry := range []string{"true", "false"} {
			answer, info := c.restored(v.dump, "dry_run", dry)
			if !strings.HasPrefix(answer, restoreHead+"HTTP/1.1 500 Internal Error\r\n") || !strings.HasPrefix(info, v.info) {
				t.Errorf("%s: %.200q, %s", name, answer, info)
			}
		}
	}
	if answer, info := c.restored(dump, "dry_run", "true"); answer != restoreHead || info != "success []" {
		t.Errorf("a dry run: %q, %s", answer, info)
	}
	if answer := c.exchange("PUT /pool/xmldbdump?" + c.query() + " HTTP/1.1\r\nHost: x\r\n\r\n"); answer != "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nCache-Control: no-cache, no-store\r\n\r\n" {
		t.Errorf("without a length: %q", answer)
	}
	if after := generation(); after != before {
		t.Error("a refused database has changed something")
	}
}

// What belongs to nothing, or names nothing, is taken away.
func TestDatabaseRestoreDamaged(t *testing.T) {
	p := startPool(t, demo, patient)
	c := p.login(t)
	vm := c.vm("archive")
	row := func(dump string) string {
		from := strings.Index(dump, `<row ref="`+vm+`"`)
		return dump[from : from+strings.Index(dump[from:], "/>")+2]
	}
	dump := c.dump()
	dump = strings.Replace(dump, row(dump), "", 1)
	// As XAPI writes rows itself.
	dump = strings.Replace(dump, `<table name="network">`, `<table name="network"><row _ref="OpaqueRef:x" __mtime="1" name__label="by hand" uuid="u"/>`, 1)
	if _, info := c.restored(dump); info != "success []" {
		t.Fatal(info)
	}
	eventually(t, "the master is back with the other database", func() bool {
		s, err := c.raw("session.login_with_password", "root", testPassword)
		if err != nil {
			return false
		}
		c.session = s.(string)
		networks, err := c.call("network.get_by_name_label", "by hand")
		return err == nil && len(networks.([]any)) == 1
	})
	for _, class := range []string{"VBD", "VIF"} {
		for ref, r := range c.ok(class + ".get_all_records").(map[string]any) {
			if r.(map[string]any)["VM"] == vm {
				t.Errorf("%s %s has no VM", class, ref)
			}
		}
	}
}

func TestDatabaseValues(t *testing.T) {
	strs := &model.Type{Kind: model.String}
	ints := &model.Type{Kind: model.Int}
	rapid.Check(t, func(r *rapid.T) {
		text := rapid.StringOf(rapid.RuneFrom([]rune(`ab'\ ()"ß`)))
		for _, v := range []struct {
			t *model.Type
			v any
		}{
			{&model.Type{Kind: model.Set, Elem: strs}, rapid.SliceOfDistinct(text, rapid.ID[string]).Draw(r, "set")},
			{&model.Type{Kind: model.Map, Key: strs, Elem: strs}, rapid.MapOf(text, text).Draw(r, "map")},
			{&model.Type{Kind: model.Set, Elem: ints}, rapid.SliceOfDistinct(rapid.Int64(), rapid.ID[int64]).Draw(r, "ints")},
			{ints, rapid.Int64().Draw(r, "int")},
			{&model.Type{Kind: model.Float}, rapid.Float64().Draw(r, "float")},
			{strs, text.Draw(r, "string")},
		} {
			got, ok := parseDatabaseValue(v.t, databaseValue(v.v))
			if !ok || !cmp.Equal(got, v.v) {
				r.Fatalf("%#v came back as %#v, %v", v.v, got, ok)
			}
		}
	})
}

func FuzzDatabaseRestore(f *testing.F) {
	p := &Pool{db: newDatabase(model.Load(), randomUUID)}
	f.Add([]byte(`<database><manifest><pair key="schema_major_vsn" value="5"/></manifest><table name="pool"><row ref="a" other_config="(('k' 'v'))"/></table></database>`))
	f.Add([]byte(`<database><table name="VBD"><row ref="b" VM="c"/></table><table name="VM"><row ref="c" VBDs="('b' 'd')"/></table></database>`))
	f.Fuzz(func(t *testing.T, b []byte) {
		in := &databaseReader{
			p: p, d: xml.NewDecoder(io.LimitReader(bytes.NewReader(b), maxDatabase)), manifest: map[string]string{},
			records: map[string]map[string]savedObject{},
		}
		if in.read() == nil && len(in.records["pool"]) == 1 {
			in.collect(func(class, ref string) bool { _, ok := in.records[class][ref]; return ok })
			in.reconnect()
		}
	})
}
