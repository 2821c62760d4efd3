package xva

import (
	"errors"
	"io"
	"sync/atomic"
)

// Verifier is the verification of an archive whose bytes are pushed into it, as
// beside their way to a file. A plain archive is looked at within Write; a
// compressed one is decompressed beside it, up to 4 MiB behind, by a goroutine
// that lives until Close or Abort, of which one must be called. Memory does not
// depend on the archive's size. The methods are for one goroutine, except OVA.
type Verifier struct {
	o    ReaderOptions
	head []byte // first bytes, until they tell how the archive is packed
	s    *scanner
	ova  atomic.Pointer[OVA]
	err  error

	pipe   *ahead // nil where the archive is plain
	done   chan struct{}
	report *Report // of the goroutine, once done is closed
	fault  error
}

var (
	errVerifierClosed = errors.New("xva: verifier is closed")
	errAborted        = errors.New("xva: verification was given up")
)

// NewVerifier returns a Verifier for one archive.
func NewVerifier(o ReaderOptions) *Verifier {
	return &Verifier{o: o, head: make([]byte, 0, magicBytes)}
}

// Write takes the next bytes, in any portions; p is not retained. It returns the
// fault of the archive as soon as it is known (for a compressed archive some
// bytes later), and from then on again.
func (v *Verifier) Write(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	n := 0
	if v.s == nil && v.pipe == nil {
		n = copy(v.head[len(v.head):cap(v.head)], p)
		v.head = v.head[:len(v.head)+n]
		if len(v.head) < magicBytes {
			return n, nil
		}
		if err := v.begin(); err != nil {
			return 0, err
		}
	}
	took, err := v.push(p[n:])
	return n + took, err
}

// begin decides what the archive is and passes on its first bytes.
func (v *Verifier) begin() error {
	if sniff(v.head) == Plain {
		v.s = newScanner(v.o, BlockSize)
	} else {
		v.pipe = newAhead(aheadSize)
		v.done = make(chan struct{})
		go v.unpack(v.pipe)
	}
	_, err := v.push(v.head)
	return err
}

func (v *Verifier) push(p []byte) (int, error) {
	if v.pipe != nil {
		var n int
		n, v.err = v.pipe.Write(p)
		return n, v.err
	}
	for n := 0; ; {
		took, ev, err := v.s.feed(p[n:])
		n += took
		if err != nil {
			v.err = err
			return n, err
		}
		if ev == evOVA {
			v.ova.Store(v.s.ova)
		}
		if n == len(p) {
			return n, nil
		}
	}
}

// unpack verifies what comes through the pipe.
func (v *Verifier) unpack(from *ahead) {
	defer close(v.done)
	v.fault = func() error {
		rd, err := newReader(from, v.o, BlockSize)
		if err != nil {
			return err
		}
		defer rd.Close()
		v.ova.Store(rd.OVA())
		for err == nil {
			_, err = rd.Next()
		}
		if errors.Is(err, io.EOF) {
			v.report = rd.Report()
			return nil
		}
		return err
	}()
	// Whoever writes on learns why nobody reads any more.
	from.closeRead(v.fault)
}

// OVA gives the ova.xml once it has passed; that is soon, as it comes first.
func (v *Verifier) OVA() (*OVA, bool) {
	o := v.ova.Load()
	return o, o != nil
}

// Close says that the archive is complete and gives the report of it, or its
// fault: what has not proven complete is an error.
func (v *Verifier) Close() (*Report, error) {
	if errors.Is(v.err, errVerifierClosed) {
		return nil, v.err
	}
	report, err := v.conclude()
	v.err = errVerifierClosed
	return report, err
}

func (v *Verifier) conclude() (*Report, error) {
	if v.pipe != nil {
		v.pipe.closeWrite(nil)
		<-v.done
		return v.report, v.fault
	}
	if v.err != nil {
		return nil, v.err
	}
	if v.s == nil {
		v.s = newScanner(v.o, BlockSize)
		if _, err := v.push(v.head); err != nil {
			return nil, err
		}
	}
	if err := v.s.finish(); err != nil {
		return nil, err
	}
	if err := v.s.settle(); err != nil {
		return nil, err
	}
	return v.s.result(Plain), nil
}

// Abort ends the verification without a result and frees what it holds. After
// Close it does nothing.
func (v *Verifier) Abort() {
	if v.pipe != nil {
		v.pipe.closeWrite(errAborted)
		<-v.done
	}
	if v.err == nil {
		v.err = errVerifierClosed
	}
}
