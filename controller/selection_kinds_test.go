package controller

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

const (
	srLocal1 = 31
	srLocal2 = 32
	srShared = 33
)

// kindsInventory has VMs of every power state, size, storage and mark.
func kindsInventory() *Inventory {
	disk := func(sr int, gib int64) []Disk {
		return []Disk{{UserDevice: "0", VDI: testUUID(sr*100 + int(gib)), SR: testUUID(sr), SRName: "sr", Size: gib << 30}}
	}
	vms := []VM{
		testVM(1, "web-01", poolA, hostA1, "web"),
		testVM(2, "db-01", poolA, hostA2, "db", "gold"),
		testVM(3, "paused", poolA, hostA1),
		testVM(4, "sleeps", poolA, 0, "lab"),
		testVM(5, "off", poolA, 0, "lab"),
		testVM(6, "scratch", poolA, 0, "dpxen:no-backup", "web"),
		testVM(7, "build", poolB, hostB1, "xo:no-bak"),
		testVM(8, "web-01 copy", poolB, 0, "Continuous Replication"),
	}
	for i, d := range [][]Disk{disk(srShared, 10), disk(srShared, 500), disk(srLocal1, 20), disk(srLocal1, 30), disk(srLocal2, 40),
		disk(srShared, 10), disk(41, 10), disk(41, 10)} {
		vms[i].Disks = d
	}
	vms[2].Power, vms[3].Power = PowerPaused, PowerSuspended
	vms[7].Replica = "Xen Orchestra marks it as one"
	inv := testInventory(vms...)
	inv.PoolByUUID(testUUID(poolA)).SRs = []SR{{UUID: testUUID(srLocal1), Name: "Local storage"}, {UUID: testUUID(srLocal2), Name: "Local storage"},
		{UUID: testUUID(srShared), Name: "SAN 1"}, {UUID: testUUID(39), Name: "ISOs", ContentType: "iso"}}
	inv.PoolByUUID(testUUID(poolB)).SRs = []SR{{UUID: testUUID(41), Name: "SAN 2"}}
	return inv
}

var kindsSets = map[string]Set{
	"san":    {SR: []string{"SAN*"}, Exclude: []string{"larger:100GiB"}},
	"lab":    {Tag: []string{"lab"}},
	"both":   {Set: []string{"san", "lab"}, Exclude: []string{"power:suspended"}},
	"not":    {VM: []string{"*"}, Exclude: []string{"set:both"}},
	"marked": {VM: []string{"scratch", "web-01*"}},
}

func TestSelectionKinds(t *testing.T) {
	for name, tt := range map[string]struct {
		mode Mode
		sel  Selection
		want string
		err  []string
	}{
		"marks are left out":       {mode: AllOnline, want: "1 2 3 4 5"},
		"marked and named":         {mode: Online, sel: Selection{VM: []string{"scratch", testUUID(1007)}}, want: "6 7"},
		"marked and by a pattern":  {mode: Online, sel: Selection{VM: []string{"s*"}}, want: "4"},
		"replica and named":        {mode: Online, sel: Selection{VM: []string{"web-01 copy"}}, want: "8"},
		"marked and in a set":      {mode: Online, sel: Selection{Set: "marked"}, want: "1 6"},
		"marked by tag":            {mode: Online, sel: Selection{Tag: []string{"web"}}, want: "1"},
		"nothing but marked":       {mode: Online, sel: Selection{Tag: []string{"xo:no-bak"}}, err: []string{"left out by a mark", `"build" (it has the tag xo:no-bak)`, "name it"}},
		"tags by a pattern":        {mode: Online, sel: Selection{Tag: []string{"re:^(db|lab)$"}}, want: "2 4 5"},
		"power":                    {mode: Online, sel: Selection{Power: []string{"halted", "SUSPENDED"}}, want: "4 5"},
		"power of a name":          {mode: Online, sel: Selection{VM: []string{"off", "web-01"}, Power: []string{"running"}}, want: "1"},
		"power, none is":           {mode: Online, sel: Selection{VM: []string{"off"}, Power: []string{"running"}}, err: []string{"matches no VM"}},
		"power, no such":           {mode: Online, sel: Selection{Power: []string{"up"}}, err: []string{`--power "up"`, "running, halted"}},
		"sizes":                    {mode: Online, sel: Selection{MinSize: 20 << 30, MaxSize: 40 << 30}, want: "3 4 5"},
		"size, least alone":        {mode: Online, sel: Selection{MinSize: 500 << 30}, want: "2"},
		"sizes that cross":         {mode: Online, sel: Selection{MinSize: 2, MaxSize: 1}, err: []string{"less than min_size"}},
		"SR":                       {mode: Online, sel: Selection{SR: []string{"SAN 1"}}, want: "1 2"},
		"SRs of one name":          {mode: Online, sel: Selection{SR: []string{"Local storage"}}, want: "3 4 5"},
		"SR by UUID":               {mode: Online, sel: Selection{SR: []string{testUUID(srLocal2)}}, want: "5"},
		"SR, no such":              {mode: Online, sel: Selection{SR: []string{"SAN 3"}}, err: []string{`--sr "SAN 3": no such SR`, `"SAN 1"`}},
		"SR, no ISO library":       {mode: Online, sel: Selection{SR: []string{"ISOs"}}, err: []string{"no such SR"}},
		"all with an SR":           {mode: AllOnline, sel: Selection{SR: []string{"SAN 1"}}, err: []string{"leave the selectors out"}},
		"exclude a tag":            {mode: AllOnline, sel: Selection{Exclude: []string{"tag:lab"}}, want: "1 2 3"},
		"exclude no tag":           {mode: AllOnline, sel: Selection{Exclude: []string{"tag:none"}}, want: "1 2 3 4 5"},
		"exclude power":            {mode: AllOnline, sel: Selection{Exclude: []string{"power:Running", "power:paused"}}, want: "4 5"},
		"exclude a host":           {mode: AllOnline, sel: Selection{Exclude: []string{"host:a1"}}, want: "2 4 5"},
		"exclude a pool":           {mode: Online, sel: Selection{VM: []string{testUUID(1007), "web-01"}, Exclude: []string{"pool:b1"}}, want: "1"},
		"exclude an SR":            {mode: AllOnline, sel: Selection{Exclude: []string{"sr:Local storage"}}, want: "1 2"},
		"exclude no such SR":       {mode: AllOnline, sel: Selection{Exclude: []string{"sr:SAN 9"}}, err: []string{"--exclude sr:", "no such SR"}},
		"exclude SRs of a pattern": {mode: AllOnline, sel: Selection{Exclude: []string{"sr:none*"}}, want: "1 2 3 4 5"},
		"exclude larger":           {mode: AllOnline, sel: Selection{Exclude: []string{"larger:30GiB"}}, want: "1 3 4"},
		"exclude smaller":          {mode: AllOnline, sel: Selection{Exclude: []string{"smaller:30GiB"}}, want: "2 4 5"},
		"exclude no size":          {mode: AllOnline, sel: Selection{Exclude: []string{"larger:lots"}}, err: []string{"want a size"}},
		"exclude a set":            {mode: AllOnline, sel: Selection{Exclude: []string{"set:lab"}}, want: "1 2 3"},
		"exclude no set":           {mode: AllOnline, sel: Selection{Exclude: []string{"set:x"}}, err: []string{"no such set"}},
		"exclude, spelt out":       {mode: AllOnline, sel: Selection{Exclude: []string{"vm:off"}}, want: "1 2 3 4"},
		"set of storage and size":  {mode: Online, sel: Selection{Set: "san"}, want: "1"},
		"sets":                     {mode: Online, sel: Selection{Set: "san", Sets: []string{"lab"}}, want: "1 4 5"},
		"set of sets":              {mode: Online, sel: Selection{Sets: []string{"both"}}, want: "1 5"},
		"set but a set":            {mode: Online, sel: Selection{Set: "not"}, want: "2 3 4"},
		"set on an SR":             {mode: Online, sel: Selection{Set: "lab", SR: []string{testUUID(srLocal2)}}, want: "5"},
	} {
		t.Run(name, func(t *testing.T) {
			inv := kindsInventory()
			res, err := tt.sel.resolve(tt.mode, inv, kindsSets)
			if tt.err != nil {
				if !is[*UsageError](err) {
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
				if d.why == "" || d.chosen && d.policy {
					t.Errorf("VM %s: %+v", inv.VMs[i].Name, d)
				}
			}
		})
	}
}

// TestSelectionTellsOfMarks holds that what is named keeps its mark for the report.
func TestSelectionTellsOfMarks(t *testing.T) {
	inv := kindsInventory()
	res, err := Selection{VM: []string{"scratch", "re:."}}.resolve(Online, inv, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, d := range res.decisions {
		switch inv.VMs[i].Name {
		case "scratch":
			if !d.chosen || !strings.Contains(d.note, "dpxen:no-backup") || d.why != "--vm scratch" {
				t.Errorf("scratch: %+v", d)
			}
		case "build", "web-01 copy":
			if d.chosen || !d.policy {
				t.Errorf("%s: %+v", inv.VMs[i].Name, d)
			}
		}
	}
}

// TestSelectionLaws holds what is true of every selection: an exclusion by any kind takes away just what the same words choose,
// more positives never choose less, the order of values and sets does not matter.
func TestSelectionLaws(t *testing.T) {
	kinds := []struct {
		kind   string
		values []string
		sel    func(string) Selection
	}{
		{"vm", []string{"web-01", "re:^s", "*-01", "off"}, func(v string) Selection { return Selection{VM: []string{v}} }},
		{"tag", []string{"lab", "gold", "re:l", "web"}, func(v string) Selection { return Selection{Tag: []string{v}} }},
		{"pool", []string{"prod", "b1", "*"}, func(v string) Selection { return Selection{Pool: []string{v}} }},
		{"host", []string{"a1", "a2", "re:^a"}, func(v string) Selection { return Selection{Host: []string{v}} }},
		{"sr", []string{"SAN 1", "Local storage", "re:2$"}, func(v string) Selection { return Selection{SR: []string{v}} }},
		{"power", []string{"running", "halted", "paused"}, func(v string) Selection { return Selection{Power: []string{v}} }},
		{"set", []string{"san", "lab", "both"}, func(v string) Selection { return Selection{Set: v} }},
	}
	chosen := func(t *rapid.T, mode Mode, sel Selection) map[int]bool {
		inv := kindsInventory()
		res, err := sel.resolve(mode, inv, kindsSets)
		if err != nil {
			if !is[*UsageError](err) || !strings.Contains(err.Error(), "left") && !strings.Contains(err.Error(), "matches no VM") {
				t.Fatalf("%+v: %v", sel, err)
			}
			return map[int]bool{}
		}
		in := map[int]bool{}
		for i, d := range res.decisions {
			if d.chosen {
				in[i] = true
			}
		}
		return in
	}
	rapid.Check(t, func(t *rapid.T) {
		k := rapid.SampledFrom(kinds).Draw(t, "kind")
		value := rapid.SampledFrom(k.values).Draw(t, "value")
		all := chosen(t, AllOnline, Selection{})
		with, without := chosen(t, Online, k.sel(value)), chosen(t, AllOnline, Selection{Exclude: []string{k.kind + ":" + value}})
		for i := range all {
			if with[i] == without[i] {
				t.Fatalf("%s %s: VM %d is in both or in neither of what it chooses and what it leaves", k.kind, value, i)
			}
		}
		other := rapid.SampledFrom(kinds[:2]).Draw(t, "other")
		more := k.sel(value)
		word := rapid.SampledFrom(other.values).Draw(t, "word")
		if k.kind == "vm" || k.kind == "tag" || k.kind == "set" {
			if other.kind == "vm" {
				more.VM = append(more.VM, word)
			} else {
				more.Tag = append(more.Tag, word)
			}
			union := maps.Clone(with)
			maps.Copy(union, chosen(t, Online, other.sel(word)))
			if got := chosen(t, Online, more); !maps.Equal(got, union) {
				t.Fatalf("%+v chooses %v, want %v", more, got, union)
			}
		}
		values := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"vm:web-01", "tag:lab", "host:a1", "larger:30GiB", "set:san"}), 1, 4,
			rapid.ID[string]).Draw(t, "exclusions")
		once := chosen(t, AllOnline, Selection{Exclude: values})
		slices.Reverse(values)
		if again := chosen(t, AllOnline, Selection{Exclude: values}); !maps.Equal(once, again) {
			t.Fatalf("the order of %v matters: %v, %v", values, once, again)
		}
	})
}

func TestSetsThatNameThemselves(t *testing.T) {
	sets := map[string]Set{"a": {Set: []string{"b"}}, "b": {VM: []string{"x"}, Exclude: []string{"set:c"}}, "c": {Set: []string{"a", "d"}}, "d": {VM: []string{"y"}}}
	for name, want := range map[string]string{"a": "a -> b -> c -> a", "b": "b -> c -> a -> b", "c": "c -> a -> b -> c", "d": ""} {
		if got := cycle(sets, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestDiskRules(t *testing.T) {
	vm := VM{UUID: testUUID(1), Name: "db-01", Disks: []Disk{
		{UserDevice: "0", Device: "xvda", Name: "root", Size: 10 << 30, SR: testUUID(31), SRName: "SAN 1"},
		{UserDevice: "1", Name: "swap", Size: 8 << 30, SR: testUUID(32), SRName: "Local storage"},
		{UserDevice: "2", Name: "data [noBak]", Size: 100 << 30, SR: testUUID(31), SRName: "SAN 1"},
		{UserDevice: "3", Name: "log", Size: 50 << 30, SR: testUUID(31), SRName: "SAN 1", Tags: []string{"lab", "xo:no-bak"}},
		{UserDevice: "4", Name: "huge", Size: 4 << 40, SR: testUUID(31), SRName: "SAN 1", Tags: []string{"scratch"}},
	}}
	for name, tt := range map[string]struct {
		rules []DiskRule
		want  string // positions that are left out
	}{
		"marks alone":         {nil, "2 3"},
		"device of a halted":  {[]DiskRule{{Device: []string{"xvdb"}}}, "1 2 3"},
		"position":            {[]DiskRule{{Device: []string{"0"}}}, "0 2 3"},
		"name":                {[]DiskRule{{Name: []string{"sw*", "re:^h"}}}, "1 2 3 4"},
		"SR by name":          {[]DiskRule{{SR: []string{"Local*"}}}, "1 2 3"},
		"SR by UUID":          {[]DiskRule{{SR: []string{strings.ToUpper(testUUID(32))}}}, "1 2 3"},
		"tag":                 {[]DiskRule{{Tag: []string{"scratch"}}}, "2 3 4"},
		"size":                {[]DiskRule{{MinSize: 1 << 40}}, "2 3 4"},
		"small":               {[]DiskRule{{MaxSize: 8 << 30}}, "1 2 3"},
		"all of a rule":       {[]DiskRule{{SR: []string{"SAN 1"}, MaxSize: 20 << 30}}, "0 2 3"},
		"of this VM":          {[]DiskRule{{VM: []string{"db-*"}, Name: []string{"root"}}}, "0 2 3"},
		"of another VM":       {[]DiskRule{{VM: []string{"web-*"}, Name: []string{"root"}}}, "2 3"},
		"any of two rules":    {[]DiskRule{{Name: []string{"root"}}, {Name: []string{"swap"}}}, "0 1 2 3"},
		"no tag is every tag": {[]DiskRule{{Tag: []string{"none"}}}, "2 3"},
	} {
		c := Config{ExcludeDisks: tt.rules}
		keep, out := c.diskRules().split(&vm)
		var got []string
		for _, d := range out {
			got = append(got, d.UserDevice)
			if d.Why == "" {
				t.Errorf("%s: disk %s: no reason", name, d.UserDevice)
			}
		}
		if s := strings.Join(got, " "); s != tt.want || len(keep)+len(out) != len(vm.Disks) {
			t.Errorf("%s: left out %q, want %q; kept %d", name, s, tt.want, len(keep))
		}
	}
}

func TestSelectionConfig(t *testing.T) {
	_, err := LoadConfig(configDir(t, `
staging: s
restore: r
state: st
tls: {ca: ca.pem, cert: controller.pem, key: controller.key}
agents: [{name: xs1, address: "xs1:1"}]
sets:
  loop: {set: [loop]}
  none: {exclude: ["tag:x"]}
  odd: {vm: ["re:("], power: [up], exclude: ["larger:much", "sr:["], set: [missing], min_size: 2GiB, max_size: 1GiB}
  good: {sr: ["SAN*"], min_size: 10GiB, exclude: ["tag:lab"]}
exclude_disks:
  - {vm: ["db-*"]}
  - {name: ["["], sr: [x]}
specs:
  BOTH: {mode: allOnline, vm: [x]}
  NOTHING: {mode: online}
  GOOD: {mode: offline, tag: [gold], exclude: ["power:halted"]}
  NIGHTLY: {mode: allOnline, exclude: ["tag:lab"]}
`))
	if err == nil {
		t.Fatal("no fault was found")
	}
	for _, part := range []string{
		"sets.loop (line 8): names itself: loop -> loop", "sets.none (line 9): chooses nothing", "sets.odd.vm[0]", "sets.odd.power[0]",
		"sets.odd.exclude[0]", "sets.odd.exclude[1]", `sets.odd.set[0] (line 10): "missing": no such set`, "sets.odd.max_size",
		"exclude_disks[0] (line 13): says nothing of the disks", "exclude_disks[1].name[0]", "specs.BOTH.mode", "specs.NOTHING.select",
	} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("lacks %q", part)
		}
	}
	for _, good := range []string{"sets.good", "specs.GOOD", "specs.NIGHTLY", "exclude_disks[1].sr"} {
		if strings.Contains(err.Error(), good) {
			t.Errorf("faults in %s", good)
		}
	}
	if t.Failed() {
		t.Log(err)
	}
}

func TestSpecSelection(t *testing.T) {
	spec := Spec{Set: Set{Tag: []string{"gold"}, Exclude: []string{"tag:lab"}, Set: []string{"b"}}, Select: "a"}
	if got := spec.Selection("X", Online); fmt.Sprintf("%v %v %v %v", got.Tag, got.Set, got.Sets, got.Exclude) != "[gold] a [b] [tag:lab]" || got.Empty() {
		t.Errorf("online: %+v", got)
	}
	if got := spec.Selection("X", AllOnline); !got.Empty() || len(got.Exclude) != 1 {
		t.Errorf("allOnline: %+v", got)
	}
	if _, err := spec.Selection("X", Online).resolve(Online, kindsInventory(), map[string]Set{"a": {}, "b": {}}); err != nil {
		t.Errorf("%v", err)
	}
	_, err := Spec{Set: Set{VM: []string{"nobody"}}}.Selection("X", Online).resolve(Online, kindsInventory(), nil)
	if err == nil || !strings.Contains(err.Error(), `specification X vm "nobody"`) {
		t.Errorf("a name that is not there: %v", err)
	}
}
