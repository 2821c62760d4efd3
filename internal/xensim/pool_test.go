package xensim

import (
	"testing"
)

func BenchmarkNew(b *testing.B) {
	for range b.N {
		p, err := New(Config{VMs: 3000, DiskSize: 1 << 30, Content: "sparse"})
		if err != nil {
			b.Fatal(err)
		}
		if err := p.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
