package archive

import (
	"context"
	"io"
	"net"
	"net/http"
	"runtime"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/xensim/disk"
)

func randomExport(t testing.TB, size int64) ExportOptions {
	return ExportOptions{OVA: []byte("<value/>"), Disks: []ExportDisk{
		{"Ref:1", newImage(t, openStore(t), size, disk.Content{Kind: disk.Random, Seed: 1})}}}
}

// BenchmarkExport writes to a place that costs nothing.
func BenchmarkExport(b *testing.B) {
	for name, kind := range map[string]Checksum{"xxhash": XXHash, "sha1": SHA1} {
		b.Run(name, func(b *testing.B) {
			o := randomExport(b, 1<<30)
			o.Checksum = kind
			b.SetBytes(1 << 30)
			for b.Loop() {
				if err := Export(context.Background(), onlyWrite{io.Discard}, o); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// onlyWrite hides io.ReaderFrom.
type onlyWrite struct{ io.Writer }

// BenchmarkExportHTTP goes through a plain HTTP connection, its body hijacked as
// XAPI's has no length and no chunks.
func BenchmarkExportHTTP(b *testing.B) {
	o := randomExport(b, 1<<30)
	url := serve(b, func(c net.Conn) error { return Export(context.Background(), c, o) })
	b.SetBytes(1 << 30)
	buf := make([]byte, 1<<20)
	for b.Loop() {
		if n := get(b, url, buf); n < 1<<30 {
			b.Fatalf("%d bytes came", n)
		}
	}
}

// BenchmarkImport reads what an exporter beside it writes, through a loopback
// connection: an export and an import at once.
func BenchmarkImport(b *testing.B) {
	s := openStore(b)
	from, to := newImage(b, s, 1<<30, disk.Content{Kind: disk.Random, Seed: 1}), newImage(b, s, 1<<30, disk.Content{})
	o := ExportOptions{OVA: []byte("<value/>"), Disks: []ExportDisk{{"Ref:1", from}}}
	url := serve(b, func(c net.Conn) error { return Export(context.Background(), c, o) })
	b.SetBytes(1 << 30)
	for b.Loop() {
		resp := open200(b, url)
		_, err := Import(context.Background(), resp.Body, ImportOptions{AllowXXHash: true,
			OVA: func([]byte) ([]Expected, error) { return []Expected{{"Ref:1", to.Size(), to}}, nil }})
		if err != nil {
			b.Fatal(err)
		}
		_ = resp.Body.Close()
	}
}

// serve answers every GET with a body that write makes.
func serve(t testing.TB, write func(net.Conn) error) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, err = io.WriteString(c, "HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n")
		if err == nil {
			err = write(c)
		}
		if err != nil {
			t.Logf("serving: %v", err)
		}
		_ = c.Close()
	})}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	return "http://" + l.Addr().String() + "/export"
}

func open200(t testing.TB, url string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func get(t testing.TB, url string, buf []byte) int64 {
	t.Helper()
	resp := open200(t, url)
	defer func() { _ = resp.Body.Close() }()
	n, err := io.CopyBuffer(onlyWrite{io.Discard}, resp.Body, buf)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestMemory exports as much of a random disk of 8 GiB as a second allows and
// imports it elsewhere: neither may hold more than a few blocks, and the copy no
// room.
func TestMemory(t *testing.T) {
	s := openStore(t)
	const size = 8 << 30
	from := newImage(t, s, size, disk.Content{Kind: disk.Random, Seed: 1})
	to := newImage(t, s, size, disk.Content{})
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r, w := io.Pipe()
	exported := make(chan error, 1)
	go func() {
		err := Export(ctx, w, ExportOptions{OVA: []byte("<value/>"), Disks: []ExportDisk{{"Ref:1", from}}})
		_ = w.CloseWithError(err)
		exported <- err
	}()
	start, peak, moved := time.Now(), uint64(0), int64(0)
	_, err := Import(ctx, r, ImportOptions{
		AllowXXHash: true,
		OVA:         func([]byte) ([]Expected, error) { return []Expected{{"Ref:1", size, to}}, nil },
		Progress: func(done, _ int64) {
			if moved = done; done%(64*mib) == 0 {
				runtime.ReadMemStats(&now)
				peak = max(peak, now.HeapInuse)
			}
			if done > 256*mib && time.Since(start) > time.Second {
				cancel()
			}
		},
	})
	_ = r.CloseWithError(err)
	if err := <-exported; err == nil && moved < size {
		t.Error("the export ended well before its disk did")
	}
	if grown := int64(peak) - int64(before.HeapInuse); grown > 32*mib {
		t.Errorf("the heap grew by %d MiB over %d MiB of data", grown/mib, moved/mib)
	}
	if s.Stored() != 0 {
		t.Errorf("the copy takes %d bytes", s.Stored())
	}
}
