package xensim

import (
	"crypto/sha256"
	"encoding/base64"
	"strconv"
	"strings"
)

func (p *Pool) registerVTPM() {
	p.quick("VTPM.create", func(_ *call, args []any) (any, error) {
		vm, err := p.db.need("VM", args[0].(string))
		if err != nil {
			return nil, err
		}
		if n := len(vm.refs("VTPMs")); n > 0 {
			return nil, fail("VTPM_MAX_AMOUNT_REACHED", strconv.Itoa(n))
		}
		if err := p.checkVM(vm, "create_vtpm"); err != nil {
			return nil, err
		}
		return p.addVTPM(vm, args[1].(bool), "").ref, nil
	})
	p.quick("VTPM.destroy", c2(func(_ *call, ref string) error {
		o, err := p.db.need("VTPM", ref)
		if err != nil {
			return err
		}
		vm := p.db.find("VM", o.str("VM"))
		if vm != nil && vm.str("power_state") != halted && vm.str("power_state") != suspended {
			return badPowerState(vm, halted, suspended)
		}
		delete(p.vtpms, ref)
		p.db.remove(o)
		return nil
	}))
}

func (p *Pool) addVTPM(vm *object, unique bool, contents string) *object {
	o := p.db.create("VTPM", map[string]any{"VM": vm.ref, "is_unique": unique, "allowed_operations": []string{"destroy"}})
	p.vtpms[o.ref] = contents
	return o
}

// forkVTPM gives a copy of a VM a vTPM: with the same contents, unless they must
// be unique.
func (p *Pool) forkVTPM(vtpm, vm *object) {
	contents := p.vtpms[vtpm.ref]
	if vtpm.is("is_unique") {
		contents = ""
	}
	p.addVTPM(vm, vtpm.is("is_unique"), contents)
}

// bootVTPMs makes the state of vTPMs that a VM sees for the first time.
func (p *Pool) bootVTPMs(vm *object) {
	for _, o := range p.db.many("VTPM", vm.refs("VTPMs")) {
		if p.vtpms[o.ref] == "" {
			sum := sha256.Sum256([]byte("vTPM " + o.uuid()))
			p.vtpms[o.ref] = base64.StdEncoding.EncodeToString([]byte(strings.Repeat(string(sum[:]), 64)))
		}
	}
}

// badPowerState says what state a VM should have.
func badPowerState(vm *object, want ...string) error {
	return fail("VM_BAD_POWER_STATE", vm.ref, strings.ToLower(strings.Join(want, ", ")), strings.ToLower(vm.str("power_state")))
}
