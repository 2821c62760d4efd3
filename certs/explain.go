package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"
)

// describe names a certificate that may be anybody's, for messages: bounded and quoted where it is not ours.
func describe(cert *x509.Certificate) string {
	who := fmt.Sprintf("%.80q", cert.Subject.CommonName)
	if id, err := IdentityOf(cert); err == nil {
		who = id.String()
	}
	return fmt.Sprintf("%s (serial %.8s…)", who, serialText(cert.SerialNumber))
}

// explainX509 puts our sentinel and words to what x509 found wrong with cert.
func explainX509(cert *x509.Certificate, err error) error {
	var (
		unknown x509.UnknownAuthorityError
		invalid x509.CertificateInvalidError
		host    x509.HostnameError
	)
	switch {
	case errors.As(err, &unknown):
		return fmt.Errorf("certificate of %s: %w: issued by %.80q", describe(cert), ErrUnknownCA, cert.Issuer.CommonName)
	case errors.As(err, &host):
		return fmt.Errorf("certificate of %s: %w: %w", describe(cert), ErrWrongName, err)
	case !errors.As(err, &invalid):
		return fmt.Errorf("certificate of %s: %w: %w", describe(cert), ErrBadCertificate, err)
	case invalid.Reason == x509.Expired:
		return fmt.Errorf("certificate of %s: %w: good from %s to %s; renew it, or set this machine's clock",
			describe(cert), ErrExpired, stamp(cert.NotBefore), stamp(cert.NotAfter))
	case invalid.Reason == x509.IncompatibleUsage:
		return fmt.Errorf("certificate of %s: %w: not made for this side of a connection", describe(cert), ErrWrongRole)
	}
	return fmt.Errorf("certificate of %s: %w: %w", describe(cert), ErrBadCertificate, err)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// handshakeText are messages of crypto/tls that have no type, with what they mean here. gRPC hands on only the text of a
// failed handshake, hence the search for substrings.
var handshakeText = []struct {
	text string
	err  error
	says string
}{
	{"client didn't provide a certificate", ErrNoCertificate, ""},
	{"offered only unsupported versions", ErrVersion, ""},
	{"server selected unsupported protocol version", ErrVersion, ""},
	{"remote error: tls: protocol version not supported", ErrVersion, ""},
	{"remote error: tls: expired certificate", ErrRefusedByPeer, "to it, this end's certificate has expired"},
	{"remote error: tls: unknown certificate authority", ErrRefusedByPeer,
		"it does not know the authority of this end's certificate"},
	{"remote error: tls: certificate required", ErrRefusedByPeer, "it wants a certificate and got none"},
	{"remote error: tls: bad certificate", ErrRefusedByPeer,
		"this end's certificate is revoked, of the wrong role or name, or not on the other's allow list; its log says which"},
}

// Explain turns an error of a TLS handshake, or of the first read after it, into one that holds an Err value of this
// package and says what is wrong; other errors come back as they are. In TLS 1.3 a client learns that it was refused from
// its first read only. An error whose text alone survived, as gRPC's, is understood too.
func Explain(err error) error {
	if err == nil || known(err) {
		return err
	}
	var verification *tls.CertificateVerificationError
	if errors.As(err, &verification) && len(verification.UnverifiedCertificates) > 0 {
		return explainX509(verification.UnverifiedCertificates[0], verification.Err)
	}
	for _, h := range handshakeText {
		if !strings.Contains(err.Error(), h.text) {
			continue
		}
		if h.says == "" {
			return fmt.Errorf("%w: %w", h.err, err)
		}
		return fmt.Errorf("%w: %s: %w", h.err, h.says, err)
	}
	return err
}

// known tells whether err holds a sentinel of a refusal already.
func known(err error) bool {
	for _, sentinel := range []error{
		ErrNoCertificate, ErrExpired, ErrUnknownCA, ErrBadCertificate, ErrWrongRole, ErrWrongName, ErrNotAllowed, ErrRevoked,
		ErrRevocationUnknown, ErrVersion, ErrRefusedByPeer,
	} {
		if errors.Is(err, sentinel) {
			return true
		}
	}
	return false
}
