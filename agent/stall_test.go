package agent

import (
	"testing"
	"time"
)

func TestStall(t *testing.T) {
	start := time.Date(2026, 11, 22, 20, 0, 0, 0, time.UTC)
	at := func(minutes int) time.Time { return start.Add(time.Duration(minutes) * time.Minute) }
	s := stall{limit: 30 * time.Minute, moved: start}
	for _, look := range []struct {
		minute   int
		bytes    int64
		progress float64
		detached bool
		want     int // minute of the last move
	}{
		{1, 100, 0, false, 1},     // bytes
		{10, 100, 0, false, 1},    // nothing
		{20, 100, 0.1, false, 20}, // the task goes on without bytes: a compressor at work on emptiness
		{30, 100, 0.1, false, 20},
		{40, 100, 0.05, false, 20}, // progress never goes back
		{50, 100, 0.1, true, 50},   // nobody takes the bytes
		{60, 101, 0.1, false, 60},
	} {
		s.look(at(look.minute), look.bytes, look.progress, look.detached)
		if !s.moved.Equal(at(look.want)) {
			t.Errorf("minute %d: last move %s, want minute %d", look.minute, s.moved, look.want)
		}
	}
	began := at(58)
	if got := s.hungSince(at(60), &began); got != 2*time.Minute {
		t.Errorf("a read that began two minutes ago: got %s", got)
	}
	if got := s.hungSince(at(60), nil); got != 0 {
		t.Errorf("no read under way: got %s", got)
	}
}
