package disk

import (
	"bytes"
	"testing"
)

func TestChanges(t *testing.T) {
	s, err := OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	im, err := s.New(20*ChangeBlock+1, Content{})
	if err != nil {
		t.Fatal(err)
	}
	if im.Changes() != nil {
		t.Error("changes are tracked before anybody asked")
	}
	im.TrackChanges(true)
	write := func(off int64, n int) {
		t.Helper()
		if _, err := im.WriteAt(make([]byte, n), off); err != nil {
			t.Fatal(err)
		}
	}
	write(0, 1)
	write(9*ChangeBlock-1, 2) // over the edge of two blocks
	write(20*ChangeBlock, 1)  // the last byte
	if got, want := im.Changes(), []byte{0x80, 0xc0, 0x08}; !bytes.Equal(got, want) {
		t.Errorf("changes %x, want %x", got, want)
	}
	if copied, err := im.Snapshot(); err != nil || copied.Changes() != nil {
		t.Errorf("a snapshot tracks changes: %v", err)
	}
	if err := im.Resize(24 * ChangeBlock); err != nil {
		t.Fatal(err)
	}
	if got, want := im.Changes(), []byte{0x80, 0xc0, 0x0f}; !bytes.Equal(got, want) {
		t.Errorf("after growing: %x, want %x", got, want)
	}
	im.TrackChanges(true)
	if got := im.Changes(); !bytes.Equal(got, make([]byte, 3)) {
		t.Errorf("after starting anew: %x", got)
	}
}
