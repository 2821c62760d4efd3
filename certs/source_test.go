package certs_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/dpxen/dpxen/certs"
)

func mustTalk(t *testing.T, r result) {
	t.Helper()
	if r.server != nil || r.client != nil {
		t.Fatalf("server: %v, client: %v", r.server, r.client)
	}
}

func TestRevocationTakesEffectWithoutRestart(t *testing.T) {
	l := newLab(t)
	agent, controller := l.source(t, agentXS1), l.source(t, backup)
	server := agent.ServerConfig(certs.PeerPolicy{Role: certs.Controller})
	client := named(controller.ClientConfig(certs.PeerPolicy{Role: certs.Agent}), "xs1")
	before := connect(t, server, client)
	mustTalk(t, before)

	if err := l.ca.Revoke(serial(t, l.ca, backup)); err != nil {
		t.Fatal(err)
	}
	l.publish(t, l.files[agentXS1].CRL)
	r := connect(t, server, client)
	if !errors.Is(r.server, certs.ErrRevoked) || !errors.Is(r.client, certs.ErrRefusedByPeer) {
		t.Errorf("server: %v, client: %v; want %v and %v", r.server, r.client, certs.ErrRevoked, certs.ErrRefusedByPeer)
	}
	// A connection that was made before the revocation is found out when it is checked.
	if _, err := agent.CheckClient(before.serverState, certs.PeerPolicy{Role: certs.Controller}); !errors.Is(err, certs.ErrRevoked) {
		t.Errorf("CheckClient: got %v, want %v", err, certs.ErrRevoked)
	}

	// The agent is next, seen from the controller.
	if err := l.ca.Revoke(serial(t, l.ca, agentXS1)); err != nil {
		t.Fatal(err)
	}
	l.publish(t, l.files[backup].CRL)
	if r := connect(t, server, client); !errors.Is(r.client, certs.ErrRevoked) {
		t.Errorf("client: got %v, want %v", r.client, certs.ErrRevoked)
	}
}

func TestEverythingIsReplacedWithoutRestart(t *testing.T) {
	l := newLab(t)
	agent, controller := l.source(t, agentXS1), l.source(t, backup)
	server := agent.ServerConfig(certs.PeerPolicy{Role: certs.Controller})
	client := named(controller.ClientConfig(certs.PeerPolicy{Role: certs.Agent}), "xs1")
	mustTalk(t, connect(t, server, client))

	// Another authority altogether: first trusted beside the old one, then used, then alone.
	next := otherCA(t)
	both := append(l.ca.CertPEM(), next.CertPEM()...)
	oldList, err := l.ca.CRLPEM()
	if err != nil {
		t.Fatal(err)
	}
	newList, err := next.CRLPEM()
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []certs.Identity{agentXS1, backup} {
		write(t, l.files[id].CA, both)
		write(t, l.files[id].CRL, append(oldList, newList...))
	}
	mustTalk(t, connect(t, server, client))
	for _, id := range []certs.Identity{agentXS1, backup} {
		certPEM, keyPEM, err := next.Issue(id, 2*time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if err := certs.WritePair(l.files[id].Cert, l.files[id].Key, certPEM, keyPEM); err != nil {
			t.Fatal(err)
		}
		mustTalk(t, connect(t, server, client))
	}
	for _, id := range []certs.Identity{agentXS1, backup} {
		write(t, l.files[id].CA, next.CertPEM())
		write(t, l.files[id].CRL, newList)
	}
	mustTalk(t, connect(t, server, client))
	r := connect(t, server, with(client.Clone(), issued(t, l.ca, backup)))
	if !errors.Is(r.server, certs.ErrUnknownCA) {
		t.Errorf("server: got %v for a certificate of the former authority, want %v", r.server, certs.ErrUnknownCA)
	}
	if left := time.Until(controller.NotAfter()); left < 90*time.Minute {
		t.Errorf("NotAfter is %s from now, want the renewed certificate's 2 h", left)
	}
}

func TestBrokenFileKeepsTheOld(t *testing.T) {
	l := newLab(t)
	agent := l.source(t, agentXS1)
	server := agent.ServerConfig(certs.PeerPolicy{Role: certs.Controller})
	f := l.files[agentXS1]
	for _, path := range []string{f.CA, f.Cert, f.Key, f.CRL} {
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		write(t, path, []byte("half a fi"))
		mustTalk(t, connect(t, server, l.client(t)))
		if agent.LastError() == nil {
			t.Errorf("%s broken: LastError is nil", filepath.Base(path))
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		mustTalk(t, connect(t, server, l.client(t)))
		if err := agent.LastError(); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s missing: LastError is %v", filepath.Base(path), err)
		}
		write(t, path, good)
		mustTalk(t, connect(t, server, l.client(t)))
		if err := agent.LastError(); err != nil {
			t.Errorf("%s whole again: LastError is %v", filepath.Base(path), err)
		}
	}
}

func TestNewSourceRefuses(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(*testing.T, *lab, certs.Files)
		want  error
	}{
		{"no key", func(t *testing.T, _ *lab, f certs.Files) { remove(t, f.Key) }, fs.ErrNotExist},
		{"no list", func(t *testing.T, _ *lab, f certs.Files) { remove(t, f.CRL) }, fs.ErrNotExist},
		{"another's key", func(t *testing.T, l *lab, f certs.Files) {
			_, key, err := l.ca.Issue(agentXS1, 0)
			if err != nil {
				t.Fatal(err)
			}
			write(t, f.Key, key)
		}, certs.ErrMismatch},
		{"another authority's certificate", func(t *testing.T, _ *lab, f certs.Files) {
			write(t, f.CA, otherCA(t).CertPEM())
		}, certs.ErrUnknownCA},
		{"another authority's list", func(t *testing.T, _ *lab, f certs.Files) {
			list, err := otherCA(t).CRLPEM()
			if err != nil {
				t.Fatal(err)
			}
			write(t, f.CRL, list)
		}, certs.ErrMismatch},
		{"own certificate as the authority", func(t *testing.T, _ *lab, f certs.Files) {
			own, err := os.ReadFile(f.Cert)
			if err != nil {
				t.Fatal(err)
			}
			write(t, f.CA, own)
		}, certs.ErrMismatch},
		{"expired", func(t *testing.T, l *lab, f certs.Files) {
			old, err := certs.CreateCA(t.TempDir(), certs.Options{Now: past})
			if err != nil {
				t.Fatal(err)
			}
			certPEM, keyPEM, err := old.Issue(agentXS1, time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			l.ca = old
			write(t, f.CA, old.CertPEM())
			l.publish(t, f.CRL)
			if err := certs.WritePair(f.Cert, f.Key, certPEM, keyPEM); err != nil {
				t.Fatal(err)
			}
		}, certs.ErrExpired},
		{"key readable by everyone", func(t *testing.T, _ *lab, f certs.Files) {
			if err := os.Chmod(f.Key, 0o604); err != nil {
				t.Fatal(err)
			}
		}, certs.ErrKeyReadable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t)
			f := l.files[agentXS1]
			tt.spoil(t, l, f)
			if _, err := certs.NewSource(f); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestReloadTellsAtOnce(t *testing.T) {
	l := newLab(t)
	s, err := certs.NewSource(l.files[backup]) // looks once a second only
	if err != nil {
		t.Fatal(err)
	}
	if s.Identity() != backup {
		t.Errorf("Identity %v, want %v", s.Identity(), backup)
	}
	remove(t, l.files[backup].Cert)
	if err := s.Reload(); !errors.Is(err, fs.ErrNotExist) || !errors.Is(s.LastError(), fs.ErrNotExist) {
		t.Errorf("Reload %v, LastError %v, want %v", err, s.LastError(), fs.ErrNotExist)
	}
	if s.Identity() != backup {
		t.Errorf("Identity %v after a failed reload, want %v", s.Identity(), backup)
	}
}

func remove(t testing.TB, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}
