package disk

import "testing"

func BenchmarkGenerate(b *testing.B) {
	s := openStore(b)
	for _, kind := range []Kind{Zero, Random, Sparse, Ext4, Half} {
		b.Run(kind.String(), func(b *testing.B) {
			im := newImage(b, s, 1<<30, Content{kind, 1})
			buf := make([]byte, BlockSize)
			b.SetBytes(BlockSize)
			var i int64
			for b.Loop() {
				if _, _, err := im.ReadBlock(i%1024, buf); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}

// BenchmarkWriteBack is the disk's part of an import of what was exported.
func BenchmarkWriteBack(b *testing.B) {
	s := openStore(b)
	from, to := newImage(b, s, 1<<30, Content{Random, 1}), newImage(b, s, 1<<30, Content{})
	buf := make([]byte, BlockSize)
	b.SetBytes(BlockSize)
	var i int64
	for b.Loop() {
		data, _, err := from.ReadBlock(i%1024, buf)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := to.WriteAt(data, i%1024*BlockSize); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

func BenchmarkSnapshot(b *testing.B) {
	im := newImage(b, openStore(b), 1<<40, Content{Random, 1})
	for b.Loop() {
		snap, err := im.Snapshot()
		if err != nil {
			b.Fatal(err)
		}
		if err := snap.Release(); err != nil {
			b.Fatal(err)
		}
	}
}
