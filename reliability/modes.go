package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// flipBatch is how many files one dpxen verify reads.
const flipBatch = 2000

// runFlips makes small backups and proves that dpxen verify, a process of its own, sees each single wrong bit in them.
func runFlips(cfg *settings, total *tally) error {
	h, err := newHistory(cfg, cfg.seed)
	if err != nil {
		return err
	}
	h.site, err = newSite(cfg.bin, h.dir, habits{sweep: oftenSwept}, h.note, "--hosts", "1", "--vms", "2", "--disk-size", "16384", "--speedup", "50",
		"--seed", strconv.FormatUint(cfg.seed, 10))
	if h.site != nil {
		defer h.site.close()
	}
	if err != nil {
		return err
	}
	for _, args := range [][]string{{"--mode", "allOnline"}, {"--mode", "allOffline", "--compress", "gzip"}} {
		if err := h.site.must(append([]string{"backup"}, args...)...); err != nil {
			return err
		}
	}
	files, err := filepath.Glob(h.site.path("staging/*.xva"))
	if err != nil || len(files) != 4 {
		return fmt.Errorf("%d files instead of 4: %w", len(files), err)
	}
	for done := int64(0); done < cfg.flips; done += flipBatch {
		if err := h.flip(files); err != nil {
			return err
		}
		total.add("bit flips seen by dpxen verify", flipBatch)
		if done/flipBatch%10 == 9 {
			fmt.Printf("%d of %d flips\n", done+flipBatch, cfg.flips)
		}
	}
	return os.RemoveAll(h.dir)
}

// flip proves one batch.
func (h *history) flip(files []string) error {
	dir := h.site.path("flips")
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
		return err
	}
	args := []string{"verify", "--json"}
	where := map[string]string{}
	for n := range flipBatch {
		file := files[n%len(files)]
		sub := filepath.Join(dir, strconv.Itoa(n))
		name := filepath.Join(sub, filepath.Base(file))
		if err := os.Mkdir(sub, 0o700); err != nil {
			return err
		}
		what, err := copyFlipped(file, name, h.rng)
		if err != nil {
			return err
		}
		where[name] = what
		args = append(args, name)
	}
	out, code, err := h.site.run(5*time.Minute, args...)
	if err != nil {
		return err
	}
	if code != 5 {
		return fmt.Errorf("dpxen verify of damaged files ended with %d: %w", code, errViolations)
	}
	seen := 0
	for d := json.NewDecoder(strings.NewReader(jsonPart(out))); ; seen++ {
		var r struct {
			File string `json:"file"`
			Path string `json:"path"`
			OK   bool   `json:"ok"`
		}
		if err := d.Decode(&r); err != nil {
			break
		}
		if r.OK {
			return fmt.Errorf("dpxen verify says ok of %s %s, see %v: %w", r.Path, r.File, where, errViolations)
		}
	}
	if seen != flipBatch {
		return fmt.Errorf("dpxen verify told of %d files instead of %d: %w", seen, flipBatch, errViolations)
	}
	return nil
}

// copyFlipped copies a file with its manifest, one bit of one of them wrong, and says which.
func copyFlipped(from, to string, rng *rand.Rand) (string, error) {
	pair := [][2]string{{from, to}, {strings.TrimSuffix(from, ".xva") + ".json", strings.TrimSuffix(to, ".xva") + ".json"}}
	target := 0
	if rng.IntN(8) == 0 {
		target = 1
	}
	said := ""
	for i, p := range pair {
		if i != target {
			if err := os.Link(p[0], p[1]); err != nil {
				return "", err
			}
			continue
		}
		data, err := os.ReadFile(p[0])
		if err != nil {
			return "", err
		}
		at, bit := rng.IntN(len(data)), rng.IntN(8)
		data[at] ^= 1 << bit
		said = fmt.Sprintf("%s byte %d bit %d", filepath.Base(p[1]), at, bit)
		if err := os.WriteFile(p[1], data, 0o600); err != nil {
			return "", err
		}
	}
	return said, nil
}

// goTool runs the go command in the module's root.
func goTool(args ...string) (string, error) {
	var out bytes.Buffer
	cmd := exec.Command("go", args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

var testName = regexp.MustCompile(`^Test\w+`)

// noTest stands in the list of each package, so that it is never empty.
const noTest = "TestNone"

// packages lists those packages of the module whose test files name a word, with the tests in whose text it, or the last
// part of it, stands.
func packages(word string) (map[string][]string, error) {
	out, err := goTool("list", "-f", `{{.ImportPath}} {{.Dir}}`, "./...")
	if err != nil {
		return nil, fmt.Errorf("go list: %s: %w", out, err)
	}
	found := map[string][]string{}
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		pkg, dir, _ := strings.Cut(line, " ")
		files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			data, err := os.ReadFile(f)
			if err != nil {
				return nil, err
			}
			if !strings.Contains(string(data), word) {
				continue
			}
			found[pkg] = append(found[pkg], noTest)
			for _, body := range strings.Split(string(data), "\nfunc ") {
				if name := testName.FindString(body); name != "" && strings.Contains(body, filepath.Base(word)+".") {
					found[pkg] = append(found[pkg], name)
				}
			}
		}
	}
	return found, nil
}

var fuzzTarget = regexp.MustCompile(`(?m)^Fuzz\w+$`)

// runFuzz fuzzes each target of the module.
func runFuzz(cfg *settings, total *tally) error {
	pkgs, err := packages("func Fuzz")
	if err != nil {
		return err
	}
	for pkg := range pkgs {
		list, err := goTool("test", "-list", "^Fuzz", pkg)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", pkg, list, err)
		}
		for _, target := range fuzzTarget.FindAllString(list, -1) {
			began := time.Now()
			out, err := goTool("test", "-run", "^$", "-fuzz", "^"+target+"$", "-fuzztime", cfg.fuzz.String(), "-parallel", "1",
				"-fuzzminimizetime", "20x", pkg)
			name := pkg[strings.LastIndex(pkg, "/")+1:] + "." + target
			total.add("fuzz seconds "+name, int64(time.Since(began).Seconds()))
			fmt.Printf("%s: %s\n", name, lastLine(out))
			if err != nil {
				total.add("violations", 1)
				fmt.Println(out)
				return fmt.Errorf("%s: %w", name, errViolations)
			}
		}
	}
	return nil
}

var rapidPassed = regexp.MustCompile(`OK, passed (\d+) tests`)

// casesAtOnce is how many cases one process checks; the next one draws others.
const casesAtOnce = 20_000

// runCases checks each property of the module with so many cases, or with as many as its share of the time allows.
func runCases(cfg *settings, total *tally) error {
	pkgs, err := packages("pgregory.net/rapid")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "reliability-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // binaries of tests
	count := 0
	for _, tests := range pkgs {
		count += len(tests) - 1
	}
	for pkg, tests := range pkgs {
		binary := filepath.Join(dir, strings.ReplaceAll(pkg, "/", "_"))
		if out, err := goTool("test", "-c", "-o", binary, pkg); err != nil {
			return fmt.Errorf("%s: %s: %w", pkg, out, err)
		}
		source, err := goTool("list", "-f", "{{.Dir}}", pkg)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", pkg, source, err)
		}
		for _, test := range tests {
			if test == noTest {
				continue
			}
			n, err := checkProperty(strings.TrimSpace(source), binary, test, cfg.cases, cfg.duration/time.Duration(count))
			total.add("property cases", n)
			fmt.Printf("%s %s: %d cases\n", pkg, test, n)
			if err != nil {
				total.add("violations", 1)
				return err
			}
		}
	}
	return nil
}

// checkProperty checks one property, in its package's folder, until it had so many cases or its time is up.
func checkProperty(dir, binary, test string, cases int64, limit time.Duration) (done int64, err error) {
	pace := int64(200)
	for end := time.Now().Add(limit); done < cases && time.Now().Before(end); {
		at := min(pace, cases-done)
		cmd := exec.Command(binary, "-test.v", "-test.count=1", "-test.run", "^"+test+"$", "-rapid.checks="+strconv.FormatInt(at, 10))
		cmd.Dir = dir
		began := time.Now()
		out, err := cmd.CombinedOutput()
		for _, m := range rapidPassed.FindAllStringSubmatch(string(out), -1) {
			n, err := strconv.ParseInt(m[1], 10, 64)
			if err != nil {
				return done, err
			}
			done += n
		}
		if err != nil {
			return done, fmt.Errorf("%s: %s: %w", test, out, errViolations)
		}
		if done == 0 {
			return done, nil // no property in it
		}
		if took := time.Since(began); took < limit/8 {
			pace = min(4*pace, casesAtOnce) // it is not a slow one
		}
	}
	return done, nil
}
