package xensim

import (
	"maps"
	"slices"
)

// planChange is what may come to a pool, for a look at whether HA's plan survives.
type planChange struct {
	protect  *object           // a VM to protect as well
	arrive   map[string]string // VMs that come to hosts, by reference
	leave    map[string]string // and those that leave them
	disabled string            // a host that takes no more VMs
}

// planResult is how good a plan for a number of failures is.
type planResult int

const (
	noPlan planResult = iota
	planForAgile
	planForAll
)

// maxCombinations bounds the sets of failing hosts that are tried one by one.
const maxCombinations = 3000

// haState is the memory of the live hosts and what is to run on them.
type haState struct {
	free     map[string]int64
	resident map[string][]int64 // memory of protected VMs, by host
	waiting  []int64            // of those that run nowhere
	agile    bool               // all protected VMs are
}

// planMemory is what a VM must have to run: with its memory squeezed, where it can
// be.
func planMemory(vm *object) int64 {
	if m := vm.num("memory_dynamic_min"); m > 0 {
		return m
	}
	return vm.num("memory_static_max")
}

// protectedVMs gives those that HA keeps running.
func (p *Pool) protectedVMs() []*object {
	var out []*object
	for _, vm := range p.db.tables["VM"] {
		if isProtected(vm) {
			out = append(out, vm)
		}
	}
	return out
}

// haState gathers what planning needs; protected are the VMs that count.
func (p *Pool) haState(protected []*object, c planChange) haState {
	s := haState{free: map[string]int64{}, resident: map[string][]int64{}, agile: true}
	if c.protect != nil && !slices.Contains(protected, c.protect) {
		protected = append(slices.Clone(protected), c.protect)
	}
	for _, h := range p.hosts {
		host := p.db.find("host", h.ref)
		if h.dead || !host.is("enabled") || h.ref == c.disabled {
			continue
		}
		m := p.db.find("host_metrics", host.str("metrics"))
		free := m.num("memory_total") - host.num("memory_overhead")
		for _, vm := range p.db.many("VM", host.refs("resident_VMs")) {
			if c.leave[vm.ref] != h.ref {
				free -= planMemory(vm)
			}
		}
		for vm, to := range c.arrive {
			if o := p.db.find("VM", vm); o != nil && to == h.ref && o.str("resident_on") != h.ref {
				free -= planMemory(o)
			}
		}
		s.free[h.ref] = free
	}
	for _, vm := range protected {
		if p.agile(vm) != nil {
			s.agile = false
			continue
		}
		at := vm.str("resident_on")
		if to, ok := c.arrive[vm.ref]; ok {
			at = to
		}
		if _, ok := s.free[at]; ok {
			s.resident[at] = append(s.resident[at], planMemory(vm))
		} else {
			s.waiting = append(s.waiting, planMemory(vm))
		}
	}
	return s
}

// planFor says whether the protected VMs could run after any n hosts have failed.
func (p *Pool) planFor(protected []*object, n int, c planChange) planResult {
	s := p.haState(protected, c)
	if n < 0 || n >= len(p.hosts) && len(p.hosts) > 0 || !s.survivesAll(n) {
		return noPlan
	}
	if !s.agile {
		return planForAgile
	}
	return planForAll
}

// survivesAll tries the sets of n failing hosts; of too many only the one that
// takes the most memory with it.
func (s haState) survivesAll(n int) bool {
	hosts := slices.SortedFunc(maps.Keys(s.free), func(a, b string) int {
		x, y := s.free[a]+sum(s.resident[a]), s.free[b]+sum(s.resident[b])
		if x != y {
			return int((y-x)>>63 | 1)
		}
		if a < b {
			return -1
		}
		return 1
	})
	n = min(n, len(hosts))
	if combinations(len(hosts), n) > maxCombinations {
		return s.survives(hosts[:n])
	}
	failed := make([]string, 0, n)
	var try func(from int) bool
	try = func(from int) bool {
		if len(failed) == n {
			return s.survives(failed)
		}
		for i := from; i < len(hosts); i++ {
			failed = append(failed, hosts[i])
			ok := try(i + 1)
			failed = failed[:len(failed)-1]
			if !ok {
				return false
			}
		}
		return true
	}
	return try(0)
}

func combinations(n, k int) int {
	out := 1
	for i := range k {
		out = out * (n - i) / (i + 1)
		if out > maxCombinations {
			return out
		}
	}
	return out
}

// survives packs the VMs of failed hosts into what the others have free: the
// largest first, each where the least is left.
func (s haState) survives(failed []string) bool {
	free := maps.Clone(s.free)
	vms := slices.Clone(s.waiting)
	for _, h := range failed {
		delete(free, h)
		vms = append(vms, s.resident[h]...)
	}
	slices.Sort(vms)
	for _, need := range slices.Backward(vms) {
		best := ""
		for h, f := range free {
			if f >= need && (best == "" || f < free[best] || f == free[best] && h < best) {
				best = h
			}
		}
		if best == "" {
			return false
		}
		free[best] -= need
	}
	return true
}

func sum(in []int64) int64 {
	var out int64
	for _, n := range in {
		out += n
	}
	return out
}

// maxFailures is how many hosts may fail with a plan for all of the VMs.
func (p *Pool) maxFailures(protected []*object) int64 {
	n := 0
	for n+1 < len(p.hosts) && p.planFor(protected, n+1, planChange{}) == planForAll {
		n++
	}
	if p.planFor(protected, n, planChange{}) != planForAll {
		return 0
	}
	return int64(n)
}

// updateHA writes what plan there is into the pool's record, and a message where
// it has become too small.
func (p *Pool) updateHA() {
	pool := p.poolObject()
	if !pool.is("ha_enabled") {
		return
	}
	want, protected := pool.num("ha_host_failures_to_tolerate"), p.protectedVMs()
	if p.planFor(protected, int(want), planChange{}) == planForAll {
		p.db.set(pool, "ha_overcommitted", false)
		p.db.set(pool, "ha_plan_exists_for", want)
		return
	}
	was, planned := pool.is("ha_overcommitted"), min(p.maxFailures(protected), want)
	if planned < pool.num("ha_plan_exists_for") {
		p.newMessage("HA_POOL_DROP_IN_PLAN_EXISTS_FOR", 1, "Pool", pool.uuid(), "")
	}
	p.db.set(pool, "ha_plan_exists_for", planned)
	p.db.set(pool, "ha_overcommitted", true)
	if !was {
		p.newMessage("HA_POOL_OVERCOMMITTED", 3, "Pool", pool.uuid(), "")
	}
}

// keepsPlan refuses a change that would end a plan which exists now.
func (p *Pool) keepsPlan(n int64, c planChange) error {
	pool := p.poolObject()
	if !pool.is("ha_enabled") || pool.is("ha_allow_overcommit") {
		return nil
	}
	protected, now := p.protectedVMs(), int(pool.num("ha_plan_exists_for"))
	if n < 0 {
		n = int64(now)
	}
	if p.planFor(protected, now, planChange{}) == planForAll && p.planFor(protected, int(n), c) != planForAll {
		return fail("HA_OPERATION_WOULD_BREAK_FAILOVER_PLAN")
	}
	return nil
}

// mayRun asks whether a VM can come to a host without ending HA's plan; the host
// that it runs on now counts as left.
func (p *Pool) mayRun(vm *object, host string) error {
	c := planChange{arrive: map[string]string{vm.ref: host}, leave: map[string]string{vm.ref: vm.str("resident_on")}}
	if vm.str("ha_restart_priority") == haRestart && !vm.is("ha_always_run") {
		c.protect = vm
	}
	return p.keepsPlan(-1, c)
}
