package controller

import (
	"net"
	"sync/atomic"
	"testing"

	"github.com/dpxen/dpxen/certs"
)

// cutting passes the first connections to nowhere: it closes them, as a network or an agent does that is just started anew.
func cutting(t *testing.T, to string, cuts int32) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	var seen atomic.Int32
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			if seen.Add(1) <= cuts {
				_ = in.Close()
				continue
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				_ = in.Close()
				continue
			}
			t.Cleanup(func() { _, _ = in.Close(), out.Close() })
			go func() { _, _ = in.(*net.TCPConn).ReadFrom(out) }()
			go func() { _, _ = out.(*net.TCPConn).ReadFrom(in) }()
		}
	}()
	return l.Addr().String()
}

// TestFirstWord: a cut or two of the first connection to an agent do not cost its pool's backups; one that is gone is told of soon.
func TestFirstWord(t *testing.T) {
	for name, tt := range map[string]struct {
		cuts int32
		ok   bool
	}{"none": {0, true}, "one": {1, true}, "two": {2, true}, "all": {1 << 30, false}} {
		t.Run(name, func(t *testing.T) {
			p := newPKI(t)
			addr := cutting(t, p.serve("xs1", &toldAgent{host: toldHost("xs1")}, certs.PeerPolicy{}), tt.cuts)
			c := mustController(t, p.config(AgentConfig{Name: "xs1", Address: addr}), Options{})
			var s AgentStatus
			client, err := c.agents[0].client()
			if err == nil {
				s.Name = "xs1"
				err = c.getHost(t.Context(), client, &s)
			}
			if (err == nil) != tt.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}
