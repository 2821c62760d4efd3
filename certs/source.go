package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"sync"
	"time"
)

// Files are one end's TLS files, as paths.
type Files struct {
	CA   string // the authorities trusted, one or more certificates
	Cert string // this end's own certificate
	Key  string // its private key, PKCS#8, not readable by everyone
	CRL  string // revocation lists, one for every authority in CA; empty = no revocation
}

func (f Files) paths() []string {
	all := []string{f.CA, f.Cert, f.Key}
	if f.CRL != "" {
		all = append(all, f.CRL)
	}
	return all
}

// material is what the files held at one moment; never changed once loaded.
type material struct {
	files Files
	cert  tls.Certificate
	id    Identity
	roots *x509.CertPool
	lists []*x509.RevocationList
}

// checkEvery is how often at most the files are looked at.
const checkEvery = time.Second

// Source is one end's certificate and trust, re-read when its files change. Its methods may be called from several
// goroutines.
type Source struct {
	files Files
	every time.Duration

	mu      sync.Mutex
	current *material
	seen    []os.FileInfo // of the files that current came from
	checked time.Time
	lastErr error
}

// NewSource loads and checks f: key and certificate belong together, the certificate is of an authority in f.CA, has an
// identity and is valid now (ErrExpired), every revocation list is signed by an authority in f.CA.
func NewSource(f Files) (*Source, error) {
	s := &Source{files: f, every: checkEvery}
	if err := s.Reload(); err != nil {
		return nil, err
	}
	return s, nil
}

// Reload reads the files now. On an error the former material stays in use; LastError returns that error until a later
// load succeeds. Handshakes reload by themselves; this is for a signal handler or a check.
func (s *Source) Reload() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reload()
}

func (s *Source) reload() error {
	s.checked = time.Now()
	// Looked at before reading: a file replaced in between differs at the next check.
	seen, err := s.stat()
	var m *material
	if err == nil {
		m, err = load(s.files)
	}
	if err != nil {
		s.lastErr = fmt.Errorf("load TLS files: %w", err)
		return s.lastErr
	}
	s.current, s.seen, s.lastErr = m, seen, nil
	return nil
}

func (s *Source) stat() ([]os.FileInfo, error) {
	var all []os.FileInfo
	for _, path := range s.files.paths() {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		all = append(all, info)
	}
	return all, nil
}

// material returns what handshakes use now. A failed reload is tried again at the next check.
func (s *Source) material() *material {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.checked) >= s.every && s.changed() {
		_ = s.reload() // kept for LastError; the former material serves on
	}
	return s.current
}

func (s *Source) changed() bool {
	s.checked = time.Now()
	now, err := s.stat()
	if err != nil || s.lastErr != nil {
		return true
	}
	for i, was := range s.seen {
		if !os.SameFile(was, now[i]) || !was.ModTime().Equal(now[i].ModTime()) || was.Size() != now[i].Size() {
			return true
		}
	}
	return false
}

// LastError returns why the files could not be loaded when they were last looked at; nil when what is in use is what is
// on disk.
func (s *Source) LastError() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lastErr
}

// Identity returns who this end is.
func (s *Source) Identity() Identity { return s.material().id }

// NotAfter returns when this end's certificate expires.
func (s *Source) NotAfter() time.Time { return s.material().cert.Leaf.NotAfter }

func load(f Files) (*material, error) {
	authorities, err := readCertificates(f.CA)
	if err != nil {
		return nil, err
	}
	m := &material{files: f, roots: x509.NewCertPool()}
	for _, ca := range authorities {
		if !ca.IsCA {
			return nil, fmt.Errorf("%s: %w: %q is no certificate authority", f.CA, ErrMismatch, ca.Subject.CommonName)
		}
		m.roots.AddCert(ca)
	}
	if err := m.loadOwn(f); err != nil {
		return nil, err
	}
	if f.CRL == "" {
		return m, nil
	}
	if m.lists, err = readCRLs(f.CRL); err != nil {
		return nil, err
	}
	for _, list := range m.lists {
		if !signedByOne(list, authorities) {
			return nil, fmt.Errorf("%s: %w: list of %q is signed by no authority in %s",
				f.CRL, ErrMismatch, list.Issuer.CommonName, f.CA)
		}
	}
	return m, nil
}

func (m *material) loadOwn(f Files) error {
	certs, err := readCertificates(f.Cert)
	if err != nil {
		return err
	}
	leaf := certs[0]
	key, err := readKey(f.Key)
	if err != nil {
		return err
	}
	if !belongs(leaf, key) {
		return fmt.Errorf("%w: %s is not the key of %s", ErrMismatch, f.Key, f.Cert)
	}
	if m.id, err = IdentityOf(leaf); err != nil {
		return fmt.Errorf("%s: %w", f.Cert, err)
	}
	if _, err := m.chain(leaf, x509.ExtKeyUsageAny, time.Now()); err != nil {
		return fmt.Errorf("%s: %w", f.Cert, err)
	}
	m.cert = tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	return nil
}

func signedByOne(list *x509.RevocationList, authorities []*x509.Certificate) bool {
	for _, ca := range authorities {
		if signedBy(list, ca) {
			return true
		}
	}
	return false
}

func signedBy(list *x509.RevocationList, ca *x509.Certificate) bool {
	return bytes.Equal(list.RawIssuer, ca.RawSubject) && list.CheckSignatureFrom(ca) == nil
}

// chain verifies leaf against the authorities at the time now and returns the authority that issued it.
func (m *material) chain(leaf *x509.Certificate, usage x509.ExtKeyUsage, now time.Time) (*x509.Certificate, error) {
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots:       m.roots,
		CurrentTime: now,
		KeyUsages:   []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return nil, explainX509(leaf, err)
	}
	if leaf.IsCA || len(chains[0]) != 2 {
		return nil, fmt.Errorf("certificate of %s: %w: want one issued by an authority directly",
			describe(leaf), ErrBadCertificate)
	}
	return chains[0][1], nil
}
