package agent

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/dpxen/dpxen/certs"
	"github.com/dpxen/dpxen/internal/xensim"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// gate is an agent with a list of allowed controllers and of revoked ones, and what strangers come with.
type gate struct {
	*bench
	agent *runningAgent
	book  *logBook
	roots *x509.CertPool
	// revoked is the certificate of a controller that was on the list.
	revoked tls.Certificate
}

func newGate(t *testing.T) *gate {
	t.Helper()
	g := &gate{bench: newBench(t, xensim.Config{VMs: 2}), book: &logBook{}, roots: x509.NewCertPool()}
	g.log = hclog.New(&hclog.LoggerOptions{Level: hclog.Debug, Output: g.book, JSONFormat: true})
	g.roots.AppendCertsFromPEM(g.ca.CertPEM())
	gone := certs.Identity{Role: certs.Controller, Name: "gone"}
	g.revoked = g.pair(g.ca, gone, time.Hour)
	if _, err := g.ca.RevokeIdentity(gone); err != nil {
		t.Fatal(err)
	}
	list, err := g.ca.CRLPEM()
	if err != nil {
		t.Fatal(err)
	}
	crl := g.write("crl.pem", list)
	g.agent = g.bench.agent(func(c *Config) { c.TLS.CRL, c.Allow = crl, []string{"ctl", "gone"} })
	return g
}

// pair issues a certificate.
func (g *gate) pair(ca *certs.CA, id certs.Identity, validity time.Duration) tls.Certificate {
	g.t.Helper()
	cert, key, err := ca.Issue(id, validity)
	if err != nil {
		g.t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		g.t.Fatal(err)
	}
	return pair
}

// tls is a stranger's configuration; it checks the agent as a controller would.
func (g *gate) tls(pairs ...tls.Certificate) *tls.Config {
	c := &tls.Config{RootCAs: g.roots, ServerName: g.agent.agent.cfg.Name, MinVersion: tls.VersionTLS12}
	if len(pairs) > 0 { // shown whatever authorities the agent asks for
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pairs[0], nil }
	}
	return c
}

func controllerNamed(name string) certs.Identity {
	return certs.Identity{Role: certs.Controller, Name: name}
}

// Whoever is not a controller of this authority gets nothing: no call reaches a handler, the log says who was refused
// and why, and the right controller is served as before.
func TestEveryWrongPeer(t *testing.T) {
	t.Parallel()
	overTLS := func(c *tls.Config) credentials.TransportCredentials { return credentials.NewTLS(c) }
	for name, tt := range map[string]struct {
		come func(*gate) credentials.TransportCredentials
		log  string
	}{
		"plain text": {func(*gate) credentials.TransportCredentials { return insecure.NewCredentials() },
			"first record does not look like a TLS handshake"},
		"no certificate": {func(g *gate) credentials.TransportCredentials { return overTLS(g.tls()) }, "certificate"},
		"controller of another authority": {func(g *gate) credentials.TransportCredentials {
			other, err := certs.CreateCA(filepath.Join(g.dir, "other"), certs.Options{})
			if err != nil {
				g.t.Fatal(err)
			}
			return overTLS(g.tls(g.pair(other, controllerNamed("ctl"), time.Hour)))
		}, "issued by"},
		"agent": {func(g *gate) credentials.TransportCredentials {
			return overTLS(g.tls(g.pair(g.ca, certs.Identity{Role: certs.Agent, Name: "xs9"}, time.Hour)))
		}, "agent xs9"},
		"controller not on the list": {func(g *gate) credentials.TransportCredentials {
			return overTLS(g.tls(g.pair(g.ca, controllerNamed("other"), time.Hour)))
		}, "controller other: name not on the allow list"},
		"revoked": {func(g *gate) credentials.TransportCredentials {
			return overTLS(g.tls(g.revoked))
		}, "revoked"},
		"expired": {func(g *gate) credentials.TransportCredentials {
			pair := g.pair(g.ca, controllerNamed("ctl"), time.Second)
			time.Sleep(time.Until(pair.Leaf.NotAfter) + 10*time.Millisecond) // certificates know seconds only
			return overTLS(g.tls(pair))
		}, "not valid at this time"},
		"TLS 1.2": {func(g *gate) credentials.TransportCredentials {
			c := g.tls(g.pair(g.ca, controllerNamed("ctl"), time.Hour))
			c.MaxVersion = tls.VersionTLS12
			return overTLS(c)
		}, "version"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGate(t)
			g.wantServed()
			conn, err := grpc.NewClient(g.agent.agent.Addr().String(), grpc.WithTransportCredentials(tt.come(g)))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			g.wantRefused(conn)
			g.wantLogged("connection refused", tt.log)
			g.wantServed()
		})
	}
}

// wantRefused checks that no call gets through.
func (g *gate) wantRefused(conn *grpc.ClientConn) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), 10*time.Second)
	defer cancel()
	c := agentv1.NewAgentServiceClient(conn)
	if _, err := c.GetHost(ctx, &agentv1.GetHostRequest{}); status.Code(err) != codes.Unavailable {
		g.t.Errorf("host: got %v, want the connection refused", err)
	}
	if _, err := c.Sweep(ctx, &agentv1.SweepRequest{}); status.Code(err) != codes.Unavailable {
		g.t.Errorf("sweep: got %v, want the connection refused", err)
	}
	if lines := g.book.audit(g.t); len(lines) > 0 {
		g.t.Errorf("changes were made: %v", lines)
	}
}

// wantLogged checks that the log has all of want. The agent writes its line after the alert that the peer has seen by now,
// so it is given a moment.
func (g *gate) wantLogged(want ...string) {
	g.t.Helper()
	missing := func(w string) bool { return !strings.Contains(g.book.String(), w) }
	for deadline := time.Now().Add(5 * time.Second); slices.ContainsFunc(want, missing); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			g.t.Errorf("the log says:\n%s\nwant %q in it", g.book, want)
			return
		}
	}
}

// wantServed checks that the right controller is served.
func (g *gate) wantServed() {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), 10*time.Second)
	defer cancel()
	if _, err := g.agent.client.GetHost(ctx, &agentv1.GetHostRequest{}); err != nil {
		g.t.Errorf("the right controller: %v", err)
	}
}

// Peers that send nothing, or noise, hold up nobody.
func TestSilentAndNoisyPeers(t *testing.T) {
	t.Parallel()
	g := newGate(t)
	g.wantServed()
	for i := range 100 {
		conn, err := net.Dial("tcp", g.agent.agent.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if i%2 == 0 {
			noise := make([]byte, 4096)
			if _, err := rand.Read(noise); err != nil {
				t.Fatal(err)
			}
			if i%4 == 0 {
				copy(noise, []byte{22, 3, 1, 0x40, 0}) // a TLS record of a handshake, so far
			}
			_, _ = conn.Write(noise) // it may be refused before all is sent
		}
	}
	g.wantServed()
}
