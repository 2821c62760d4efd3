package certs_test

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dpxen/dpxen/certs"
)

func TestRightPairTalks(t *testing.T) {
	l := newLab(t)
	r := connect(t, l.server(t), l.client(t))
	if r.server != nil || r.client != nil {
		t.Fatalf("server: %v, client: %v", r.server, r.client)
	}
	if got := r.serverState.Version; got != tls.VersionTLS13 {
		t.Errorf("version %s, want TLS 1.3", tls.VersionName(got))
	}
	id, err := certs.IdentityOf(r.serverState.PeerCertificates[0])
	if err != nil || id != backup {
		t.Errorf("peer %v, %v, want %v", id, err, backup)
	}
	s := l.source(t, agentXS1)
	if id, err := s.CheckClient(r.serverState, certs.PeerPolicy{Role: certs.Controller}); err != nil || id != backup {
		t.Errorf("CheckClient: %v, %v, want %v", id, err, backup)
	}
}

// with replaces the certificate that a configuration shows.
func with(c *tls.Config, cert tls.Certificate) *tls.Config {
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	c.GetConfigForClient = nil
	c.Certificates = []tls.Certificate{cert}
	return c
}

// issued returns a certificate of a CA in another folder or at another time than the lab's.
func issued(t testing.TB, ca *certs.CA, id certs.Identity) tls.Certificate {
	t.Helper()
	certPEM, keyPEM, err := ca.Issue(id, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func otherCA(t testing.TB) *certs.CA {
	t.Helper()
	ca, err := certs.CreateCA(t.TempDir(), certs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func expire(c *x509.Certificate)  { c.NotBefore, c.NotAfter = past(), past().Add(time.Hour) }
func future(c *x509.Certificate)  { c.NotBefore = time.Now().Add(time.Minute) }
func beAgent(c *x509.Certificate) { c.URIs, c.DNSNames = []*url.URL{agentXS1.URI()}, []string{"xs1"} }

func TestEveryWrongClientIsRefused(t *testing.T) {
	tests := []struct {
		name   string
		client func(*testing.T, *lab) tls.Certificate
		want   error
		alert  string // in what the client is told
	}{
		{"none", func(*testing.T, *lab) tls.Certificate { return tls.Certificate{} }, certs.ErrNoCertificate, "got none"},
		{"expired", func(t *testing.T, l *lab) tls.Certificate { return l.forge(t, expire) }, certs.ErrExpired, "has expired"},
		{"not yet valid", func(t *testing.T, l *lab) tls.Certificate { return l.forge(t, future) }, certs.ErrExpired, "has expired"},
		{"other authority", func(t *testing.T, _ *lab) tls.Certificate { return issued(t, otherCA(t), backup) },
			certs.ErrUnknownCA, "does not know the authority"},
		{"agent's own certificate", func(t *testing.T, l *lab) tls.Certificate { return issued(t, l.ca, agentXS1) },
			certs.ErrWrongRole, "its log says"},
		{"agent's name with a client's usage", func(t *testing.T, l *lab) tls.Certificate { return l.forge(t, beAgent) },
			certs.ErrWrongRole, "its log says"},
		{"not on the allow list", func(t *testing.T, l *lab) tls.Certificate {
			return issued(t, l.ca, certs.Identity{Role: certs.Controller, Name: "stranger"})
		}, certs.ErrNotAllowed, "its log says"},
		{"no identity", func(t *testing.T, l *lab) tls.Certificate {
			return l.forge(t, func(c *x509.Certificate) { c.URIs = nil })
		}, certs.ErrBadCertificate, "its log says"},
		{"two identities", func(t *testing.T, l *lab) tls.Certificate {
			return l.forge(t, func(c *x509.Certificate) { c.URIs = append(c.URIs, agentXS1.URI()) })
		}, certs.ErrBadCertificate, "its log says"},
		{"an authority itself", func(t *testing.T, l *lab) tls.Certificate {
			return l.forge(t, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true })
		}, certs.ErrBadCertificate, "its log says"},
		{"revoked", func(t *testing.T, l *lab) tls.Certificate {
			pair := issued(t, l.ca, backup)
			if _, err := l.ca.RevokeIdentity(backup); err != nil {
				t.Fatal(err)
			}
			l.publish(t, l.files[agentXS1].CRL)
			return pair
		}, certs.ErrRevoked, "its log says"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t)
			policy := certs.PeerPolicy{Role: certs.Controller, Allow: []string{"backup"}}
			client := with(l.client(t), tt.client(t, l))
			r := connect(t, l.source(t, agentXS1).ServerConfig(policy), client)
			if !errors.Is(r.server, tt.want) {
				t.Errorf("server: got %v, want %v", r.server, tt.want)
			}
			if !errors.Is(r.client, certs.ErrRefusedByPeer) || !strings.Contains(r.client.Error(), tt.alert) {
				t.Errorf("client: got %v, want %v with %q", r.client, certs.ErrRefusedByPeer, tt.alert)
			}
		})
	}
}

func TestEveryWrongServerIsRefused(t *testing.T) {
	asked := func(l *lab, name string) func(*testing.T) *tls.Config {
		return func(t *testing.T) *tls.Config {
			return named(l.source(t, backup).ClientConfig(certs.PeerPolicy{Role: certs.Agent, Allow: []string{"xs1", "xs2"}}), name)
		}
	}
	tests := []struct {
		name   string
		server func(*testing.T, *lab) tls.Certificate
		ask    string
		want   error
	}{
		{"expired", func(t *testing.T, l *lab) tls.Certificate {
			return l.forge(t, func(c *x509.Certificate) { beAgent(c); expire(c) })
		}, "xs1", certs.ErrExpired},
		{"other authority", func(t *testing.T, _ *lab) tls.Certificate { return issued(t, otherCA(t), agentXS1) },
			"xs1", certs.ErrUnknownCA},
		{"controller's own certificate", func(t *testing.T, l *lab) tls.Certificate { return issued(t, l.ca, backup) },
			"xs1", certs.ErrWrongRole},
		{"controller's name with a server's usage", func(t *testing.T, l *lab) tls.Certificate {
			return l.forge(t, func(c *x509.Certificate) { c.DNSNames = []string{"xs1"} })
		}, "xs1", certs.ErrWrongRole},
		{"another agent", func(t *testing.T, l *lab) tls.Certificate { return issued(t, l.ca, agentXS1) },
			"xs2", certs.ErrWrongName},
		{"no name asked for", func(t *testing.T, l *lab) tls.Certificate { return issued(t, l.ca, agentXS1) },
			"", certs.ErrWrongName},
		{"identity without the DNS name", func(t *testing.T, l *lab) tls.Certificate {
			return l.forge(t, func(c *x509.Certificate) { beAgent(c); c.DNSNames = []string{"xs2"} })
		}, "xs1", certs.ErrWrongName},
		{"DNS name without the identity", func(t *testing.T, l *lab) tls.Certificate {
			return l.forge(t, func(c *x509.Certificate) { beAgent(c); c.DNSNames = []string{"xs2"} })
		}, "xs2", certs.ErrWrongName},
		{"not on the allow list", func(t *testing.T, l *lab) tls.Certificate {
			return issued(t, l.ca, certs.Identity{Role: certs.Agent, Name: "xs3"})
		}, "xs3", certs.ErrNotAllowed},
		{"revoked", func(t *testing.T, l *lab) tls.Certificate {
			pair := issued(t, l.ca, agentXS1)
			if _, err := l.ca.RevokeIdentity(agentXS1); err != nil {
				t.Fatal(err)
			}
			l.publish(t, l.files[backup].CRL)
			return pair
		}, "xs1", certs.ErrRevoked},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t)
			server := with(l.server(t), tt.server(t, l))
			server.ClientAuth = tls.RequireAnyClientCert
			r := connect(t, server, asked(l, tt.ask)(t))
			if !errors.Is(r.client, tt.want) {
				t.Errorf("client: got %v, want %v", r.client, tt.want)
			}
			if !errors.Is(r.server, certs.ErrRefusedByPeer) {
				t.Errorf("server: got %v, want %v", r.server, certs.ErrRefusedByPeer)
			}
		})
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	l := newLab(t)
	t.Run("client", func(t *testing.T) {
		c := l.client(t)
		c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		r := connect(t, l.server(t), c)
		if !errors.Is(r.server, certs.ErrVersion) || !errors.Is(r.client, certs.ErrVersion) {
			t.Errorf("server: %v, client: %v; want %v from both", r.server, r.client, certs.ErrVersion)
		}
	})
	t.Run("server", func(t *testing.T) {
		s := with(l.server(t), issued(t, l.ca, agentXS1))
		s.MinVersion, s.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		r := connect(t, s, l.client(t))
		if !errors.Is(r.server, certs.ErrVersion) || !errors.Is(r.client, certs.ErrVersion) {
			t.Errorf("server: %v, client: %v; want %v from both", r.server, r.client, certs.ErrVersion)
		}
	})
}

// crlBy signs a list with the authority whose folder is dir.
func crlBy(t testing.TB, dir string, next time.Time) []byte {
	t.Helper()
	ca, key := readPair(t, filepath.Join(dir, certs.CAFile), filepath.Join(dir, certs.CAKeyFile))
	signer, ok := key.(crypto.Signer)
	if !ok {
		t.Fatalf("key of type %T", key)
	}
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(9), ThisUpdate: past(), NextUpdate: next}, ca, signer)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

func TestUnusableRevocationListRefusesEveryone(t *testing.T) {
	t.Run("expired", func(t *testing.T) {
		l := newLab(t)
		write(t, l.files[agentXS1].CRL, crlBy(t, filepath.Join(l.dir, "ca"), past().Add(time.Hour)))
		r := connect(t, l.server(t), l.client(t))
		if !errors.Is(r.server, certs.ErrRevocationUnknown) || !strings.Contains(fmt.Sprint(r.server), "expired at") {
			t.Errorf("server: got %v, want %v", r.server, certs.ErrRevocationUnknown)
		}
	})
	t.Run("of one authority of two", func(t *testing.T) {
		l := newLab(t)
		second := otherCA(t)
		f := l.files[agentXS1]
		write(t, f.CA, append(l.ca.CertPEM(), second.CertPEM()...))
		r := connect(t, l.server(t), with(l.client(t), issued(t, second, backup)))
		if !errors.Is(r.server, certs.ErrRevocationUnknown) {
			t.Errorf("server: got %v, want %v", r.server, certs.ErrRevocationUnknown)
		}
	})
}

func TestExplain(t *testing.T) {
	plain := errors.New("connection refused")
	flat := errors.New("rpc error: error reading server preface: remote error: tls: expired certificate")
	if got := certs.Explain(plain); got != plain { //nolint:errorlint // the very same
		t.Errorf("got %v, want it unchanged", got)
	}
	if got := certs.Explain(flat); !errors.Is(got, certs.ErrRefusedByPeer) || !errors.Is(got, flat) {
		t.Errorf("got %v, want %v around the error", got, certs.ErrRefusedByPeer)
	}
	if got := certs.Explain(nil); got != nil {
		t.Errorf("got %v, want nil", got)
	}
}
