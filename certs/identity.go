package certs

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"strings"
)

// Role is what the holder of a certificate may be.
type Role string

// The roles. A controller dials, an agent listens.
const (
	Controller Role = "controller"
	Agent      Role = "agent"
)

const scheme = "dpxen"

// Identity is who a certificate speaks for.
type Identity struct {
	Role Role
	Name string // a DNS label in lower case, see CheckName
}

// String returns the identity as people read it: "agent xs1".
func (id Identity) String() string { return string(id.Role) + " " + id.Name }

// URI returns the subject alternative name that carries the identity: dpxen://agent/xs1.
func (id Identity) URI() *url.URL {
	return &url.URL{Scheme: scheme, Host: string(id.Role), Path: "/" + id.Name}
}

// Validate returns an error with ErrName unless role and name are usable.
func (id Identity) Validate() error {
	if id.Role != Controller && id.Role != Agent {
		return fmt.Errorf("role %q: %w: want %s or %s", id.Role, ErrName, Controller, Agent)
	}
	return CheckName(id.Name)
}

// CheckName returns an error with ErrName unless name is a DNS label (RFC 1123 section 2.1) in lower case: letters,
// digits and inner hyphens, 1 to 63 of them.
func CheckName(name string) error {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789-"
	switch {
	case name == "" || len(name) > 63:
		return fmt.Errorf("name %.80q: %w: want 1 to 63 characters", name, ErrName)
	case strings.Trim(name, letters) != "":
		return fmt.Errorf("name %q: %w: want lower case letters, digits and '-'", name, ErrName)
	case name[0] == '-' || name[len(name)-1] == '-':
		return fmt.Errorf("name %q: %w: '-' at an end", name, ErrName)
	}
	return nil
}

// IdentityOf reads the identity from the certificate's only URI subject alternative name. It does not verify the
// certificate. None, several or a malformed one give an error with ErrBadCertificate.
func IdentityOf(cert *x509.Certificate) (Identity, error) {
	if cert == nil {
		return Identity{}, ErrNoCertificate
	}
	if n := len(cert.URIs); n != 1 {
		return Identity{}, fmt.Errorf("%w: %d URI names, want one (dpxen://agent/NAME or dpxen://controller/NAME)",
			ErrBadCertificate, n)
	}
	uri := cert.URIs[0]
	id := Identity{Role: Role(uri.Host), Name: strings.TrimPrefix(uri.Path, "/")}
	// The comparison refuses ports, users, queries, escapes and other spellings of the same.
	if id.Validate() != nil || id.URI().String() != uri.String() {
		return Identity{}, fmt.Errorf("%w: URI name %.200q, want dpxen://agent/NAME or dpxen://controller/NAME",
			ErrBadCertificate, uri.String())
	}
	return id, nil
}
