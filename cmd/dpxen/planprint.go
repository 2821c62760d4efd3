package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dpxen/dpxen/controller"
)

// namesShown is how many names a line of a plan that is about several VMs has, and how many such lines of one kind there are.
const namesShown = 10

// planPrinter prints a plan: what it comes to first and last, in between what needs somebody's eye, then all else in groups.
type planPrinter struct {
	printer
	plan   *controller.Plan
	labels labels
	all    bool // every name and disk
}

func (p printer) plan(plan *controller.Plan, all bool) error {
	pp := planPrinter{printer: p, plan: plan, labels: labels{}, all: all}
	for i := range plan.VMs {
		pp.labels.add(plan.VMs[i].Pool, plan.VMs[i].Name, plan.VMs[i].UUID)
	}
	pp.head()
	pp.refused()
	for _, m := range plan.Missing {
		p.line("MISSING  %s: %s", m.Asked, oneLine(m.Error))
	}
	for _, w := range plan.Warnings {
		p.line("WARN     %s", oneLine(w))
	}
	for _, r := range plan.Risks {
		p.line("RISK     %s", oneLine(r))
	}
	pp.groups("WARN", func(vm *controller.PlannedVM) []string { return vm.Warnings })
	pp.groups("RISK", func(vm *controller.PlannedVM) []string { return vm.Risks })
	if err := pp.table(); err != nil {
		return err
	}
	pp.groups("note", func(vm *controller.PlannedVM) []string { return vm.Notes })
	pp.groups("not", func(vm *controller.PlannedVM) []string {
		if vm.Chosen {
			return nil
		}
		return []string{vm.Why}
	})
	for _, n := range plan.Notes {
		p.line("note     %s", oneLine(n))
	}
	p.drift(plan.Drift, pp.shown(), "dpxen plan --json")
	p.line("")
	p.line("%s chosen, %d would be begun; about %s at most, %s free in %s", plural(plan.Selected, "VM"), plan.Runnable,
		size(plan.Bytes), size(plan.Room.Free), plan.Room.Folder)
	return nil
}

func (p planPrinter) shown() int {
	if p.all {
		return len(p.plan.VMs) + 1
	}
	return namesShown
}

func (p planPrinter) label(vm *controller.PlannedVM) string {
	return p.labels.label(vm.Pool, vm.Name, vm.UUID)
}

// head says what the plan comes to.
func (p planPrinter) head() {
	plan := p.plan
	marked, off := 0, 0
	var longest float64
	var basis string
	for i := range plan.VMs {
		vm := &plan.VMs[i]
		if vm.Marked {
			marked++
		}
		if vm.Runs() && vm.Forecast != nil && strings.HasPrefix(vm.Action, "shut down") {
			off++
			if vm.Forecast.Downtime > longest {
				longest, basis = vm.Forecast.Downtime, vm.Forecast.DowntimeBasis
			}
		}
	}
	p.line("PLAN     %s: %d of %s would be begun, %d refused, %d not chosen, %d of these by a mark", plan.Request.Mode, plan.Runnable,
		plural(len(plan.VMs), "VM"), plan.Selected-plan.Runnable, len(plan.VMs)-plan.Selected, marked)
	switch {
	case plan.Runnable == 0:
	case plan.Foreseen == 0:
		p.line("time     not known: there is no earlier backup to go by")
	default:
		p.line("time     %s at least, by earlier backups (%d of %s)", took(wholeSeconds(plan.Seconds)), plan.Foreseen, plural(plan.Runnable, "VM"))
	}
	if off > 0 {
		how := "for how long is not known"
		if longest > 0 {
			how = fmt.Sprintf("up to about %s (by %s)", took(wholeSeconds(longest)), basis)
		}
		p.line("down     %s would be switched off, each %s", plural(off, "VM"), how)
	}
	p.line("")
}

// wholeSeconds is a duration as exact as an estimate is.
func wholeSeconds(s float64) time.Duration { return time.Duration(max(s, 1)) * time.Second }

// refused prints the VMs that are chosen and cannot be begun, by what is to be done about them.
func (p planPrinter) refused() {
	by := map[string][]*controller.PlannedVM{}
	var advices []string
	for i := range p.plan.VMs {
		if vm := &p.plan.VMs[i]; vm.Refused != "" {
			if by[vm.Advice] == nil {
				advices = append(advices, vm.Advice)
			}
			by[vm.Advice] = append(by[vm.Advice], vm)
		}
	}
	for _, advice := range advices {
		for _, vm := range by[advice] {
			p.line("REFUSED  %s (%s): %s", p.label(vm), vm.UUID, oneLine(vm.Refused))
		}
		if advice != "" {
			p.line("         do: %s", advice)
		}
	}
}

// groups prints remarks with the VMs that they are about, the same remark once.
func (p planPrinter) groups(word string, of func(*controller.PlannedVM) []string) {
	by := map[string][]string{}
	var texts []string
	for i := range p.plan.VMs {
		vm := &p.plan.VMs[i]
		for _, text := range of(vm) {
			text = oneLine(text)
			if by[text] == nil {
				texts = append(texts, text)
			}
			by[text] = append(by[text], p.label(vm))
		}
	}
	slices.SortStableFunc(texts, func(a, b string) int { return len(by[b]) - len(by[a]) })
	for i, text := range texts {
		if i == 3*p.shown() {
			p.line("%-8s and %d more such lines: dpxen plan --all, or --json", word, len(texts)-i)
			return
		}
		p.line("%-8s %s: %s", word, text, listed(by[text], p.shown()))
	}
}

// listed names the first of a list, and counts it where it is longer.
func listed(names []string, shown int) string {
	if len(names) <= shown {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:shown], ", "), len(names)-shown)
}

// table prints a row for each VM that would be begun, and with all of its disks.
func (p planPrinter) table() error {
	rows := [][]string{{"VM", "POWER", "HOST", "AGENT", "SR", "DISKS", "AT MOST", "TIME", "DOWN", "LAST GOOD", "DOES", "BECAUSE"}}
	for i := range p.plan.VMs {
		vm := &p.plan.VMs[i]
		if !vm.Runs() {
			continue
		}
		var srs []string
		for _, d := range vm.Disks {
			if !slices.Contains(srs, d.SRName) {
				srs = append(srs, d.SRName)
			}
		}
		disks := strconv.Itoa(len(vm.Disks))
		if n := len(vm.Excluded); n > 0 {
			disks += fmt.Sprintf(" of %d", n+len(vm.Disks))
		}
		row := []string{p.label(vm), vm.Power, vm.Host, vm.Agent, strings.Join(srs, ", "), disks, size(vm.Bytes), "", "", "never", vm.Action, vm.Why}
		if f := vm.Forecast; f != nil && f.Seconds > 0 {
			row[7] = took(wholeSeconds(f.Seconds))
		}
		if f := vm.Forecast; f != nil && f.Downtime > 0 {
			row[8] = took(wholeSeconds(f.Downtime))
		}
		if vm.LastGood != nil {
			row[9] = moment(*vm.LastGood)
		}
		rows = append(rows, row)
	}
	if len(rows) == 1 {
		return nil
	}
	p.line("")
	if err := p.printer.table(rows); err != nil {
		return err
	}
	p.line("")
	p.disks()
	return nil
}

// disks prints every disk of the VMs that would be begun.
func (p planPrinter) disks() {
	if !p.all {
		return
	}
	for i := range p.plan.VMs {
		if vm := &p.plan.VMs[i]; vm.Runs() {
			for _, d := range vm.Disks {
				p.line("disk     %s %s %q: %s on %s, about %s", p.label(vm), d.UserDevice, d.Name, size(d.Size), d.SRName, size(d.Bytes))
			}
		}
	}
	p.line("")
}

// drift prints VMs that may not be backed up as they ought to be, at most shown names a line.
func (p printer) drift(d *controller.Drift, shown int, more string) {
	if d == nil {
		return
	}
	l := labels{}
	for _, vm := range slices.Concat(d.Uncovered, d.Never, d.Old) {
		l.add(vm.Pool, vm.Name, vm.UUID)
	}
	for _, list := range []struct {
		what string
		vms  []controller.DriftVM
		late bool
	}{
		{"in no set and no specification of the configuration", d.Uncovered, false},
		{"never backed up well, as far as is known", d.Never, false},
		{fmt.Sprintf("last backed up well more than %s ago", took(time.Duration(d.MaxAge))), d.Old, true},
	} {
		if len(list.vms) == 0 {
			continue
		}
		var names []string
		for _, vm := range list.vms[:min(len(list.vms), shown)] {
			name := l.label(vm.Pool, vm.Name, vm.UUID)
			switch {
			case list.late && vm.Why != "":
				name += fmt.Sprintf(" (%s; %s)", moment(vm.LastGood), vm.Why)
			case list.late:
				name += fmt.Sprintf(" (%s)", moment(vm.LastGood))
			case vm.Why != "" && vm.LastGood.IsZero():
				name += fmt.Sprintf(" (%s)", vm.Why)
			}
			names = append(names, name)
		}
		text := strings.Join(names, ", ")
		if n := len(list.vms) - len(names); n > 0 {
			text += fmt.Sprintf(" and %d more: %s", n, more)
		}
		p.line("DRIFT    %s %s: %s", plural(len(list.vms), "VM"), list.what, text)
	}
}
