package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every message that docs/data-protector.md tells what to do about is one that the program has.
func TestTroubleshootingMessages(t *testing.T) {
	doc, err := os.ReadFile(filepath.FromSlash("../../docs/data-protector.md"))
	if err != nil {
		t.Fatal(err)
	}
	var source strings.Builder
	for _, pattern := range []string{"*.go", "../../controller/*.go", "../../internal/staging/*.go"} {
		files, err := filepath.Glob(filepath.FromSlash(pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			source.Write(data)
		}
	}
	code := regexp.MustCompile(`" \+\s*"`).ReplaceAllString(source.String(), "") // long texts stand in pieces
	code = regexp.MustCompile(`%[-.0-9]*[a-z]`).ReplaceAllString(code, "X")
	_, table, found := strings.Cut(string(doc), "## Troubleshooting")
	table, _, ended := strings.Cut(table, "\n## ")
	n := 0
	for line := range strings.Lines(table) {
		first, _, _ := strings.Cut(strings.TrimPrefix(line, "| "), " | ")
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(first, -1) {
			n++
			if text := regexp.MustCompile(`exit \d+`).ReplaceAllString(m[1], "exit X"); !strings.Contains(code, text) {
				t.Errorf("no message says %q", m[1])
			}
		}
	}
	if !found || !ended || n < 15 {
		t.Errorf("%d messages were found", n)
	}
}
