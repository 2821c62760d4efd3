package staging

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// backups is a folder with several backups of two VMs; names are shortened in the tests below.
func backups(t testing.TB) []Entry {
	t.Helper()
	entry := func(slug, vm string, kind Kind, hour int, dp string) Entry {
		n := Name{slug, vm, kind, time.Date(2026, 11, 22, hour, 0, 0, 0, time.UTC)}
		return Entry{Name: n, Path: filepath.Join("/staging", n.XVA()), State: Complete, Manifest: &Manifest{DP: DPSession{Session: dp}}}
	}
	bad := func(e Entry, s State) Entry {
		e.State, e.Problem = s, errors.New("problem")
		if s == NoManifest {
			e.Manifest = nil
		}
		return e
	}
	return []Entry{
		entry("web", uuid1, Online, 1, "dp1"),
		entry("web", uuid1, Online, 3, "dp3"),
		entry("renamed", uuid1, Online, 2, "dp2"),
		entry("web", uuid1, Offline, 4, "dp3"),
		entry("db", uuid2, Online, 1, "dp1"),
		bad(entry("db", uuid2, Online, 5, "dp3"), Contradiction),
		bad(entry("db", uuid2, Online, 6, ""), NoManifest),
		bad(Entry{Path: "/staging/foreign.xva"}, ForeignFile),
	}
}

func short(e Entry) string {
	if e.State == ForeignFile {
		return e.Base()
	}
	return fmt.Sprintf("%s %s %d", e.Name.Slug, e.Name.Kind, e.Name.Time.Hour())
}

func staged(t testing.TB, want string) string {
	t.Helper()
	for _, e := range backups(t) {
		if short(e) == want {
			return e.Base()
		}
	}
	t.Fatalf("no %s", want)
	return ""
}

func TestSelect(t *testing.T) {
	hour := func(h int) time.Time { return time.Date(2026, 11, 22, h, 0, 0, 0, time.UTC) }
	tests := []struct {
		name string
		c    Criteria
		want []string
	}{
		{"newest of each kind", Criteria{}, []string{"db online 1", "web offline 4", "web online 3"}},
		{"one kind", Criteria{Kind: Online}, []string{"db online 1", "web online 3"}},
		{"at", Criteria{Kind: Online, At: hour(2)}, []string{"db online 1", "renamed online 2"}},
		{"before all", Criteria{At: hour(0)}, nil},
		{"session", Criteria{Kind: Online, DPSession: "dp1"}, []string{"db online 1", "web online 1"}},
		{"file", Criteria{Kind: Online, Files: []string{staged(t, "web online 1")}}, []string{"web online 1"}},
		{"file by path", Criteria{Files: []string{"/staging/" + staged(t, "web online 1")}}, []string{"web online 1"}},
		{"file by its manifest", Criteria{Files: []string{strings.Replace(staged(t, "web online 1"), ".xva", ".json", 1)}}, []string{"web online 1"}},
		{"file twice", Criteria{Files: []string{staged(t, "web online 1"), "/staging/" + staged(t, "web online 1")}}, []string{"web online 1"}},
		{"files of both kinds", Criteria{Files: []string{staged(t, "web online 1"), staged(t, "web offline 4")}}, []string{"web offline 4", "web online 1"}},
		{"adopt", Criteria{Kind: Offline, Files: []string{"foreign.xva"}, Adopt: true}, []string{"foreign.xva"}},
		{"adopt without manifest", Criteria{Kind: Online, Files: []string{staged(t, "db online 6")}, Adopt: true}, []string{"db online 6"}},
		{"adopt needs names", Criteria{Kind: Online, Adopt: true}, []string{"db online 1", "web online 3"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			all := backups(t)
			chosen, skipped, err := Select(all, tt.c)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, e := range chosen {
				got = append(got, short(e))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("chosen (-want +got):\n%s", diff)
			}
			if len(chosen)+len(skipped) != len(all) {
				t.Errorf("%d chosen and %d skipped of %d", len(chosen), len(skipped), len(all))
			}
			for _, s := range skipped {
				if s.Reason == "" {
					t.Errorf("%s skipped without a reason", short(s.Entry))
				}
			}
		})
	}
}

func TestSelectSaysWhy(t *testing.T) {
	_, skipped, err := Select(backups(t), Criteria{Kind: Online, At: time.Date(2026, 11, 22, 2, 30, 0, 0, time.UTC)})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"web online 1":  "older than renamed.",
		"web online 3":  "taken after 2026-11-22T02:30:00Z",
		"web offline 4": "an offline file",
		"db online 5":   "problem",
		"db online 6":   "problem",
		"foreign.xva":   "problem",
	}
	for _, s := range skipped {
		if !strings.Contains(s.Reason, want[short(s.Entry)]) || want[short(s.Entry)] == "" {
			t.Errorf("%s: %q, want %q", short(s.Entry), s.Reason, want[short(s.Entry)])
		}
		delete(want, short(s.Entry))
	}
	if len(want) > 0 {
		t.Errorf("not skipped: %v", want)
	}
}

func TestSelectRefuses(t *testing.T) {
	tests := []struct {
		name string
		c    Criteria
		want error
	}{
		{"unknown file", Criteria{Files: []string{"nothing.xva"}}, ErrNotFound},
		{"file of another folder", Criteria{Files: []string{"/elsewhere/" + staged(t, "web online 1")}}, ErrNotFound},
		{"two of one VM", Criteria{Files: []string{staged(t, "web online 1"), staged(t, "web online 3")}}, ErrAmbiguous},
		{"contradiction", Criteria{Files: []string{staged(t, "db online 5")}, Adopt: true}, ErrNotComplete},
		{"foreign", Criteria{Files: []string{"foreign.xva"}}, ErrNotComplete},
		{"no manifest", Criteria{Files: []string{staged(t, "db online 6")}}, ErrNotComplete},
		{"other kind", Criteria{Kind: Offline, Files: []string{staged(t, "web online 1")}}, ErrCriteria},
		{"other session", Criteria{DPSession: "dp9", Files: []string{staged(t, "web online 1")}}, ErrCriteria},
	}
	for _, tt := range tests {
		if chosen, _, err := Select(backups(t), tt.c); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, %v, want %v", tt.name, chosen, err, tt.want)
		}
	}
}

func TestSelectAdoptsAnyExtension(t *testing.T) {
	for _, base := range []string{"export.xva.gz", "export.zst", "export"} {
		path := filepath.Join("/elsewhere", base)
		all := append(backups(t), Entry{Path: path, State: ForeignFile, Problem: errors.New("problem")})
		chosen, _, err := Select(all, Criteria{Kind: Offline, Files: []string{path}, Adopt: true})
		if err != nil || len(chosen) != 1 || chosen[0].Path != path {
			t.Errorf("%s: got %v, %v", base, chosen, err)
		}
	}
}
