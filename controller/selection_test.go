package controller

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// testUUID makes a UUID that is the same every time.
func testUUID(n int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012x", n) }

const (
	poolA, poolB = 1, 2
	hostA1       = 11
	hostA2       = 12
	hostB1       = 21
)

// testInventory has two pools: prod with hosts a1 and a2, and one without a name whose master is b1.
func testInventory(vms ...VM) *Inventory {
	inv := &Inventory{
		Agents: []AgentStatus{
			{Name: "xs1", OK: true, PoolUUID: testUUID(poolA), HostUUID: testUUID(hostA1)},
			{Name: "xs2", OK: true, PoolUUID: testUUID(poolA), HostUUID: testUUID(hostA2)},
			{Name: "xs3", OK: true, PoolUUID: testUUID(poolB), HostUUID: testUUID(hostB1)},
		},
		Pools: []Pool{
			{UUID: testUUID(poolA), Name: "prod", Agents: []string{"xs1", "xs2"}, Hosts: []Host{
				{UUID: testUUID(hostA1), Name: "a1", Address: "192.0.2.1"}, {UUID: testUUID(hostA2), Name: "a2", Address: "192.0.2.2"}}},
			{UUID: testUUID(poolB), Name: "b1", Agents: []string{"xs3"}, Hosts: []Host{{UUID: testUUID(hostB1), Name: "b1"}}},
		},
		VMs: vms,
	}
	inv.linkHosts()
	inv.sort()
	return inv
}

// testVM makes a running VM; pool is poolA or poolB, host one of its hosts or 0 for a halted VM.
func testVM(n int, name string, pool, host int, tags ...string) VM {
	vm := VM{UUID: testUUID(1000 + n), Name: name, PoolUUID: testUUID(pool), Pool: "prod", Power: PowerHalted, Tags: tags, CleanStop: true}
	if pool == poolB {
		vm.Pool = "b1"
	}
	if host != 0 {
		vm.Power, vm.HostUUID = PowerRunning, testUUID(host)
	}
	return vm
}

func selectionInventory() *Inventory {
	local := testVM(9, "local", poolA, 0)
	local.CapableHosts = []string{testUUID(hostA2)}
	return testInventory(
		testVM(1, "web-01", poolA, hostA1, "web"),
		testVM(2, "web-02", poolA, hostA2, "web", "gold"),
		testVM(3, "db-01", poolA, hostA1, "gold"),
		testVM(4, "twin", poolA, 0),
		testVM(5, "twin", poolA, 0),
		testVM(6, "web-*", poolA, 0),
		testVM(7, "édouard ♥", poolA, 0),
		testVM(8, "web-01", poolB, hostB1),
		local,
	)
}

var selectionSets = map[string]Set{
	"web":    {VM: []string{"web-0*"}, Exclude: []string{"web-02"}},
	"gold":   {Tag: []string{"gold"}},
	"prod":   {Pool: []string{"prod"}, Exclude: []string{"re:twin"}},
	"stale":  {VM: []string{"gone"}},
	"nobody": {VM: []string{"twin"}},
}

func TestSelection(t *testing.T) {
	for name, tt := range map[string]struct {
		mode Mode
		sel  Selection
		want string // chosen VMs by number, or
		err  []string
	}{
		"all":                       {mode: AllOnline, want: "1 2 3 4 5 6 7 8 9"},
		"all but":                   {mode: AllOffline, sel: Selection{Exclude: []string{"re:^web-0", "db-01"}}, want: "4 5 6 7 9"},
		"name":                      {mode: Online, sel: Selection{VM: []string{"db-01"}}, want: "3"},
		"two names":                 {mode: Online, sel: Selection{VM: []string{"db-01", "web-02"}}, want: "2 3"},
		"non-ASCII name":            {mode: Offline, sel: Selection{VM: []string{"édouard ♥"}}, want: "7"},
		"UUID":                      {mode: Online, sel: Selection{VM: []string{testUUID(1005)}}, want: "5"},
		"UUID in capitals":          {mode: Online, sel: Selection{VM: []string{strings.ToUpper(testUUID(1010 - 1))}}, want: "9"},
		"glob":                      {mode: Online, sel: Selection{VM: []string{"web-0?"}}, want: "1 2 8"},
		"name that is a glob":       {mode: Online, sel: Selection{VM: []string{"web-*"}}, want: "6"},
		"regular expression":        {mode: Online, sel: Selection{VM: []string{"re:^(db|twin)"}}, want: "3 4 5"},
		"tag":                       {mode: Online, sel: Selection{Tag: []string{"gold"}}, want: "2 3"},
		"name or tag":               {mode: Online, sel: Selection{VM: []string{"twin*"}, Tag: []string{"web"}}, want: "1 2 4 5"},
		"pool":                      {mode: Online, sel: Selection{Pool: []string{"b1"}}, want: "8"},
		"pool by UUID":              {mode: Online, sel: Selection{Pool: []string{testUUID(poolB)}}, want: "8"},
		"name in pool":              {mode: Online, sel: Selection{VM: []string{"web-01"}, Pool: []string{"prod"}}, want: "1"},
		"host":                      {mode: Online, sel: Selection{Host: []string{"a1"}}, want: "1 3"},
		"host, VMs that it alone":   {mode: Online, sel: Selection{Host: []string{"a2"}}, want: "2 9"},
		"host by its agent":         {mode: Online, sel: Selection{Host: []string{"xs3"}}, want: "8"},
		"host by address":           {mode: Online, sel: Selection{Host: []string{"192.0.2.1"}}, want: "1 3"},
		"set":                       {mode: Online, sel: Selection{Set: "web"}, want: "1 8"},
		"set in pool":               {mode: Online, sel: Selection{Set: "web", Pool: []string{"prod"}}, want: "1"},
		"set and name":              {mode: Online, sel: Selection{Set: "gold", VM: []string{"local"}}, want: "2 3 9"},
		"set's exclusion, not mine": {mode: Online, sel: Selection{Set: "web", VM: []string{"web-02"}}, want: "1 2 8"},
		"set of a pool":             {mode: Online, sel: Selection{Set: "prod"}, want: "1 2 3 6 7 9"},
		"set but":                   {mode: Online, sel: Selection{Set: "gold", Exclude: []string{"db-01"}}, want: "2"},
		"exclude what is not there": {mode: AllOnline, sel: Selection{Exclude: []string{"x*"}}, want: "1 2 3 4 5 6 7 8 9"},

		"all with a name":     {mode: AllOnline, sel: Selection{VM: []string{"db-01"}}, err: []string{"leave the selectors out"}},
		"all with a set":      {mode: AllOffline, sel: Selection{Set: "web"}, err: []string{"leave the selectors out"}},
		"nothing chosen":      {mode: Online, err: []string{"needs to be told which VMs", "allOnline"}},
		"exclude alone":       {mode: Offline, sel: Selection{Exclude: []string{"twin"}}, err: []string{"needs to be told", "allOffline"}},
		"unknown name":        {mode: Online, sel: Selection{VM: []string{"db-1"}}, err: []string{`--vm "db-1"`, `nearest are "db-01" (` + testUUID(1003)}},
		"two faults":          {mode: Online, sel: Selection{VM: []string{"db-1", "re:("}}, err: []string{"not a regular expression"}},
		"ambiguous":           {mode: Online, sel: Selection{VM: []string{"twin"}}, err: []string{"ambiguous", testUUID(1004), testUUID(1005)}},
		"ambiguous by pools":  {mode: Online, sel: Selection{VM: []string{"web-01"}}, err: []string{"ambiguous", "pool prod", "pool b1"}},
		"unmatched glob":      {mode: Online, sel: Selection{VM: []string{"wob-*"}}, err: []string{"no such VM", "web-"}},
		"unmatched regexp":    {mode: Online, sel: Selection{VM: []string{"re:^x"}}, err: []string{"no such VM"}},
		"bad glob":            {mode: Online, sel: Selection{VM: []string{"web-["}}, err: []string{"not a pattern"}},
		"empty":               {mode: Online, sel: Selection{VM: []string{""}}, err: []string{"is empty"}},
		"unknown UUID":        {mode: Online, sel: Selection{VM: []string{testUUID(1)}}, err: []string{"no such VM"}},
		"unknown tag":         {mode: Online, sel: Selection{Tag: []string{"silver"}}, err: []string{"tags are: gold, web"}},
		"unknown pool":        {mode: Online, sel: Selection{Pool: []string{"prd"}}, err: []string{"no such pool", `"prod"`}},
		"unknown host":        {mode: Online, sel: Selection{Host: []string{"a9"}}, err: []string{"no such host"}},
		"unknown set":         {mode: Online, sel: Selection{Set: "silver"}, err: []string{"there are: gold, nobody, prod, stale, web"}},
		"set with stale name": {mode: Online, sel: Selection{Set: "stale"}, err: []string{`set stale vm "gone"`}},
		"ambiguous in set":    {mode: Online, sel: Selection{Set: "nobody"}, err: []string{"set nobody vm", "ambiguous"}},
		"misspelt exclusion":  {mode: AllOffline, sel: Selection{Exclude: []string{"db-1"}}, err: []string{"--exclude", "db-01"}},
		"nothing left":        {mode: Online, sel: Selection{VM: []string{"db-01"}, Exclude: []string{"db-*"}}, err: []string{"nothing is left"}},
	} {
		t.Run(name, func(t *testing.T) {
			inv := selectionInventory()
			res, err := tt.sel.resolve(tt.mode, inv, selectionSets)
			if tt.err != nil {
				var usage *UsageError
				if !errors.As(err, &usage) {
					t.Fatalf("got %v, want a UsageError", err)
				}
				for _, part := range tt.err {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("error lacks %q:\n%v", part, err)
					}
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := chosenNumbers(inv, res); got != tt.want {
				t.Errorf("chosen %q, want %q", got, tt.want)
			}
			for i, d := range res.decisions {
				if d.why == "" {
					t.Errorf("VM %s: no reason for %v", inv.VMs[i].Name, d.chosen)
				}
			}
		})
	}
}

func chosenNumbers(inv *Inventory, res *resolution) string {
	var got []string
	for i, d := range res.decisions {
		if d.chosen {
			var n int
			if _, err := fmt.Sscanf(inv.VMs[i].UUID[24:], "%x", &n); err == nil {
				got = append(got, fmt.Sprint(n-1000))
			}
		}
	}
	slices.Sort(got)
	return strings.Join(got, " ")
}

// A VM that is named like another one's UUID is not that one.
func TestSelectionByUUIDThatIsAName(t *testing.T) {
	inv := &Inventory{VMs: []VM{testVM(1, testUUID(1002), poolA, 0), testVM(2, "db", poolA, 0)}}
	r, err := Selection{VM: []string{testUUID(1002)}}.resolve(Online, inv, nil)
	if err != nil || r.decisions[0].chosen || !r.decisions[1].chosen {
		t.Errorf("got %+v, %v", r, err)
	}
}

// TestSelectionWithAnAgentAway holds that what may be another agent's is missing, not misspelt, and stops nothing else.
func TestSelectionWithAnAgentAway(t *testing.T) {
	inv := selectionInventory()
	inv.Agents = append(inv.Agents, AgentStatus{Name: "xs9", Class: AgentUnreachable})
	res, err := Selection{VM: []string{"db-01", "far-away"}, Exclude: []string{"farther"}}.resolve(Online, inv, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := chosenNumbers(inv, res); got != "3" {
		t.Errorf("chosen %q, want 3", got)
	}
	if len(res.missing) != 1 || res.missing[0].Asked != "far-away" || !strings.Contains(res.missing[0].Error, "xs9") {
		t.Errorf("missing: %+v", res.missing)
	}
	if len(res.notes) != 1 {
		t.Errorf("notes: %q", res.notes)
	}
	_, err = Selection{VM: []string{"twin"}}.resolve(Online, inv, nil)
	if !is[*UsageError](err) {
		t.Errorf("ambiguous: got %v, want a UsageError whoever is away", err)
	}
	if _, err := (Selection{}).resolve(AllOnline, testInventory(), nil); !is[*UsageError](err) {
		t.Errorf("no VM at all: got %v, want a UsageError", err)
	}
}

// TestSelectionIsDeterministic holds that the order in which agents and VMs came does not matter, that what is chosen is a
// set that Exclude never touches, and that a name chooses exactly the VM that has it.
func TestSelectionIsDeterministic(t *testing.T) {
	names := rapid.SampledFrom([]string{"a", "b", "ab", "a*", "[a]", "a?", "A", "re:a", "ü", "a-1", "a-2"})
	patterns := rapid.SampledFrom([]string{"a", "b", "a*", "[a]", "re:^a", "re:.", "?", "ü", "{a,b}", "*", "zz"})
	rapid.Check(t, func(t *rapid.T) {
		var vms []VM
		for i, name := range rapid.SliceOfN(names, 0, 12).Draw(t, "names") {
			vms = append(vms, testVM(i, name, rapid.SampledFrom([]int{poolA, poolB}).Draw(t, "pool"), 0))
		}
		sel := Selection{VM: rapid.SliceOfN(patterns, 1, 3).Draw(t, "vm"), Exclude: rapid.SliceOfN(patterns, 0, 2).Draw(t, "exclude")}
		inv := testInventory(slices.Clone(vms)...)
		res, err := sel.resolve(Online, inv, nil)
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		rng.Shuffle(len(vms), func(i, j int) { vms[i], vms[j] = vms[j], vms[i] })
		again, errAgain := sel.resolve(Online, testInventory(vms...), nil)
		if fmt.Sprint(err) != fmt.Sprint(errAgain) {
			t.Fatalf("errors differ:\n%v\n%v", err, errAgain)
		}
		if err != nil {
			if !is[*UsageError](err) {
				t.Fatalf("got %v, want a UsageError", err)
			}
			return
		}
		if diff := cmp.Diff(res, again, cmp.AllowUnexported(resolution{}, decision{})); diff != "" {
			t.Fatalf("results differ:\n%s", diff)
		}
		for i, d := range res.decisions {
			name := inv.VMs[i].Name
			if d.chosen && slices.Contains(sel.Exclude, name) {
				t.Fatalf("%s is chosen and excluded by name", name)
			}
			if !d.chosen && slices.Contains(sel.VM, name) && len(sel.Exclude) == 0 && !strings.HasPrefix(name, "re:") {
				t.Fatalf("%s is named and not chosen", name)
			}
		}
	})
}
