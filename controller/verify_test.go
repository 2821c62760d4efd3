package controller

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestVerifyFileGood(t *testing.T) {
	for name, b := range map[string]stagedBackup{
		"online":                {mode: AllOnline},
		"offline":               {mode: Offline},
		"offline from snapshot": {mode: Offline, snapshot: testUUID(77)},
		"compressed":            {mode: Online, compress: true},
	} {
		t.Run(name, func(t *testing.T) {
			b.n, b.name, b.session = 1, "web ♥", "2026/11/22-3"
			path := b.stage(t, t.TempDir())
			r := VerifyFile(t.Context(), path)
			if !r.OK || r.Err() != nil {
				t.Fatalf("not good: %+v", r)
			}
			want := VerifyResult{File: path, OK: true, Manifest: true, VM: "web ♥", UUID: testUUID(1), Kind: b.mode.Kind(), Taken: testTime,
				DPSession: "2026/11/22-3", Bytes: r.Bytes, Digest: r.Digest, DigestAlgorithm: "xxh3-128", Compression: "none", Checksum: "xxhash", Blocks: 2,
				Disks: []VerifiedDisk{{Dir: "Ref:2", UserDevice: "0", Name: "root", Size: 1<<20 + 4096, Data: 1<<20 + 4096, Blocks: 2}}}
			if b.compress {
				want.Compression = "zstd"
			}
			r.Seconds = 0
			if diff := cmp.Diff(want, r, cmp.AllowUnexported(VerifyResult{})); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			if info, err := os.Stat(path); err != nil || info.Size() != r.Bytes || len(r.Digest) != 32 {
				t.Errorf("bytes %d, digest %q, %v", r.Bytes, r.Digest, err)
			}
			manifest := strings.TrimSuffix(path, ".xva") + ".json"
			if r := VerifyFile(t.Context(), manifest); !r.OK || r.File != path {
				t.Errorf("by its manifest: %+v", r)
			}
		})
	}
}

// TestVerifyFileWithoutManifest holds that files of any name and origin can be verified by their own contents.
func TestVerifyFileWithoutManifest(t *testing.T) {
	dir := t.TempDir()
	data := testXVA(t, testUUID(5), "foreign")
	for name, content := range map[string][]byte{
		"from somewhere.xva": data,
		"no-extension":       data,
		"padded.xva":         append(bytes.Clone(data), make([]byte, 9216)...),
		"packed.xva.zst":     testZstd(t, data),
	} {
		r := VerifyFile(t.Context(), writeFile(t, filepath.Join(dir, name), content))
		if !r.OK || r.Manifest || r.VM != "foreign" || r.UUID != testUUID(5) || r.Kind != "" || r.Blocks != 2 {
			t.Errorf("%s: %+v", name, r)
		}
	}
	staged := stagedBackup{n: 1, name: "a", mode: Offline}.stage(t, dir)
	if err := os.Remove(strings.TrimSuffix(staged, ".xva") + ".json"); err != nil {
		t.Fatal(err)
	}
	if r := VerifyFile(t.Context(), staged); !r.OK || r.Manifest || r.Kind != KindOffline {
		t.Errorf("ours, its manifest lost: %+v", r)
	}
}

func TestVerifyFileBad(t *testing.T) {
	good := func(t *testing.T) string { return stagedBackup{n: 1, name: "a", mode: Offline}.stage(t, t.TempDir()) }
	bare := func(t *testing.T, data []byte) string { return writeFile(t, filepath.Join(t.TempDir(), "x.xva"), data) }
	for name, tt := range map[string]struct {
		file    func(t *testing.T) string
		problem Problem
		code    int
	}{
		"a bit of a block": {func(t *testing.T) string { p := good(t); flip(t, p, 100_000); return p }, ProblemChecksum, CodeIntegrity},
		"a bit of ova.xml that is no matter": {func(t *testing.T) string {
			p := good(t)
			flip(t, p, bytes.Index(readFile(t, p), []byte("XCP-ng")))
			return p
		}, ProblemDigest, CodeIntegrity},
		"cut short": {func(t *testing.T) string {
			p := good(t)
			return writeFile(t, p, readFile(t, p)[:600_000])
		}, ProblemContradiction, CodeIntegrity},
		"cut short, no manifest": {func(t *testing.T) string {
			d := testXVA(t, testUUID(1), "a")
			return bare(t, d[:len(d)-1024])
		}, ProblemTruncated, CodeIntegrity},
		"empty":       {func(t *testing.T) string { return bare(t, nil) }, ProblemTruncated, CodeIntegrity},
		"not an XVA":  {func(t *testing.T) string { return bare(t, bytes.Repeat([]byte("text "), 500)) }, ProblemFormat, CodeIntegrity},
		"more behind": {func(t *testing.T) string { return bare(t, append(testXVA(t, testUUID(1), "a"), "more"...)) }, ProblemTrailing, CodeIntegrity},
		"manifest damaged": {func(t *testing.T) string {
			p := good(t)
			flip(t, strings.TrimSuffix(p, ".xva")+".json", 50)
			return p
		}, ProblemManifest, CodeIntegrity},
		"manifest alone": {func(t *testing.T) string {
			p := good(t)
			if err := os.Remove(p); err != nil {
				t.Fatal(err)
			}
			return p
		}, ProblemMissing, CodeIntegrity},
		"of another VM": {func(t *testing.T) string {
			return stagedBackup{n: 1, name: "a", mode: Offline, ova: testUUID(2)}.stage(t, t.TempDir())
		}, ProblemContradiction, CodeIntegrity},
		"online, but of the VM itself": {func(t *testing.T) string {
			return stagedBackup{n: 1, name: "a", mode: Online, ova: testUUID(1)}.stage(t, t.TempDir())
		}, ProblemContradiction, CodeIntegrity},
		"disk of another size": {func(t *testing.T) string {
			return stagedBackup{n: 1, name: "a", mode: Offline, size: 5}.stage(t, t.TempDir())
		}, ProblemContradiction, CodeIntegrity},
		"another's manifest": {func(t *testing.T) string {
			dir := t.TempDir()
			a, b := stagedBackup{n: 1, name: "a", mode: Offline}.stage(t, dir), stagedBackup{n: 2, name: "b", mode: Offline}.stage(t, dir)
			writeFile(t, strings.TrimSuffix(a, ".xva")+".json", readFile(t, strings.TrimSuffix(b, ".xva")+".json"))
			return a
		}, ProblemContradiction, CodeIntegrity},
		"not there":    {func(t *testing.T) string { return filepath.Join(t.TempDir(), "none.xva") }, ProblemMissing, CodeUsage},
		"a folder":     {func(t *testing.T) string { return t.TempDir() }, ProblemUnreadable, CodeNone},
		"a dead link":  {func(t *testing.T) string { return link(t, "nowhere") }, ProblemUnreadable, CodeNone},
		"a pipe, say":  {func(t *testing.T) string { return link(t, os.DevNull) }, ProblemUnreadable, CodeNone},
		"ours, a link": {func(t *testing.T) string { return link(t, good(t)) }, ProblemUnreadable, CodeNone},
	} {
		t.Run(name, func(t *testing.T) {
			path := tt.file(t)
			r := VerifyFile(t.Context(), path)
			if r.OK || r.Problem != tt.problem || r.Error == "" {
				t.Errorf("problem %q (%s), want %q", r.Problem, r.Error, tt.problem)
			}
			if code := ExitCode(nil, r.Err()); code != tt.code {
				t.Errorf("exit code %d, want %d: %v", code, tt.code, r.Err())
			}
			if _, err := json.Marshal(r); err != nil {
				t.Error(err)
			}
		})
	}
}

func link(t *testing.T, to string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "link.xva")
	if err := os.Symlink(to, path); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestVerifyCancelled(t *testing.T) {
	path := stagedBackup{n: 1, name: "a", mode: Offline}.stage(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := VerifyFile(ctx, path)
	if r.OK || !errors.Is(r.Err(), context.Canceled) || ExitCode(nil, r.Err()) != CodeCancelled {
		t.Errorf("got %+v", r)
	}
	if _, err := VerifyFolder(ctx, filepath.Dir(path), 1, nil); ExitCode(nil, err) != CodeCancelled {
		t.Errorf("folder: %v", err)
	}
}

func TestVerifyFolder(t *testing.T) {
	dir := t.TempDir()
	a := stagedBackup{n: 1, name: "a", mode: Offline}.stage(t, dir)
	b := stagedBackup{n: 2, name: "b", mode: Online}.stage(t, dir)
	flip(t, b, 100_000)
	c := writeFile(t, filepath.Join(dir, "c.xva"), testXVA(t, testUUID(3), "c"))
	writeFile(t, filepath.Join(dir, "notes.txt"), nil)
	writeFile(t, filepath.Join(dir, "other.json"), []byte("{}"))
	if err := os.Symlink(a, filepath.Join(dir, "link.xva")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "folder.xva"), 0o700); err != nil {
		t.Fatal(err)
	}
	told := map[string]bool{}
	results, err := VerifyFolder(t.Context(), dir, 2, func(r VerifyResult) { told[base(r.File)] = r.OK })
	if err != nil {
		t.Fatal(err)
	}
	var errs []error
	got := map[string]bool{}
	for i := range results {
		got[base(results[i].File)] = results[i].OK
		errs = append(errs, results[i].Err())
	}
	want := map[string]bool{base(a): true, base(b): false, base(c): true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("results (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
	if code := ExitCode(nil, errors.Join(errs...)); code != CodeIntegrity {
		t.Errorf("exit code %d", code)
	}
	if _, err := VerifyFolder(t.Context(), filepath.Join(dir, "none"), 1, nil); !is[*UsageError](err) {
		t.Errorf("no folder: %v", err)
	}
}
