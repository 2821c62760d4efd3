package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// sample is one run of one contender.
type sample struct {
	bytes   int64
	seconds float64
	cpu     map[string]float64 // seconds, by who used them
	peak    map[string]int64   // KiB, by who had them
	alloc   map[string]float64 // bytes, by who allocated them; dpxen's programs only
}

// rate is in MiB a second.
func (s sample) rate() float64 { return float64(s.bytes) / (1 << 20) / s.seconds }

// perGB relates something to the bytes moved.
func (s sample) perGB(x float64) float64 { return x / (float64(s.bytes) / 1e9) }

// contender is one way to move VMs.
type contender struct {
	name string
	run  func(s *scene) ([]*program, error) // starts what does it
	self string                             // whose CPU the started programs' is
	also []int                              // exit codes that are good besides 0
	size func(s *scene) (int64, error)      // bytes that were moved, once it is over
}

// measure runs a contender once.
func measure(s *scene, c contender) (sample, error) {
	services := map[string]*program{"simulator": s.sim, "agent": s.agent}
	before := map[string]usage{}
	for name, p := range services {
		if err := p.forget(); err != nil {
			return sample{}, err
		}
		u, err := p.now()
		if err != nil {
			return sample{}, err
		}
		before[name] = u
	}
	allocated, err := s.allocated()
	if err != nil {
		return sample{}, err
	}
	out := sample{cpu: map[string]float64{}, peak: map[string]int64{}, alloc: map[string]float64{}}
	began := time.Now()
	programs, err := c.run(s)
	if err != nil {
		return out, err
	}
	u, err := ended(programs, c.also...)
	out.seconds = time.Since(began).Seconds()
	if err != nil {
		return out, err
	}
	out.cpu[c.self], out.peak[c.self] = u.cpu, u.peak
	for name, p := range services {
		u, err := p.now()
		if err != nil {
			return out, err
		}
		out.cpu[name], out.peak[name] = u.cpu-before[name].cpu, u.peak
	}
	now, err := s.allocated()
	if err != nil {
		return out, err
	}
	out.alloc["agent"] = now - allocated
	if c.self == "controller" {
		if out.alloc[c.self], err = s.controllerAllocated(s.path("profile")); err != nil {
			return out, err
		}
	}
	out.bytes, err = c.size(s)
	return out, err
}

// controllerAllocated reads what the one profile in a folder says, and removes the folder; where profiles are kept it is
// moved there.
func (s *scene) controllerAllocated(dir string) (float64, error) {
	files, err := filepath.Glob(filepath.Join(dir, "dpxen.*.json"))
	if err != nil || len(files) != 1 {
		return 0, fmt.Errorf("%d profiles in %s instead of one: %w", len(files), dir, err)
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		return 0, err
	}
	var totals struct {
		AllocBytes float64 `json:"alloc_bytes"`
	}
	if s.profiles != "" {
		err = os.Rename(dir, filepath.Join(s.profiles, strings.TrimSuffix(filepath.Base(files[0]), ".json")))
	}
	return totals.AllocBytes, errors.Join(err, json.Unmarshal(data, &totals), os.RemoveAll(dir))
}

// metric finds one in Prometheus's text.
func metric(r io.Reader, name string) (float64, error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, errors.Join(fmt.Errorf("no metric %s", name), lines.Err())
}

// staged is the length of all archives in the staging folder.
func staged(s *scene) (int64, error) {
	files, err := filepath.Glob(filepath.Join(s.stage, "*.xva"))
	if err != nil {
		return 0, err
	}
	var n int64
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			return 0, err
		}
		n += info.Size()
	}
	if n == 0 {
		return 0, fmt.Errorf("nothing is in %s", s.stage)
	}
	return n, nil
}

// dpxenBackup backs VMs up online.
func dpxenBackup(vms []string) contender {
	return contender{name: "dpxen", self: "controller", also: []int{4}, size: staged, run: func(s *scene) ([]*program, error) {
		args := []string{"--profile", s.path("profile"), "backup", "--mode", "online"}
		for _, vm := range vms {
			args = append(args, "--vm", vm)
		}
		p, err := s.begin(args...)
		return []*program{p}, err
	}}
}

// dpxenPacked is dpxenBackup with arguments of its own; what it has moved are the archives, whatever they were packed to.
func dpxenPacked(name string, vms []string, args ...string) contender {
	c := dpxenBackup(vms)
	c.name, c.size = name, archives
	c.run = func(s *scene) ([]*program, error) {
		all := append([]string{"--profile", s.path("profile"), "backup", "--mode", "online"}, args...)
		for _, vm := range vms {
			all = append(all, "--vm", vm)
		}
		p, err := s.begin(all...)
		return []*program{p}, err
	}
	return c
}

// archives is the length of all archives in the staging folder as they are unpacked, by their manifests.
func archives(s *scene) (int64, error) {
	files, err := filepath.Glob(filepath.Join(s.stage, "*.json"))
	if err != nil || len(files) == 0 {
		return 0, fmt.Errorf("%d manifests are in %s: %w", len(files), s.stage, err)
	}
	var n int64
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			return 0, err
		}
		var m struct {
			File struct {
				ArchiveBytes int64 `json:"archive_bytes"`
			} `json:"file"`
		}
		if err := json.Unmarshal(data, &m); err != nil {
			return 0, err
		}
		n += m.File.ArchiveBytes
	}
	return n, nil
}

// curlBackup exports halted VMs, one curl each.
func curlBackup(scheme string, vms []string) contender {
	return contender{name: "curl " + scheme, self: "curl", size: staged, run: func(s *scene) ([]*program, error) {
		var out []*program
		for _, vm := range vms {
			p, err := launch("curl", "-sSfk", "-u", s.pool.Username+":"+s.pool.Password, "-o", filepath.Join(s.stage, vm+".xva"),
				s.address(scheme)+"/export?uuid="+vm)
			if err != nil {
				return nil, err
			}
			out = append(out, p)
		}
		return out, nil
	}}
}

// dpxenRestore makes new VMs of all files in the staging folder.
func dpxenRestore() contender {
	return contender{name: "dpxen", self: "controller", also: []int{4}, size: staged, run: func(s *scene) ([]*program, error) {
		p, err := s.begin("--profile", s.path("profile"), "restore", "--mode", "allOffline", "--as-new", "--from", s.stage)
		return []*program{p}, err
	}}
}

// curlRestore imports all files in the staging folder, one curl each.
func curlRestore(scheme string) contender {
	return contender{name: "curl -T " + scheme, self: "curl", size: staged, run: func(s *scene) ([]*program, error) {
		files, err := filepath.Glob(filepath.Join(s.stage, "*.xva"))
		if err != nil {
			return nil, err
		}
		var out []*program
		for _, f := range files {
			p, err := launch("curl", "-sSfk", "-u", s.pool.Username+":"+s.pool.Password, "-T", f, s.address(scheme)+"/import")
			if err != nil {
				return nil, err
			}
			out = append(out, p)
		}
		return out, nil
	}}
}

func (s *scene) address(scheme string) string {
	if scheme == "https" {
		return s.pool.Hosts[0].HTTPS
	}
	return s.pool.Hosts[0].HTTP
}

// alternate runs the contenders in turn, round after round, each round begun by another one; between two runs the scene
// is made ready again.
func alternate(s *scene, rounds int, between func() error, list ...contender) (map[string][]sample, error) {
	out := map[string][]sample{}
	for round := range rounds {
		first := round % len(list)
		for _, c := range slices.Concat(list[first:], list[:first]) {
			if err := between(); err != nil {
				return nil, err
			}
			if err := warm(s.memory); err != nil {
				return nil, err
			}
			one, err := measure(s, c)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
			out[c.name] = append(out[c.name], one)
			fmt.Fprintf(os.Stderr, "  %-14s %7.0f MiB/s\n", c.name, one.rate())
		}
	}
	return out, nil
}

// warmed is how much memory is touched before a run.
const warmed = 4 << 30

// warm writes a file in memory and removes it, so that every run finds free pages that the machine below really has: a
// virtual machine may have to get them from its host, three times slower, and gives them back when it does not use them.
func warm(dir string) error {
	f, err := os.CreateTemp(dir, "dpxen-bench-warm-")
	if err != nil {
		return err
	}
	block := make([]byte, 1<<20)
	for n := 0; n < warmed && err == nil; n += len(block) {
		_, err = f.Write(block)
	}
	return errors.Join(err, f.Close(), os.Remove(f.Name()))
}
