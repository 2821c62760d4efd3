package controller

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestPacerIsOfAllTransfersTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(2 << 20)
		began := time.Now()
		var work sync.WaitGroup
		for range 3 {
			work.Go(func() {
				for range 10 {
					p.pass(1<<20 + 1<<19)
				}
			})
		}
		work.Wait()
		if took := time.Since(began); took < 21*time.Second || took > 23*time.Second {
			t.Errorf("45 MiB at 2 MiB/s took %s", took)
		}
		began = time.Now()
		newPacer(0).pass(1 << 40)
		if took := time.Since(began); took != 0 {
			t.Errorf("without a limit it took %s", took)
		}
	})
}

func TestBandwidthOfTheConfiguration(t *testing.T) {
	for bandwidth, good := range map[int64]bool{0: true, 1 << 20: true, 1 << 40: true, 1: false, -1: false, 1<<20 - 1: false} {
		l := DefaultConfig().Limits
		l.Bandwidth = bandwidth
		var faults faultList
		l.check(&faults)
		if (len(faults) == 0) != good {
			t.Errorf("%d: %v", bandwidth, faults)
		}
	}
}
