package controller

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// restoreFolder has three VMs: 1 with two online files and one offline, 2 with one online file, 3 with one offline file.
func restoreFolder(t *testing.T) (c *Controller, dir string) {
	t.Helper()
	c = stateOnly(t)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c.cfg.Restore = dir
	c.cfg.Sets = map[string]Set{"some": {VM: []string{"web", "db", "gone"}, Tag: []string{"gold"}}}
	stagedBackup{n: 1, name: "web", mode: AllOnline, at: testTime, session: "2026/11/22-1", pool: poolA}.stage(t, dir)
	stagedBackup{n: 1, name: "web", mode: AllOnline, at: testTime.Add(time.Hour), session: "2026/11/22-2", pool: poolA}.stage(t, dir)
	stagedBackup{n: 1, name: "web", mode: Offline, at: testTime, pool: poolA}.stage(t, dir)
	stagedBackup{n: 2, name: "db", mode: Online, at: testTime, session: "2026/11/22-1", pool: poolA}.stage(t, dir)
	stagedBackup{n: 3, name: "web", mode: Offline, at: testTime, pool: poolB}.stage(t, dir)
	writeFile(t, filepath.Join(dir, "foreign.xva"), testXVA(t, testUUID(9), "stranger"))
	return c, dir
}

// items says what a set has, in short: VM number, time, and ! for refused.
func items(set *RestoreSet) string {
	var all []string
	for _, it := range set.Items {
		s := strings.TrimLeft(it.UUID[24:], "0")
		if !it.Taken.IsZero() {
			s += "@" + it.Taken.Format("1504")
		}
		if it.Refused != "" {
			s += "!"
		}
		all = append(all, s)
	}
	return strings.Join(all, " ")
}

func TestRestoreFiles(t *testing.T) {
	web1 := "web." + testUUID(1) + ".online.20261122T203000Z"
	offline3 := "web." + testUUID(3) + ".offline.20261122T203000Z.xva"
	c, _ := restoreFolder(t)
	for name, tt := range map[string]struct {
		req  RestoreRequest
		want string
		err  string // a UsageError with this
	}{
		"all online":           {req: RestoreRequest{Mode: AllOnline}, want: "2@2030 1@2130"},
		"all offline":          {req: RestoreRequest{Mode: AllOffline}, want: "1@2030 3@2030"},
		"all but":              {req: RestoreRequest{Mode: AllOnline, Selection: Selection{Exclude: []string{"db"}}}, want: "1@2130"},
		"a name":               {req: RestoreRequest{Mode: Online, Selection: Selection{VM: []string{"web"}}}, want: "1@2130"},
		"a name and a pool":    {req: RestoreRequest{Mode: Offline, Selection: Selection{VM: []string{"web"}, Pool: []string{"pool 2"}}}, want: "3@2030"},
		"a UUID":               {req: RestoreRequest{Mode: Offline, Selection: Selection{VM: []string{testUUID(3)}}}, want: "3@2030"},
		"a set, what is there": {req: RestoreRequest{Mode: Online, Selection: Selection{Set: "some"}}, want: "2@2030 1@2130"},
		"at":                   {req: RestoreRequest{Mode: AllOnline, At: testTime.Add(time.Minute)}, want: "2@2030 1@2030"},
		"a DP session":         {req: RestoreRequest{Mode: AllOnline, DPSession: "2026/11/22-2"}, want: "1@2130"},
		"a file":               {req: RestoreRequest{Mode: Online, Files: []string{web1 + ".xva"}}, want: "1@2030"},
		"a manifest":           {req: RestoreRequest{Mode: Online, Files: []string{web1 + ".json"}}, want: "1@2030"},
		"adopted":              {req: RestoreRequest{Mode: Offline, Files: []string{"foreign.xva"}, Adopt: true}, want: "9"},
		"adopted, by its name": {req: RestoreRequest{Mode: Offline, Files: []string{"foreign.xva"}, Adopt: true, Selection: Selection{VM: []string{"stranger"}}}, want: "9"},

		"nothing said":            {req: RestoreRequest{Mode: Online}, err: "needs to be told which VMs"},
		"all and a name":          {req: RestoreRequest{Mode: AllOnline, Selection: Selection{VM: []string{"web"}}}, err: "leave the selectors out"},
		"ambiguous":               {req: RestoreRequest{Mode: Offline, Selection: Selection{VM: []string{"web"}}}, err: "ambiguous"},
		"unknown":                 {req: RestoreRequest{Mode: Online, Selection: Selection{VM: []string{"wob"}}}, err: `"web"`},
		"not of this kind":        {req: RestoreRequest{Mode: Offline, Selection: Selection{VM: []string{"db"}}}, err: "no such VM"},
		"a file of the other":     {req: RestoreRequest{Mode: Online, Files: []string{offline3}}, err: "offline file"},
		"no such file":            {req: RestoreRequest{Mode: Online, Files: []string{"none.xva"}}, err: "none.xva"},
		"no such file, by path":   {req: RestoreRequest{Mode: Online, Files: []string{filepath.FromSlash("/none/none.xva")}}, err: "none.xva"},
		"foreign, not adopted":    {req: RestoreRequest{Mode: Offline, Files: []string{"foreign.xva"}}, err: "--adopt"},
		"adopt, no file named":    {req: RestoreRequest{Mode: AllOffline, Adopt: true}, err: "--adopt needs"},
		"two files of one VM":     {req: RestoreRequest{Mode: Online, Files: []string{web1 + ".xva", strings.Replace(web1, "T20", "T21", 1) + ".xva"}}, err: "several files of the same VM"},
		"nothing so old":          {req: RestoreRequest{Mode: AllOnline, At: testTime.Add(-time.Hour)}, err: "has no file that mode allOnline restores"},
		"no such folder":          {req: RestoreRequest{Mode: AllOnline, From: filepath.FromSlash("/none")}, err: "--from"},
		"bad pattern":             {req: RestoreRequest{Mode: Online, Selection: Selection{VM: []string{"re:("}}}, err: "regular expression"},
		"file and another's name": {req: RestoreRequest{Mode: Online, Files: []string{web1 + ".xva"}, Selection: Selection{VM: []string{"db"}}}, err: "no such VM"},
	} {
		t.Run(name, func(t *testing.T) {
			set, err := c.RestoreFiles(tt.req)
			if tt.err != "" {
				if !is[*UsageError](err) || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got %v, want a UsageError with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := items(set); got != tt.want {
				t.Errorf("items %q, want %q", got, tt.want)
			}
			if n := len(set.Items) + len(set.Skipped); n != 6 {
				t.Errorf("%d files told of, want all 6: %+v", n, set.Skipped)
			}
			for _, s := range set.Skipped {
				if s.Reason == "" {
					t.Errorf("%s is skipped without a reason", s.File)
				}
			}
		})
	}
}

func TestRestoreFileElsewhere(t *testing.T) {
	c, dir := restoreFolder(t)
	path := stagedBackup{n: 8, name: "far", mode: Offline, pool: poolB}.stage(t, t.TempDir())
	set, err := c.RestoreFiles(RestoreRequest{Mode: Offline, Files: []string{path}})
	if err != nil || items(set) != "8@2030" {
		t.Fatalf("%+v, %v", set, err)
	}
	it := set.Items[0]
	if it.Name != "far" || it.Pool != "pool 2" || it.Manifest() == nil || it.Adopted {
		t.Errorf("item %+v", it)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if set, err = c.RestoreFiles(RestoreRequest{Mode: Offline, Files: []string{path}}); err != nil || items(set) != "8@2030" {
		t.Errorf("without the folder: %+v, %v", set, err)
	}
	t.Chdir(filepath.Dir(path))
	if set, err = c.RestoreFiles(RestoreRequest{Mode: Offline, Files: []string{base(path)}}); err != nil || items(set) != "8@2030" {
		t.Errorf("a name in the working folder: %+v, %v", set, err)
	}
	if r, report := verifyEntry(t.Context(), set.Items[0].entry); !r.OK || report == nil {
		t.Errorf("verified: %+v", r)
	}
}

// TestRestoreFilesDamaged holds that a damaged file is refused, not passed over in silence for an older one.
func TestRestoreFilesDamaged(t *testing.T) {
	newest := "web." + testUUID(1) + ".online.20261122T213000Z"
	oldest := "web." + testUUID(1) + ".online.20261122T203000Z"
	only := "db." + testUUID(2) + ".online.20261122T203000Z"
	for name, tt := range map[string]struct {
		spoil func(t *testing.T, dir string)
		want  string
	}{
		"newest manifest":        {func(t *testing.T, dir string) { flip(t, filepath.Join(dir, newest+".json"), 30) }, "2@2030 1@2130!"},
		"newest cut short":       {func(t *testing.T, dir string) { writeFile(t, filepath.Join(dir, newest+".xva"), nil) }, "2@2030 1@2130!"},
		"newest has no export":   {func(t *testing.T, dir string) { remove(t, filepath.Join(dir, newest+".xva")) }, "2@2030 1@2130!"},
		"newest has no manifest": {func(t *testing.T, dir string) { remove(t, filepath.Join(dir, newest+".json")) }, "2@2030 1@2030"},
		"oldest manifest":        {func(t *testing.T, dir string) { flip(t, filepath.Join(dir, oldest+".json"), 30) }, "2@2030 1@2130"},
		"the only one of its VM": {func(t *testing.T, dir string) { writeFile(t, filepath.Join(dir, only+".xva"), nil) }, "2@2030! 1@2130"},
		"another kind's manifest": {func(t *testing.T, dir string) {
			flip(t, filepath.Join(dir, "web."+testUUID(3)+".offline.20261122T203000Z.json"), 30)
		}, "2@2030 1@2130"},
	} {
		t.Run(name, func(t *testing.T) {
			c, dir := restoreFolder(t)
			tt.spoil(t, dir)
			set, err := c.RestoreFiles(RestoreRequest{Mode: AllOnline})
			if err != nil {
				t.Fatal(err)
			}
			if got := items(set); got != tt.want {
				t.Errorf("items %q, want %q", got, tt.want)
			}
			for _, it := range set.Items {
				if it.Refused != "" && (it.Reason != ReasonIntegrity || it.Advice == "" || it.Name == "") {
					t.Errorf("refused: %+v", it)
				}
			}
		})
	}
	c, dir := restoreFolder(t)
	flip(t, filepath.Join(dir, newest+".json"), 30)
	set, err := c.RestoreFiles(RestoreRequest{Mode: Online, Selection: Selection{VM: []string{"web"}}})
	if err != nil || items(set) != "1@2130!" || set.Items[0].Name != "web" {
		t.Errorf("selected by its older file's name: %+v, %v", set, err)
	}
	if _, err := c.RestoreFiles(RestoreRequest{Mode: Online, Files: []string{newest + ".xva"}}); ExitCode(nil, err) != CodeIntegrity {
		t.Errorf("asked for by name: %v", err)
	}
	if set, err = c.RestoreFiles(RestoreRequest{Mode: Online, Files: []string{oldest + ".xva"}}); err != nil || items(set) != "1@2030" {
		t.Errorf("the older one, asked for by name: %+v, %v", set, err)
	}
}

func TestRestoreFilesAdopted(t *testing.T) {
	c, dir := restoreFolder(t)
	writeFile(t, filepath.Join(dir, "twin.xva"), testXVA(t, testUUID(9), "stranger"))
	writeFile(t, filepath.Join(dir, "junk.xva"), []byte("junk"))
	req := RestoreRequest{Mode: Offline, Adopt: true, Files: []string{"foreign.xva", "twin.xva"}}
	if _, err := c.RestoreFiles(req); !is[*UsageError](err) || !strings.Contains(err.Error(), "same VM") {
		t.Errorf("two files of one VM: %v", err)
	}
	req.AsNew = true
	set, err := c.RestoreFiles(req)
	if err != nil || items(set) != "9 9" {
		t.Fatalf("both as new VMs: %+v, %v", set, err)
	}
	want := RestoreItem{File: "foreign.xva", Path: filepath.Join(dir, "foreign.xva"), UUID: testUUID(9), Name: "stranger",
		Kind: KindOffline, Bytes: set.Items[0].entry.Size, Adopted: true, entry: set.Items[0].entry}
	if diff := cmp.Diff(want, set.Items[0], cmp.AllowUnexported(RestoreItem{}), cmpopts.EquateErrors()); diff != "" {
		t.Errorf("item (-want +got):\n%s", diff)
	}
	req.Files = []string{"junk.xva"}
	if set, err = c.RestoreFiles(req); err != nil || len(set.Items) != 1 || set.Items[0].Reason != ReasonIntegrity {
		t.Errorf("junk: %+v, %v", set, err)
	}
}

func TestRestoreFilesEmptyFolder(t *testing.T) {
	c := stateOnly(t)
	c.cfg.Restore = t.TempDir()
	if _, err := c.RestoreFiles(RestoreRequest{Mode: AllOffline}); !is[*UsageError](err) || !strings.Contains(err.Error(), "Data Protector") {
		t.Errorf("got %v", err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}
