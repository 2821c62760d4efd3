package e2e

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dpxen/dpxen/controller"
	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xensim"
)

// TestNotOurs has objects about that look like what a session leaves, but are somebody's own: neither a repair nor a session
// touches them.
func TestNotOurs(t *testing.T) {
	t.Parallel()
	const nonce = "0123456789abcdef"
	c := newCell(t, xensim.Config{Scenario: "demo"})
	ctx, x := context.Background(), c.client()
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	archive := c.vm("archive")
	template, err := x.CallAsync(ctx, "clone", "VM.clone", xapi.Ref(archive.Ref), "dpxen carrier "+nonce)
	must(nil, err)
	must(nil, x.SetIsATemplate(ctx, xapi.Ref(template), true))
	_, _, err = x.Snapshot(ctx, xapi.Ref(archive.Ref), "dpxen snapshot "+nonce, nil)
	must(nil, err)
	disk, err := x.VDIByUUID(ctx, archive.Disks[0].VDI.UUID)
	must(nil, err)
	must(nil, x.AddToVDIOtherConfig(ctx, disk.Ref, "dpxen:carrier", nonce))
	for key, value := range map[string]string{
		"dpxen:" + archive.UUID + ":claim":    "not JSON",
		"dpxen:" + archive.UUID + ":snapshot": `{"v":99,"agent":"xs1","nonce":"` + nonce + `"}`,
		"dpxen:something":                     "else",
		"dpxenlike":                           "x",
	} {
		must(nil, x.AddToPoolOtherConfig(ctx, key, value))
	}
	truth := func() xensim.State {
		s := c.state()
		s.Tasks, s.Sessions, s.SRs = nil, 0, nil
		return s
	}
	before := truth()
	ctl := c.controller()
	for range 2 {
		if _, err := ctl.Repair(ctx, false); err != nil {
			t.Fatal(err)
		}
	}
	c.only(ctl, controller.Online, "db-01")
	if diff := cmp.Diff(before, truth()); diff != "" {
		t.Errorf("touched (-before +after):\n%s", diff)
	}
}
