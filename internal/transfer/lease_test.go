package transfer

import (
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
