package ledger

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestLedger(t *testing.T) {
	dir := t.TempDir()
	path, document := filepath.Join(dir, "l.jsonl"), filepath.Join(dir, "R.md")
	if err := Render(path, document); err != nil {
		t.Fatal(err)
	}
	day := time.Date(2026, 11, 22, 20, 30, 0, 0, time.UTC)
	for i, counts := range []map[string]int64{
		{"histories": 2, "kills of an agent": 7, "kills of a controller": 2, "fuzz seconds FuzzReader": 3000},
		{"histories": 1, "kills of an agent": 1, "fuzz seconds FuzzReader": 700, "fuzz CPU seconds FuzzReader": 3650, "fuzz seconds FuzzOVA": 5},
	} {
		if err := Append(path, Entry{Date: day.AddDate(0, 0, i), Commit: "abc", Seed: 7, Seconds: 1800, Counts: counts}); err != nil {
			t.Fatal(err)
		}
	}
	if err := Render(path, document); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"2 runs from 2026-11-22 to 2026-11-23, 1.0 hours", "| kills (SIGKILL of a process) | 10 | 10000 |",
		"| fuzz targets with an hour or more of a processor | 1 | 10 |", "| histories | 3 |",
		"| FuzzReader | 3700 | not counted | 3650 |", "| FuzzOVA | 5 | not counted | not counted |", "| 2026-11-22 20:30 | abc | 7 | 30.0 | 2 | 9 |"} {
		if !strings.Contains(string(data), want) {
			t.Errorf("%q is not in:\n%s", want, data)
		}
	}
	if err := os.WriteFile(path, []byte("no JSON\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil {
		t.Error("a damaged ledger was read")
	}
}
