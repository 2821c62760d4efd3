package transfer

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

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
	for i := range maxRemembered + 3 {
		key := fmt.Sprint(i)
		if _, _, err := r.Open(key, 1, func() (int, error) { return i, nil }); err != nil {
			t.Fatal(err)
		}
		r.Remove(key)
	}
	for i, want := range map[int]bool{0: false, 2: false, 3: true, maxRemembered + 2: true} {
		if _, ok := r.Lookup(fmt.Sprint(i)); ok != want {
			t.Errorf("%d remembered: %v", i, ok)
		}
	}
	if len(r.finished.values) != maxRemembered || len(r.finished.order) != maxRemembered {
		t.Errorf("holds %d, %d", len(r.finished.values), len(r.finished.order))
	}
}

func TestRegistryMakesWhatWasRefusedOrNeverCame(t *testing.T) {
	r := NewRegistry[int](0)
	busy := errors.New("busy")
	create := func() (int, error) { return 7, nil }
	for attempt := uint32(1); attempt < 4; attempt++ {
		if _, _, err := r.Open("a", attempt, func() (int, error) { return 0, busy }); !errors.Is(err, busy) {
			t.Errorf("attempt %d: %v", attempt, err)
		}
	}
	if got, resumed, err := r.Open("a", 4, create); got != 7 || resumed || err != nil {
		t.Errorf("after refusals: %d, %v, %v", got, resumed, err)
	}
	r.Remove("a")
	if got, resumed, err := r.Open("a", 5, create); got != 7 || !resumed || err != nil {
		t.Errorf("finished: %d, %v, %v", got, resumed, err)
	}
	if _, _, err := r.OpenAt("b", 2, 1, create); !errors.Is(err, ErrGone) {
		t.Errorf("the caller has bytes of a transfer that is not here: %v", err)
	}
	if got, resumed, err := r.OpenAt("b", 2, 0, create); got != 7 || resumed || err != nil {
		t.Errorf("the caller has nothing yet: %d, %v, %v", got, resumed, err)
	}
	if got, resumed, err := r.OpenAt("b", 3, 0, create); got != 7 || !resumed || err != nil {
		t.Errorf("again: %d, %v, %v", got, resumed, err)
	}
}
