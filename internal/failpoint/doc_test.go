package failpoint

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	plain   = regexp.MustCompile(`failpoint\.(?:Hit|Pass)\("([a-z/-]+)"\)`)
	ofSteps = regexp.MustCompile(`failpoint\.(?:Hit|Pass)\("([a-z/-]+)" \+ strings\.TrimRight\(step`)
	aStep   = regexp.MustCompile(`\bstep[A-Z][a-z]+ += "([a-z]+)"`)
)

// inCode gives the failpoints of the source with how often each stands there.
func inCode(t *testing.T) map[string]int {
	t.Helper()
	names, prefixes, steps := map[string]int{}, []string{}, []string{}
	for _, dir := range []string{"agent", "controller", "internal"} {
		err := filepath.WalkDir(filepath.Join("..", "..", dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			data, err := os.ReadFile(path)
			for _, m := range plain.FindAllStringSubmatch(string(data), -1) {
				names[m[1]]++
			}
			for _, m := range ofSteps.FindAllStringSubmatch(string(data), -1) {
				prefixes = append(prefixes, m[1])
			}
			if dir == "agent" {
				for _, m := range aStep.FindAllStringSubmatch(string(data), -1) {
					steps = append(steps, m[1])
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range prefixes {
		for _, s := range steps {
			if s != "claim" { // which is not noted but added
				names[p+s]++
			}
		}
	}
	return names
}

// TestDocumented holds docs/failpoints.md against the code: every name once in each.
func TestDocumented(t *testing.T) {
	data, err := os.ReadFile("../../docs/failpoints.md")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^- `([a-z/-]+)`$").FindAllStringSubmatch(string(data), -1) {
		listed[m[1]] = true
	}
	code := inCode(t)
	for _, name := range slices.Sorted(maps.Keys(code)) {
		if !listed[name] {
			t.Errorf("docs/failpoints.md lacks\n- `%s`", name)
		}
		if code[name] != 1 {
			t.Errorf("%s stands %d times in the code", name, code[name])
		}
		delete(listed, name)
	}
	for name := range listed {
		t.Errorf("docs/failpoints.md has %s, which is not in the code", name)
	}
	if len(code) < 50 {
		t.Errorf("there are %d failpoints", len(code))
	}
}

// TestInert holds that the usual build knows no way to arm a failpoint.
func TestInert(t *testing.T) {
	t.Setenv("DPXEN_FAILPOINTS", "x=error")
	if err := Hit("x"); err != nil && !errors.Is(err, ErrInjected) {
		t.Fatal(err)
	} else if err != nil {
		t.Error("a failpoint was hit in a usual build")
	}
	Pass("x")
}
