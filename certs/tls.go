package certs

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"
)

// PeerPolicy says who may be at the other end.
type PeerPolicy struct {
	Role  Role     // the role the peer must have
	Allow []string // names that may connect; empty = any of that role
}

// h2 is gRPC's protocol. It must stand in configurations that GetConfigForClient returns, which gRPC does not see.
const h2 = "h2"

// ServerConfig returns the listening side's configuration: TLS 1.3, a client certificate required, verified, and checked
// against o and the revocation list, with the files as they are at each handshake. Tickets are off, so that every
// connection is a full handshake. Pass what a handshake returns through Explain before showing it.
func (s *Source) ServerConfig(o PeerPolicy) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		ClientAuth:             tls.RequireAndVerifyClientCert,
		SessionTicketsDisabled: true,
		NextProtos:             []string{h2},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			m := s.material()
			return &tls.Config{
				MinVersion: tls.VersionTLS13,
				// Verified by crypto/tls as well as in check, since only it tells the client by its alert whether
				// its certificate is missing, expired or of another authority.
				ClientAuth:             tls.RequireAndVerifyClientCert,
				ClientCAs:              m.roots,
				Certificates:           []tls.Certificate{m.cert},
				SessionTicketsDisabled: true,
				NextProtos:             []string{h2},
				VerifyConnection: func(cs tls.ConnectionState) error {
					_, err := m.check(cs, o, x509.ExtKeyUsageClientAuth, time.Now())
					return err
				},
			}, nil
		},
	}
}

// ClientConfig returns the dialling side's configuration: TLS 1.3, the server's certificate verified and checked against o
// and the revocation list, with the files as they are at each handshake. The caller sets ServerName to the name of the
// agent it wants; without one every peer is refused with ErrWrongName.
func (s *Source) ClientConfig(o PeerPolicy) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{h2},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &s.material().cert, nil
		},
		// A client's RootCAs are fixed when its configuration is made, so a renewed CA file would not be seen. The same
		// verification (chain, time, usage, host name) is made in VerifyConnection, which always runs, with the roots of
		// that moment. TestEveryWrongServerIsRefused holds it.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := s.material().checkServer(cs, o, time.Now())
			return err
		},
	}
}

// CheckClient verifies an accepted connection's peer again, with the files as they are now, and returns who it is. A
// server that calls it at each request ends what a certificate could do as soon as that is revoked or expired.
func (s *Source) CheckClient(cs tls.ConnectionState, o PeerPolicy) (Identity, error) {
	return s.material().check(cs, o, x509.ExtKeyUsageClientAuth, time.Now())
}

// checkServer verifies the server that a client has reached.
func (m *material) checkServer(cs tls.ConnectionState, o PeerPolicy, now time.Time) (Identity, error) {
	id, err := m.check(cs, o, x509.ExtKeyUsageServerAuth, now)
	if err != nil {
		return Identity{}, err
	}
	name := strings.ToLower(cs.ServerName)
	switch {
	case name == "":
		return Identity{}, fmt.Errorf("reached %s: %w: no name was asked for (ServerName is not set)", id, ErrWrongName)
	case id.Name != name:
		return Identity{}, fmt.Errorf("reached %s: %w: wanted %s", id, ErrWrongName, name)
	}
	if err := cs.PeerCertificates[0].VerifyHostname(name); err != nil {
		return Identity{}, explainX509(cs.PeerCertificates[0], err)
	}
	return id, nil
}

// check verifies the peer of a connection: chain, time, usage, role, allow list, revocation.
func (m *material) check(cs tls.ConnectionState, o PeerPolicy, usage x509.ExtKeyUsage, now time.Time) (Identity, error) {
	if cs.Version < tls.VersionTLS13 {
		return Identity{}, fmt.Errorf("%w: it speaks %s", ErrVersion, tls.VersionName(cs.Version))
	}
	if len(cs.PeerCertificates) == 0 {
		return Identity{}, ErrNoCertificate
	}
	leaf := cs.PeerCertificates[0]
	issuer, err := m.chain(leaf, usage, now)
	if err != nil {
		return Identity{}, err
	}
	id, err := IdentityOf(leaf)
	if err != nil {
		return Identity{}, err
	}
	if id.Role != o.Role {
		return Identity{}, fmt.Errorf("peer is %s: %w: want a certificate for %s", id, ErrWrongRole, o.Role)
	}
	if len(o.Allow) > 0 && !slices.Contains(o.Allow, id.Name) {
		return Identity{}, fmt.Errorf("peer is %s: %w (%s)", id, ErrNotAllowed, strings.Join(o.Allow, ", "))
	}
	return id, m.revoked(leaf, issuer, now)
}

// revoked returns an error unless a usable list says that leaf is good, or no list is configured.
func (m *material) revoked(leaf, issuer *x509.Certificate, now time.Time) error {
	if m.files.CRL == "" {
		return nil
	}
	var newest *x509.RevocationList
	for _, list := range m.lists {
		if signedBy(list, issuer) && (newest == nil || list.ThisUpdate.After(newest.ThisUpdate)) {
			newest = list
		}
	}
	if newest == nil {
		return fmt.Errorf("certificate of %s: %w: %s has no list of %q",
			describe(leaf), ErrRevocationUnknown, m.files.CRL, issuer.Subject.CommonName)
	}
	if now.After(newest.NextUpdate) {
		return fmt.Errorf("certificate of %s: %w: %s expired at %s, put a newer one in its place",
			describe(leaf), ErrRevocationUnknown, m.files.CRL, newest.NextUpdate.UTC().Format(time.RFC3339))
	}
	for _, e := range newest.RevokedCertificateEntries {
		if e.SerialNumber.Cmp(leaf.SerialNumber) == 0 {
			return fmt.Errorf("certificate of %s: %w at %s",
				describe(leaf), ErrRevoked, e.RevocationTime.UTC().Format(time.RFC3339))
		}
	}
	return nil
}
