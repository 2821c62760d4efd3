package xensim

import (
	"io"
	"time"
)

// exportShape is what faults make of one export.
type exportShape struct {
	before, after error
	headDelay     time.Duration
	vanish        bool
	stream        *faulty
}

func (p *Pool) faultsOnExport(vm string) *exportShape {
	s := &exportShape{}
	if !p.faults.any() {
		return s
	}
	names := p.lockedNames("VM", vm)
	get := func(name string) (Fault, bool) { return p.hit(name, "", names...) }
	if f, ok := get("export-slow-head"); ok {
		s.headDelay = f.Delay
	}
	if f, ok := get("export-refused"); ok {
		s.before = f.failure("SR_BACKEND_FAILURE_46", "", "The VDI is not available", "")
	}
	if f, ok := get("export-task-fails"); ok {
		s.after = f.failure("VDI_IO_ERROR", "Device I/O errors")
	}
	if _, ok := get("export-task-vanishes"); ok {
		s.vanish = true
	}
	for _, kind := range []string{"export-cut", "export-embedded-500", "export-corrupt", "export-no-end", "export-stall"} {
		if f, ok := get(kind); ok {
			s.stream = &faulty{p: p, fault: f}
			break
		}
	}
	return s
}

func (s *exportShape) writer(w io.Writer) io.Writer {
	if s.stream == nil {
		return w
	}
	s.stream.w = w
	return s.stream
}

// faulty is a stream in which something goes wrong at a position.
type faulty struct {
	p     *Pool
	w     io.Writer
	fault Fault
	at    int64
	cut   bool
	done  bool
	// held keeps the last bytes back, where the end of the archive is to be missing.
	held []byte
}

// Write passes bytes on until the fault's position.
func (f *faulty) Write(b []byte) (int, error) {
	switch f.fault.Name {
	case "export-no-end":
		return f.hold(b)
	case "export-corrupt":
		return f.corrupt(b)
	}
	room := f.fault.After - f.at
	if f.done || int64(len(b)) <= room {
		n, err := f.w.Write(b)
		f.at += int64(n)
		return n, err
	}
	n, err := f.w.Write(b[:max(room, 0)])
	f.at += int64(n)
	f.done = true
	if err != nil {
		return n, err
	}
	switch f.fault.Name {
	case "export-cut":
		f.cut = true
		return n, f.fault.failure("CLIENT_ERROR", "injected")
	case "export-embedded-500":
		return n, f.fault.failure("SR_BACKEND_FAILURE_46", "", "The VDI is not available", "")
	}
	if err := f.p.wait(f.p.ctx, f.fault.Delay); err != nil {
		return n, err
	}
	m, err := f.w.Write(b[n:])
	return n + m, err
}

func (f *faulty) corrupt(b []byte) (int, error) {
	i := f.fault.After - f.at
	f.at += int64(len(b))
	if i < 0 || i >= int64(len(b)) {
		return f.w.Write(b)
	}
	c := append([]byte(nil), b...)
	c[i] ^= 1
	return f.w.Write(c)
}

func (f *faulty) hold(b []byte) (int, error) {
	const end = 1024
	f.held = append(f.held, b...)
	if n := len(f.held) - end; n > 0 {
		if _, err := f.w.Write(f.held[:n]); err != nil {
			return 0, err
		}
		f.held = append(f.held[:0], f.held[n:]...)
	}
	return len(b), nil
}
