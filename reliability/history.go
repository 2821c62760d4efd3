package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// tally counts what happened, by kind. It may be used by several goroutines.
type tally struct {
	mu sync.Mutex
	n  map[string]int64
}

func newTally() *tally { return &tally{n: map[string]int64{}} }

func (t *tally) add(kind string, n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n[kind] += n
}

func (t *tally) merge(o *tally) {
	for k, v := range o.all() {
		t.add(k, v)
	}
}

func (t *tally) all() map[string]int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[string]int64{}
	for k, v := range t.n {
		out[k] = v
	}
	return out
}

// kills are those of all processes.
func (t *tally) kills() (n int64) {
	for kind, times := range t.all() {
		if strings.HasPrefix(kind, "kills of ") {
			n += times
		}
	}
	return n
}

// staged is a proven file in the staging folder.
type staged struct {
	path, vm, name, kind, session string
	spec                          string            // backup specification, where one has made it
	memory                        bool              // of a suspended VM is in it
	gone                          bool              // deleted by a command that may
	vifs                          map[string]string // by device, where they are known
	disks                         contents
	bytes                         int64
	sha                           string
	stamp                         string // inode, length and time of the last change
}

// tracked is a VM and what may be on its disks.
type tracked struct {
	allowed  []contents // any one of these, whole
	seen     []contents // what was allowed earlier in the round
	replaced bool       // a restore has been at its disks since the last check
	resets   []*staged  // files that may have brought its settings back
	sure     *staged    // the one that has
	remade   bool       // it was deleted by its user, and a restore is to bring it back
}

// history is one site with what happened to it.
type history struct {
	seed uint64
	rng  *rand.Rand
	cfg  *settings
	site *site
	dir  string
	out  *os.File

	mu       sync.Mutex // of what follows up to counts
	problems []string
	rolled   bool // the database was rolled back since the last check
	// What users did since the last check.
	powers    map[string][]string // by VM: "try", then the power state if that was granted
	snapshots []string            // names of snapshots that they took
	deleted   map[string]bool     // VMs, by UUID
	loose     map[string]bool     // disks of those that could not be deleted

	counts   *tally
	before   *state // when all was well last
	vms      map[string]*tracked
	files    []*staged
	adds     map[string]*staged // VMs that restores have made beside: their names and the files they are from
	known    map[string]bool    // sessions that were checked
	hits     map[string]bool    // names of failpoints that were hit
	back     map[string]*staged // VMs that were absent and may be back, by UUID
	stops    bool               // something of this round may have shut VMs down
	discards map[string]bool    // suspended VMs whose memory may be given up
	firsts   map[string]bool    // VMs whose disks a restore of this round may have deleted first
	keeps    bool               // something of this round may have kept replaced disks
	blind    bool               // creations of tasks may not have been answered
	rivals   bool               // another controller was at work in this round
	begun    map[string]bool    // VMs made beside that are to be started
	nights   []*night           // by specification
	// Specifications that had commands in this round, and those that were ever told that Data Protector has saved files.
	dpRan, dpSaved map[string]bool
	plugs          map[string]bool // VBDs of the control domains before
	slow           bool            // the pool's network takes longer for a memory image than a step may last
	tasks          map[string]bool // tasks that were left before: XAPI forgets them one day
}

// newHistory makes the folder of a history. Its seed decides everything but the moments.
func newHistory(cfg *settings, seed uint64) (*history, error) {
	dir, err := filepath.Abs(filepath.Join(cfg.work, fmt.Sprintf("history-%d", seed)))
	if err != nil {
		return nil, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	out, err := os.Create(filepath.Join(dir, "history.log"))
	if err != nil {
		return nil, err
	}
	h := &history{seed: seed, rng: rand.New(rand.NewPCG(seed, 0x6470)), cfg: cfg, dir: dir, out: out, counts: newTally(), //nolint:gosec // repeatable on purpose
		vms: map[string]*tracked{}, adds: map[string]*staged{}, known: map[string]bool{}, hits: map[string]bool{}, back: map[string]*staged{},
		dpSaved: map[string]bool{}}
	for _, s := range dpSpecList {
		h.nights = append(h.nights, &night{spec: s})
	}
	return h, nil
}

// note writes a line to the history's own log.
func (h *history) note(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	line := time.Now().UTC().Format("15:04:05.000 ") + fmt.Sprintf(format, args...)
	fmt.Fprintln(h.out, line)
	if h.cfg.verbose {
		fmt.Println(line)
	}
}

// violation notes that something is not as it must be.
func (h *history) violation(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	h.note("VIOLATION %s", text)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.problems = append(h.problems, text)
}

func (h *history) failed() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.problems) > 0
}

// run lives the history to its end. An error means that the harness itself could not go on.
func (h *history) run() error {
	args := simArgs(h.rng, h.seed)
	h.slow = args[slices.Index(args, "--bandwidth")+1] != "0"
	h.note("seed %d: xensim %s", h.seed, strings.Join(args, " "))
	var err error
	own := habits{sweep: oftenSwept, retries: []int{0, 1, 3, 6, 12}[h.rng.IntN(5)]}
	if h.rng.IntN(3) == 0 {
		own.sweep = seldomSwept
	}
	for range 3 {
		own.ways = append(own.ways, []string{"https", "https", "http", "unix", "unix"}[h.rng.IntN(5)])
	}
	h.site, err = newSite(h.cfg.bin, h.dir, own, h.note, args...)
	if h.site != nil {
		defer h.site.close()
	}
	if err != nil {
		return fmt.Errorf("build the site: %w", err)
	}
	defer h.countPoints()
	if err := h.site.furnish(h.rng); err != nil {
		return err
	}
	h.counts.add("histories", 1)
	for _, a := range h.site.agents {
		h.counts.add("agents that reach XAPI by "+a.way, 1)
	}
	for round := range h.cfg.rounds {
		if err := h.round(round); err != nil {
			return err
		}
		if h.failed() {
			return nil
		}
		if stopped() {
			break
		}
	}
	return h.proveAgain()
}

// round is some steps under disturbance, then healing, then the check.
func (h *history) round(n int) error {
	if err := h.settleDown(); err != nil {
		return err
	}
	steps := 1 + h.rng.IntN(4)
	if n == 0 {
		steps = 1 // a backup, so that there is something to restore
	}
	for i := range steps {
		s := h.draw(n)
		s.storm = h.rng.IntN(100) < h.cfg.storms
		h.note("round %d step %d: %s, storm=%t", n, i, strings.Join(s.args, " "), s.storm)
		h.counts.add("steps", 1)
		if err := h.step(s, i == 0); err != nil {
			return err
		}
		if h.failed() {
			break
		}
	}
	return h.heal()
}

// settleDown is the quiet before a round: guests write, and what is there now is what must be there later.
func (h *history) settleDown() error {
	st, err := h.site.dump()
	if err != nil {
		return err
	}
	for i := range st.VMs {
		for _, d := range st.VMs[i].Disks {
			if d.Type == "Disk" && !d.Empty && h.rng.IntN(2) == 0 {
				if err := h.site.scribble(d.VDI.UUID, h.rng.Uint64(), 1+h.rng.IntN(8)); err != nil {
					return err
				}
			}
		}
	}
	if err := h.reconfigure(st); err != nil {
		return err
	}
	if h.before, err = h.site.dump(); err != nil {
		return err
	}
	h.discards = map[string]bool{}
	h.mu.Lock()
	h.rolled = false
	h.powers, h.deleted, h.loose = map[string][]string{}, map[string]bool{}, map[string]bool{}
	h.mu.Unlock()
	h.stops, h.keeps, h.rivals, h.blind = false, false, false, false
	if h.plugs, err = h.site.plugged(); err != nil {
		return err
	}
	h.tasks = map[string]bool{}
	for _, t := range h.before.Tasks {
		h.tasks[t] = true
	}
	h.begun = map[string]bool{}
	h.firsts, h.dpRan = map[string]bool{}, map[string]bool{}
	h.vms, h.adds, h.back = map[string]*tracked{}, map[string]*staged{}, map[string]*staged{}
	for i := range h.before.VMs {
		vm := &h.before.VMs[i]
		h.vms[vm.UUID] = &tracked{allowed: []contents{vm.contents()}}
	}
	return nil
}
