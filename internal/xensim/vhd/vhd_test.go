package vhd

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// memory is a disk of a fixed size.
type memory []byte

func (m memory) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(m)) {
		return 0, errors.New("outside the disk")
	}
	return copy(m[off:], p), nil
}

var testID = [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}

// written gives the VHD of a disk with the given blocks.
func written(t *testing.T, data []byte, parent *Parent, present ...int64) []byte {
	t.Helper()
	var b bytes.Buffer
	err := Write(context.Background(), &b, WriteOptions{
		Size: int64(len(data)), UUID: testID, Parent: parent,
		Present: func(i int64) (bool, error) { return slices.Contains(present, i), nil },
		Read: func(i int64, buf []byte) error {
			clear(buf[copy(buf, data[i*BlockSize:]):])
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>9) ^ byte(i)
	}
	return b
}

// TestWriteLayout holds every field against the specification and what vhd-tool
// puts into it.
func TestWriteLayout(t *testing.T) {
	const size = 5<<20 + 1024
	data := pattern(size)
	parent := &Parent{UUID: [16]byte{0xaa, 15: 0xbb}, Path: "/run/sr-mount/x/y.vhd", Modified: 7}
	b := written(t, data, parent, 0, 2)
	if want := 512 + 1024 + 512 + 512 + 2*(512+BlockSize) + 512; len(b) != want {
		t.Fatalf("%d bytes, want %d", len(b), want)
	}
	foot, head := b[:512], b[512:1536]
	if !bytes.Equal(foot, b[len(b)-512:]) {
		t.Error("the footer at the end differs from that at the start")
	}
	hex := func(b []byte) string {
		const digits = "0123456789abcdef"
		var s strings.Builder
		for _, c := range b {
			s.WriteByte(digits[c>>4])
			s.WriteByte(digits[c&15])
		}
		return s.String()
	}
	for _, c := range []struct {
		name string
		got  []byte
		want string
	}{
		{"features, version, data offset", foot[8:24], "00000002" + "00010000" + "0000000000000200"},
		{"time, creator, version, system", foot[24:40], "00000000" + "63616d6c" + "00000001" + "00000000"},
		{"sizes", foot[40:56], "0000000000500400" + "0000000000500400"},
		// 10242 sectors: 17 a track, 602 tracks, 4 heads, 150 cylinders.
		{"geometry, type", foot[56:64], "0096" + "04" + "11" + "00000004"},
		{"uuid", foot[68:84], "0102030405060708090a0b0c0d0e0f10"},
		{"header offsets, version", head[8:28], "ffffffffffffffff" + "0000000000000800" + "00010000"},
		{"entries, block size", head[28:36], "00000003" + "00200000"},
		{"parent's uuid and time", head[40:64], "aa0000000000000000000000000000bb" + "00000007" + "00000000"},
		{"parent's name", head[64:70], "002f00720075"},
		{"locator", head[576:600], "4d616358" + "00000001" + "0000001c" + "00000000" + "0000000000000600"},
		{"empty sector", b[1536:1544], "0000000000000000"},
		{"table", b[2048:2064], "00000005" + "ffffffff" + "00001006" + "ffffffff"},
	} {
		if got := hex(c.got); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	for name, part := range map[string]struct {
		b  []byte
		at int
	}{"footer": {foot, 64}, "header": {head, 36}} {
		c := slices.Clone(part.b)
		clear(c[part.at : part.at+4])
		sum := uint32(0)
		for _, v := range c {
			sum += uint32(v)
		}
		if got := binary.BigEndian.Uint32(part.b[part.at:]); got != ^sum {
			t.Errorf("checksum of the %s: %08x", name, got)
		}
	}
	last := b[0x1006*512:]
	if hex(last[:4]) != "ffffffff" || !bytes.Equal(last[512:][:1<<20+1024], data[4<<20:]) {
		t.Error("block 2 is not where the table says")
	}
	if plain := written(t, data, nil); binary.BigEndian.Uint32(plain[60:]) != dynamic || hex(plain[552:560]) != "0000000000000000" {
		t.Error("a VHD without parent is not a dynamic one")
	}
}

func TestGeometry(t *testing.T) {
	for _, c := range []struct{ sectors, cylinders, heads, perTrack int64 }{
		{0, 0, 4, 17},
		{17 * 4 * 1023, 1023, 4, 17},
		{10 << 20 / 512, 301, 4, 17},
		{1 << 30 / 512, 2080, 16, 63},
		{65535 * 16 * 63, 65535, 16, 63},
		{65535*16*63 + 1, 16191, 16, 255},
		{1 << 40, 65535, 16, 255},
	} {
		if cyl, h, s := geometry(c.sectors); cyl != c.cylinders || h != c.heads || s != c.perTrack {
			t.Errorf("%d sectors: %d, %d, %d", c.sectors, cyl, h, s)
		}
	}
}

// golden is a dynamic VHD of 7 MiB that qemu-img 7.2 made, with 3 KiB of 0x5a at
// 1 MiB, 9 KiB of 0xc3 around 4 MiB, and 512 bytes of 0x77 at the end.
func golden(t testing.TB) (vhd []byte, disk memory) {
	t.Helper()
	f, err := os.Open("testdata/qemu-img.vhd.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	if vhd, err = io.ReadAll(z); err != nil {
		t.Fatal(err)
	}
	disk = make(memory, 7<<20)
	fill := func(at, n int, c byte) { copy(disk[at:], bytes.Repeat([]byte{c}, n)) }
	fill(1<<20, 3072, 0x5a)
	fill(4190720, 9216, 0xc3)
	fill(7339520, 512, 0x77)
	return vhd, disk
}

func TestReadGolden(t *testing.T) {
	vhd, want := golden(t)
	got := make(memory, len(want))
	var last, total int64
	err := Read(context.Background(), bytes.NewReader(vhd), ReadOptions{
		Length: int64(len(vhd)), Size: int64(len(got)), Into: got, Progress: func(d, n int64) { last, total = d, n },
	})
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%v, equal: %v", err, bytes.Equal(got, want))
	}
	if last != 4 || total != 4 {
		t.Errorf("progress %d of %d", last, total)
	}
}

func TestWriteThenRead(t *testing.T) {
	data := pattern(7<<20 + 512)
	for name, c := range map[string]struct {
		parent  *Parent
		present []int64
	}{
		"all":          {nil, []int64{0, 1, 2, 3}},
		"none":         {nil, nil},
		"differencing": {&Parent{Path: strings.Repeat("x", 400)}, []int64{1, 3}},
	} {
		t.Run(name, func(t *testing.T) {
			vhd := written(t, data, c.parent, c.present...)
			got := memory(bytes.Repeat([]byte{0xee}, len(data)))
			want := slices.Clone(got)
			for _, i := range c.present {
				copy(want[i*BlockSize:], data[i*BlockSize:min(int64(len(data)), (i+1)*BlockSize)])
			}
			err := Read(context.Background(), bytes.NewReader(vhd), ReadOptions{Length: int64(len(vhd)), Size: int64(len(got)), Into: got})
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%v, equal: %v", err, bytes.Equal(got, want))
			}
		})
	}
}

// TestReadBitmap reads a VHD put together by hand: two blocks in reverse order, of
// which single sectors are there.
func TestReadBitmap(t *testing.T) {
	head := header(2, nil)
	table := bytes.Repeat([]byte{0xff}, 512)
	binary.BigEndian.PutUint32(table, 5+4097)
	binary.BigEndian.PutUint32(table[4:], 5)
	first, second := make([]byte, 512+BlockSize), make([]byte, 512+BlockSize)
	first[0], first[511] = 0x81, 1 // sectors 0, 7 and 4095 of block 1
	copy(first[512:], "a")
	copy(first[512+7*512:], "b")
	copy(first[512+BlockSize-512:], "c")
	copy(first[512+512:], "not there")
	second[1] = 0x40 // sector 9 of block 0
	copy(second[512+9*512:], "d")
	foot := footer(4<<20, differencing, testID)
	vhd := bytes.Join([][]byte{foot, head, make([]byte, 512), table, first, second, foot}, nil)
	got := memory(bytes.Repeat([]byte{'.'}, 4<<20))
	want := slices.Clone(got)
	for at, s := range map[int]string{9 * 512: "d", 2 << 20: "a", 2<<20 + 7*512: "b", 4<<20 - 512: "c"} {
		clear(want[at : at+512])
		copy(want[at:], s)
	}
	err := Read(context.Background(), bytes.NewReader(vhd), ReadOptions{Length: int64(len(vhd)), Size: 4 << 20, Into: got})
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v, equal: %v", err, bytes.Equal(got, want))
	}
}

func TestReadBad(t *testing.T) {
	data := pattern(4 << 20)
	good := written(t, data, nil, 0, 1)
	change := func(at int, b ...byte) []byte {
		c := slices.Clone(good)
		copy(c[at:], b)
		return c
	}
	// resum makes checksums right again.
	resum := func(b []byte) []byte {
		clear(b[64:68])
		binary.BigEndian.PutUint32(b[64:], checksum(b[:512]))
		clear(b[512+36 : 512+40])
		binary.BigEndian.PutUint32(b[512+36:], checksum(b[512:1536]))
		return b
	}
	for name, c := range map[string]struct {
		vhd  []byte
		size int64
		want error
	}{
		"empty":                 {nil, 4 << 20, io.ErrUnexpectedEOF},
		"a fixed disk":          {append(slices.Clone(data), footer(4<<20, 2, testID)...), 4 << 20, ErrFormat},
		"its footer in front":   {resum(change(16, 255, 255, 255, 255, 255, 255, 255, 255)), 4 << 20, ErrFormat},
		"footer checksum":       {change(70, 99), 4 << 20, ErrFormat},
		"version":               {resum(change(13, 2)), 4 << 20, ErrFormat},
		"disk type":             {resum(change(63, 9)), 4 << 20, ErrFormat},
		"header far away":       {resum(change(16, 0, 0, 9)), 4 << 20, io.ErrUnexpectedEOF},
		"header behind us":      {resum(change(16, 0, 0, 0, 0, 0, 0, 0, 1)), 4 << 20, ErrFormat},
		"header checksum":       {change(512+100, 1), 4 << 20, ErrFormat},
		"no header":             {change(512, 'x'), 4 << 20, ErrFormat},
		"header version":        {resum(change(512+26, 7)), 4 << 20, ErrFormat},
		"block size 0":          {resum(change(512+32, 0, 0, 0, 0)), 4 << 20, ErrFormat},
		"block size no power":   {resum(change(512+32, 0, 0x30, 0, 0)), 4 << 20, ErrFormat},
		"block size 2 GiB":      {resum(change(512+32, 0x80, 0, 0, 0)), 4 << 20, ErrFormat},
		"a table of 16 GiB":     {resum(change(512+28, 255, 255, 255, 255)), 4 << 20, ErrFormat},
		"table behind us":       {resum(change(512+16, 0, 0, 0, 0, 0, 0, 0, 0)), 4 << 20, ErrFormat},
		"block behind us":       {change(2048, 0, 0, 0, 1), 4 << 20, ErrFormat},
		"block far away":        {change(2048, 0xff, 0, 0, 0), 4 << 20, io.ErrUnexpectedEOF},
		"disk too small":        {good, 1 << 20, ErrFormat},
		"cut in a block":        {good[:3<<20], 4 << 20, io.ErrUnexpectedEOF},
		"cut before the footer": {good[:len(good)-512], 4 << 20, ErrFormat}, // its length moves the footer into a block
		"last footer":           {change(len(good)-100, 1), 4 << 20, ErrFormat},
	} {
		t.Run(name, func(t *testing.T) {
			err := Read(context.Background(), bytes.NewReader(c.vhd), ReadOptions{
				Length: int64(len(c.vhd)), Size: c.size, Into: make(memory, 4<<20),
			})
			if !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	stop := errors.New("stop")
	cancel(stop)
	if err := Read(ctx, bytes.NewReader(good), ReadOptions{Length: int64(len(good)), Size: 4 << 20, Into: make(memory, 4<<20)}); !errors.Is(err, stop) {
		t.Errorf("after the end of its context: %v", err)
	}
	if err := Read(context.Background(), bytes.NewReader(good), ReadOptions{Length: int64(len(good)), Size: 4 << 20, Into: memory{}}); err == nil || errors.Is(err, ErrFormat) {
		t.Errorf("a disk that fails: %v", err)
	}
}

func TestWriteBad(t *testing.T) {
	none := func(int64) (bool, error) { return false, nil }
	for _, size := range []int64{-1, 0, MaxSize + 1} {
		if err := Write(context.Background(), io.Discard, WriteOptions{Size: size, Present: none}); !errors.Is(err, ErrSize) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	broken := errors.New("broken")
	all := func(int64) (bool, error) { return true, nil }
	read := func(int64, []byte) error { return nil }
	for name, o := range map[string]WriteOptions{
		"present": {Size: 1, Present: func(int64) (bool, error) { return false, broken }, Read: read},
		"read":    {Size: 1, Present: all, Read: func(int64, []byte) error { return broken }},
	} {
		if err := Write(context.Background(), io.Discard, o); !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r, w := io.Pipe()
	_ = r.CloseWithError(broken)
	if err := Write(context.Background(), w, WriteOptions{Size: 1, Present: all, Read: read}); !errors.Is(err, broken) {
		t.Errorf("a writer that fails: %v", err)
	}
}

// TestMemory moves 1 GiB of a disk of the largest size: neither side may hold more
// than its block table.
func TestMemory(t *testing.T) {
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	r, w := io.Pipe()
	go func() {
		_ = w.CloseWithError(Write(context.Background(), w, WriteOptions{
			Size:    MaxSize,
			Present: func(i int64) (bool, error) { return i%2048 == 0, nil },
			Read:    func(_ int64, buf []byte) error { buf[0] = 1; return nil },
		}))
	}()
	peak := uint64(0)
	entries := int64(MaxSize / BlockSize)
	length := tableOffset + entries*4 + entries/2048*(512+BlockSize) + 512
	err := Read(context.Background(), r, ReadOptions{Length: length, Size: MaxSize, Into: nowhere{}, Progress: func(done, _ int64) {
		if done%64 == 0 {
			runtime.ReadMemStats(&now)
			peak = max(peak, now.HeapInuse)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if grown := int64(peak) - int64(before.HeapInuse); grown > 32<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
}

type nowhere struct{}

func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// FuzzRead holds any bytes against a disk whose end must not be passed.
func FuzzRead(f *testing.F) {
	small := func(parent *Parent) []byte {
		b := slices.Concat(footer(8192, differencing, testID), header(2, parent), make([]byte, 512), bytes.Repeat([]byte{0xff}, 512))
		binary.BigEndian.PutUint32(b[512+32:], 4096)
		clear(b[512+36 : 512+40])
		binary.BigEndian.PutUint32(b[512+36:], checksum(b[512:1536]))
		binary.BigEndian.PutUint32(b[2048:], 5)
		b = append(b, 0xa5)
		b = append(b, make([]byte, 511+4096)...)
		return append(b, footer(8192, differencing, testID)...)
	}
	f.Add(small(nil))
	f.Add(small(&Parent{Path: "/x"}))
	f.Add([]byte("conectix"))
	f.Fuzz(func(t *testing.T, b []byte) {
		disk := make(memory, 8192)
		var calls int64
		err := Read(context.Background(), bytes.NewReader(b), ReadOptions{
			Length: int64(len(b)), Size: int64(len(disk)), Into: disk, Progress: func(int64, int64) { calls++ },
		})
		if err == nil && calls > int64(len(b)/512) {
			t.Errorf("%d blocks in %d bytes", calls, len(b))
		}
	})
}
