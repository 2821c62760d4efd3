package staging

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestLongPath(t *testing.T) {
	deep := strings.Repeat(`\folder`, 40)
	for in, want := range map[string]string{
		`C:\a`:                  `C:\a`,
		`C:` + deep:             `\\?\C:` + deep,
		`\\server\share` + deep: `\\?\UNC\server\share` + deep,
		`\\?\C:` + deep:         `\\?\C:` + deep,
		`relative` + deep:       `relative` + deep,
	} {
		if got := longPath(in); got != want {
			t.Errorf("%s becomes %s, want %s", in, got, want)
		}
	}
}

// A file that somebody has open for a moment is replaced as soon as he lets go.
func TestReplaceWhileOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "report.json")
	writeText(t, path, "old")
	reader, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(200*time.Millisecond, func() { _ = reader.Close() }) // read only
	if err := WriteFileDurable(path, []byte("new"), fileMode); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "new" {
		t.Errorf("the file holds %q, %v", got, err)
	}
}
