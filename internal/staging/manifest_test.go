package staging

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the manifests in testdata anew; released ones never change")

var at = time.Date(2026, 11, 22, 20, 30, 0, 0, time.UTC)

// onlineManifest is a manifest with every field set.
func onlineManifest() Manifest {
	return Manifest{
		Format: ManifestFormat, Requires: []string{}, DpxenVersion: "0.1.0",
		DP: DPSession{Session: "2026/11/22-7", Spec: "XEN_NIGHTLY"}, Session: "20261122T202955Z-4f2a", Mode: "allOnline",
		Agent: "xs1", Started: at.Add(-5 * time.Second), Finished: at.Add(3 * time.Minute),
		VM: VM{
			UUID: uuid1, Name: "web-01 «prod» <&>", PowerStateBefore: "Running",
			Pool: Ref{"a1a1a1a1-0000-4000-8000-000000000001", "pool"},
			Host: Ref{"b1b1b1b1-0000-4000-8000-000000000001", "xs1"},
			VIFs: []VIF{{"0", "aa:bb:cc:00:11:22", Ref{"c1c1c1c1-0000-4000-8000-000000000001", "Pool-wide network"}}},
			Disks: []Disk{
				{"0", "d1d1d1d1-0000-4000-8000-000000000001", "root", 10 << 30, "e1e1e1e1-0000-4000-8000-000000000001", "shared", true, "RW", "system"},
				{"1", "d1d1d1d1-0000-4000-8000-000000000002", "data", 5<<30 + 12345, "e1e1e1e1-0000-4000-8000-000000000002", "local", false, "RW", "user"},
			},
			ExcludedDisks: []ExcludedDisk{{
				Disk{"2", "d1d1d1d1-0000-4000-8000-000000000003", "[NOBAK] scratch", 1 << 40, "e1e1e1e1-0000-4000-8000-000000000002", "local", false, "RW", "user"},
				"its name holds [NOBAK]"}},
		},
		Snapshot: Snapshot{UUID: "f1f1f1f1-0000-4000-8000-000000000001", Time: at},
		File: File{
			Name: "web-01-prod." + uuid1 + ".online.20261122T203000Z.xva", Bytes: 123456, DigestAlgorithm: DigestSHA256,
			Digest: strings.Repeat("0123456789abcdef", 4), ArchiveBytes: 123456, Compression: "none", BlocksVerified: 7, Checksum: "xxhash",
		},
		Product:  Product{Brand: "XenServer", Version: "8.4.0"},
		Warnings: []string{"the VM is suspended: disks without memory"},
	}
}

// offlineManifest has nothing that may be left out.
func offlineManifest() Manifest {
	m := onlineManifest()
	m.Mode, m.DP, m.Snapshot.UUID, m.Warnings = "offline", DPSession{}, "", []string{}
	m.VM.VIFs, m.VM.ExcludedDisks, m.VM.Disks = []VIF{}, []ExcludedDisk{}, m.VM.Disks[:1]
	m.File.Name = strings.Replace(m.File.Name, "online", "offline", 1)
	return m
}

func encode(t testing.TB, m Manifest) []byte {
	t.Helper()
	data, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestGoldenManifests(t *testing.T) {
	for name, m := range map[string]Manifest{"1-online.json": onlineManifest(), "1-offline.json": offlineManifest()} {
		path := filepath.Join("testdata", "manifest", name)
		if *update {
			if err := os.WriteFile(path, encode(t, m), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		golden, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(golden), string(encode(t, m))); diff != "" {
			t.Errorf("%s: encoded (-want +got):\n%s", name, diff)
		}
		got, err := DecodeManifest(golden)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(m, *got); diff != "" {
			t.Errorf("%s: decoded (-want +got):\n%s", name, diff)
		}
		// As MANIFEST.md tells a stranger to check.
		head, tail := golden[:len(golden)-84], golden[len(golden)-84:]
		sum := sha256.Sum256(head)
		if want := `"self_sha256": "` + hex.EncodeToString(sum[:]) + "\"\n}\n"; string(tail) != want {
			t.Errorf("%s ends with %q, want %q", name, tail, want)
		}
	}
}

func TestEncodeNormalises(t *testing.T) {
	m := offlineManifest()
	m.Requires, m.Warnings, m.VM.VIFs, m.VM.ExcludedDisks, m.Format = nil, nil, nil, nil, 0
	m.Finished = m.Finished.In(time.FixedZone("", 3600)).Add(999 * time.Millisecond)
	if diff := cmp.Diff(string(encode(t, offlineManifest())), string(encode(t, m))); diff != "" {
		t.Errorf("same content, other bytes (-want +got):\n%s", diff)
	}
}

func TestEveryChangeOfAManifestIsFound(t *testing.T) {
	good := encode(t, onlineManifest())
	for i := range good {
		if _, err := DecodeManifest(good[:i]); !errors.Is(err, ErrManifestDamaged) {
			t.Fatalf("cut at byte %d: got %v, want %v", i, err, ErrManifestDamaged)
		}
		for bit := range 8 {
			bad := bytes.Clone(good)
			bad[i] ^= 1 << bit
			if _, err := DecodeManifest(bad); !errors.Is(err, ErrManifestDamaged) {
				t.Fatalf("bit %d of byte %d: got %v, want %v", bit, i, err, ErrManifestDamaged)
			}
		}
	}
	for _, bad := range [][]byte{append(bytes.Clone(good), '\n'), append([]byte(" "), good...), bytes.Repeat([]byte(" "), MaxManifest+1)} {
		if _, err := DecodeManifest(bad); !errors.Is(err, ErrManifestDamaged) {
			t.Errorf("%d bytes: got %v, want %v", len(bad), err, ErrManifestDamaged)
		}
	}
}

// sign puts a right digest to the JSON object that edit makes of a good manifest.
func sign(t testing.TB, edit func(map[string]any)) []byte {
	t.Helper()
	var fields map[string]any
	if err := json.Unmarshal(encode(t, onlineManifest()), &fields); err != nil {
		t.Fatal(err)
	}
	delete(fields, "self_sha256")
	edit(fields)
	body, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	head := append(bytes.TrimSuffix(body, []byte("}")), ',')
	sum := sha256.Sum256(head)
	return append(head, fmt.Sprintf("%s%x%s", selfKey, sum, selfEnd)...)
}

func section(t testing.TB, fields map[string]any, name string) map[string]any {
	t.Helper()
	s, ok := fields[name].(map[string]any)
	if !ok {
		t.Fatalf("%s is %T", name, fields[name])
	}
	return s
}

func TestUnknownFieldsAreIgnored(t *testing.T) {
	got, err := DecodeManifest(sign(t, func(f map[string]any) {
		f["zzz"] = map[string]any{"deep": []any{1, 2, nil}}
		section(t, f, "vm")["colour"] = "blue"
	}))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(onlineManifest(), *got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestDecodeRefuses(t *testing.T) {
	tests := []struct {
		name string
		edit func(map[string]any)
		want error
		says string
	}{
		{"format", func(f map[string]any) { f["format"] = 2; f["vm"] = "another type"; f["dpxen_version"] = "9.1" }, ErrManifestFormat, `"9.1"`},
		{"no format", func(f map[string]any) { delete(f, "format") }, ErrManifestFormat, "format 0"},
		{"requirement", func(f map[string]any) { f["requires"] = []string{"encryption"}; f["dpxen_version"] = "9.2" }, ErrManifestFormat, `"9.2"`},
		{"requirement of another type", func(f map[string]any) { f["requires"] = map[string]any{"a": 1} }, ErrManifestFormat, "requires"},
		{"type", func(f map[string]any) { f["mode"] = 7 }, ErrManifestDamaged, "mode"},
		{"fraction", func(f map[string]any) { section(t, f, "file")["bytes"] = 1.5 }, ErrManifestDamaged, "bytes"},
		{"no file name", func(f map[string]any) { delete(f, "file") }, ErrContradiction, "file name"},
		{"path as file name", func(f map[string]any) { section(t, f, "file")["name"] = "../../x.xva" }, ErrContradiction, "file name"},
		{"manifest as file name", func(f map[string]any) {
			section(t, f, "file")["name"] = strings.Replace(onlineManifest().File.Name, ".xva", ".json", 1)
		}, ErrContradiction, "file.name"},
		{"mode of the other kind", func(f map[string]any) { f["mode"] = "offline" }, ErrContradiction, "mode"},
		{"unknown mode", func(f map[string]any) { f["mode"] = "ONLINE" }, ErrContradiction, "mode"},
		{"another VM", func(f map[string]any) { section(t, f, "vm")["uuid"] = uuid2 }, ErrContradiction, "vm.uuid"},
		{"another time", func(f map[string]any) { section(t, f, "snapshot")["time"] = "2026-11-22T20:30:01Z" }, ErrContradiction, "snapshot.time"},
		{"another algorithm", func(f map[string]any) { section(t, f, "file")["digest_algorithm"] = "md5" }, ErrContradiction, "md5"},
		{"short digest", func(f map[string]any) { section(t, f, "file")["digest"] = "00" }, ErrContradiction, "digest"},
		{"negative size", func(f map[string]any) { section(t, f, "file")["bytes"] = -1 }, ErrContradiction, "negative"},
		{"no times", func(f map[string]any) { delete(f, "started") }, ErrContradiction, "started"},
		{"no session", func(f map[string]any) { delete(f, "session") }, ErrContradiction, "session"},
	}
	for _, tt := range tests {
		_, err := DecodeManifest(sign(t, tt.edit))
		if !errors.Is(err, tt.want) || !strings.Contains(fmt.Sprint(err), tt.says) {
			t.Errorf("%s: got %v, want %v with %q", tt.name, err, tt.want, tt.says)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	for name, edit := range map[string]func(*Manifest){
		"mode":       func(m *Manifest) { m.Mode = "offline" },
		"VM":         func(m *Manifest) { m.VM.UUID = uuid2 },
		"disk size":  func(m *Manifest) { m.VM.Disks[0].Size = -1 },
		"no version": func(m *Manifest) { m.DpxenVersion = "" },
	} {
		m := onlineManifest()
		edit(&m)
		if _, err := m.Encode(); !errors.Is(err, ErrContradiction) {
			t.Errorf("%s: got %v, want %v", name, err, ErrContradiction)
		}
	}
	m := onlineManifest()
	m.VM.Name = strings.Repeat("x", MaxManifest)
	if _, err := m.Encode(); err == nil {
		t.Error("a manifest above the limit was encoded")
	}
}

func FuzzManifest(f *testing.F) {
	f.Add(encode(f, onlineManifest()))
	f.Add(encode(f, offlineManifest()))
	f.Add([]byte(`{"format":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, candidate := range [][]byte{data, resigned(data)} {
			m, err := DecodeManifest(candidate)
			if err != nil {
				if !errors.Is(err, ErrManifestDamaged) && !errors.Is(err, ErrManifestFormat) && !errors.Is(err, ErrContradiction) {
					t.Fatalf("untyped error: %v", err)
				}
				continue
			}
			again, err := m.Encode()
			if err != nil {
				if len(candidate) > MaxManifest/8 {
					continue // escapes may make it longer than the limit
				}
				t.Fatalf("encode what was decoded: %v", err)
			}
			back, err := DecodeManifest(again)
			if err != nil {
				t.Fatalf("decode what was encoded: %v", err)
			}
			if diff := cmp.Diff(m, back); diff != "" {
				t.Fatalf("(-decoded +encoded and decoded):\n%s", diff)
			}
		}
	})
}

// resigned gives mutated data a right digest, so that the fuzzer gets past it.
func resigned(data []byte) []byte {
	if len(data) < selfBytes {
		return data
	}
	head := bytes.Clone(data[:len(data)-selfBytes])
	sum := sha256.Sum256(head)
	return append(head, fmt.Sprintf("%s%x%s", selfKey, sum, selfEnd)...)
}
