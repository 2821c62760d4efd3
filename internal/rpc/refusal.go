package rpc

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc/credentials"

	"github.com/dpxen/dpxen/certs"
)

// refusalPause is the least time between two lines on refused connections: whoever reaches the port could fill the log's
// disk otherwise.
const refusalPause = time.Second

// serverTLS is TLS of the listening side that logs whom it refused and why. The peer itself is told no more than that it
// was refused, and gRPC logs nothing.
type serverTLS struct {
	credentials.TransportCredentials
	refusals *refusals
}

// ServerHandshake does the handshake and logs a refusal.
func (s serverTLS) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := joinRecords(raw, s.TransportCredentials.ServerHandshake)
	if err != nil {
		s.refusals.add(raw.RemoteAddr(), err)
	}
	return conn, info, err
}

// Clone returns a copy that logs to the same place.
func (s serverTLS) Clone() credentials.TransportCredentials {
	return serverTLS{s.TransportCredentials.Clone(), s.refusals}
}

// refusals logs refused connections, a line in refusalPause at most, with the number of those in between.
type refusals struct {
	log hclog.Logger

	mu     sync.Mutex
	last   time.Time
	missed int
}

func newRefusals(log hclog.Logger) *refusals { return &refusals{log: log} }

func (r *refusals) add(from net.Addr, err error) {
	if errors.Is(err, io.EOF) {
		return // connected and left again, as load balancers and port scans do: nobody was refused
	}
	r.mu.Lock()
	if time.Since(r.last) < refusalPause {
		r.missed++
		r.mu.Unlock()
		return
	}
	missed := r.missed
	r.last, r.missed = time.Now(), 0
	r.mu.Unlock()
	line := []any{"from", from.String(), "err", certs.Explain(err)}
	if missed > 0 {
		line = append(line, "others_since_last_line", missed)
	}
	r.log.Warn("connection refused", line...)
}
