package xensim

import (
	"strconv"
	"time"
)

// migrateTime is how long a live migration in the pool takes.
const migrateTime = 10 * time.Second

func (p *Pool) registerMigrate() {
	p.slow("VM.pool_migrate", func(c *call, args []any) (any, error) {
		return "", c.poolMigrate(args[0].(string), args[1].(string))
	})
	p.registerStorageMigration()
}

// poolMigrate moves a running VM to another host of the pool, which must see all
// of its storage (xapi_vm_migrate.ml).
func (c *call) poolMigrate(ref, to string) error {
	p := c.pool
	return c.whileVM(ref, "pool_migrate", standard, func() error {
		if err := p.locked(func() error { return p.canMove(ref, to) }); err != nil {
			return err
		}
		if p.wait(c.ctx, migrateTime) != nil {
			return c.cancelled()
		}
		return p.locked(func() error {
			vm, err := p.db.need("VM", ref)
			if err != nil {
				return err
			}
			if err := p.canMove(ref, to); err != nil {
				return err
			}
			p.settle(vm, to)
			return nil
		})
	})
}

// settle makes a running VM run on another host.
func (p *Pool) settle(vm *object, to string) {
	from := p.hostByRef(vm.str("resident_on"))
	p.nextID++
	p.db.set(vm, "domid", int64(p.nextID))
	p.db.set(vm, "resident_on", to)
	p.showConsole(vm)
	p.memory(p.hostByRef(to))
	p.diary.add(Deed{What: "migrate", End: true, Host: p.hostByRef(to).name, VM: vm.uuid(), Name: vm.str("name_label")})
	if from != nil {
		p.memory(from)
	}
}

// canMove wants a live host that sees the VM's storage; the database is locked.
func (p *Pool) canMove(ref, to string) error {
	vm, err := p.db.need("VM", ref)
	if err != nil {
		return err
	}
	if _, err := p.db.need("host", to); err != nil {
		return err
	}
	h := p.hostByRef(to)
	if h == nil || h.dead || h.down {
		return fail("HOST_OFFLINE", to)
	}
	for _, sr := range p.storageOf(vm) {
		if !p.sees(h, sr) {
			return fail("VM_REQUIRES_SR", ref, sr.ref)
		}
	}
	if vm.str("resident_on") == to {
		return nil
	}
	free := p.db.find("host_metrics", p.db.find("host", to).str("metrics")).num("memory_free")
	if need := vm.num("memory_static_max"); free < need {
		return fail("HOST_NOT_ENOUGH_FREE_MEMORY", strconv.FormatInt(need, 10), strconv.FormatInt(free, 10))
	}
	return p.mayRun(vm, to)
}
