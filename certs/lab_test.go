package certs_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/dpxen/dpxen/certs"
)

// lab is an authority with one agent and one controller.
type lab struct {
	ca    *certs.CA
	dir   string
	files map[certs.Identity]certs.Files
}

var (
	agentXS1 = certs.Identity{Role: certs.Agent, Name: "xs1"}
	backup   = certs.Identity{Role: certs.Controller, Name: "backup"}
)

func newLab(t testing.TB) *lab {
	t.Helper()
	l := &lab{dir: t.TempDir(), files: map[certs.Identity]certs.Files{}}
	var err error
	if l.ca, err = certs.CreateCA(filepath.Join(l.dir, "ca"), certs.Options{}); err != nil {
		t.Fatal(err)
	}
	l.add(t, l.ca, agentXS1)
	l.add(t, l.ca, backup)
	return l
}

// add gives id a folder of its own with a certificate of ca and everything else of the lab's authority.
func (l *lab) add(t testing.TB, ca *certs.CA, id certs.Identity) certs.Files {
	t.Helper()
	cert, key, err := ca.Issue(id, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return l.put(t, id, cert, key)
}

func (l *lab) put(t testing.TB, id certs.Identity, cert, key []byte) certs.Files {
	t.Helper()
	dir := t.TempDir()
	f := certs.Files{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "own.pem"),
		Key: filepath.Join(dir, "own.key"), CRL: filepath.Join(dir, "crl.pem")}
	if err := certs.WritePair(f.Cert, f.Key, cert, key); err != nil {
		t.Fatal(err)
	}
	write(t, f.CA, l.ca.CertPEM())
	l.publish(t, f.CRL)
	l.files[id] = f
	return f
}

// publish copies the authority's revocation list to path.
func (l *lab) publish(t testing.TB, path string) {
	t.Helper()
	list, err := l.ca.CRLPEM()
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, list)
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (l *lab) source(t testing.TB, id certs.Identity) *certs.Source {
	t.Helper()
	s, err := certs.NewSource(l.files[id])
	if err != nil {
		t.Fatal(err)
	}
	certs.CheckAtEveryHandshake(s)
	return s
}

// server and client are the right pair's configurations.
func (l *lab) server(t testing.TB) *tls.Config {
	return l.source(t, agentXS1).ServerConfig(certs.PeerPolicy{Role: certs.Controller})
}

func (l *lab) client(t testing.TB) *tls.Config {
	return named(l.source(t, backup).ClientConfig(certs.PeerPolicy{Role: certs.Agent}), "xs1")
}

func named(c *tls.Config, name string) *tls.Config {
	c.ServerName = name
	return c
}

// result is what both ends of a connection saw; the errors have passed Explain.
type result struct {
	server, client error
	serverState    tls.ConnectionState
}

// connect makes a TLS connection over loopback and sends one byte each way over it.
func connect(t testing.TB, server, client *tls.Config) result {
	t.Helper()
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := ln.Close(); err != nil {
			t.Error(err)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var r result
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := ln.Accept()
		if err != nil {
			r.server = err
			return
		}
		conn := tls.Server(raw, server)
		r.server = certs.Explain(talk(ctx, conn))
		r.serverState = conn.ConnectionState()
	}()
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	r.client = certs.Explain(talk(ctx, tls.Client(raw, client)))
	<-done
	return r
}

func talk(ctx context.Context, conn *tls.Conn) error {
	err := conn.HandshakeContext(ctx)
	if err == nil {
		deadline, _ := ctx.Deadline()
		err = conn.SetDeadline(deadline)
	}
	if err == nil {
		_, err = conn.Write([]byte("x"))
	}
	if err == nil {
		_, err = io.ReadFull(conn, make([]byte, 1))
	}
	if cerr := conn.NetConn().Close(); err == nil && !errors.Is(cerr, net.ErrClosed) {
		err = cerr
	}
	return err
}

// forge signs any template with the authority's key, for certificates that Issue would not make.
func (l *lab) forge(t testing.TB, edit func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	ca, caKey := readPair(t, filepath.Join(l.dir, "ca", certs.CAFile), filepath.Join(l.dir, "ca", certs.CAKeyFile))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(4711), Subject: pkix.Name{CommonName: "forged"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs:        []*url.URL{backup.URI()},
	}
	edit(template)
	der, err := x509.CreateCertificate(rand.Reader, template, ca, key.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func readPair(t testing.TB, certPath, keyPath string) (*x509.Certificate, any) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(certPath, keyPath)
	if err != nil {
		t.Fatal(err)
	}
	return pair.Leaf, pair.PrivateKey
}

func parse(t testing.TB, certPEM []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(certPEM)
	if block == nil {
		t.Fatalf("no PEM in %q", certPEM)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// serial returns the serial number of a certificate file as List has it.
func serial(t testing.TB, ca *certs.CA, id certs.Identity) string {
	t.Helper()
	found, err := ca.Find(string(id.Role) + "/" + id.Name)
	if err != nil {
		t.Fatal(err)
	}
	return found[0].Serial
}

func past() time.Time { return time.Now().Add(-48 * time.Hour) }
