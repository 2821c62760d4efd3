package rpc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
)

// However many are refused, the log grows by a line a second, and the lines tell how many there were.
func TestRefusalsAreLoggedOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		r := newRefusals(hclog.New(&hclog.LoggerOptions{Output: &log}))
		from := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 4711}
		for range 2500 {
			r.add(from, errors.New("tls: no common language"))
			time.Sleep(time.Millisecond)
		}
		r.add(from, fmt.Errorf("handshake: %w", io.EOF))
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		if len(lines) != 3 {
			t.Fatalf("%d lines, want 3:\n%s", len(lines), log.String())
		}
		for i, want := range []string{"192.0.2.7:4711", "others_since_last_line=999", "others_since_last_line=999"} {
			if !strings.Contains(lines[i], want) || !strings.Contains(lines[i], "no common language") {
				t.Errorf("line %d: %s, want %q in it", i, lines[i], want)
			}
		}
	})
}
