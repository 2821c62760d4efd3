package disk

import "testing"

func TestSameBlock(t *testing.T) {
	s := openStore(t)
	a := newImage(t, s, 5*mib+7, Content{Kind: Random, Seed: 4})
	b, err := a.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	write := func(im *Image, at int64, p []byte) {
		if _, err := im.WriteAt(p, at); err != nil {
			t.Fatal(err)
		}
	}
	write(b, mib+3, []byte("other"))
	write(a, 2*mib, make([]byte, mib)) // zeros on both sides
	write(b, 2*mib, make([]byte, mib))
	// Written to both, byte for byte: the store knows that it is the same.
	write(a, 3*mib, []byte("the same"))
	write(b, 3*mib, []byte("the same"))
	// A known seed's block, written where the disk has it from the start.
	back := make([]byte, mib)
	if _, err := b.ReadAt(back, 4*mib); err != nil {
		t.Fatal(err)
	}
	write(b, 4*mib, []byte("else"))
	write(b, 4*mib, back)
	for i, want := range []bool{true, false, true, true, true, true, false} {
		if got := a.SameBlock(b, int64(i)); got != want {
			t.Errorf("block %d: %v", i, got)
		}
	}
	if err := b.Resize(5*mib + 9); err != nil {
		t.Fatal(err)
	}
	if a.SameBlock(b, 5) {
		t.Error("blocks of different lengths are the same")
	}
}
