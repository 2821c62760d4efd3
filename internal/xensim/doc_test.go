package xensim

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// docTable gives the first two cells of the rows of the table under a heading of
// docs/xensim.md.
func docTable(t *testing.T, heading string) map[string]string {
	t.Helper()
	doc, err := os.ReadFile("../../docs/xensim.md")
	if err != nil {
		t.Fatal(err)
	}
	_, part, ok := strings.Cut(string(doc), "## "+heading+"\n")
	if !ok {
		t.Fatalf("no heading %s", heading)
	}
	part, _, _ = strings.Cut(part, "\n## ")
	out := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (.*?) \\|$").FindAllStringSubmatch(part, -1) {
		out[m[1]] = m[2]
	}
	return out
}

func TestDocumentedFaults(t *testing.T) {
	got := docTable(t, "Faults")
	if want := FaultNames(); !reflect.DeepEqual(got, want) {
		for name, text := range want {
			if got[name] != text {
				t.Errorf("docs/xensim.md lacks: | `%s` | %s |", name, text)
			}
		}
		t.Errorf("docs/xensim.md tells of %d faults, there are %d", len(got), len(want))
	}
}

// The table of calls tells, for every class, what is more than access to fields.
func TestDocumentedCalls(t *testing.T) {
	p := startPool(t)
	absent := []uintptr{reflect.ValueOf(notImplemented).Pointer(), reflect.ValueOf(removed).Pointer()}
	got := docTable(t, "Classes and calls")
	for _, c := range p.db.model.Classes {
		var calls []string
		for name, m := range p.methods {
			call, ok := strings.CutPrefix(name, c.Name+".")
			if ok && !isFieldAccess(call) && !slices.Contains(absent, reflect.ValueOf(m.run).Pointer()) {
				calls = append(calls, call)
			}
		}
		slices.Sort(calls)
		want := strings.Join(calls, ", ")
		if want == "" {
			want = "–"
		}
		if got[c.Name] != want {
			t.Errorf("docs/xensim.md lacks: | `%s` | %s |", c.Name, want)
		}
	}
}

func isFieldAccess(call string) bool {
	for _, prefix := range []string{"get_", "set_", "add_", "remove_"} {
		if strings.HasPrefix(call, prefix) {
			return true
		}
	}
	return false
}
