//go:build e2e && linux

package e2e

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/dpxen/dpxen/internal/xensim"
)

// TestProcessAdopt holds that exports made by other means are proven and restored: in place, and when the VM is gone.
func TestProcessAdopt(t *testing.T) {
	s := newSite(t, "--hosts", "1", "--vms", "2", "--disk-size", "20MiB")
	before := s.dump()
	i := slices.IndexFunc(before.VMs, func(vm xensim.VMState) bool { return vm.PowerState == "Halted" })
	if i < 0 {
		t.Fatal("no VM is halted")
	}
	vm := before.VMs[i]
	files := s.path("elsewhere")
	plain, ustar := filepath.Join(files, "plain.xva"), filepath.Join(files, "ustar.xva")
	if err := os.Mkdir(files, 0o700); err != nil {
		t.Fatal(err)
	}
	s.export(vm.UUID, plain)
	s.repack(plain, ustar)
	s.zip(plain, plain+".gz")

	for k, file := range []string{plain, plain + ".gz", ustar} {
		s.dpxen(0, "verify", file)
		s.dpxen(2, "restore", "--mode", "offline", file) // without --adopt it is not a backup
		s.clean()
		s.scribble(vm.Name, 20+k)
		s.result(s.dpxen(0, "restore", "--adopt", "--mode", "offline", file), "OK", 0, "1/1")
		s.clean()
		s.same(before)
		s.destroy(vm)
		s.result(s.dpxen(0, "restore", "--adopt", "--mode", "offline", file), "OK", 0, "1/1")
		s.clean()
		s.same(before)
	}

	written := s.dump()
	flip(t, ustar)
	s.dpxen(5, "verify", ustar)
	s.dpxen(5, "restore", "--adopt", "--mode", "offline", ustar)
	if err := os.Truncate(plain, 11<<20); err != nil {
		t.Fatal(err)
	}
	s.dpxen(5, "verify", plain)
	s.dpxen(5, "restore", "--adopt", "--mode", "offline", plain)
	s.clean()
	s.same(written)
}

// export is `curl -o FILE http://host/export?uuid=…` with name and password.
func (s *site) export(uuid, file string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.pool.Hosts[0].HTTP+"/export?"+url.Values{"uuid": {uuid}}.Encode(), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.SetBasicAuth(s.pool.Username, s.pool.Password)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		s.t.Fatalf("export: %s", resp.Status)
	}
	f, err := os.Create(file)
	if err != nil {
		s.t.Fatal(err)
	}
	_, err = io.Copy(f, resp.Body)
	if err := errors.Join(err, f.Close()); err != nil {
		s.t.Fatal(err)
	}
}

// zip is `gzip -k`.
func (s *site) zip(from, to string) {
	s.t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		s.t.Fatal(err)
	}
	f, err := os.Create(to)
	if err != nil {
		s.t.Fatal(err)
	}
	z := gzip.NewWriter(f)
	_, err = z.Write(data)
	if err := errors.Join(err, z.Close(), f.Close()); err != nil {
		s.t.Fatal(err)
	}
}

// repack unpacks an archive and packs it again with the system's tar, which pads it and writes ustar headers.
func (s *site) repack(from, to string) {
	s.t.Helper()
	dir := s.path("unpacked")
	script := `set -e; mkdir "$1"; tar -tf "$2" >"$1.list"; tar -xf "$2" -C "$1"; chmod -R u+rw "$1"
tar --format=ustar -C "$1" --no-recursion -T "$1.list" -cf "$3"`
	out, err := exec.Command("/bin/sh", "-c", script, "sh", dir, from, to).CombinedOutput()
	if err != nil {
		s.t.Fatalf("tar: %v: %s", err, out)
	}
}

// destroy deletes a halted VM and its disks, as an administrator would by mistake.
func (s *site) destroy(vm xensim.VMState) {
	s.t.Helper()
	c, ctx := s.client(), s.t.Context()
	found, err := c.VMByUUID(ctx, vm.UUID)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, ref := range found.VBDs {
		vbd, err := c.VBD(ctx, ref)
		if err == nil && vbd.Type == "Disk" {
			err = c.DestroyVDI(ctx, vbd.VDI)
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
	if err := c.DestroyVM(ctx, found.Ref); err != nil {
		s.t.Fatal(err)
	}
}
