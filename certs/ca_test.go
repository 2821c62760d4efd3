package certs_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dpxen/dpxen/certs"
)

func TestPrivateKeysAreForTheOwnerOnly(t *testing.T) {
	if runtime.GOOS == "windows" {
		return // no such modes; the folder's access list rules
	}
	l := newLab(t)
	for _, path := range []string{filepath.Join(l.dir, "ca", certs.CAKeyFile), l.files[agentXS1].Key} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != 0o600 {
			t.Errorf("%s has mode %04o, want 0600", filepath.Base(path), got)
		}
	}
}

func TestIssuedCertificate(t *testing.T) {
	l := newLab(t)
	tests := []struct {
		id    certs.Identity
		uri   string
		dns   []string
		usage []x509.ExtKeyUsage
	}{
		{agentXS1, "dpxen://agent/xs1", []string{"xs1"}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}},
		{backup, "dpxen://controller/backup", nil, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}},
	}
	for _, tt := range tests {
		certPEM, keyPEM, err := l.ca.Issue(tt.id, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(keyPEM), "-----BEGIN PRIVATE KEY-----") {
			t.Errorf("%s: key is not PKCS#8: %.30q", tt.id, keyPEM)
		}
		if _, err := tls.X509KeyPair(certPEM, keyPEM); err != nil {
			t.Errorf("%s: %v", tt.id, err)
		}
		cert := parse(t, certPEM)
		if id, err := certs.IdentityOf(cert); err != nil || id != tt.id {
			t.Errorf("identity %v, %v, want %v", id, err, tt.id)
		}
		if got := cert.URIs[0].String(); got != tt.uri {
			t.Errorf("%s: URI %s, want %s", tt.id, got, tt.uri)
		}
		if diff := cmp.Diff(tt.dns, cert.DNSNames); diff != "" {
			t.Errorf("%s: DNS names (-want +got):\n%s", tt.id, diff)
		}
		if diff := cmp.Diff(tt.usage, cert.ExtKeyUsage); diff != "" {
			t.Errorf("%s: usages (-want +got):\n%s", tt.id, diff)
		}
		pub, ok := cert.PublicKey.(*ecdsa.PublicKey)
		if !ok || pub.Curve != elliptic.P256() {
			t.Errorf("%s: key %T, want ECDSA P-256", tt.id, cert.PublicKey)
		}
		if age := time.Since(cert.NotBefore); age < time.Minute || age > 2*time.Hour {
			t.Errorf("%s: good since %s ago, want a little", tt.id, age)
		}
		if left := time.Until(cert.NotAfter); left > time.Hour || left < 59*time.Minute {
			t.Errorf("%s: good for %s, want an hour", tt.id, left)
		}
	}
}

func TestNothingOutlivesTheAuthority(t *testing.T) {
	ca, err := certs.CreateCA(t.TempDir(), certs.Options{Validity: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	certPEM, _, err := ca.Issue(agentXS1, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := parse(t, certPEM).NotAfter; !got.Equal(ca.NotAfter()) {
		t.Errorf("good until %s, want the authority's end %s", got, ca.NotAfter())
	}
}

func TestCreateNeverOverwrites(t *testing.T) {
	for _, name := range []string{certs.CAFile, certs.CAKeyFile, certs.CRLFile} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, name), []byte("precious"))
		if _, err := certs.CreateCA(dir, certs.Options{}); !errors.Is(err, certs.ErrExists) {
			t.Errorf("%s there: got %v, want %v", name, err, certs.ErrExists)
		}
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(got) != "precious" {
			t.Errorf("%s holds %q, %v, want it untouched", name, got, err)
		}
	}
}

func TestOpenCA(t *testing.T) {
	l := newLab(t)
	dir := filepath.Join(l.dir, "ca")
	again, err := certs.OpenCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(l.ca.CertPEM()), string(again.CertPEM())); diff != "" {
		t.Errorf("another certificate (-want +got):\n%s", diff)
	}
	l.add(t, again, agentXS1) // its certificates serve
	mustTalk(t, connect(t, l.server(t), l.client(t)))

	if _, err := certs.OpenCA(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("empty folder: got %v, want %v", err, fs.ErrNotExist)
	}
	_, key, err := l.ca.Issue(backup, 0)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, certs.CAKeyFile), key)
	if _, err := certs.OpenCA(dir); !errors.Is(err, certs.ErrMismatch) {
		t.Errorf("another key: got %v, want %v", err, certs.ErrMismatch)
	}
}

func TestListRenewRevoke(t *testing.T) {
	l := newLab(t)
	if _, _, err := l.ca.Renew(agentXS1, 48*time.Hour); err != nil {
		t.Fatal(err)
	}
	all, err := l.ca.List()
	if err != nil || len(all) != 3 {
		t.Fatalf("List: %d certificates, %v, want 3", len(all), err)
	}
	if all[0].Identity != agentXS1 || all[2].Identity != backup || all[0].NotAfter.Before(all[1].NotAfter) {
		t.Errorf("order: %+v, want agents first, the newest of a name first", all)
	}
	// By serial number: that one only, and as often as one likes.
	for range 2 {
		if err := l.ca.Revoke(all[1].Serial, strings.ToUpper(all[1].Serial)); err != nil {
			t.Fatal(err)
		}
	}
	found, err := l.ca.Find("xs1")
	if err != nil || len(found) != 2 || found[0].Revoked || !found[1].Revoked || found[1].RevokedAt.IsZero() {
		t.Errorf("after revoking one of two: %+v, %v", found, err)
	}
	// By identity: what is left of it.
	gone, err := l.ca.RevokeIdentity(agentXS1)
	if err != nil || len(gone) != 1 || gone[0].Serial != all[0].Serial {
		t.Errorf("RevokeIdentity: %+v, %v, want %s only", gone, err, all[0].Serial)
	}
	if _, _, err := l.ca.Renew(agentXS1, 0); !errors.Is(err, certs.ErrRevoked) {
		t.Errorf("Renew of a revoked identity: got %v, want %v", err, certs.ErrRevoked)
	}
	for _, unknown := range []error{
		l.ca.Revoke("xs1"), l.ca.Revoke(strings.Repeat("0", 32)), l.ca.Revoke(""),
	} {
		if !errors.Is(unknown, certs.ErrNotIssued) {
			t.Errorf("Revoke of an unknown serial: got %v, want %v", unknown, certs.ErrNotIssued)
		}
	}
	if _, _, err := l.ca.Renew(certs.Identity{Role: certs.Agent, Name: "xs9"}, 0); !errors.Is(err, certs.ErrNotIssued) {
		t.Errorf("Renew of an unknown identity: got %v, want %v", err, certs.ErrNotIssued)
	}
}

// Two commands at once must not lose one of the revocations.
func TestRevokeAtTheSameTime(t *testing.T) {
	l := newLab(t)
	second, err := certs.OpenCA(filepath.Join(l.dir, "ca"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for ca, id := range map[*certs.CA]certs.Identity{l.ca: agentXS1, second: backup} {
		wg.Go(func() {
			if _, err := ca.RevokeIdentity(id); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	all, err := l.ca.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range all {
		if !i.Revoked {
			t.Errorf("%s is not revoked", i.Identity)
		}
	}
}

func TestIdentityOf(t *testing.T) {
	tests := []struct {
		uri string
		ok  bool
	}{
		{"dpxen://agent/xs1", true},
		{"dpxen://controller/a", true},
		{"dpxen://agent/" + strings.Repeat("a", 63), true},
		{"dpxen://agent/" + strings.Repeat("a", 64), false},
		{"dpxen://agent/", false},
		{"dpxen://agent", false},
		{"dpxen://root/xs1", false},
		{"dpxen://agent/XS1", false},
		{"dpxen://agent/xs1/xs2", false},
		{"dpxen://agent/xs1.example", false},
		{"dpxen://agent/-xs1", false},
		{"dpxen://agent/xs1-", false},
		{"dpxen://agent/xs%31", false},
		{"dpxen://agent/xs1?role=controller", false},
		{"dpxen://agent/xs1#x", false},
		{"dpxen://agent:443/xs1", false},
		{"dpxen://user@agent/xs1", false},
		{"dpxen://agent//xs1", false},
		{"https://agent/xs1", false},
		{"dpxen:agent/xs1", false},
	}
	for _, tt := range tests {
		uri, err := url.Parse(tt.uri)
		if err != nil {
			t.Fatal(err)
		}
		id, err := certs.IdentityOf(&x509.Certificate{URIs: []*url.URL{uri}})
		if (err == nil) != tt.ok || err != nil && !errors.Is(err, certs.ErrBadCertificate) {
			t.Errorf("%s: got %v, %v, want ok %v", tt.uri, id, err, tt.ok)
		}
	}
	if _, err := certs.IdentityOf(nil); !errors.Is(err, certs.ErrNoCertificate) {
		t.Errorf("no certificate: got %v, want %v", err, certs.ErrNoCertificate)
	}
	l := newLab(t)
	if _, _, err := l.ca.Issue(certs.Identity{Role: certs.Agent, Name: "Bad Name"}, 0); !errors.Is(err, certs.ErrName) {
		t.Errorf("Issue for a bad name: got %v, want %v", err, certs.ErrName)
	}
}
