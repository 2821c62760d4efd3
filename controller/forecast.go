package controller

import (
	"fmt"
	"slices"
	"time"
)

const (
	// taskLimit is how long XAPI lets an export be: pending tasks and idle sessions end after a day (reference section 6.1).
	taskLimit = 24 * time.Hour
	// usualSpeed is what one export usually comes to where nothing is known, in bytes a second (reference section 6.3).
	usualSpeed = 60e6
	// powerCycle is allowed for a clean shutdown and a start, and a snapshot between them, in an estimate of a VM's downtime
	// where nothing is known.
	powerCycle = 90 * time.Second
	// leastSeconds of a past run tell something of its speed.
	leastSeconds = 0.05
)

// Forecast is how long a VM's backup is likely to take, by earlier ones.
type Forecast struct {
	Bytes   int64   `json:"bytes"`   // of the file, as likely as can be told
	Seconds float64 `json:"seconds"` // 0 = not known
	Basis   string  `json:"basis"`   // what it was taken from
	// Downtime is for how many seconds the VM is off; 0 = it is not switched off, or not known.
	Downtime      float64 `json:"downtime_seconds,omitempty"`
	DowntimeBasis string  `json:"downtime_basis,omitempty"` // what that was taken from
}

// speeds are what earlier backups came to, in bytes a second.
type speeds struct {
	h       *history
	byAgent map[string]float64
	brief   []float64 // for how long VMs were down for their last --offline-snapshot, in seconds
}

func newSpeeds(h *history) speeds {
	bytes, seconds := map[string]float64{}, map[string]float64{}
	for _, p := range h.VMs {
		if len(p.Good) > 0 && p.Good[0].Seconds >= leastSeconds {
			bytes[p.Good[0].Agent] += float64(p.Good[0].Bytes)
			seconds[p.Good[0].Agent] += p.Good[0].Seconds
		}
	}
	s := speeds{h: h, byAgent: map[string]float64{}}
	for _, p := range h.VMs {
		if down := p.down(true); len(down) > 0 {
			s.brief = append(s.brief, down[0])
		}
	}
	for agent := range seconds {
		s.byAgent[agent] = bytes[agent] / seconds[agent]
	}
	return s
}

// forecast tells of a VM: by its own last backups of the kind, else by the last ones of any VM by the same agent, that is, of
// the same host.
func (s speeds) forecast(vm *VM, kind Kind, agent string, most int64) Forecast {
	f := Forecast{Bytes: most, Basis: "nothing is known yet"}
	var rates []float64
	if p := s.h.of(vm); p != nil {
		for _, run := range p.Good {
			if run.Kind == kind && run.Seconds >= leastSeconds && run.Bytes > 0 {
				if len(rates) == 0 {
					f.Bytes = min(most, run.Bytes)
				}
				rates = append(rates, float64(run.Bytes)/run.Seconds)
			}
		}
	}
	if n := len(rates); n > 0 {
		slices.Sort(rates)
		f.Seconds, f.Basis = float64(f.Bytes)/rates[n/2], fmt.Sprintf("its last %d backups", n)
		if n == 1 {
			f.Basis = "its last backup"
		}
		return f
	}
	if rate := s.byAgent[agent]; rate > 0 {
		f.Seconds, f.Basis = float64(f.Bytes)/rate, "other VMs' backups by agent "+agent
	}
	return f
}

// down returns for how many seconds the VM was off in its last offline backups, of those from a snapshot alone or the others;
// the newest first.
func (p *pastVM) down(brief bool) (seconds []float64) {
	if p == nil {
		return nil
	}
	for _, run := range p.Good {
		if run.Kind == KindOffline && run.Brief == brief && run.Down > 0 {
			seconds = append(seconds, run.Down)
		}
	}
	return seconds
}

// downtime foretells for how long the VM will be off: as it was, else, where it is down for a snapshot only, as other VMs were,
// else for what is allowed for shutdown and start and, where it is exported meanwhile, for the export.
func (s speeds) downtime(f *Forecast, vm *VM, brief bool) {
	own := s.h.of(vm).down(brief)
	switch assumed := powerCycle.String() + " assumed for shutdown and start"; {
	case len(own) > 0 && (brief || f.Seconds > 0):
		f.Downtime, f.DowntimeBasis = median(own), "its last backups of this kind"
	case brief && len(s.brief) > 0:
		f.Downtime, f.DowntimeBasis = median(s.brief), "other VMs' backups of this kind"
	case brief: // it is started before the export
		f.Downtime, f.DowntimeBasis = powerCycle.Seconds(), assumed
	case f.Seconds > 0:
		f.Downtime, f.DowntimeBasis = f.Seconds+powerCycle.Seconds(), "the export and "+assumed
	}
}

func median(all []float64) float64 {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[len(sorted)/2]
}

// foresee fills in what is likely of a VM that would be begun.
func (p *PlannedVM) foresee(s speeds, req Request, snapshot bool) {
	f := s.forecast(p.vm, req.Mode.Kind(), p.Agent, p.Bytes)
	if req.Mode.Kind() == KindOffline && p.Power == PowerRunning {
		s.downtime(&f, p.vm, snapshot)
	}
	p.Forecast = &f
	switch limit := taskLimit.Seconds(); {
	case f.Seconds > limit:
		p.Risks = append(p.Risks, fmt.Sprintf("by %s the export takes %s, and XAPI ends one that takes longer than %s",
			f.Basis, time.Duration(f.Seconds*float64(time.Second)).Round(time.Minute), taskLimit))
	case f.Seconds == 0 && float64(p.Bytes)/usualSpeed > limit:
		p.Risks = append(p.Risks, fmt.Sprintf("at %s/s, which is usual, the export takes longer than %s, and XAPI ends it then",
			size(usualSpeed), taskLimit))
	}
}

// rate is how fast the plan's VMs are by what is known of some of them, in bytes a second.
func (p *Plan) rate() float64 {
	bytes, seconds := 0.0, 0.0
	for i := range p.VMs {
		if f := p.VMs[i].Forecast; f != nil && f.Seconds > 0 {
			bytes, seconds = bytes+float64(f.Bytes), seconds+f.Seconds
		}
	}
	if seconds == 0 || bytes == 0 {
		return usualSpeed
	}
	return bytes / seconds
}

// lasts is for how many microseconds the VM is likely to be worked on; where nothing is known of it, at that rate.
func (p *PlannedVM) lasts(rate float64) int64 {
	if f := p.Forecast; f != nil && f.Seconds > 0 {
		return int64(min(f.Seconds, float64(forgetAfter/time.Second)) * 1e6)
	}
	return int64(float64(p.Bytes) / rate * 1e6)
}

// least returns for how many seconds the session runs at least, if all goes as foreseen: what the limits let be done at once,
// and the longest VM. known is of how many VMs the time is known.
func (p *Plan) least(limits Limits) (seconds float64, known int) {
	total := 0.0
	hosts, pools, srs := map[string]float64{}, map[string]float64{}, map[string]float64{}
	for i := range p.VMs {
		vm := &p.VMs[i]
		if !vm.Runs() || vm.Forecast == nil || vm.Forecast.Seconds == 0 {
			continue
		}
		known++
		s := vm.Forecast.Seconds
		seconds = max(seconds, s)
		total += s
		hosts[orElse(vm.HostUUID, vm.Agent)] += s
		pools[vm.PoolUUID] += s
		var on []string
		for _, d := range vm.Disks {
			on = appendNew(on, d.SR)
		}
		for _, sr := range on {
			srs[sr] += s
		}
	}
	seconds = max(seconds, total/float64(limits.Total))
	for _, by := range []struct {
		sums  map[string]float64
		limit int
	}{{hosts, limits.PerHost}, {pools, limits.PerPool}, {srs, limits.PerSR}} {
		for _, sum := range by.sums {
			seconds = max(seconds, sum/float64(by.limit))
		}
	}
	return seconds, known
}
