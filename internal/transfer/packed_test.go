package transfer

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/grpc/mem"
)

func randomFrame(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func frameOf(b []byte, cuts ...int) mem.BufferSlice {
	var out mem.BufferSlice
	at := 0
	for _, c := range append(cuts, len(b)) {
		out = append(out, mem.SliceBuffer(b[at:c]))
		at = c
	}
	return out
}

func TestPackedFramesComeOutAsTheyWentIn(t *testing.T) {
	p, u := NewPacker(), NewUnpacker()
	for _, n := range []int{0, 1, 100, 4096, 100_000, FrameSize - 1, FrameSize} {
		data := bytes.Repeat([]byte("block of a disk "), n/16+1)[:n]
		for _, frame := range []mem.BufferSlice{frameOf(data), frameOf(data, n/3, n/2)} {
			p.skip = 0
			packed, err := p.Pack(frame)
			if err != nil {
				t.Fatal(err)
			}
			if packed == nil {
				if n > 1000 {
					t.Errorf("%d bytes were not compressed", n)
				}
				continue
			}
			if len(packed) > n-n/16 {
				t.Errorf("%d bytes became %d", n, len(packed))
			}
			for _, in := range []mem.BufferSlice{frameOf(packed), frameOf(packed, 1, len(packed)/2)} {
				got, err := u.Unpack(in)
				if err != nil || !bytes.Equal(got.Materialize(), data) {
					t.Errorf("%d bytes, in %d pieces: got %d, %v", n, len(in), got.Len(), err)
				}
			}
		}
	}
}

// counted puts b into buffers of size bytes that are overwritten when they are freed.
func counted(p *countingPool, b []byte, size int) mem.BufferSlice {
	var out mem.BufferSlice
	for len(b) > 0 {
		n := min(size, len(b))
		buf := p.Get(max(n, 2<<10)) // shorter ones are not counted
		*buf = (*buf)[:copy(*buf, b[:n])]
		out = append(out, mem.NewBuffer(buf, p))
		b = b[n:]
	}
	return out
}

// What is unpacked stands when the packed frame is freed, which stays who has it until then.
func TestUnpackKeepsNothing(t *testing.T) {
	p, u, pool := NewPacker(), NewUnpacker(), &countingPool{}
	data := bytes.Repeat([]byte("block of a disk "), FrameSize/16)
	packed, err := p.Pack(frameOf(data))
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{FrameSize, 16 << 10, 3000} {
		in := counted(pool, packed, size)
		got, err := u.Unpack(in)
		if err != nil {
			t.Fatal(err)
		}
		if n := pool.outstanding(); n != len(in) {
			t.Errorf("in pieces of %d: %d of %d buffers are out", size, n, len(in))
		}
		in.Free()
		if n := pool.outstanding(); n != 0 || !bytes.Equal(got.Materialize(), data) {
			t.Errorf("in pieces of %d: %d buffers were not freed, or %d bytes have changed", size, n, got.Len())
		}
	}
}

// A packed frame costs no memory, but the first of all. The bound leaves room for what the library keeps in pools.
func TestUnpackAllocatesNothing(t *testing.T) {
	packed, err := NewPacker().Pack(frameOf(halfRandom(FrameSize)))
	if err != nil || packed == nil {
		t.Fatalf("%d bytes, %v", len(packed), err)
	}
	u := NewUnpacker()
	for _, in := range []mem.BufferSlice{frameOf(packed), frameOf(packed, 1, 16<<10, 32<<10)} {
		unpack := func() {
			if _, err := u.Unpack(in); err != nil {
				t.Fatal(err)
			}
		}
		unpack()
		const frames = 50
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range frames {
			unpack()
		}
		runtime.ReadMemStats(&after)
		if took := (after.TotalAlloc - before.TotalAlloc) / frames; took > FrameSize/16 {
			t.Errorf("in %d pieces: %d bytes a frame", len(in), took)
		}
	}
}

// halfRandom is data that compresses to about a half.
func halfRandom(n int) []byte {
	b := randomFrame(n)
	for i := 0; i < n; i += 2048 {
		clear(b[i:min(i+1024, n)])
	}
	return b
}

// Frames that do not get shorter are tried ever less often, and the first that does is found again.
func TestPackerGivesUpOnWhatDoesNotShrink(t *testing.T) {
	p := NewPacker()
	data := randomFrame(FrameSize)
	tried := 0
	for range 200 {
		if p.skip == 0 {
			tried++
		}
		if packed, err := p.Pack(frameOf(data)); packed != nil || err != nil {
			t.Fatalf("random bytes became %d, %v", len(packed), err)
		}
	}
	if tried > 25 {
		t.Errorf("%d of 200 frames were tried", tried)
	}
	for i := 0; ; i++ {
		packed, err := p.Pack(frameOf(make([]byte, FrameSize)))
		if err != nil || i > maxSkipped {
			t.Fatalf("after %d frames of zeros: %v", i, err)
		}
		if packed != nil {
			break
		}
	}
}

// What unpacks to more than a frame costs neither memory nor time, whether it says so of itself or not.
func TestUnpackIsBounded(t *testing.T) {
	bomb := func(o ...zstd.EOption) []byte {
		enc, err := zstd.NewWriter(nil, o...)
		if err != nil {
			t.Fatal(err)
		}
		defer enc.Close()
		return enc.EncodeAll(make([]byte, 1<<30), nil)
	}
	var unsized bytes.Buffer // a stream does not say how long it is
	enc, err := zstd.NewWriter(&unsized, zstd.WithWindowSize(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	for range 512 {
		if _, err := enc.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := enc.Close(); err != nil {
		t.Fatal(err)
	}
	full, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	one := full.EncodeAll(make([]byte, FrameSize), nil)
	for name, packed := range map[string][]byte{
		"a gigabyte": bomb(zstd.WithWindowSize(1 << 20)), "a gigabyte, a large window": bomb(zstd.WithWindowSize(64 << 20)),
		"half a gigabyte that does not say so": unsized.Bytes(), "a frame and another": append(bytes.Clone(one), one...),
		"one byte more": full.EncodeAll(make([]byte, FrameSize+1), nil), "nothing": {0}, "cut off": one[:len(one)-3],
		"no zstd": []byte("what is this, then?"), "longer than a frame": full.EncodeAll(randomFrame(FrameSize), nil),
	} {
		u := NewUnpacker()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := u.Unpack(frameOf(packed))
		_, again := u.Unpack(frameOf(packed, len(packed)/2))
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrPacked) || !errors.Is(again, ErrPacked) {
			t.Errorf("%s: got %v, in pieces %v", name, err, again)
		}
		if took := after.TotalAlloc - before.TotalAlloc; took > 8<<20 {
			t.Errorf("%s: took %d bytes", name, took)
		}
		if got, err := u.Unpack(frameOf(one)); err != nil || got.Len() != FrameSize {
			t.Errorf("a good one after %s: %v", name, err)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	p := NewPacker()
	for _, n := range []int{2000, 100_000} {
		packed, err := p.Pack(frameOf(make([]byte, n)))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(bytes.Clone(packed))
	}
	u := NewUnpacker()
	f.Fuzz(func(t *testing.T, packed []byte) {
		frame, err := u.Unpack(frameOf(packed))
		if err != nil && !errors.Is(err, ErrPacked) || frame.Len() > FrameSize {
			t.Fatalf("%d bytes, %v", frame.Len(), err)
		}
		whole := frame.Materialize()
		frame, again := u.Unpack(frameOf(packed, len(packed)/3, len(packed)/2))
		if (again == nil) != (err == nil) || err == nil && !bytes.Equal(frame.Materialize(), whole) {
			t.Fatalf("%d bytes, %v; in pieces %d, %v", len(whole), err, frame.Len(), again)
		}
	})
}

func BenchmarkPack(b *testing.B) {
	for name, data := range map[string][]byte{
		"text":   bytes.Repeat([]byte("the block of a disk that holds some text, again and again, with number 1234\n"), FrameSize/76+1)[:FrameSize],
		"random": randomFrame(FrameSize),
	} {
		b.Run(name, func(b *testing.B) {
			p := NewPacker()
			b.SetBytes(FrameSize)
			for b.Loop() {
				if _, err := p.Pack(frameOf(data)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
