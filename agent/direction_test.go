package agent

import (
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/dpxen/dpxen/internal/xensim"
)

// An exchange of disks is finished or undone, whichever has all its disks. Where neither has, nothing is tried, and a dry run says
// so too.
func TestDirection(t *testing.T) {
	t.Parallel()
	b := newBench(t, xensim.Config{VMs: 2, DiskSize: 1 << 20})
	sw := &swapper{xapi: b.client()}
	there, gone, lost := b.vm(halted, 0).Disks[0].VDI.UUID, uuid.NewString(), uuid.NewString()
	both := []swapStep{{Device: "0", Old: there, New: there}}
	for name, tt := range map[string]struct {
		second          swapStep
		forward, wanted bool
		fails           bool
	}{
		"finished":                   {swapStep{Old: there, New: there}, true, true, false},
		"undone":                     {swapStep{Old: there, New: there}, false, false, false},
		"its restored disk is gone":  {swapStep{Old: there, New: gone}, false, true, false},
		"its former disk is gone":    {swapStep{Old: gone, New: there}, true, false, false},
		"it had none":                {swapStep{New: there}, false, false, false},
		"its storage is gone":        {swapStep{Old: gone, New: lost}, false, false, true},
		"its storage is gone, after": {swapStep{Old: gone, New: lost}, true, true, true},
	} {
		forward, err := sw.direction(t.Context(), append(both, tt.second), tt.wanted)
		if forward != tt.forward || (err != nil) != tt.fails || tt.fails && !strings.Contains(err.Error(), gone) {
			t.Errorf("%s: forward %t, %v", name, forward, err)
		}
	}
}
