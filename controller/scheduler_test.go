package controller

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// load is what runs, as a test counts it.
type load struct {
	mu   sync.Mutex
	now  map[string]int
	most map[string]int
	ran  map[string]int
}

func newLoad() *load {
	return &load{now: map[string]int{}, most: map[string]int{}, ran: map[string]int{}}
}

// keys are what a place takes up.
func (p place) keys() []string {
	return append(append([]string{"total", "pool " + p.pool}, prefixed("host ", p.hosts)...), prefixed("sr ", p.srs)...)
}

func prefixed(prefix string, list []string) []string {
	var out []string
	for _, s := range list {
		out = append(out, prefix+s)
	}
	return out
}

func (l *load) add(p place, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range p.keys() {
		l.now[k] += n
		l.most[k] = max(l.most[k], l.now[k])
	}
}

func (l *load) begin(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ran[name]++
}

// limit is what the caps say of a key.
func (c *caps) limit(key string) int {
	kind, uuid, _ := strings.Cut(key, " ")
	switch kind {
	case "pool":
		return c.pool(uuid)
	case "host":
		return c.host(uuid)
	case "sr":
		return c.sr(uuid)
	}
	return c.Total
}

func drawPlace(rt *rapid.T, pool string) place {
	p := place{pool: pool, snapshots: rapid.Bool().Draw(rt, "snapshots")}
	for _, h := range rapid.SliceOfNDistinct(rapid.IntRange(1, 4), 0, 2, rapid.ID[int]).Draw(rt, "hosts") {
		p.hosts = append(p.hosts, fmt.Sprint(pool, h))
	}
	for _, s := range rapid.SliceOfNDistinct(rapid.IntRange(1, 4), 0, 3, rapid.ID[int]).Draw(rt, "srs") {
		p.srs = append(p.srs, fmt.Sprint(pool, s))
	}
	return p
}

func drawCaps(rt *rapid.T) caps {
	few := func(what string) map[string]int {
		return rapid.MapOfN(rapid.SampledFrom([]string{"a1", "a2", "b1", "b2", "c1"}), rapid.IntRange(1, 4), 0, 3).Draw(rt, what)
	}
	return caps{Limits: Limits{Total: rapid.IntRange(1, 8).Draw(rt, "total"), PerHost: rapid.IntRange(1, 3).Draw(rt, "per host"),
		PerSR: rapid.IntRange(1, 3).Draw(rt, "per SR"), PerPool: rapid.IntRange(1, 4).Draw(rt, "per pool"),
		Stagger: time.Duration(rapid.IntRange(0, 300).Draw(rt, "stagger")) * time.Millisecond},
		hosts: few("hosts"), srs: few("SRs"),
		pools: rapid.MapOfN(rapid.SampledFrom([]string{"a", "b", "c"}), rapid.IntRange(1, 4), 0, 2).Draw(rt, "pools")}
}

// stay is one place where a drawn task works, and how long.
type stay struct {
	at    place
	takes time.Duration
	leave bool // the seat is given up afterwards, for a while
}

// drawTasks makes tasks that move from place to place, as VMs do that migrate or are taken over.
func drawTasks(rt *rapid.T, l *load) []task {
	var tasks []task
	for i := range rapid.IntRange(0, 40).Draw(rt, "tasks") {
		pool := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "pool")
		var stays []stay
		for n := range rapid.IntRange(1, 3).Draw(rt, "stays") {
			stays = append(stays, stay{at: drawPlace(rt, pool), leave: rapid.Bool().Draw(rt, "leave"),
				// No two ends are at the same time, so that nothing depends on who is told first.
				takes: time.Duration(rapid.IntRange(0, 1000).Draw(rt, "takes"))*time.Millisecond + time.Duration(1+3*i+n)})
		}
		tk := task{place: stays[0].at, weight: int64(rapid.IntRange(0, 5).Draw(rt, "weight")), name: fmt.Sprint("task", i)}
		tk.run = func(ctx context.Context, st *seat) {
			l.begin(tk.name)
			for _, s := range stays {
				if st.move(ctx, s.at, func() {}) != nil {
					return
				}
				l.add(s.at, 1)
				time.Sleep(s.takes)
				l.add(s.at, -1)
				if s.leave {
					st.leave()
					time.Sleep(s.takes / 2)
				}
			}
		}
		tasks = append(tasks, tk)
	}
	return tasks
}

// TestScheduleHoldsLimits: no limit is ever exceeded, of the usual ones and of single things, though tasks move on to other
// places and pause; nothing starves: every task runs once. After a cancel at most once, and the end comes soon.
func TestScheduleHoldsLimits(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		l := newLoad()
		limits := drawCaps(rt)
		tasks := drawTasks(rt, l)
		cancelAt := time.Duration(rapid.IntRange(-1, 2000).Draw(rt, "cancel")) * time.Millisecond
		synctest.Test(t, func(*testing.T) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			began := time.Now()
			if cancelAt >= 0 {
				time.AfterFunc(cancelAt, cancel)
			}
			schedule(ctx, limits, tasks)
			if cancelAt >= 0 && time.Since(began) > cancelAt+5*time.Second {
				rt.Errorf("ended %s after the cancel", time.Since(began)-cancelAt)
			}
			for _, tk := range tasks {
				if got := l.ran[tk.name]; got > 1 || got == 0 && cancelAt < 0 {
					rt.Errorf("%s ran %d times", tk.name, got)
				}
			}
		})
		for key, most := range l.most {
			if limit := limits.limit(key); most > limit {
				rt.Errorf("%d at once at %s, the limit is %d", most, key, limit)
			}
		}
	})
}

// TestScheduleIsDeterministic: the same tasks, told in any order, begin at the same times.
func TestScheduleIsDeterministic(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		limits := drawCaps(rt)
		var tasks []task
		var mu sync.Mutex
		var began time.Time
		at := map[string]time.Duration{}
		for i := range rapid.IntRange(1, 30).Draw(rt, "tasks") {
			tk := task{place: drawPlace(rt, rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "pool")),
				weight: int64(rapid.IntRange(0, 3).Draw(rt, "weight")), name: fmt.Sprint("task", i)}
			// Sums of distinct powers of two: no two tasks end at the same time.
			takes := time.Duration(rapid.IntRange(1, 50).Draw(rt, "takes"))<<40 + time.Duration(1)<<i
			tk.run = func(context.Context, *seat) {
				mu.Lock()
				at[tk.name] = time.Since(began)
				mu.Unlock()
				time.Sleep(takes)
			}
			tasks = append(tasks, tk)
		}
		var orders []string
		for range 2 {
			synctest.Test(t, func(*testing.T) {
				began = time.Now()
				schedule(context.Background(), limits, tasks)
			})
			orders = append(orders, fmt.Sprint(at)) // by name
			clear(at)
			tasks = rapid.Permutation(tasks).Draw(rt, "permuted")
		}
		if orders[0] != orders[1] {
			rt.Errorf("began at\n%s\nand then at\n%s", orders[0], orders[1])
		}
	})
}

// timed runs tasks under limits and tells when each began, in whole seconds.
func timed(t *testing.T, limits Limits, tasks ...task) (order []string, at map[string]int) {
	t.Helper()
	at = map[string]int{}
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var mu sync.Mutex
		for i := range tasks {
			tk := &tasks[i]
			takes := time.Duration(tk.weight)*time.Second + time.Duration(i) // no two at the same time
			tk.run = func(context.Context, *seat) {
				mu.Lock()
				order = append(order, tk.name)
				at[tk.name] = int(time.Since(began).Seconds())
				mu.Unlock()
				time.Sleep(takes)
			}
		}
		schedule(t.Context(), caps{Limits: limits}, tasks)
	})
	return order, at
}

func onSRs(name string, seconds int64, srs ...string) task {
	return task{place: place{pool: "p", srs: srs}, weight: seconds, name: name}
}

func TestScheduleLongestFirst(t *testing.T) {
	order, _ := timed(t, Limits{Total: 1, PerHost: 9, PerSR: 9, PerPool: 9},
		onSRs("short", 1, "s"), onSRs("long", 9, "s"), onSRs("middle", 4, "s"))
	if got := fmt.Sprint(order); got != "[long middle short]" {
		t.Error(got)
	}
}

// TestScheduleDoesNotBlock: what has to wait for a slow SR or host does not hold up those that do not need it.
func TestScheduleDoesNotBlock(t *testing.T) {
	_, at := timed(t, Limits{Total: 2, PerHost: 1, PerSR: 1, PerPool: 9},
		onSRs("slow1", 1000, "slow"), onSRs("slow2", 1000, "slow"), onSRs("slow3", 1000, "slow"),
		onSRs("a", 5, "quick"), onSRs("b", 5, "quick"), onSRs("c", 5, "quick"))
	if want := (map[string]int{"slow1": 0, "a": 0, "b": 5, "c": 10, "slow2": 1000, "slow3": 2000}); !maps.Equal(at, want) {
		t.Errorf("began at %v, want %v", at, want)
	}
}

// TestScheduleIsFair: a pool with few VMs is not behind all those of a large one, and when it is done the large one has all.
func TestScheduleIsFair(t *testing.T) {
	var tasks []task
	for i := range 20 {
		tasks = append(tasks, task{place: place{pool: "large"}, weight: 10, name: fmt.Sprint("l", i)})
	}
	for i := range 4 {
		tasks = append(tasks, task{place: place{pool: "small"}, weight: 5, name: fmt.Sprint("s", i)})
	}
	order, at := timed(t, Limits{Total: 4, PerHost: 9, PerSR: 9, PerPool: 9}, tasks...)
	if at["s3"] > 10 || at["l1"] > 0 {
		t.Errorf("the small pool's last VM began after %d s, the large one's second after %d s: %v", at["s3"], at["l1"], order)
	}
	order, _ = timed(t, Limits{Total: 1, PerHost: 9, PerSR: 9, PerPool: 9}, tasks...)
	for i, name := range order[:8] {
		if want := "ls"[i%2 : i%2+1]; !strings.HasPrefix(name, want) {
			t.Fatalf("one at a time, the pools do not take turns: %v", order)
		}
	}
}

// TestScheduleDoesNotStarve: a VM with disks on two SRs, either of which is always full when the other has room, comes to its
// turn all the same.
func TestScheduleDoesNotStarve(t *testing.T) {
	tasks := []task{onSRs("head1", 11, "a"), onSRs("head2", 11, "b"), onSRs("both", 10, "a", "b")}
	for i := range 100 {
		tasks = append(tasks, onSRs(fmt.Sprint("a", i), 8, "a"), onSRs(fmt.Sprint("b", i), 7, "b"))
	}
	for _, perSR := range []int{1, 2} {
		order, at := timed(t, Limits{Total: 99, PerHost: 9, PerSR: perSR, PerPool: 99}, slices.Clone(tasks)...)
		if i := slices.Index(order, "both"); i > 2+2*perSR+maxPassed+2 {
			t.Errorf("%d per SR: %d were before it, it began after %d s", perSR, i, at["both"])
		}
	}
}

// TestScheduleStaggers: snapshots begin apart from each other on every SR, but not on different ones, and others need not.
func TestScheduleStaggers(t *testing.T) {
	snap := func(name string, srs ...string) task {
		tk := onSRs(name, 100, srs...)
		tk.snapshots = true
		return tk
	}
	_, at := timed(t, Limits{Total: 9, PerHost: 9, PerSR: 9, PerPool: 9, Stagger: 3 * time.Second},
		snap("1", "a"), snap("2", "a"), snap("3", "b"), snap("4", "b", "a"), onSRs("5", 100, "a"))
	if want := (map[string]int{"1": 0, "2": 3, "3": 0, "4": 6, "5": 0}); !maps.Equal(at, want) {
		t.Errorf("began at %v, want %v", at, want)
	}
}

func TestLimitsOn(t *testing.T) {
	inv := &Inventory{Pools: []Pool{
		{UUID: "p1", Name: "prod", Hosts: []Host{{UUID: "h1", Name: "xen1"}, {UUID: "h2", Name: "xen2"}}, SRs: []SR{{UUID: "s1", Name: "nfs"}}},
		{UUID: "p2", Name: "lab", Hosts: []Host{{UUID: "h3", Name: "xen1"}}, SRs: []SR{{UUID: "s2", Name: "nfs"}}},
	}}
	c, remarks := Limits{Total: 8, PerHost: 2, PerSR: 3, PerPool: 4, Pools: map[string]int{"lab": 1},
		Hosts: map[string]int{"xen1": 1, "h3": 5, "xen9": 1}, SRs: map[string]int{"s2": 7}}.on(inv)
	for what, got := range map[string][2]int{
		"host by name": {c.host("h1"), 1}, "host": {c.host("h2"), 2}, "UUID before name": {c.host("h3"), 5},
		"SR": {c.sr("s1"), 3}, "SR by UUID": {c.sr("s2"), 7}, "pool": {c.pool("p1"), 4}, "pool by name": {c.pool("p2"), 1},
		"unknown": {c.sr("s9"), 3},
	} {
		if got[0] != got[1] {
			t.Errorf("%s: %d, want %d", what, got[0], got[1])
		}
	}
	if got := fmt.Sprint(remarks); got != `[limits.hosts: there is no host "xen9" in the pools that answer]` {
		t.Error(got)
	}
}

func TestSeats(t *testing.T) {
	for name, tt := range map[string]struct {
		vm   VM
		own  string
		want string
	}{
		"runs beside the agent":           {VM{HostUUID: "a", CapableHosts: []string{"a", "b"}}, "a", "[a]"},
		"read from another host":          {VM{HostUUID: "a", CapableHosts: []string{"a", "b"}}, "b", "[a b]"},
		"halted":                          {VM{CapableHosts: []string{"a", "b"}}, "b", "[b]"},
		"the agent's host sees not all":   {VM{HostUUID: "a", CapableHosts: []string{"a"}}, "b", "[a]"},
		"XAPI chooses":                    {VM{CapableHosts: []string{"a", "c"}}, "b", "[a c]"},
		"the agent's host is not known":   {VM{HostUUID: "a", CapableHosts: []string{"a", "b"}}, "", "[a b]"},
		"an agent that tells of no hosts": {VM{}, "", "[]"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := fmt.Sprint(tt.vm.seats(tt.own)); got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}
