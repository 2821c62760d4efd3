package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// How long certificates are good for where the caller does not say.
const (
	DefaultCAValidity = 10 * 365 * 24 * time.Hour
	DefaultValidity   = 2 * 365 * 24 * time.Hour

	// skew lets a certificate be used at once on hosts whose clocks are behind.
	skew = time.Hour
)

// Names of the files in an authority's folder.
const (
	CAFile    = "ca.pem"
	CAKeyFile = "ca.key"
	CRLFile   = "crl.pem"
	issuedDir = "issued"
	lockFile  = "lock"
)

// Options of CreateCA; the zero value is good.
type Options struct {
	Name     string           // shown as the authority's common name; "dpxen" when empty
	Validity time.Duration    // of the authority; DefaultCAValidity when zero
	Now      func() time.Time // for tests; time.Now when nil
}

// CA is a certificate authority in a folder. Its methods may be called from several goroutines, and several processes
// may have the same folder open.
type CA struct {
	dir  string
	cert *x509.Certificate
	key  crypto.Signer
	now  func() time.Time
}

// CreateCA makes an authority in dir, which it creates where missing (mode 0700). It never overwrites: where one of the
// files exists the error is ErrExists.
func CreateCA(dir string, o Options) (*CA, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Validity <= 0 {
		o.Validity = DefaultCAValidity
	}
	if o.Name == "" {
		o.Name = "dpxen"
	}
	if err := os.MkdirAll(filepath.Join(dir, issuedDir), 0o700); err != nil {
		return nil, fmt.Errorf("create certificate authority: %w", err)
	}
	ca := &CA{dir: dir, now: o.Now}
	err := ca.locked(func() error { return ca.create(o) })
	if err != nil {
		return nil, fmt.Errorf("create certificate authority in %s: %w", dir, err)
	}
	return ca, nil
}

func (ca *CA) create(o Options) error {
	for _, name := range []string{CAFile, CAKeyFile, CRLFile} {
		if _, err := os.Lstat(ca.path(name)); !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(fmt.Errorf("%w: %s", ErrExists, name), err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := newSerial()
	if err != nil {
		return err
	}
	now := o.Now()
	template := &x509.Certificate{
		SerialNumber: serial,
		// The serial keeps the subjects of two authorities apart; lists and bundles are matched by it.
		Subject:               pkix.Name{CommonName: o.Name + " CA " + serialText(serial)[:8]},
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(o.Validity),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true, // no authority under this one
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	if ca.cert, err = x509.ParseCertificate(der); err != nil {
		return err
	}
	ca.key = key
	return ca.store()
}

// store writes a new authority's files, and takes them away again where one cannot be written.
func (ca *CA) store() (err error) {
	defer func() {
		if err != nil {
			for _, name := range []string{CAFile, CAKeyFile, CRLFile} {
				if rerr := os.Remove(ca.path(name)); !errors.Is(rerr, fs.ErrNotExist) {
					err = errors.Join(err, rerr)
				}
			}
		}
	}()
	keyPEM, err := encodeKey(ca.key)
	if err != nil {
		return err
	}
	if err := writeFile(ca.path(CAKeyFile), keyPEM); err != nil {
		return err
	}
	if err := ca.writeCRL(big.NewInt(1), nil); err != nil {
		return err
	}
	return writeFile(ca.path(CAFile), ca.CertPEM())
}

// OpenCA opens the authority in dir. Errors: fs.ErrNotExist where there is none, ErrKeyReadable, ErrMismatch where key and
// certificate are not of one authority.
func OpenCA(dir string) (*CA, error) {
	ca := &CA{dir: dir, now: time.Now}
	certs, err := readCertificates(ca.path(CAFile))
	if err != nil {
		return nil, fmt.Errorf("open certificate authority: %w", err)
	}
	ca.cert = certs[0]
	if ca.key, err = readKey(ca.path(CAKeyFile)); err != nil {
		return nil, fmt.Errorf("open certificate authority: %w", err)
	}
	if !ca.cert.IsCA || !belongs(ca.cert, ca.key) {
		return nil, fmt.Errorf("open certificate authority %s: %w: %s and %s", dir, ErrMismatch, CAFile, CAKeyFile)
	}
	return ca, nil
}

// CertPEM returns the authority's certificate, the CA file of every host.
func (ca *CA) CertPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: ca.cert.Raw})
}

// NotAfter returns when the authority itself expires. Nothing it issues lives longer.
func (ca *CA) NotAfter() time.Time { return ca.cert.NotAfter }

// Issue makes a key pair and a certificate for id, good for validity (DefaultValidity when zero, never longer than the
// authority itself), and records the certificate. The key is PKCS#8 and kept nowhere else: the caller stores it, see
// WritePair. An agent's certificate serves (serverAuth), a controller's dials (clientAuth); neither can do the other.
func (ca *CA) Issue(id Identity, validity time.Duration) (certPEM, keyPEM []byte, err error) {
	if err := id.Validate(); err != nil {
		return nil, nil, fmt.Errorf("issue certificate: %w", err)
	}
	certPEM, keyPEM, err = ca.issue(id, validity)
	if err != nil {
		return nil, nil, fmt.Errorf("issue certificate for %s: %w", id, err)
	}
	return certPEM, keyPEM, nil
}

func (ca *CA) issue(id Identity, validity time.Duration) (certPEM, keyPEM []byte, err error) {
	if validity <= 0 {
		validity = DefaultValidity
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	now := ca.now()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: id.String()},
		NotBefore:             now.Add(-skew),
		NotAfter:              earlier(now.Add(validity), ca.cert.NotAfter),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{id.URI()},
	}
	if id.Role == Agent {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		template.DNSNames = []string{id.Name}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		return nil, nil, err
	}
	if keyPEM, err = encodeKey(key); err != nil {
		return nil, nil, err
	}
	certPEM = pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der})
	// Recorded before it is handed out: what exists can be listed and revoked.
	record := filepath.Join(issuedDir, serialText(serial)+".pem")
	if err := writeFile(ca.path(record), certPEM); err != nil {
		return nil, nil, err
	}
	return certPEM, keyPEM, nil
}

func (ca *CA) path(name string) string { return filepath.Join(ca.dir, name) }

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), nil
}

// newSerial returns 128 random bits (RFC 5280 section 4.1.2.2 wants positive and at most 20 octets).
func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
	if err != nil {
		return nil, err
	}
	return serial.Add(serial, big.NewInt(1)), nil
}

func serialText(serial *big.Int) string { return fmt.Sprintf("%032x", serial) }

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
