package controller

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// noBackupTags on a VM leave it out of what is not named; on a disk, they leave the disk out. The second is Xen Orchestra's.
var noBackupTags = []string{"dpxen:no-backup", "xo:no-bak"}

// noBackupMark in a disk's name leaves the disk out, in any case.
const noBackupMark = "[NOBAK]"

// mark says why a VM is left out where it is not named: a tag, or that it is a copy which another tool keeps for the day
// when the original is lost. Empty where it is not.
func (v *VM) mark() string {
	for _, tag := range noBackupTags {
		if slices.Contains(v.Tags, tag) {
			return "it has the tag " + tag
		}
	}
	if v.Replica != "" {
		return "it is a replica: " + v.Replica
	}
	return ""
}

// DiskRule leaves disks out of every backup: those to which all that is given applies, of each list any value. Values of VM,
// Name, SR and Tag are patterns, which may match nothing.
type DiskRule struct {
	VM      []string `mapstructure:"vm"`     // of these VMs only
	Device  []string `mapstructure:"device"` // the position (0, 1 ...) or the guest's name (xvda, xvdb ...)
	Name    []string `mapstructure:"name"`
	SR      []string `mapstructure:"sr"`
	Tag     []string `mapstructure:"tag"`
	MinSize int64    `mapstructure:"min_size"` // bytes of virtual size
	MaxSize int64    `mapstructure:"max_size"` // bytes, 0 = no bound
}

// check says what is wrong with the rule.
func (d DiskRule) check(tell func(part string, at int, value, fault string)) {
	for _, list := range []struct {
		part   string
		values []string
	}{{"vm", d.VM}, {"device", d.Device}, {"name", d.Name}, {"sr", d.SR}, {"tag", d.Tag}} {
		for i, value := range list.values {
			if err := checkPattern(value); err != nil {
				tell(list.part, i, value, err.Error())
			}
		}
	}
	switch {
	case d.MinSize < 0 || d.MaxSize < 0:
		tell("min_size", -1, "", "want 0 or more bytes")
	case d.MaxSize > 0 && d.MaxSize < d.MinSize:
		tell("max_size", -1, "", "is less than min_size: no disk is of such a size")
	case len(d.Device)+len(d.Name)+len(d.SR)+len(d.Tag) == 0 && d.MinSize == 0 && d.MaxSize == 0:
		tell("", -1, "", "says nothing of the disks: give it device, name, sr, tag, min_size or max_size")
	}
}

// diskRules are the rules of a configuration, ready for use.
type diskRules []diskRule

type diskRule struct {
	vm, device, name, sr, tag []pattern
	rule                      DiskRule
	text                      string
}

// diskRules compiles the rules; what cannot be compiled was told of with the configuration.
func (c *Config) diskRules() diskRules {
	var all diskRules
	for i, d := range c.ExcludeDisks {
		all = append(all, diskRule{vm: compileAll(d.VM), device: compileAll(d.Device), name: compileAll(d.Name), sr: compileAll(d.SR),
			tag: compileAll(d.Tag), rule: d, text: fmt.Sprintf("exclude_disks[%d]: %s", i, d)})
	}
	return all
}

func compileAll(texts []string) []pattern {
	var all []pattern
	for _, text := range texts {
		if p, err := compilePattern(text); err == nil {
			all = append(all, p)
		}
	}
	return all
}

// String writes the rule on one line, as far as it says anything.
func (d DiskRule) String() string {
	var parts []string
	for _, list := range []struct {
		part   string
		values []string
	}{{"vm", d.VM}, {"device", d.Device}, {"name", d.Name}, {"sr", d.SR}, {"tag", d.Tag}} {
		if len(list.values) > 0 {
			parts = append(parts, list.part+" "+strings.Join(list.values, ", "))
		}
	}
	if d.MinSize > 0 {
		parts = append(parts, "at least "+size(d.MinSize))
	}
	if d.MaxSize > 0 {
		parts = append(parts, "at most "+size(d.MaxSize))
	}
	return strings.Join(parts, "; ")
}

// is tells whether the pattern means an object with this UUID and any of these names; it may mean any number of them.
func (p pattern) is(uuid string, names ...string) bool {
	return p.uuid != "" && p.uuid == uuid || p.re == nil && slices.Contains(names, p.text) || slices.ContainsFunc(names, p.expression)
}

// anyIs tells whether there is no pattern, or one of them means the object.
func anyIs(all []pattern, uuid string, names ...string) bool {
	return len(all) == 0 || slices.ContainsFunc(all, func(p pattern) bool { return p.is(uuid, names...) })
}

func (d diskRule) leavesOut(vm *VM, disk *Disk) bool {
	return anyIs(d.vm, vm.UUID, vm.Name) && anyIs(d.device, "", disk.devices()...) && anyIs(d.name, disk.VDI, disk.Name) &&
		anyIs(d.sr, disk.SR, disk.SRName) && anyIs(d.tag, "", disk.Tags...) && disk.Size >= d.rule.MinSize &&
		(d.rule.MaxSize == 0 || disk.Size <= d.rule.MaxSize)
}

// devices are the names of the disk's position: XAPI tells that in the guest while the VM runs alone.
func (d *Disk) devices() []string {
	names := []string{d.UserDevice}
	if n, err := strconv.Atoi(d.UserDevice); err == nil && n >= 0 && n < 26 {
		for _, prefix := range []string{"xvd", "hd", "sd"} {
			names = append(names, prefix+string(rune('a'+n)))
		}
	}
	if d.Device != "" {
		names = append(names, d.Device)
	}
	return names
}

// why says why a disk is left out; empty where it is not.
func (rules diskRules) why(vm *VM, disk *Disk) string {
	if strings.Contains(strings.ToUpper(disk.Name), noBackupMark) {
		return noBackupMark + " in its name"
	}
	for _, tag := range noBackupTags {
		if slices.Contains(disk.Tags, tag) {
			return "it has the tag " + tag
		}
	}
	for _, rule := range rules {
		if rule.leavesOut(vm, disk) {
			return rule.text
		}
	}
	return ""
}

// split parts a VM's disks into those that are backed up and those that are left out.
func (rules diskRules) split(vm *VM) (keep []Disk, out []PlannedDisk) {
	for i := range vm.Disks {
		if why := rules.why(vm, &vm.Disks[i]); why != "" {
			p := plannedDisk(vm.Disks[i])
			p.Why = why
			out = append(out, p)
			continue
		}
		keep = append(keep, vm.Disks[i])
	}
	return keep, out
}
