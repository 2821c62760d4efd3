package rpc

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// callConn counts reads and writes.
type callConn struct {
	net.Conn
	reads, writes atomic.Int64
}

func (c *callConn) Read(p []byte) (int, error)  { c.reads.Add(1); return c.Conn.Read(p) }
func (c *callConn) Write(p []byte) (int, error) { c.writes.Add(1); return c.Conn.Write(p) }

// joinedPair returns both ends of a TLS connection over TCP, and what lies below them.
func joinedPair(t *testing.T) (a, b net.Conn, belowA, belowB *callConn) {
	t.Helper()
	web := httptest.NewTLSServer(nil) // for its certificate
	web.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var accepting sync.WaitGroup
	var failed error
	accepting.Go(func() {
		raw, err := l.Accept()
		if err != nil {
			failed = err
			return
		}
		belowA = &callConn{Conn: raw}
		a, _, failed = joinRecords(belowA, func(raw net.Conn) (net.Conn, int, error) {
			c := tls.Server(raw, &tls.Config{Certificates: web.TLS.Certificates, MinVersion: tls.VersionTLS13})
			return c, 0, c.Handshake()
		})
	})
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	belowB = &callConn{Conn: raw}
	b, _, err = joinRecords(belowB, func(raw net.Conn) (net.Conn, int, error) {
		c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
		return c, 0, c.Handshake()
	})
	accepting.Wait()
	if err := errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b, belowA, belowB
}

func TestRecordsAreJoined(t *testing.T) {
	a, b, belowA, belowB := joinedPair(t)
	piece := bytes.Repeat([]byte("0123456789abcdef"), bufferSize/16)
	const pieces = 16
	var reading sync.WaitGroup
	var got []byte
	var failed error
	reading.Go(func() { got, failed = io.ReadAll(b) })
	belowA.writes.Store(0)
	belowB.reads.Store(0)
	for range pieces {
		if n, err := a.Write(piece); n != len(piece) || err != nil {
			t.Fatal(n, err)
		}
	}
	if n := belowA.writes.Load(); n > 2*pieces {
		t.Errorf("%d writes to the network for %d of %d bytes", n, pieces, len(piece))
	}
	a.Close()
	reading.Wait()
	if failed != nil || !bytes.Equal(got, bytes.Repeat(piece, pieces)) {
		t.Errorf("%d bytes arrived: %v", len(got), failed)
	}
	if n := belowB.reads.Load(); n > pieces*bufferSize>>14 {
		t.Errorf("%d reads, no fewer than records", n)
	}
}

// TestRecordsBothWays writes pieces of any sizes on both sides at the same time; all arrive, in their order.
func TestRecordsBothWays(t *testing.T) {
	a, b, _, _ := joinedPair(t)
	rapid.Check(t, func(rt *rapid.T) {
		sizes := rapid.SliceOfN(rapid.OneOf(rapid.IntRange(0, 100), rapid.IntRange(minJoin-1, minJoin+1), rapid.IntRange(0, 3*recordBuffer)), 1, 6)
		var running sync.WaitGroup
		for _, way := range []struct {
			name     string
			from, to net.Conn
			sizes    []int
		}{{"there", a, b, sizes.Draw(rt, "there")}, {"back", b, a, sizes.Draw(rt, "back")}} {
			var want []byte
			for i, n := range way.sizes {
				want = append(want, bytes.Repeat([]byte{byte(i + 1)}, n)...)
			}
			running.Go(func() {
				rest := want
				for _, n := range way.sizes {
					if m, err := way.from.Write(rest[:n]); m != n || err != nil {
						rt.Errorf("%s: wrote %d of %d: %v", way.name, m, n, err)
						return
					}
					rest = rest[n:]
				}
			})
			running.Go(func() {
				got := make([]byte, len(want))
				if _, err := io.ReadFull(way.to, got); err != nil || !bytes.Equal(got, want) {
					rt.Errorf("%s: %d bytes, the same: %v, %v", way.name, len(got), bytes.Equal(got, want), err)
				}
			})
		}
		running.Wait()
	})
}

// TestRecordsTellFailure: a write whose bytes did not leave says so, though TLS had them all.
func TestRecordsTellFailure(t *testing.T) {
	a, b, _, belowB := joinedPair(t)
	belowB.Close()
	b.Close()
	piece := make([]byte, bufferSize)
	var err error
	for end := time.Now().Add(10 * time.Second); err == nil && time.Now().Before(end); {
		_, err = a.Write(piece)
	}
	if err == nil {
		t.Error("writing to a peer that is gone went on")
	}
	a, _, _, _ = joinedPair(t)
	if err := a.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); err == nil || !errors.Is(err, os.ErrDeadlineExceeded); {
		if _, err = a.Write(piece); time.Now().After(end) {
			t.Fatalf("a deadline has not ended the writing: %v", err)
		}
	}
}

// TestRecordsCloseWhileWriting: a connection can be closed from another goroutine, as gRPC does.
func TestRecordsCloseWhileWriting(t *testing.T) {
	a, _, _, _ := joinedPair(t)
	writing := make(chan error, 1)
	go func() {
		for {
			if _, err := a.Write(make([]byte, bufferSize)); err != nil {
				writing <- err
				return
			}
		}
	}()
	time.Sleep(50 * time.Millisecond) // the peer reads nothing: by now the write is stuck
	a.Close()
	select {
	case <-writing:
	case <-time.After(20 * time.Second):
		t.Error("the write goes on after the close")
	}
}
