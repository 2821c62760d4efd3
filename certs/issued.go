package certs

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"
)

// lockWait bounds the waiting for another process that changes the authority.
const lockWait = 10 * time.Second

// Issued is one certificate of the authority's.
type Issued struct {
	Serial    string // hexadecimal, 32 digits
	Identity  Identity
	NotBefore time.Time
	NotAfter  time.Time
	Revoked   bool
	RevokedAt time.Time // zero unless Revoked
}

// List returns every certificate the authority has issued, by role, name and age, the newest of a name first.
func (ca *CA) List() ([]Issued, error) {
	crl, err := ca.readCRL()
	if err != nil {
		return nil, err
	}
	revoked := map[string]time.Time{}
	for _, e := range crl.RevokedCertificateEntries {
		revoked[serialText(e.SerialNumber)] = e.RevocationTime
	}
	entries, err := os.ReadDir(ca.path(issuedDir))
	if err != nil {
		return nil, fmt.Errorf("list certificates: %w", err)
	}
	var all []Issued
	for _, entry := range entries {
		path := filepath.Join(ca.path(issuedDir), entry.Name())
		if filepath.Ext(path) != ".pem" {
			continue // a temporary file that a crash left
		}
		certs, err := readCertificates(path)
		if err != nil {
			return nil, fmt.Errorf("list certificates: %w", err)
		}
		id, err := IdentityOf(certs[0])
		if err != nil {
			return nil, fmt.Errorf("list certificates: %s: %w", path, err)
		}
		i := Issued{Serial: serialText(certs[0].SerialNumber), Identity: id,
			NotBefore: certs[0].NotBefore, NotAfter: certs[0].NotAfter}
		i.RevokedAt, i.Revoked = revoked[i.Serial]
		all = append(all, i)
	}
	slices.SortFunc(all, func(a, b Issued) int {
		return cmp.Or(cmp.Compare(a.Identity.Role, b.Identity.Role), cmp.Compare(a.Identity.Name, b.Identity.Name),
			b.NotBefore.Compare(a.NotBefore), b.NotAfter.Compare(a.NotAfter), cmp.Compare(a.Serial, b.Serial))
	})
	return all, nil
}

// Find returns the certificates that query names, as List has them: a serial number, "agent/NAME", "controller/NAME" or
// NAME. None is an error with ErrNotIssued.
func (ca *CA) Find(query string) ([]Issued, error) {
	all, err := ca.List()
	if err != nil {
		return nil, err
	}
	found := slices.DeleteFunc(all, func(i Issued) bool {
		return query != i.Identity.Name && query != string(i.Identity.Role)+"/"+i.Identity.Name &&
			!strings.EqualFold(query, i.Serial)
	})
	if len(found) == 0 {
		return nil, fmt.Errorf("certificate %q: %w", query, ErrNotIssued)
	}
	return found, nil
}

// Renew issues another certificate, with a new key, for an identity that has one. The former stays good until it expires
// or is revoked, so that the holder can change over. Errors: ErrNotIssued where the identity has none, ErrRevoked where
// all it has are revoked (Issue gives it a new one all the same).
func (ca *CA) Renew(id Identity, validity time.Duration) (certPEM, keyPEM []byte, err error) {
	found, err := ca.Find(string(id.Role) + "/" + id.Name)
	if err != nil {
		return nil, nil, fmt.Errorf("renew: %w", err)
	}
	if !slices.ContainsFunc(found, func(i Issued) bool { return !i.Revoked }) {
		return nil, nil, fmt.Errorf("renew %s: %w", id, ErrRevoked)
	}
	return ca.Issue(id, validity)
}

// Revoke puts the certificates with these serial numbers on the revocation list. Ones that are on it already stay as they
// are. The list takes effect where the file CRLFile is put in place of the former one.
func (ca *CA) Revoke(serials ...string) error {
	return ca.locked(func() error {
		crl, err := ca.readCRL()
		if err != nil {
			return err
		}
		entries := crl.RevokedCertificateEntries
		for _, text := range serials {
			found, err := ca.Find(text)
			if err != nil || !strings.EqualFold(found[0].Serial, text) {
				return errors.Join(fmt.Errorf("revoke %q: %w", text, ErrNotIssued), err)
			}
			if found[0].Revoked || slices.ContainsFunc(entries, func(e x509.RevocationListEntry) bool {
				return strings.EqualFold(serialText(e.SerialNumber), text)
			}) {
				continue
			}
			serial, ok := new(big.Int).SetString(text, 16)
			if !ok {
				return fmt.Errorf("revoke %q: %w", text, ErrNotIssued)
			}
			entries = append(entries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: ca.now()})
		}
		return ca.writeCRL(new(big.Int).Add(crl.Number, big.NewInt(1)), entries)
	})
}

// RevokeIdentity revokes every certificate of id that is not revoked yet and returns them.
func (ca *CA) RevokeIdentity(id Identity) ([]Issued, error) {
	found, err := ca.Find(string(id.Role) + "/" + id.Name)
	if err != nil {
		return nil, fmt.Errorf("revoke: %w", err)
	}
	found = slices.DeleteFunc(found, func(i Issued) bool { return i.Revoked })
	serials := make([]string, len(found))
	for i := range found {
		serials[i] = found[i].Serial
	}
	if err := ca.Revoke(serials...); err != nil {
		return nil, err
	}
	return found, nil
}

// CRLPEM returns the revocation list as it is on disk.
func (ca *CA) CRLPEM() ([]byte, error) { return readFile(ca.path(CRLFile)) }

func (ca *CA) readCRL() (*x509.RevocationList, error) {
	lists, err := readCRLs(ca.path(CRLFile))
	if err != nil {
		return nil, fmt.Errorf("revocation list: %w", err)
	}
	if err := lists[0].CheckSignatureFrom(ca.cert); err != nil || lists[0].Number == nil {
		return nil, errors.Join(fmt.Errorf("revocation list %s: %w: not of this authority", ca.path(CRLFile), ErrMismatch), err)
	}
	return lists[0], nil
}

// writeCRL signs and writes the list. It is good for as long as the authority: dpxen refuses every peer once its list has
// expired, and nobody who never revokes anything should come to that.
func (ca *CA) writeCRL(number *big.Int, entries []x509.RevocationListEntry) error {
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number:                    number,
		ThisUpdate:                ca.now(),
		NextUpdate:                ca.cert.NotAfter,
		RevokedCertificateEntries: entries,
	}, ca.cert, ca.key)
	if err != nil {
		return fmt.Errorf("sign revocation list: %w", err)
	}
	return writeFile(ca.path(CRLFile), pem.EncodeToMemory(&pem.Block{Type: pemCRL, Bytes: der}))
}

// locked runs change while no other process changes the authority.
func (ca *CA) locked(change func() error) (err error) {
	lock := flock.New(ca.path(lockFile), flock.SetPermissions(modeFile), flock.SetFlag(os.O_CREATE|os.O_RDWR))
	ctx, cancel := context.WithTimeout(context.Background(), lockWait)
	defer cancel()
	if _, err := lock.TryLockContext(ctx, 20*time.Millisecond); err != nil {
		return fmt.Errorf("certificate authority %s: wait for lock: %w", ca.dir, err)
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	return change()
}
