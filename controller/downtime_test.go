package controller

import (
	"errors"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/transfer"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// A VM that was down in several attempts was down for all of these together; where an agent died meanwhile nobody knows how long.
func TestDowntimes(t *testing.T) {
	told := func(d time.Duration) departure { return departure{ending: ending{Known: true, Downtime: d}} }
	type attempt struct {
		left  departure
		heard bool
	}
	for name, tt := range map[string]struct {
		attempts []attempt
		want     time.Duration
	}{
		"one":                       {[]attempt{{told(time.Minute), true}}, time.Minute},
		"two":                       {[]attempt{{told(time.Minute), true}, {told(2 * time.Minute), true}}, 3 * time.Minute},
		"refused, then one":         {[]attempt{{departure{err: errors.New("refused")}, false}, {told(time.Second), true}}, time.Second},
		"its agent died":            {[]attempt{{departure{ending: ending{Known: true, Deduced: true}}, true}, {told(time.Second), true}}, 0},
		"its agent is lost":         {[]attempt{{departure{err: errors.New("no answer")}, true}, {told(time.Second), true}}, 0},
		"the last one is not known": {[]attempt{{told(time.Second), true}, {departure{err: errors.New("no answer")}, true}}, 0},
	} {
		var d downtimes
		for _, a := range tt.attempts {
			d.add(a.left, a.heard)
		}
		if got := d.total(); got != tt.want {
			t.Errorf("%s: got %s, want %s", name, got, tt.want)
		}
	}
}

// A transfer that a stream attaches to again is begun anew by an agent that was started anew: for how long its former life had
// the VM down nobody has told.
func TestDownloadBegunAnew(t *testing.T) {
	for name, tt := range map[string]struct {
		resumed []bool // of the streams in turn
		want    bool
	}{
		"one stream":                     {[]bool{false}, false},
		"the network broke":              {[]bool{false, true, true}, false},
		"the agent was started anew":     {[]bool{false, false}, true},
		"started anew, then the network": {[]bool{false, true, false, true}, true},
		"the first answer was lost":      {[]bool{true}, false},
	} {
		d := &download{}
		for _, resumed := range tt.resumed {
			ev := transfer.BackupEvent{Msg: &agentv1.BackupResponse{Kind: &agentv1.BackupResponse_Opened{Opened: &agentv1.Opened{Resumed: resumed}}}}
			if _, err := d.handle(&ev, nil, 0, nil); err != nil {
				t.Fatal(err)
			}
		}
		if d.anew != tt.want {
			t.Errorf("%s: got %v", name, d.anew)
		}
	}
}
