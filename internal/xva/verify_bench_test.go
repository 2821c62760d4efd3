package xva

import (
	"testing"
)

// bigArchive is a fixture of n chunks of random data.
func bigArchive(tb testing.TB, kind ChecksumKind, n int64) []byte {
	tb.Helper()
	data := randomBytes(9, BlockSize)
	blocks := make([]testBlock, n)
	for i := range blocks {
		blocks[i] = testBlock{"Ref:1", int64(i), data}
	}
	return archive(tb, testOVA(testDisk{"Ref:1", n * BlockSize}), kind, blocks...)
}

func BenchmarkVerifier(b *testing.B) {
	for _, kind := range []ChecksumKind{XXHash, SHA1} {
		for _, comp := range []Compression{Plain, Gzip, Zstd} {
			b.Run(kind.String()+"/"+string(comp), func(b *testing.B) {
				plain := bigArchive(b, kind, 32)
				data := pack(b, plain, comp)
				b.SetBytes(int64(len(plain)))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := push(data, ReaderOptions{RequireExactEnd: true}, 1<<20); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
