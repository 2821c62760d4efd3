package profile

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

var kept []byte // so that the test's allocation is one

func TestStart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	stop, err := Start(dir, "me")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Start(dir, "me"); err == nil {
		t.Error("a second profile was begun")
	}
	kept = make([]byte, 8<<20)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(dir, fmt.Sprintf("me.%d", os.Getpid()))
	data, err := os.ReadFile(base + ".json")
	if err != nil {
		t.Fatal(err)
	}
	var totals Totals
	if err := json.Unmarshal(data, &totals); err != nil {
		t.Fatal(err)
	}
	if totals.AllocBytes < uint64(len(kept)) || totals.Seconds <= 0 || totals.Allocs == 0 {
		t.Errorf("totals are %+v", totals)
	}
	for _, suffix := range []string{".cpu.pprof", ".allocs.pprof"} {
		if info, err := os.Stat(base + suffix); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v, %v", suffix, info, err)
		}
	}
	if _, err := Start(base+".json", "me"); err == nil {
		t.Error("a folder that is a file was taken")
	}
}
