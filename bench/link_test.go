package main

import (
	"io"
	"net"
	"testing"
	"time"
)

// TestLink moves 2 MB over a link of 16 Mbit/s in two connections: a second, whatever each of them does.
func TestLink(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, io.LimitReader(c, 1e6)) // echoed, and so paced both ways
			}()
		}
	}()
	n, err := newLink(l.Addr().String(), 16e6)
	if err != nil {
		t.Fatal(err)
	}
	defer n.close()
	began := time.Now()
	done := make(chan int64, 2)
	for range 2 {
		go func() {
			c, err := net.Dial("tcp", n.address())
			if err != nil {
				t.Error(err)
				done <- 0
				return
			}
			defer c.Close()
			go func() { _, _ = c.Write(make([]byte, 1e6)) }()
			got, _ := io.Copy(io.Discard, c)
			done <- got
		}()
	}
	if a, b := <-done, <-done; a != 1e6 || b != 1e6 {
		t.Errorf("%d and %d bytes came back", a, b)
	}
	if took := time.Since(began); took < 900*time.Millisecond || took > 5*time.Second {
		t.Errorf("took %s", took)
	}
}
