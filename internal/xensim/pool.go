// Package xensim simulates a pool of XenServer hosts: XAPI's calls, records,
// tasks and sessions, and the handlers for /export and /import, over the same
// wire formats and with the same rules and errors, so that clients written for
// real hosts work against it unchanged.
//
// The facts it follows are those of XAPI's sources and data model; comments name
// the rule where one is followed that a reader might not expect.
package xensim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/dpxen/dpxen/internal/xensim/disk"
	"github.com/dpxen/dpxen/internal/xensim/model"
)

const dateLayout = "20060102T15:04:05Z"

// Pool is a simulated pool. Its exported methods may be called concurrently.
type Pool struct {
	cfg     Config
	release release
	api     model.Version
	clock   atomic.Int64 // what the hosts' clock is ahead of this machine's, in nanoseconds

	db      *database // its lock guards all fields down to the blank line
	visible map[*model.Class][]*model.Field
	// fieldNames are the names of visible.
	fieldNames map[*model.Class][]string
	methods    map[string]*method
	hosts      []*simHost
	current    int // the index of the master in hosts
	volumes    map[string]*volume
	// activities, sessionUse and subscriptions belong to tasks and sessions.
	activities    map[string]*activity
	sessionUse    map[string]time.Time
	subscriptions map[string]*subscription
	guests        map[string]*guest
	boots         map[string]int // of VMs: how often each guest has booted
	nextID        int
	nextOVA       int
	vtpms         map[string]string // contents by reference
	shelves       map[string]*shelf // by the uuid of an SR
	roles         map[string]string // of subjects' sessions, by reference
	subjects      []string          // references, by the index of the account
	ha            haMonitor
	violation     error // what CheckInvariants found first
	flushed       map[string]map[string]savedObject

	lanesMu sync.Mutex
	lanes   map[string]*lane // by the reference of a host or SR

	callsMu sync.Mutex
	calls   map[string]int // by method

	diary   diary
	faults  faultSet
	disks   *disk.Store
	ownData string // a temporary folder to remove
	ctx     context.Context
	stop    context.CancelFunc
	workMu  sync.Mutex // guards starting work against closing
	work    sync.WaitGroup
	control *http.Server
	closing sync.Once
	ctlAddr string
	ctlLn   net.Listener
}

// New builds the pool and opens its listeners; Start serves. The caller must
// Close it also when Start is not called.
func New(cfg Config) (*Pool, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	rel, err := releaseOf(cfg.ProductVersion)
	if err != nil {
		return nil, err
	}
	seeded := rand.New(rand.NewPCG(cfg.Seed, 0x78656e73696d))
	p := &Pool{
		cfg: cfg, release: rel, api: rel.api,
		visible: map[*model.Class][]*model.Field{}, fieldNames: map[*model.Class][]string{}, volumes: map[string]*volume{},
		activities: map[string]*activity{}, sessionUse: map[string]time.Time{},
		subscriptions: map[string]*subscription{}, guests: map[string]*guest{}, boots: map[string]int{}, lanes: map[string]*lane{}, vtpms: map[string]string{},
		shelves: map[string]*shelf{}, roles: map[string]string{},
	}
	p.db = newDatabase(model.Load(), func() string { return seededUUID(seeded) })
	p.ctx, p.stop = context.WithCancel(context.Background())
	for _, c := range p.db.model.Classes {
		for _, f := range c.Fields {
			if p.db.model.Visible(p.api, f) {
				p.visible[c] = append(p.visible[c], f)
				p.fieldNames[c] = append(p.fieldNames[c], f.Name)
			}
		}
	}
	if err := p.build(); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	p.db.newUUID = randomUUID // what comes later must not meet another pool of the same seed
	p.register()
	p.addRoles()
	return p, nil
}

func (p *Pool) build() error {
	dir := p.cfg.Data
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "xensim-"); err != nil {
			return fmt.Errorf("xensim: making a folder for disk contents: %w", err)
		}
		p.ownData = dir
	} else if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("xensim: making the folder for disk contents: %w", err)
	}
	var err error
	if p.disks, err = disk.OpenStore(dir); err != nil {
		return fmt.Errorf("xensim: %w", err)
	}
	if err := p.listenControl(); err != nil {
		return err
	}
	if err := p.listen(); err != nil {
		return err
	}
	return p.populate()
}

// Start begins to serve. It does not block.
func (p *Pool) Start() {
	for _, h := range p.hosts {
		h.serve()
	}
	p.startControl()
	p.spawn(p.collect)
}

// Close stops serving, ends what runs and removes what was written to a
// temporary folder. A second Close does nothing.
func (p *Pool) Close() error {
	var err error
	p.closing.Do(func() {
		p.workMu.Lock()
		p.stop()
		p.workMu.Unlock()
		for _, h := range p.hosts {
			err = errors.Join(err, h.close())
		}
		err = errors.Join(err, p.closeControl())
		p.work.Wait()
		if p.disks != nil {
			err = errors.Join(err, p.disks.Close())
		}
		if p.ownData != "" {
			err = errors.Join(err, removeAll(p.ownData))
		}
	})
	return err
}

// collect is XAPI's garbage collector of sessions and tasks; it runs every 30 s.
func (p *Pool) collect() {
	for p.wait(p.ctx, 30*time.Second) == nil {
		p.db.mu.Lock()
		p.expireSessions()
		p.expireTasks()
		p.db.mu.Unlock()
	}
}

// wait passes simulated time: d divided by Speedup.
func (p *Pool) wait(ctx context.Context, d time.Duration) error {
	d = p.scaled(d)
	if d <= 0 {
		return context.Cause(ctx)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

func (p *Pool) scaled(d time.Duration) time.Duration {
	return time.Duration(float64(d) / p.cfg.Speedup)
}

func (p *Pool) expiry(d time.Duration) time.Duration {
	return max(p.scaled(d), min(d, p.cfg.MinExpiry))
}

func (p *Pool) now() model.DateTime { return dateOf(time.Now().Add(time.Duration(p.clock.Load()))) }

func dateOf(t time.Time) model.DateTime { return model.DateTime(t.UTC().Format(dateLayout)) }

// ShiftClock sets the clock of the pool's hosts forward, or back where by is negative.
func (p *Pool) ShiftClock(by time.Duration) { p.clock.Add(int64(by)) }

// master gives the pool's master; the database is locked.
func (p *Pool) master() *simHost { return p.hosts[p.current] }

func (p *Pool) masterAddressLocked() string { return p.master().address }

func (p *Pool) masterAddress() string {
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	return p.masterAddressLocked()
}

func (p *Pool) hostByRef(ref string) *simHost {
	i := slices.IndexFunc(p.hosts, func(h *simHost) bool { return h.ref == ref })
	if i < 0 {
		return nil
	}
	return p.hosts[i]
}

// poolObject gives the one pool record.
func (p *Pool) poolObject() *object {
	for _, o := range p.db.tables["pool"] {
		return o
	}
	return nil
}

func seededUUID(r *rand.Rand) string {
	var u uuid.UUID
	for i := range u {
		u[i] = byte(r.Uint32())
	}
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	return u.String()
}

func randomUUID() string { return uuid.NewString() }
