package archive

import (
	"io"
	"net"
)

// gather joins small writes with the large one that follows, in one vectored
// write where the connection can do that: headers cost no system call and no
// small packet of their own.
type gather struct {
	w     io.Writer
	small []byte
}

const largeWrite = 32 << 10

func (g *gather) Write(p []byte) (int, error) {
	if len(p) < largeWrite {
		g.small = append(g.small, p...)
		if len(g.small) < largeWrite {
			return len(p), nil
		}
		return len(p), g.flush(nil)
	}
	return len(p), g.flush(p)
}

// Close writes what is left; it does not close the underlying writer.
func (g *gather) Close() error { return g.flush(nil) }

func (g *gather) flush(p []byte) error {
	var v net.Buffers
	if len(g.small) > 0 {
		v = append(v, g.small)
	}
	if len(p) > 0 {
		v = append(v, p)
	}
	g.small = g.small[:0]
	want := int64(0)
	for _, b := range v {
		want += int64(len(b))
	}
	n, err := v.WriteTo(g.w)
	if err == nil && n < want {
		err = io.ErrShortWrite
	}
	return err
}
