package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

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
