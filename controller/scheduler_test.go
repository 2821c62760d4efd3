package controller

import (
	"context"
	"fmt"
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
	ran  map[int]int
}

func (l *load) add(keys []string, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range keys {
		l.now[k] += n
		l.most[k] = max(l.most[k], l.now[k])
	}
}

func drawTasks(rt *rapid.T, l *load) []task {
	var tasks []task
	for i := range rapid.IntRange(0, 40).Draw(rt, "tasks") {
		tk := task{pool: fmt.Sprint("pool", rapid.IntRange(1, 3).Draw(rt, "pool"))}
		if h := rapid.IntRange(0, 4).Draw(rt, "host"); h > 0 {
			tk.host = fmt.Sprint("host", h)
		}
		for s := range rapid.IntRange(0, 3).Draw(rt, "srs") {
			tk.srs = append(tk.srs, fmt.Sprint("sr", s, rapid.IntRange(1, 3).Draw(rt, "sr")))
		}
		keys := append([]string{"total", tk.pool}, tk.srs...)
		if tk.host != "" {
			keys = append(keys, tk.host)
		}
		takes := time.Duration(rapid.IntRange(0, 1000).Draw(rt, "takes")) * time.Millisecond
		tk.run = func(context.Context) {
			l.add(keys, 1)
			time.Sleep(takes)
			l.add(keys, -1)
			l.mu.Lock()
			defer l.mu.Unlock()
			l.ran[i]++
		}
		tasks = append(tasks, tk)
	}
	return tasks
}

// TestScheduleHoldsLimits: no limit is ever exceeded, and every task runs once; after a cancel, at most once, and none that
// was not begun by then.
func TestScheduleHoldsLimits(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		l := &load{now: map[string]int{}, most: map[string]int{}, ran: map[int]int{}}
		limits := Limits{Total: rapid.IntRange(1, 6).Draw(rt, "total"), PerHost: rapid.IntRange(1, 3).Draw(rt, "per host"),
			PerSR: rapid.IntRange(1, 3).Draw(rt, "per SR"), PerPool: rapid.IntRange(1, 4).Draw(rt, "per pool")}
		tasks := drawTasks(rt, l)
		cancelAt := time.Duration(rapid.IntRange(-1, 2000).Draw(rt, "cancel")) * time.Millisecond
		synctest.Test(t, func(*testing.T) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			began := time.Now()
			if cancelAt >= 0 {
				time.AfterFunc(cancelAt, cancel)
			}
			n := len(tasks)
			schedule(ctx, limits, tasks)
			if cancelAt >= 0 && time.Since(began) > cancelAt+time.Second {
				rt.Errorf("ended %s after the cancel", time.Since(began)-cancelAt)
			}
			for i := range n {
				if got := l.ran[i]; got > 1 || got == 0 && cancelAt < 0 {
					rt.Errorf("task %d ran %d times", i, got)
				}
			}
		})
		for key, most := range l.most {
			limit := map[string]int{"tota": limits.Total, "pool": limits.PerPool, "host": limits.PerHost}[key[:4]]
			if key[:2] == "sr" {
				limit = limits.PerSR
			}
			if most > limit {
				rt.Errorf("%d at once at %s, the limit is %d", most, key, limit)
			}
		}
	})
}

// TestScheduleDoesNotBlock: a task that must wait does not hold up those behind it.
func TestScheduleDoesNotBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var order []string
		var mu sync.Mutex
		mk := func(name, host string, takes time.Duration) task {
			return task{host: host, pool: "p", run: func(context.Context) {
				time.Sleep(takes)
				mu.Lock()
				defer mu.Unlock()
				order = append(order, name)
			}}
		}
		schedule(t.Context(), Limits{Total: 2, PerHost: 1, PerSR: 9, PerPool: 9},
			[]task{mk("a", "h1", 3*time.Second), mk("b", "h1", time.Second), mk("c", "h2", time.Second)})
		if got := fmt.Sprint(order); got != "[c a b]" || time.Since(began) != 4*time.Second {
			t.Errorf("%s in %s", got, time.Since(began))
		}
	})
}
