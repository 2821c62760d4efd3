package main

import (
	"io"
	"sync"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/dpxen/dpxen/controller"
)

// bars shows a bar for each VM at work and one for all, on a terminal.
type bars struct {
	all   *mpb.Progress
	total *mpb.Bar
	vms   map[string]*vmBar // by pool and UUID
	ended int64             // bytes of VMs that are done
	est   int64             // bytes expected of all: by the plan, else of those that were begun
	plan  bool
}

// vmBar is the bar of one VM. Its phase is read by the goroutine that draws.
type vmBar struct {
	bar   *mpb.Bar
	est   int64
	bytes int64

	mu    sync.Mutex
	phase string
}

const (
	barWidth    = 32
	totalBottom = 1 << 20 // below every VM's bar
)

func newBars(out io.Writer) *bars {
	return &bars{all: mpb.New(mpb.WithOutput(out), mpb.WithWidth(barWidth), mpb.WithAutoRefresh()), vms: map[string]*vmBar{}}
}

// observe moves the bars; name is the VM's label.
func (b *bars) observe(e controller.Event, name string) {
	if e.Plan != nil {
		b.est, b.plan = e.Plan.Bytes, true
	}
	if e.VM == nil {
		return
	}
	key := e.VM.Pool + "/" + e.VM.UUID
	v := b.vms[key]
	switch e.Type {
	case controller.EventVMStart:
		if b.drop(key); !b.plan {
			b.est += e.TotalEst
		}
		b.vms[key] = b.add(clean(name, false), e.TotalEst)
	case controller.EventVMPhase, controller.EventVMProgress:
		if v == nil {
			return
		}
		if v.set(e.Phase); e.Type == controller.EventVMProgress {
			v.move(e.Bytes, e.TotalEst)
		}
	case controller.EventVMEnd:
		if v != nil {
			b.ended += v.bytes
			b.drop(key)
		}
	default:
		return
	}
	b.sum()
}

// add makes the bar of a VM, and with the first one that of all. Bars of total 0 are those whose total may change.
func (b *bars) add(name string, est int64) *vmBar {
	if b.total == nil {
		b.total = b.all.New(0, mpb.BarStyle(), mpb.BarPriority(totalBottom),
			mpb.PrependDecorators(decor.Name("total", decor.WCSyncSpaceR)),
			mpb.AppendDecorators(decor.CountersKibiByte("% .1f of about % .1f"), decor.Name("  "), decor.AverageSpeed(decor.SizeB1024(0), "% .1f")))
	}
	v := &vmBar{est: est}
	v.bar = b.all.New(0, mpb.BarStyle(),
		mpb.PrependDecorators(decor.Name(name, decor.WCSyncSpaceR)),
		mpb.AppendDecorators(decor.CountersKibiByte("% .1f of about % .1f"), decor.Name("  "), decor.Any(func(decor.Statistics) string {
			v.mu.Lock()
			defer v.mu.Unlock()
			return v.phase
		})))
	v.move(0, est)
	return v
}

func (v *vmBar) set(phase string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.phase = clean(phase, false)
}

// move sets how far the VM is. A bar must not be complete before the VM is: mpb would be done with it.
func (v *vmBar) move(bytes, est int64) {
	v.bytes, v.est = bytes, max(v.est, est, bytes+1)
	v.bar.SetTotal(v.est, false)
	v.bar.SetCurrent(bytes)
}

// sum moves the bar of all.
func (b *bars) sum() {
	if b.total == nil {
		return
	}
	bytes := b.ended
	for _, v := range b.vms {
		bytes += v.bytes
	}
	b.total.SetTotal(max(b.est, bytes+1), false)
	b.total.SetCurrent(bytes)
}

// drop removes a VM's bar from the screen.
func (b *bars) drop(key string) {
	if v := b.vms[key]; v != nil {
		v.bar.Abort(true)
		delete(b.vms, key)
	}
}

// close removes all bars and leaves the screen to others.
func (b *bars) close() {
	for key := range b.vms {
		b.drop(key)
	}
	if b.total != nil {
		b.total.Abort(true)
	}
	b.all.Wait()
}
