// Package profile writes down where a process spent its CPU time and memory, for those who measure dpxen. It is inert
// until it is started.
package profile

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"time"
)

// Totals are what a process used from the start of its profile to the end.
type Totals struct {
	Seconds    float64 `json:"seconds"`     // wall time
	AllocBytes uint64  `json:"alloc_bytes"` // allocated on the heap, freed or not
	Allocs     uint64  `json:"allocs"`      // objects
	GCs        uint32  `json:"gcs"`         // collections of garbage
	PauseNanos uint64  `json:"pause_nanos"` // of all of them
}

// Start begins to profile the process into the folder dir, which it makes. The function that it returns ends the profile
// and writes NAME.PID.cpu.pprof and NAME.PID.allocs.pprof for `go tool pprof`, and Totals as NAME.PID.json. There is one
// CPU profile in a process at a time; a second Start fails.
func Start(dir, name string) (stop func() error, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	base := filepath.Join(dir, fmt.Sprintf("%s.%d", name, os.Getpid()))
	cpu, err := os.OpenFile(base+".cpu.pprof", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	if err := pprof.StartCPUProfile(cpu); err != nil {
		return nil, errors.Join(fmt.Errorf("profile: %w", err), cpu.Close())
	}
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	began := time.Now()
	return func() error {
		var after runtime.MemStats
		runtime.ReadMemStats(&after) // before what the profile itself takes when it is written
		pprof.StopCPUProfile()
		totals := Totals{Seconds: time.Since(began).Seconds(), AllocBytes: after.TotalAlloc - before.TotalAlloc, Allocs: after.Mallocs - before.Mallocs,
			GCs: after.NumGC - before.NumGC, PauseNanos: after.PauseTotalNs - before.PauseTotalNs}
		return errors.Join(cpu.Close(), writeAllocs(base+".allocs.pprof"), writeTotals(base+".json", totals))
	}, nil
}

func writeAllocs(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	runtime.GC() // what was allocated since the last one is not in the profile
	return errors.Join(pprof.Lookup("allocs").WriteTo(f, 0), f.Close())
}

func writeTotals(path string, t Totals) error {
	data, err := json.Marshal(t)
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o600)
}
