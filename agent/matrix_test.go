package agent

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"testing"

	"github.com/dpxen/dpxen/internal/xapi"
	"github.com/dpxen/dpxen/internal/xensim"
)

// The matrix: every kind of restore meets every kind of trouble at every changing call. `make test` takes a sample.
var (
	matrixStep = flag.Int("matrix.step", 300, "TestRestoreMatrix tries one of so many cells; 1 = all, by both menders")
	matrixSeed = flag.Int("matrix.seed", 0, "which of the cells")
	matrixOnly = flag.String("matrix.only", "", "only cells of TestRestoreMatrix with this in their name, such as \"online/dies\"")
)

// matrixCalls is more than a restore makes of changing calls.
const matrixCalls = 100

// matrix is one kind of restore on a pool of its own.
type matrix struct {
	b       *bench
	x       *xapi.Client
	kind    restoreKind
	uuid    string // the VM's
	power   string // at the beginning
	archive []byte
	good    map[string]string // digests of the disks in the archive, by position
	vifs    []xensim.VIFState
	blocked map[string]string
}

func newMatrix(t *testing.T, kind restoreKind) *matrix {
	t.Helper()
	b := newBench(t, kind.cfg)
	x, err := xapi.New(xapi.Config{URL: b.info.Hosts[0].HTTP, Username: b.info.Username, PasswordFile: b.dir + "/password",
		Timeouts: fastTiming().XAPI})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Close(context.Background()) })
	m := &matrix{b: b, x: x, kind: kind}
	for _, vm := range b.before.VMs {
		if vm.Name == kind.vm {
			m.uuid, m.power = vm.UUID, vm.PowerState
		}
	}
	if kind.adjust != nil {
		kind.adjust(m)
	}
	m.archive = b.backUp(m.uuid, kind.backup)
	b.before = b.dump()
	now := b.vmNow(m.uuid)
	m.good, m.vifs, m.blocked = digests(now), now.VIFs, now.Blocked
	return m
}

// Whatever goes wrong at whatever call of whatever restore: until it is repaired a VM between two sets of disks does not
// start; after it the VM is wholly on the old or wholly on the new ones, starts, is in its former power state, and nothing
// of ours is left. What a dry run tells is what is then done, and a second repair finds nothing to do.
func TestRestoreMatrix(t *testing.T) {
	for k, kind := range restoreKinds() {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			row := &matrixRow{t: t, kind: kind}
			for i, what := range troubles {
				row.calls = matrixCalls
				for n := 1; n < row.calls; n++ {
					if *matrixStep == 1 {
						row.cell(what, n, true)
						row.cell(what, n, false)
					} else if (n*131+i*37+k*17+*matrixSeed)%*matrixStep == 0 {
						row.cell(what, n, (n+i+k)%2 == 0)
					}
				}
			}
		})
	}
}

// matrixRow is one kind of restore.
type matrixRow struct {
	t     *testing.T
	kind  restoreKind
	m     *matrix // nil after a failure: the pool is not fit for another cell
	calls int     // trouble at this one, or a later one, never comes
}

// cell tries trouble at one call.
func (r *matrixRow) cell(what trouble, n int, restarted bool) {
	mender := "another"
	if restarted {
		mender = "the same"
	}
	name := fmt.Sprintf("%s at call %d, repaired by %s", what.name, n, mender)
	if n >= r.calls || !strings.Contains(r.kind.name+"/"+name, *matrixOnly) {
		return
	}
	if r.m == nil {
		r.m = newMatrix(r.t, r.kind)
	}
	ok := r.t.Run(name, func(t *testing.T) {
		r.m.b.t = t
		if r.m.try(n, what, restarted) == "" {
			r.calls = n
		}
	})
	if !ok {
		r.m = nil
	}
}
