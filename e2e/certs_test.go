//go:build e2e

package e2e

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dpxen/dpxen/agent"
	"github.com/dpxen/dpxen/certs"
	"github.com/dpxen/dpxen/controller"
)

// shortLived gives the controller a certificate that expires soon. It tells by when it has.
func (c *cell) shortLived(life time.Duration) (expired time.Time) {
	c.t.Helper()
	cert, key, err := c.ca.Issue(certs.Identity{Role: certs.Controller, Name: "dp1"}, life)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := certs.WritePair(c.cfg.TLS.Cert, c.cfg.TLS.Key, cert, key); err != nil {
		c.t.Fatal(err)
	}
	return time.Now().Add(life)
}

// TestCertificateEndsInSession lets certificates expire or be revoked while a VM's stream runs. The stream goes on; what
// comes after it is refused with a reason that can be read, the agent cleans up alone, and with a good certificate repair
// finds how the VM was left.
func TestCertificateEndsInSession(t *testing.T) {
	t.Parallel()
	// The stream begins before the certificate expires, on a busy machine too, and lasts until it has.
	const life, bandwidth, long = 9 * time.Second, 4 << 20, 60 << 20
	for _, tc := range []struct {
		name string
		end  func(c *cell) // none: it expires
		cut  bool
		good int
		says string
	}{
		{"expires", nil, false, 1, "certificate not valid at this time: good from"},
		{"expires, stream cut", nil, true, 0, "certificate has expired"},
		{"controller revoked", func(c *cell) { c.revoke(certs.Controller, "dp1") }, false, 1, "revoked"},
		{"controller revoked, stream cut", func(c *cell) { c.revoke(certs.Controller, "dp1") }, true, 0, "revoked"},
		{"agent revoked, stream cut", func(c *cell) { c.revoke(certs.Agent, "xs1") }, true, 0, "revoked"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			sim := one(1, 24<<20)
			if tc.end == nil {
				sim = one(1, long)
			}
			sim.Bandwidth = bandwidth
			c := newCell(t, sim, func(cfg *agent.Config) { cfg.TLS.CRL = filepath.Join(filepath.Dir(cfg.TLS.CA), certs.CRLFile) })
			c.cfg.TLS.CRL = filepath.Join(c.dir, "ca", certs.CRLFile)
			c.cfg.Timing.Lease, c.cfg.Timing.ReleaseTimeout, c.cfg.Timing.Retries = time.Second, 3*time.Second, 0
			before := c.state()
			p := c.through(0)
			end := func() { tc.end(c) }
			if tc.end == nil {
				expired := c.shortLived(life)
				end = func() { time.Sleep(time.Until(expired)) }
			}
			reached, ended := c.reached(), make(chan struct{})
			go func() {
				defer close(ended)
				<-reached
				end()
				time.Sleep(1100 * time.Millisecond) // revocation lists are looked at once a second
				if tc.cut {
					p.cutAll()
				}
			}()
			ctl := c.controller()
			r, err := ctl.Backup(context.Background(), controller.Request{Mode: controller.AllOffline})
			<-ended
			t.Logf("code %d: %v %q %s\n%+v", controller.ExitCode(r, err), err, r.Warnings, r.Result, r.VMs)
			if got := r.Counts().Good; got != tc.good {
				t.Errorf("good %d, want %d", got, tc.good)
			}
			vm := r.VMs[0]
			if text := strings.Join(append(vm.Warnings, vm.Error), "\n"); !strings.Contains(text, tc.says) {
				t.Errorf("%q is not said: %s\n%s", tc.says, text, c.events)
			}
			c.shortLived(time.Hour)
			if strings.HasPrefix(tc.name, "agent") {
				return
			}
			c.repaired(c.controller(), r.ID, before)
		})
	}
}

// revoke puts a certificate on the revocation list.
func (c *cell) revoke(role certs.Role, name string) {
	c.t.Helper()
	if _, err := c.ca.RevokeIdentity(certs.Identity{Role: role, Name: name}); err != nil {
		c.t.Error(err)
	}
}
