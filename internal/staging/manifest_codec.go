package staging

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// MaxManifest is the largest manifest that is written or read, in bytes.
const MaxManifest = 4 << 20

// The end of every manifest: the digest of all bytes before selfKey.
const (
	selfKey   = `"self_sha256": "`
	selfEnd   = "\"\n}\n"
	selfBytes = len(selfKey) + 2*sha256.Size + len(selfEnd)
)

// Encode returns the manifest's bytes, the same for the same content: indented JSON in the order of the fields, the last of
// them the digest of what stands before it. The error is ErrContradiction where a field is missing or contradicts another.
func (m Manifest) Encode() ([]byte, error) {
	m.Format = ManifestFormat
	m.normalise()
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(m); err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	body, ok := bytes.CutSuffix(b.Bytes(), []byte("\n}\n"))
	if !ok {
		return nil, errors.New("encode manifest: no object at its end")
	}
	data := append(bytes.Clone(body), ",\n  "...)
	sum := sha256.Sum256(data)
	data = append(data, selfKey+hex.EncodeToString(sum[:])+selfEnd...)
	if len(data) > MaxManifest {
		return nil, fmt.Errorf("encode manifest: %d bytes, more than %d", len(data), MaxManifest)
	}
	return data, nil
}

// DecodeManifest reads a manifest. Fields it does not know are ignored. Errors: ErrManifestDamaged where the digest at the
// end is wrong or the rest cannot be read; ErrManifestFormat where the format or a requirement is unknown, with the
// writer's version; ErrContradiction where fields are missing or contradict each other.
func DecodeManifest(data []byte) (*Manifest, error) {
	if len(data) > MaxManifest {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrManifestDamaged, MaxManifest)
	}
	if err := checkSelf(data); err != nil {
		return nil, err
	}
	// First only what tells whether the rest may be read at all: a later format may have other types.
	var head struct {
		Format   int             `json:"format"`
		Requires json.RawMessage `json:"requires"`
		Version  string          `json:"dpxen_version"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrManifestDamaged, err)
	}
	if head.Format != ManifestFormat {
		return nil, fmt.Errorf("%w: format %d, written by dpxen %.40q; this one reads format %d",
			ErrManifestFormat, head.Format, head.Version, ManifestFormat)
	}
	if r := strings.Join(strings.Fields(string(head.Requires)), ""); r != "[]" && r != "null" && r != "" {
		return nil, fmt.Errorf("%w: it requires %.200s, written by dpxen %.40q", ErrManifestFormat, r, head.Version)
	}
	var m Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrManifestDamaged, err)
	}
	m.normalise()
	if err := m.check(); err != nil {
		return nil, err
	}
	return &m, nil
}

// checkSelf compares the digest at the end.
func checkSelf(data []byte) error {
	if len(data) < selfBytes {
		return fmt.Errorf("%w: %d bytes only", ErrManifestDamaged, len(data))
	}
	at := len(data) - selfBytes
	end, ok := strings.CutPrefix(string(data[at:]), selfKey)
	if ok {
		end, ok = strings.CutSuffix(end, selfEnd)
	}
	if !ok {
		return fmt.Errorf("%w: it does not end with its digest", ErrManifestDamaged)
	}
	if sum := sha256.Sum256(data[:at]); end != hex.EncodeToString(sum[:]) {
		return fmt.Errorf("%w: SHA-256 is %x, its last line says %.64q", ErrManifestDamaged, sum, end)
	}
	return nil
}

// readManifest reads the manifest of the file path.
func readManifest(path string) (*Manifest, error) {
	f, _, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxManifest+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	return DecodeManifest(data)
}

func (m *Manifest) normalise() {
	for _, t := range []*time.Time{&m.Started, &m.Finished, &m.Snapshot.Time} {
		*t = t.UTC().Truncate(time.Second)
	}
	m.Requires = filled(m.Requires)
	m.Warnings = filled(m.Warnings)
	m.VM.VIFs = filled(m.VM.VIFs)
	m.VM.Disks = filled(m.VM.Disks)
	m.VM.ExcludedDisks = filled(m.VM.ExcludedDisks)
}

// validTime tells whether t is set and can be written (RFC 3339 has four digits for the year).
func validTime(t time.Time) bool { return !t.IsZero() && t.Year() >= 0 && t.Year() <= 9999 }

func filled[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// check holds the manifest to what every reader relies on.
func (m *Manifest) check() error {
	name, err := ParseName(m.File.Name)
	if err != nil {
		return fmt.Errorf("%w: file name: %w", ErrContradiction, err)
	}
	kind, known := KindOf(m.Mode)
	digest, hexErr := hex.DecodeString(m.File.Digest)
	algorithm, digestErr := NewDigest(cmp.Or(m.File.DigestAlgorithm, "none"))
	for _, c := range []struct {
		ok   bool
		says string
	}{
		{name.XVA() == m.File.Name, "file.name is not that of an export"},
		{known && kind == name.Kind, fmt.Sprintf("mode %.20q makes no %s file", m.Mode, name.Kind)},
		{m.VM.UUID == name.UUID, fmt.Sprintf("vm.uuid is %.40q, the file's name has %s", m.VM.UUID, name.UUID)},
		{m.Snapshot.Time.Equal(name.Time), fmt.Sprintf("snapshot.time is %s, the file's name has %s",
			m.Snapshot.Time.Format(timeLayout), name.Time.Format(timeLayout))},
		{digestErr == nil, fmt.Sprintf("file.digest_algorithm is %.20q", m.File.DigestAlgorithm)},
		{digestErr == nil && hexErr == nil && len(digest) == algorithm.Size() && strings.ToLower(m.File.Digest) == m.File.Digest,
			fmt.Sprintf("file.digest is no %.20q", m.File.DigestAlgorithm)},
		{m.File.Bytes >= 0 && m.File.ArchiveBytes >= 0 && m.File.BlocksVerified >= 0, "a size in file is negative"},
		{validTime(m.Started) && validTime(m.Finished), "started or finished is missing"},
		{m.DpxenVersion != "" && m.Session != "", "dpxen_version or session is missing"},
	} {
		if !c.ok {
			return fmt.Errorf("%w: %s", ErrContradiction, c.says)
		}
	}
	for _, d := range m.VM.Disks {
		if d.Size < 0 {
			return fmt.Errorf("%w: disk %.20q has a negative size", ErrContradiction, d.Device)
		}
	}
	return nil
}
