package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	flipBatch  = 3000    // files that one dpxen verify reads
	flipsASite = 150_000 // flips in the backups of one pool; the next one is of another release
)

// flipReleases are the hosts whose exports are damaged: all kinds of checksums.
var flipReleases = []string{"6.5", "7.0", "7.6", "8.0", "8.1", "8.2.1", "8.3.0", "8.4.0"}

// bits are those of the files of a site, in an order in which each comes once before any comes again.
type bits struct {
	names        []string // exports and manifests
	data         [][]byte
	total        uint64
	first, steps uint64
}

// newBits reads the files; the seed decides the order.
func newBits(names []string, rng *rand.Rand) (*bits, error) {
	b := &bits{names: names}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		b.data = append(b.data, data)
		b.total += 8 * uint64(len(data))
	}
	b.first = rng.Uint64N(b.total)
	for b.steps = 1 + rng.Uint64N(b.total-1); common(b.steps, b.total) != 1; b.steps = 1 + rng.Uint64N(b.total-1) {
	}
	return b, nil
}

// common is the greatest common divisor.
func common(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// at tells which file has the nth bit, and which of its bits that is.
func (b *bits) at(n uint64) (file int, bit uint64) {
	bit = (b.first + n%b.total*b.steps) % b.total // files of some MiB: no overflow
	for file = range b.data {
		if size := 8 * uint64(len(b.data[file])); bit >= size {
			bit -= size
			continue
		}
		break
	}
	return file, bit
}

// runFlips makes small backups and proves that dpxen verify, a process of its own, sees each single wrong bit in them.
func runFlips(cfg *settings, total *tally) error {
	if cfg.parallel == 0 {
		cfg.parallel = runtime.NumCPU()
	}
	cfg.work = memory(cfg.work)
	for done, n := int64(0), uint64(0); done < cfg.flips; n++ {
		want := min(flipsASite, cfg.flips-done)
		if err := flipSite(cfg, cfg.seed+n, want, total); err != nil {
			return err
		}
		done += want
		fmt.Printf("%d of %d flips\n", done, cfg.flips)
		if stopped() {
			break
		}
	}
	return nil
}

// flipSite does so with the backups of one pool.
func flipSite(cfg *settings, seed uint64, want int64, total *tally) error {
	h, err := newHistory(cfg, seed)
	if err != nil {
		return err
	}
	h.site, err = newSite(cfg.bin, h.dir, habits{sweep: oftenSwept, ways: []string{"https"}}, h.note, "--hosts", "1", "--vms", "2", "--disk-size", "16384", "--speedup", "50",
		"--product-version", flipReleases[seed%uint64(len(flipReleases))], "--seed", strconv.FormatUint(seed, 10))
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
	names, err := filepath.Glob(h.site.path("staging/vm-*"))
	if err != nil || len(names) != 8 {
		return fmt.Errorf("%d files instead of 8: %w", len(names), err)
	}
	b, err := newBits(names, h.rng)
	if err != nil {
		return err
	}
	var both errgroup.Group
	both.SetLimit(cfg.parallel)
	for done := int64(0); done < want && !stopped(); done += flipBatch {
		at, count := uint64(done), int(min(flipBatch, want-done))
		both.Go(func() error {
			if err := h.flip(b, at, count); err != nil {
				return err
			}
			total.add("bit flips seen by dpxen verify", int64(count))
			return nil
		})
	}
	if err := both.Wait(); err != nil {
		return err
	}
	return os.RemoveAll(h.dir)
}

// flip proves count flips, from the nth on: each in a copy of its own, which dpxen verify must call damaged.
func (h *history) flip(b *bits, n uint64, count int) error {
	dir := h.site.path(fmt.Sprintf("flips-%d", n))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	where := map[string]string{}
	args := []string{"verify", "--json"}
	for i := range count {
		file, bit := b.at(n + uint64(i))
		name, err := b.copy(filepath.Join(dir, strconv.Itoa(i)), file, bit)
		if err != nil {
			return err
		}
		where[name] = fmt.Sprintf("%s byte %d bit %d", filepath.Base(b.names[file]), bit/8, bit%8)
		args = append(args, name)
	}
	out, code, err := h.site.runAs(launch{env: []string{"GOGC=800"}}, 10*time.Minute, args...) // it has little to do and much to throw away
	if err != nil {
		return err
	}
	if code != 5 {
		return fmt.Errorf("dpxen verify of damaged files ended with %d: %w", code, errViolations)
	}
	for d := json.NewDecoder(strings.NewReader(jsonPart(out))); ; {
		var r struct {
			File    string `json:"file"`
			OK      bool   `json:"ok"`
			Problem string `json:"problem"`
		}
		if err := d.Decode(&r); err != nil {
			break
		}
		if r.OK || r.Problem == "" || r.Problem == "missing" || r.Problem == "unreadable" {
			return fmt.Errorf("dpxen verify says ok=%t %s of %s, where %s is wrong: %w", r.OK, r.Problem, r.File, where[r.File], errViolations)
		}
		delete(where, r.File)
	}
	if len(where) > 0 {
		return fmt.Errorf("dpxen verify told nothing of %d files, as of %v: %w", len(where), where, errViolations)
	}
	return os.RemoveAll(dir)
}

// copy makes the export with one wrong bit in it or in its manifest, in a folder of its own; what is whole is linked.
func (b *bits) copy(dir string, file int, bit uint64) (string, error) {
	stem := strings.TrimSuffix(b.names[file], filepath.Ext(b.names[file]))
	whole := stem + ".json"
	if b.names[file] == whole {
		whole = stem + ".xva"
	}
	data := append([]byte(nil), b.data[file]...)
	data[bit/8] ^= 1 << (bit % 8)
	export := filepath.Join(dir, filepath.Base(stem)+".xva")
	return export, errors.Join(os.Mkdir(dir, 0o700), os.Link(whole, filepath.Join(dir, filepath.Base(whole))),
		os.WriteFile(filepath.Join(dir, filepath.Base(b.names[file])), data, 0o600))
}
