package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/dpxen/dpxen/controller"
)

// remarksShown is how many lines of one kind about what is well a session ends with: its reader may be Data Protector.
const remarksShown = 30

// ending prints the end of a session but for its last line: verdict and numbers, then what failed and what to do about it,
// then what is worth knowing, of this at most shown lines of a kind.
func (p printer) ending(r *controller.Report, shown int) {
	l := labelsOf(r)
	p.line("")
	p.line("SESSION %s  %s %s  %s", r.ID, r.Action, r.Mode, verdict(r))
	p.line(" %s", strings.Join(numbers(r), " | "))
	p.line(" %s", strings.Join(volume(r), " | "))
	if r.RerunOf != "" {
		p.line(" runs session %s again for what did not become good", r.RerunOf)
	}
	for text := range strings.SplitSeq(r.Error, "\n") {
		if text != "" {
			p.line("ERROR   %s", text)
		}
	}
	if r.Advice != "" {
		p.line("        do: %s", r.Advice)
	}
	for _, a := range r.Agents {
		if !a.OK {
			p.line("AGENT   %s at %s: %s", a.Name, a.Address, oneLine(a.Error))
			if a.Advice != "" {
				p.line("        do: %s", a.Advice)
			}
		}
	}
	for _, vm := range r.VMs {
		switch {
		case !vm.PowerNotRestored:
		case vm.PowerAfter == controller.PowerUnknown:
			p.line("POWER   %s was %s, and how it is now is not known: look at it, then run dpxen repair", l.of(vm), orDash(vm.PowerBefore))
		default:
			p.line("POWER   %s was %s and is %s: run dpxen repair, or set it right by hand", l.of(vm), orDash(vm.PowerBefore), orDash(vm.PowerAfter))
		}
	}
	for _, s := range []struct {
		status controller.Status
		word   string
	}{{controller.StatusFailed, "FAILED"}, {controller.StatusRefused, "REFUSED"}, {controller.StatusCancelled, "CANCELLED"}} {
		for _, vm := range r.VMs {
			if vm.Status == s.status {
				p.failure(s.word, l.of(vm), vm)
			}
		}
	}
	var skipped []string
	for _, vm := range r.VMs {
		if vm.Status == controller.StatusSkipped {
			skipped = append(skipped, l.of(vm)+"  "+strings.Join(vm.Notes, "; "))
		}
	}
	p.some("SKIPPED", skipped, shown, r.ID)
	p.some("RETRIED", retried(r, l), shown, r.ID)
	warnings := remarks(r, l, r.Warnings, func(vm controller.VMResult) []string { return vm.Warnings })
	p.some("WARN   ", warnings, len(warnings), r.ID)
	p.some("NOTE   ", remarks(r, l, r.Notes, func(vm controller.VMResult) []string {
		if vm.Status == controller.StatusSkipped {
			return nil // told already
		}
		return vm.Notes
	}), shown, r.ID)
	if n := len(r.Skipped); n > 0 {
		p.line("NOTE    %s of the folder not restored: dpxen show --json %s lists them", plural(n, "file"), r.ID)
	}
	p.drift(r.Drift, min(shown, namesShown), "dpxen show --json "+r.ID)
	if c := r.Counts(); c.Good < c.Selected && r.ID != "" && r.State != controller.StateRunning {
		p.line("AGAIN   dpxen rerun --failed %s  runs it again for the %s that did not become good", r.ID, plural(c.Selected-c.Good, "VM"))
	}
	if open := r.Unfinished(); len(open) > 0 && r.State != controller.StateRunning {
		p.line("REPAIR  %s may be left on hosts: run dpxen repair", plural(len(open), "unfinished piece")+" of work")
	}
}

// failure prints a VM that is not good.
func (p printer) failure(word, label string, vm controller.VMResult) {
	why := strings.TrimSpace(vm.Reason + " " + oneLine(vm.Error))
	if vm.Error == "" && vm.Status == controller.StatusCancelled {
		why = "not begun, or given up"
	}
	if vm.Agent != "" {
		why += " (agent " + vm.Agent + ")"
	}
	p.line("%-7s %s  %s", word, label, why)
	if vm.Advice != "" {
		p.line("        do: %s", vm.Advice)
	}
}

// retried tells of the VMs that needed more than one attempt, and why.
func retried(r *controller.Report, l labels) []string {
	var list []string
	for _, vm := range r.VMs {
		var whys []string
		for _, a := range vm.Attempts {
			why := cmp.Or(a.Reason, "error")
			if a.Times > 1 {
				why += fmt.Sprintf(" %d times", a.Times)
			}
			if a.Agent != "" {
				why += " by " + a.Agent
			}
			whys = append(whys, why)
		}
		if len(whys) > 0 {
			list = append(list, fmt.Sprintf("%s  %s; then %s by %s: %s", l.of(vm), strings.Join(whys, ", "), vm.Status, orDash(vm.Agent),
				oneLine(vm.Attempts[0].Error)))
		}
	}
	return list
}

// remarks are what is said of the session and then of its VMs.
func remarks(r *controller.Report, l labels, whole []string, of func(controller.VMResult) []string) []string {
	list := slices.Clone(whole)
	for _, vm := range r.VMs {
		for _, text := range of(vm) {
			list = append(list, l.of(vm)+"  "+oneLine(text))
		}
	}
	return list
}

// some prints the first lines of a list that may be long, and says how many more there are.
func (p printer) some(word string, list []string, shown int, id string) {
	for i, text := range list {
		if i == shown {
			p.line("%s and %d more: dpxen show %s", word, len(list)-i, id)
			return
		}
		p.line("%s %s", word, text)
	}
}

// oneLine puts an error that has several causes, one a line, into one line.
func oneLine(text string) string { return strings.ReplaceAll(strings.TrimSpace(text), "\n", "; ") }

// verdict is the word of the RESULT line, or the state of a session that did not come to its end.
func verdict(r *controller.Report) string {
	word := strings.ToUpper(string(r.State))
	switch {
	case r.State == controller.StateDone:
		word = controller.ResultWord(r.Code)
	case r.Result != "":
	case r.State == controller.StateInterrupted:
		return word + " (no code yet: dpxen repair ends it)"
	default:
		return word + " (no code yet)"
	}
	return fmt.Sprintf("%s (code %d)", word, r.Code)
}

// numbers count the VMs.
func numbers(r *controller.Report) []string {
	by := map[controller.Status]int{}
	warnings, power, unknown := len(r.Warnings), 0, 0
	for _, vm := range r.VMs {
		by[vm.Status]++
		warnings += len(vm.Warnings)
		switch {
		case vm.PowerAfter == controller.PowerUnknown && vm.PowerBefore != controller.PowerUnknown:
			unknown++
		case vm.PowerNotRestored:
			power++
		}
	}
	list := []string{fmt.Sprintf("selected %d", r.Counts().Selected)}
	for _, s := range []controller.Status{controller.StatusGood, controller.StatusFailed, controller.StatusRefused,
		controller.StatusCancelled, controller.StatusRunning, controller.StatusPending, controller.StatusSkipped} {
		if by[s] > 0 || s == controller.StatusGood || s == controller.StatusFailed {
			list = append(list, fmt.Sprintf("%s %d", s, by[s]))
		}
	}
	list = append(list, fmt.Sprintf("warnings %d", warnings))
	switch {
	case power > 0 && unknown > 0:
		return append(list, fmt.Sprintf("power: %s NOT as before, of %s not known", plural(power, "VM"), plural(unknown, "VM")))
	case power > 0:
		return append(list, fmt.Sprintf("power: %s NOT as before", plural(power, "VM")))
	case unknown > 0:
		return append(list, fmt.Sprintf("power: of %s not known", plural(unknown, "VM")))
	}
	return append(list, "power: as before")
}

// volume tells bytes, time and place.
func volume(r *controller.Report) []string {
	var bytes int64
	retries := 0
	for _, vm := range r.VMs {
		retries += vm.Retries
		if vm.Status == controller.StatusGood {
			bytes += vm.Bytes
		}
	}
	first := size(bytes)
	if d := r.Took(); !r.Ended.IsZero() && d >= 0 {
		first += " in " + took(d)
		if d >= time.Second {
			first += fmt.Sprintf(" (%s/s)", size(int64(float64(bytes)/d.Seconds())))
		}
	}
	list := []string{first}
	if retries > 0 {
		list = append(list, fmt.Sprintf("retries %d", retries))
	}
	if r.Folder != "" {
		list = append(list, "folder "+r.Folder)
	}
	return list
}

// nameShown is how many characters of a VM's place and name the lines of a session repeat. XAPI sets no limit to a name.
const nameShown = 100

// labels names the VMs of a session: pool/name, with the beginning of the UUID where that is not one VM's alone, or is cut.
type labels map[string][]string

// shortUUID is how much of a UUID tells VMs of one name apart.
const shortUUID = 8

func labelsOf(r *controller.Report) labels {
	l := labels{}
	for _, vm := range r.VMs {
		l.add(vm.Pool, vm.Name, vm.UUID)
	}
	return l
}

func (l labels) add(pool, name, uuid string) {
	at := place(pool, name)
	if !slices.Contains(l[at], uuid) {
		l[at] = append(l[at], uuid)
	}
}

func (l labels) of(vm controller.VMResult) string { return l.label(vm.Pool, vm.Name, vm.UUID) }

func (l labels) label(pool, name, uuid string) string {
	at := place(pool, cmp.Or(name, uuid))
	shown := at
	if utf8.RuneCountInString(at) > nameShown {
		shown = string([]rune(at)[:nameShown]) + "..."
	}
	if uuid != "" && (len(l[at]) > 1 || shown != at) {
		return fmt.Sprintf("%s (%.*s)", shown, shortUUID, uuid)
	}
	return shown
}
