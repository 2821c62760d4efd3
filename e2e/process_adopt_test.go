//go:build e2e && linux

package e2e

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
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

// TestProcessAdoptOfflineSnapshot holds what becomes of a file of --offline-snapshot whose manifest is gone. Under its name it is
// restored to its VM, which keeps what a snapshot has lost, or made anew with the name of the file; under another name it is what
// its ova.xml says, the snapshot, and not made beside the VM. The operator is told of each.
func TestProcessAdoptOfflineSnapshot(t *testing.T) {
	t.Parallel()
	s := newSite(t, "--hosts", "1", "--vms", "2", "--disk-size", "6MiB")
	vm := running(t, s.dump())
	const named, slug = "Büro & Lager 7", "Buro-Lager-7"
	s.call("VM.set_name_label", vm.UUID, named)
	s.call("VM.set_order", vm.UUID, int64(3))
	before := s.dump()
	s.result(s.dpxen(0, "backup", "--mode", "offline", "--offline-snapshot", "--vm", vm.UUID), "OK", 0, "1/1")
	file := s.staged("*")[0]
	if err := os.Remove(strings.TrimSuffix(file, ".xva") + ".json"); err != nil {
		t.Fatal(err)
	}
	both := func(code int, word string, args ...string) (out string) {
		t.Helper()
		args = append([]string{"restore", "--adopt", "--mode", "offline"}, args...)
		out = s.dpxen(code, append(slices.Clone(args), "--dry-run")...)
		run := s.dpxen(code, args...)
		s.result(run, word, code, map[int]string{4: "1/1", 1: "0/1"}[code])
		s.clean()
		return out + run
	}
	twice := func(text, piece string) {
		t.Helper()
		if strings.Count(text, piece) < 2 {
			t.Errorf("%q is not told by both the dry run and the run:\n%s", piece, text)
		}
	}

	s.says(s.dpxen(0, "verify", file), "no manifest")
	s.says(s.dpxen(2, "restore", "--mode", "offline", file), "restore a file that has no manifest with --adopt")
	s.scribble(named, 1)
	s.call("VM.set_order", vm.UUID, int64(5))
	twice(both(4, "WARN", file), "the VM keeps its name, start order, delays and HA priority as they are now")
	s.same(before)
	s.order(vm.UUID, "5")

	other := filepath.Join(t.TempDir(), "usb.xva")
	if err := os.Link(file, other); err != nil {
		t.Fatal(err)
	}
	out := both(1, "FAILED", other)
	twice(out, "the snapshot's UUID and name")
	twice(out, "give the file the name that it was staged under")
	twice(out, "has the MAC address")
	s.same(before)
	twice(both(4, "WARN", "--as-new=copy", other), `the VM is named "copy"; set its name, start order, delays and HA priority`)
	if is := s.dump(); dataDisks(s.vm(is, "copy")) != dataDisks(s.vm(before, named)) {
		t.Error("the copy has other disks")
	} else {
		s.removed("copy", is)
	}
	s.same(before)

	s.deleted(named)
	twice(both(4, "WARN", file), `the VM is named "`+slug+`", as the file is`)
	if got, want := s.vm(s.dump(), slug), s.vm(before, named); got.UUID != vm.UUID || dataDisks(got) != dataDisks(want) || interfaces(got) != interfaces(want) {
		t.Errorf("the VM that was made anew is %+v, it was %+v", got, want)
	}
	s.order(vm.UUID, "0")
	s.says(s.dpxen(0, "repair"), "nothing to repair")
}

// order fails the test where a VM has another start order.
func (s *site) order(uuid, want string) {
	s.t.Helper()
	vm, err := s.client().VMByUUID(s.t.Context(), uuid)
	if err != nil {
		s.t.Fatal(err)
	}
	if got := fmt.Sprint(vm.Fields["order"]); got != want {
		s.t.Errorf("VM %s has the start order %s, want %s", vm.Name, got, want)
	}
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
