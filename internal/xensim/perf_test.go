package xensim

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// BenchmarkListVMs lists 10 000 VMs over both protocols, as a client receives
// the answer.
func BenchmarkListVMs(b *testing.B) {
	p, err := New(Config{VMs: 10000, DiskSize: 1 << 20, Content: "zero", Password: testPassword, Data: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	p.Start()
	defer func() {
		if err := p.Close(); err != nil {
			b.Error(err)
		}
	}()
	p.db.mu.Lock()
	session := p.newSession(p.master(), "root", "benchmark")
	p.db.mu.Unlock()
	for path, body := range map[string]string{
		"/":        string(callBody("VM.get_all_records", session)),
		"/jsonrpc": fmt.Sprintf(`{"jsonrpc":"2.0","method":"VM.get_all_records","params":[%q],"id":1}`, session),
	} {
		b.Run("path="+path, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				req, err := http.NewRequestWithContext(b.Context(), http.MethodPost, p.Info().Hosts[0].HTTP+path, strings.NewReader(body))
				if err != nil {
					b.Fatal(err)
				}
				res, err := http.DefaultClient.Do(req)
				if err != nil {
					b.Fatal(err)
				}
				n, err := io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
				if err != nil || n < 10<<20 {
					b.Fatalf("%d bytes, %v", n, err)
				}
				b.SetBytes(n)
			}
		})
	}
}
