package transfer

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func over(l *Lease) bool {
	synctest.Wait()
	select {
	case <-l.Expired():
		return true
	default:
		return false
	}
}

func TestLeaseRunsWhileDetached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLease(time.Minute)
		start := time.Now()
		if end, ok := l.End(); !ok || !end.Equal(start.Add(time.Minute)) {
			t.Errorf("ends %v, %v", end, ok)
		}
		time.Sleep(59 * time.Second)
		if !l.Attach() || !l.Attached() {
			t.Fatal("could not attach in time")
		}
		time.Sleep(time.Hour)
		if over(l) {
			t.Fatal("ran out while attached")
		}
		if _, ok := l.End(); ok {
			t.Error("has an end while attached")
		}
		if !l.Attach() { // the newer stream comes before the older one has gone
			t.Fatal("could not attach twice")
		}
		l.Detach()
		time.Sleep(time.Hour)
		if over(l) {
			t.Fatal("ran out while one of two was attached")
		}
		l.Detach()
		l.Detach() // one too many
		time.Sleep(59 * time.Second)
		l.Renew()
		time.Sleep(59 * time.Second)
		if over(l) {
			t.Fatal("ran out although it was renewed")
		}
		time.Sleep(time.Second)
		if !over(l) {
			t.Fatal("did not run out")
		}
		if l.Attach() {
			t.Error("attached after it ran out")
		}
		l.Renew()
		l.Detach()
		l.Stop()
		if _, ok := l.End(); ok {
			t.Error("has an end after it ran out")
		}
	})
}

func TestLeaseStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 2 {
			l := NewLease(time.Minute)
			if !l.Attach() {
				t.Fatal("could not attach")
			}
			l.Detach()
			l.Stop()
			l.Stop()
			time.Sleep(time.Hour)
			if over(l) || l.Attach() {
				t.Error("a stopped lease ran on")
			}
		}
	})
}

func TestLeaseLengths(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for d, want := range map[time.Duration]time.Duration{
			0: DefaultLease, -time.Second: DefaultLease, 100 * time.Millisecond: 100 * time.Millisecond, time.Hour: MaxLease,
		} {
			l := NewLease(d)
			if end, _ := l.End(); time.Until(end) != want {
				t.Errorf("%s: ends in %s", d, time.Until(end))
			}
			l.Stop()
		}
	})
}

func TestRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry[string](0)
		made := 0
		create := func() (string, error) {
			made++
			return fmt.Sprintf("transfer %d", made), nil
		}
		check := func(key string, attempt uint32, want string, wantResumed bool) {
			t.Helper()
			got, resumed, err := r.Open(key, attempt, create)
			if got != want || resumed != wantResumed || err != nil {
				t.Errorf("open %s attempt %d: %q, %v, %v", key, attempt, got, resumed, err)
			}
		}
		check("a", 1, "transfer 1", false)
		check("a", 1, "transfer 1", true)
		check("a", 9, "transfer 1", true)
		check("b", 1, "transfer 2", false)
		if _, _, err := r.Open("c", 2, create); !errors.Is(err, ErrGone) {
			t.Errorf("a second attempt of nothing: %v", err)
		}
		broken := errors.New("broken")
		if _, _, err := r.Open("c", 1, func() (string, error) { return "x", broken }); !errors.Is(err, broken) {
			t.Errorf("create failed: %v", err)
		}
		if _, ok := r.Lookup("c"); ok || r.Len() != 2 || len(r.All()) != 2 || r.All()["b"] != "transfer 2" {
			t.Errorf("holds %v", r.All())
		}
		r.Remove("a")
		r.Remove("a")
		r.Remove("never")
		if r.Len() != 1 {
			t.Errorf("%d open", r.Len())
		}
		time.Sleep(KeepFinished - time.Second)
		check("a", 2, "transfer 1", true)
		if got, ok := r.Lookup("a"); got != "transfer 1" || !ok {
			t.Errorf("finished: %q, %v", got, ok)
		}
		r.Remove("b")
		time.Sleep(time.Second)
		if _, ok := r.Lookup("a"); ok {
			t.Error("remembered for too long")
		}
		if _, ok := r.Lookup("b"); !ok {
			t.Error("forgotten too early")
		}
	})
}

func TestRegistryForgetsTheOldestOfTooMany(t *testing.T) {
	r := NewRegistry[int](time.Hour)
	for i := range maxFinished + 3 {
		key := fmt.Sprint(i)
		if _, _, err := r.Open(key, 1, func() (int, error) { return i, nil }); err != nil {
			t.Fatal(err)
		}
		r.Remove(key)
	}
	for i, want := range map[int]bool{0: false, 2: false, 3: true, maxFinished + 2: true} {
		if _, ok := r.Lookup(fmt.Sprint(i)); ok != want {
			t.Errorf("%d remembered: %v", i, ok)
		}
	}
	if len(r.finished) != maxFinished || len(r.order) != maxFinished {
		t.Errorf("holds %d, %d", len(r.finished), len(r.order))
	}
}
