package xensim

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// simHost is one host of the pool: an identity and a server.
type simHost struct {
	conns connSet
	pool  *Pool
	// ref is that of the host's record, dom0 that of its control domain.
	ref, uuid, name, dom0 string
	// address is what other hosts and clients are told: host.address.
	address     string
	fingerprint string
	cert        tls.Certificate
	ln          net.Listener
	sock        net.Listener
	sockPath    string
	server      *http.Server
	// down and dead are guarded by the pool's lock: down resets connections, dead
	// also takes the host out of the pool's live ones.
	down bool
	dead bool
	// fell says that its XAPI has died since it was last up.
	fell bool
}

type connKey struct{}

// isLocal says whether a request came over the unix socket.
func isLocal(r *http.Request) bool {
	c, ok := r.Context().Value(connKey{}).(*conn)
	return ok && c.unlimited
}

func isSecure(r *http.Request) bool {
	c, ok := r.Context().Value(connKey{}).(*conn)
	return ok && c.secure.Load() != nil
}

// listen opens a port, and a socket if wanted, for every host.
func (p *Pool) listen() error {
	addrs, err := listenAddresses(p.cfg.Listen, p.cfg.Hosts)
	if err != nil {
		return err
	}
	for i, addr := range addrs {
		name := fmt.Sprintf("xen%d", i+1)
		h := &simHost{pool: p, name: name, uuid: p.db.newUUID()}
		if h.ln, err = net.Listen("tcp", addr); err != nil { //nolint:noctx // at start, nothing to cancel
			return fmt.Errorf("xensim: listening for host %s: %w", name, err)
		}
		p.hosts = append(p.hosts, h)
		h.address = h.ln.Addr().String()
		if ip, port, err := net.SplitHostPort(h.address); err == nil && (port == "443" || port == "80") {
			h.address = ip
		}
		if err := h.makeCertificate(); err != nil {
			return err
		}
		if p.cfg.Socket == "" {
			continue
		}
		h.sockPath = filepath.Join(p.cfg.Socket, name+".sock")
		if h.sock, err = net.Listen("unix", h.sockPath); err != nil { //nolint:noctx // as above
			return fmt.Errorf("xensim: listening on the socket of host %s: %w", name, err)
		}
		if err := os.Chmod(h.sockPath, 0o600); err != nil {
			return fmt.Errorf("xensim: restricting the socket of host %s: %w", name, err)
		}
	}
	return nil
}

// listenAddresses spreads hosts over the ports from the given one on, or over any
// where it is 0. A list with commas names each host's own.
func listenAddresses(listen string, hosts int) ([]string, error) {
	if list := strings.Split(listen, ","); len(list) > 1 {
		if len(list) != hosts {
			return nil, fmt.Errorf("xensim: %d addresses to listen on for %d hosts", len(list), hosts)
		}
		return list, nil
	}
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return nil, fmt.Errorf("xensim: address to listen on: %w", err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return nil, fmt.Errorf("xensim: port to listen on: %w", err)
	}
	out := make([]string, hosts)
	for i := range out {
		out[i] = net.JoinHostPort(host, strconv.Itoa(n))
		if n != 0 {
			n++
		}
	}
	return out, nil
}

// hostKey is the key of all simulated hosts of a process: to make one takes a
// while, and what clients tell hosts apart by are their certificates.
var hostKey = sync.OnceValues(func() (*rsa.PrivateKey, error) {
	return rsa.GenerateKey(rand.Reader, 2048)
})

// suites are what XAPI's policy allows (tls_policy.ml), which takes RSA keys.
var suites = []uint16{tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}

// makeCertificate makes the host's self-signed certificate, as a fresh host has
// one.
func (h *simHost) makeCertificate() error {
	key, err := hostKey()
	if err != nil {
		return fmt.Errorf("xensim: key of host %s: %w", h.name, err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return fmt.Errorf("xensim: certificate of host %s: %w", h.name, err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: h.name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
		DNSNames: []string{h.name}, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ip, _, err := net.SplitHostPort(h.ln.Addr().String()); err == nil {
		tmpl.IPAddresses = append(tmpl.IPAddresses, net.ParseIP(ip))
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return fmt.Errorf("xensim: certificate of host %s: %w", h.name, err)
	}
	sum := sha256.Sum256(der)
	h.fingerprint = "sha256:" + hex.EncodeToString(sum[:])
	h.cert = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return nil
}

// serve starts the host's server on its listeners.
func (h *simHost) serve() {
	h.server = &http.Server{
		Handler:     http.HandlerFunc(h.route),
		ReadTimeout: 0, ReadHeaderTimeout: headTotalTimeout, IdleTimeout: time.Hour,
		ErrorLog: log.New(logWriter{h.pool}, "", 0),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
		BaseContext: func(net.Listener) context.Context { return h.pool.ctx },
		ConnState: func(c net.Conn, state http.ConnState) {
			h.conns.follow(c, state)
			if state == http.StateNew && h.isDown() {
				reset(c) // accepted just before the others were reset
			}
		},
	}
	config := &tls.Config{
		Certificates: []tls.Certificate{h.cert}, MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12,
		CipherSuites: suites,
	}
	run := func(l net.Listener, local bool) {
		h.pool.spawn(func() {
			err := h.server.Serve(&listener{Listener: l, config: config, unlimited: local, refused: h.refuses})
			if err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
				h.pool.logf("host %s stopped serving: %v", h.name, err)
			}
		})
	}
	run(h.ln, false)
	if h.sock != nil {
		run(h.sock, true)
	}
}

// refuses says whether connections are reset at present.
func (h *simHost) refuses() bool {
	if _, ok := h.pool.hit("connection-reset", "", h.name, h.uuid); ok {
		return true
	}
	return h.isDown()
}

// isDown says whether the host or its XAPI does not run.
func (h *simHost) isDown() bool {
	h.pool.db.mu.Lock()
	defer h.pool.db.mu.Unlock()
	return h.down || h.dead
}

func (h *simHost) close() error {
	var err error
	if h.server != nil {
		err = h.server.Close()
	}
	if e := h.ln.Close(); e != nil && !errors.Is(e, net.ErrClosed) {
		err = errors.Join(err, e)
	}
	if h.sock != nil {
		if e := h.sock.Close(); e != nil && !errors.Is(e, net.ErrClosed) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// logWriter takes what net/http has to report.
type logWriter struct{ p *Pool }

// Write passes a line on to the pool's log.
func (l logWriter) Write(b []byte) (int, error) {
	l.p.logf("%s", strings.TrimSpace(string(b)))
	return len(b), nil
}
