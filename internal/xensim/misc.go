package xensim

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/dpxen/dpxen/internal/xensim/model"
)

// registerAll sets the implementations of all messages.
func (p *Pool) registerAll() {
	p.registerSession()
	p.registerRoles()
	p.registerTask()
	p.registerPower()
	p.registerCopies()
	p.registerMigrate()
	p.registerVM()
	p.registerVBD()
	p.registerVDI()
	p.registerImport()
	p.registerCBT()
	p.registerSR()
	p.registerVTPM()
	p.registerVIF()
	p.registerHost()
	p.registerHostPower()
	p.registerPool()
	p.registerAppliance()
	p.registerHA()
	p.registerMessage()
	p.registerEvents()
}

func (p *Pool) registerPool() {
	p.quick("pool.sync_database", func(*call, []any) (any, error) {
		if p.flushed != nil { // a crash that is armed loses only what comes after this
			p.flushDatabase()
		}
		return "", nil
	})
	p.quick("pool.designate_new_master", func(_ *call, args []any) (any, error) {
		return "", p.setMaster(args[0].(string))
	})
	p.quick("pool.emergency_transition_to_master", func(c *call, _ []any) (any, error) {
		return "", p.setMaster(c.host.ref)
	})
}

// setMaster makes another host the master; the database is locked.
func (p *Pool) setMaster(ref string) error {
	i := slices.IndexFunc(p.hosts, func(h *simHost) bool { return h.ref == ref })
	if i < 0 {
		return fail("HANDLE_INVALID", "host", ref)
	}
	p.current = i
	p.db.set(p.poolObject(), "master", ref)
	p.diary.add(Deed{What: "master", End: true, Host: p.hosts[i].name})
	return nil
}

func (p *Pool) registerMessage() {
	p.quick("message.create", func(_ *call, args []any) (any, error) {
		return p.newMessage(args[0].(string), args[1].(int64), args[2].(string), args[3].(string), args[4].(string)), nil
	})
	p.quick("message.destroy", func(_ *call, args []any) (any, error) {
		m, err := p.db.need("message", args[0].(string))
		if err != nil {
			return nil, err
		}
		p.db.remove(m)
		return "", nil
	})
	p.quick("message.destroy_many", func(_ *call, args []any) (any, error) {
		for _, ref := range args[0].([]string) {
			m, err := p.db.need("message", ref)
			if err != nil {
				return nil, err
			}
			p.db.remove(m)
		}
		return "", nil
	})
	p.quick("message.get", func(_ *call, args []any) (any, error) {
		since, _ := args[2].(model.DateTime)
		return p.records("message", func(o *object) bool {
			return o.str("cls") == args[0] && o.str("obj_uuid") == args[1] && o.get("timestamp").(model.DateTime) > since
		}), nil
	})
	p.quick("message.get_since", func(_ *call, args []any) (any, error) {
		since, _ := args[0].(model.DateTime)
		return p.records("message", func(o *object) bool { return o.get("timestamp").(model.DateTime) > since }), nil
	})
}

// newMessage makes a message about an object and gives its reference.
func (p *Pool) newMessage(name string, priority int64, class, uuid, body string) string {
	return p.db.create("message", map[string]any{
		"name": name, "priority": priority, "cls": class, "obj_uuid": uuid, "body": body, "timestamp": p.now(),
	}).ref
}

// spawn runs f in the background, unless the pool is closing.
func (p *Pool) spawn(f func()) bool {
	p.workMu.Lock()
	defer p.workMu.Unlock()
	if p.ctx.Err() != nil {
		return false
	}
	p.work.Go(f)
	return true
}

// busy keeps Close waiting until the function it gives is called.
func (p *Pool) busy() (done func()) {
	hold, release := context.WithCancel(context.Background())
	if !p.spawn(func() { <-hold.Done() }) {
		release()
	}
	return release
}

func (p *Pool) logf(format string, args ...any) {
	if p.cfg.Log != nil {
		p.cfg.Log(fmt.Sprintf(format, args...))
	}
}

func removeAll(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("xensim: removing %s: %w", dir, err)
	}
	return nil
}
