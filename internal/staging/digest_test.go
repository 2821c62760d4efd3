package staging

import (
	"encoding/hex"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDigests(t *testing.T) {
	// The values are those of the programs sha256sum, b3sum and xxhsum -H2.
	for _, tc := range []struct{ name, of, want string }{
		{DigestSHA256, "", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
		{DigestSHA256, "abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
		{DigestBLAKE3, "", "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"},
		{DigestBLAKE3, "abc", "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"},
		{DigestXXH3, "", "99aa06d3014798d86001c324468d497f"},
		{DigestXXH3, "abc", "06b05ab6733a618578af5f94892f3950"},
		{"", "abc", "06b05ab6733a618578af5f94892f3950"},
	} {
		d, err := NewDigest(tc.name)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range []byte(tc.of) {
			d.Write([]byte{b})
		}
		got := hex.EncodeToString(d.Sum([]byte{0xff}))
		if want := "ff" + tc.want; got != want {
			t.Errorf("%s of %q is %s instead of %s", tc.name, tc.of, got, want)
		}
		if len(tc.want) != 2*d.Size() {
			t.Errorf("%s has %d bytes", tc.name, d.Size())
		}
	}
	if _, err := NewDigest("md5"); !errors.Is(err, ErrDigest) {
		t.Errorf("md5: %v", err)
	}
}

// TestDigestOfFiles makes a file by each digest, reads its manifest, and sees that one of another digest is refused.
func TestDigestOfFiles(t *testing.T) {
	for _, algorithm := range Digests() {
		t.Run(algorithm, func(t *testing.T) {
			dir := t.TempDir()
			if err := Init(dir); err != nil {
				t.Fatal(err)
			}
			d, err := Open(dir, Options{Digest: algorithm})
			if err != nil {
				t.Fatal(err)
			}
			m := onlineManifest()
			data := random(3<<20 + 5)
			p, err := d.Create(name(t, m), nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.Write(data); err != nil {
				t.Fatal(err)
			}
			sum, _ := NewDigest(algorithm)
			sum.Write(data)
			want := expected(data)
			want.Digest = hex.EncodeToString(sum.Sum(nil))
			path, err := p.Commit(t.Context(), want, m)
			if err != nil {
				t.Fatal(err)
			}
			got := Inspect(path).Manifest
			if got == nil {
				t.Fatal("no manifest")
			}
			if diff := cmp.Diff([]string{algorithm, want.Digest}, []string{got.File.DigestAlgorithm, got.File.Digest}); diff != "" {
				t.Error(diff)
			}
			got.File.Digest = strings.Repeat("0", len(got.File.Digest)-2)
			if _, err := got.Encode(); !errors.Is(err, ErrContradiction) {
				t.Errorf("a digest of another length: %v", err)
			}
		})
	}
	dir := t.TempDir()
	if err := Init(dir); err != nil {
		t.Fatal(err)
	}
	d, err := Open(dir, Options{Digest: "md5"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Create(name(t, onlineManifest()), nil); !errors.Is(err, ErrDigest) {
		t.Errorf("create with md5: %v", err)
	}
	if entries, err := os.ReadDir(d.partial("")); err != nil || len(entries) != 0 {
		t.Errorf("it left %v, %v", entries, err)
	}
}

// BenchmarkDigest is what the default was chosen by.
func BenchmarkDigest(b *testing.B) {
	data := random(1 << 20)
	for _, name := range Digests() {
		b.Run(name, func(b *testing.B) {
			d, err := NewDigest(name)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				d.Write(data)
			}
		})
	}
}
