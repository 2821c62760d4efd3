//go:build failpoints

package failpoint

import (
	"errors"
	"testing"
	"time"
)

func TestArmed(t *testing.T) {
	saved := armed
	defer func() { armed = saved }()
	armed = parse("a=error@2;b=delay:30ms;c=panic")
	if err := Hit("a"); err != nil {
		t.Errorf("hit too early: %v", err)
	}
	if err := Hit("a"); !errors.Is(err, ErrInjected) {
		t.Errorf("got %v", err)
	}
	if err := Hit("a"); err != nil {
		t.Errorf("hit twice: %v", err)
	}
	began := time.Now()
	Pass("b")
	if took := time.Since(began); took < 30*time.Millisecond {
		t.Errorf("was late by %s", took)
	}
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	Pass("c")
}
