package xapi

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
)

// tlsConfig gives what decides whether a host is trusted; nil when nothing is configured.
func (cfg Config) tlsConfig() (*tls.Config, error) {
	ways := 0
	for _, given := range []bool{len(cfg.Fingerprints) > 0, cfg.CAFile != "", cfg.Insecure} {
		if given {
			ways++
		}
	}
	if ways == 0 {
		return nil, nil
	}
	if ways > 1 {
		return nil, errors.New("only one of fingerprints, ca and insecure may be given")
	}
	out := &tls.Config{MinVersion: tls.VersionTLS12, CipherSuites: cipherSuites}
	switch {
	case cfg.Insecure:
		out.InsecureSkipVerify = true
	case cfg.CAFile != "":
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("ca: %w", err)
		}
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca: no certificate in %s", cfg.CAFile)
		}
	default:
		pins, err := parseFingerprints(cfg.Fingerprints)
		if err != nil {
			return nil, err
		}
		out.InsecureSkipVerify = true // the pin below takes its place: hosts sign their certificates themselves
		out.VerifyConnection = pins.verify
	}
	return out, nil
}

// cipherSuites are those of TLS 1.2 that XAPI has had (tls_policy.ml): the last one is all that the stunnel of
// XenServer 7 offers, and Go leaves it out unless it is asked for.
var cipherSuites = []uint16{
	tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_RSA_WITH_AES_128_CBC_SHA256,
}

// pins are SHA-256 sums of the certificates that are trusted.
type pins [][sha256.Size]byte

func parseFingerprints(list []string) (pins, error) {
	var out pins
	for _, text := range list {
		digits, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(text)), "sha256:")
		raw, err := hex.DecodeString(strings.ReplaceAll(digits, ":", ""))
		if !ok || err != nil || len(raw) != sha256.Size {
			return nil, fmt.Errorf("fingerprint %q: want sha256: and 64 hex digits", text)
		}
		out = append(out, [sha256.Size]byte(raw))
	}
	return out, nil
}

// verify compares the host's certificate with the list. It runs for resumed sessions as well.
func (p pins) verify(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return fmt.Errorf("%w: none given", ErrCertificate)
	}
	sum := sha256.Sum256(cs.PeerCertificates[0].Raw)
	for i := range p {
		if subtle.ConstantTimeCompare(sum[:], p[i][:]) == 1 {
			return nil
		}
	}
	return fmt.Errorf("%w: its fingerprint is sha256:%s, none of the %d configured", ErrCertificate, hex.EncodeToString(sum[:]), len(p))
}

// certificateFault reports whether TLS failed for the host's certificate.
func certificateFault(err error) bool {
	var verification *tls.CertificateVerificationError
	var authority x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	return errors.Is(err, ErrCertificate) || errors.As(err, &verification) || errors.As(err, &authority) ||
		errors.As(err, &name) || errors.As(err, &invalid)
}
