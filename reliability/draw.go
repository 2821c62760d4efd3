package main

import "fmt"

// draw draws a step.
func (h *history) draw(round int) step {
	r := h.rng
	files := h.present()
	if round == 0 || len(files) == 0 {
		if r.IntN(3) == 0 {
			return h.drawDP()
		}
		return h.drawBackup()
	}
	switch n := r.IntN(100); {
	case n < 25:
		return h.drawBackup()
	case n < 45:
		return h.drawDP()
	case n < 83:
		return h.drawRestore(files)
	case n < 88:
		return step{kind: "damaged", file: files[r.IntN(len(files))]}
	case n < 94:
		return step{kind: "repair", args: []string{"repair"}}
	default:
		return step{kind: "verify", args: []string{"verify"}}
	}
}

func (h *history) drawBackup() step {
	r := h.rng
	s := step{kind: "backup", mode: []string{"online", "offline"}[r.IntN(2)], guests: r.IntN(3) == 0}
	s.args = []string{"backup", "--mode"}
	vm := h.before.VMs[r.IntN(len(h.before.VMs))]
	switch r.IntN(4) {
	case 0:
		s.args = append(s.args, "all"+s.mode)
	case 1:
		s.args = append(s.args, "all"+s.mode, "--exclude", vm.UUID)
	case 2:
		other := h.before.VMs[r.IntN(len(h.before.VMs))]
		s.args = append(s.args, s.mode, "--vm", vm.UUID, "--vm", other.UUID)
	default:
		s.args = append(s.args, s.mode, "--vm", vm.UUID)
		s.vm = vm.UUID
	}
	if s.mode == "offline" && r.IntN(4) == 0 {
		s.args = append(s.args, "--force-off")
	}
	if s.mode == "offline" && r.IntN(2) == 0 && !h.slow {
		s.args = append(s.args, "--with-memory")
	}
	if r.IntN(5) == 0 {
		s.args = append(s.args, "--compress", []string{"gzip", "zstd"}[r.IntN(2)])
	}
	s.guests = s.guests && s.mode == "online" && len(h.vms) > 0
	return s
}

func (h *history) drawRestore(files []*staged) step {
	r := h.rng
	f := files[r.IntN(len(files))]
	s := step{kind: "restore", mode: f.kind, vm: f.vm, file: f}
	s.args = []string{"restore", "--mode", f.kind}
	switch n := r.IntN(10); {
	case n < 7:
		switch r.IntN(8) {
		case 0:
			s.args = append(s.args, "--force-off")
		case 1, 2:
			s.args = append(s.args, "--keep-old-disks")
			h.keeps = true
		case 3:
			s.args, s.first = append(s.args, "--delete-first"), true
		case 4:
			s.args = append(s.args, "--adopt") // it has a manifest, which then is one more proof
		}
		if was := h.before.vm(f.vm); was != nil && was.PowerState == "Suspended" && r.IntN(4) > 0 {
			s.args = append(s.args, "--discard-memory")
			h.discards[f.vm] = true
		}
	case n < 9:
		s.kind, s.name = "new", fmt.Sprintf("made-%d", r.IntN(1<<30))
		s.args = append(s.args, "--as-new="+s.name)
		if r.IntN(4) == 0 {
			s.args, s.start = append(s.args, "--start"), true
		}
	default:
		s.kind = "recreate"
		s.args = append(s.args, "--recreate")
	}
	s.args = append(s.args, f.path)
	return h.drawBrought(s)
}
