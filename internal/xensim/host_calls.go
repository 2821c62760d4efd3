package xensim

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// withHost adds a call about one host that runs with the database locked.
func (p *Pool) withHost(name string, run func(c *call, host *object, args []any) (any, error)) {
	p.quick(name, func(c *call, args []any) (any, error) {
		host, err := p.db.need("host", args[0].(string))
		if err != nil {
			return nil, err
		}
		return run(c, host, args[1:])
	})
}

func (p *Pool) registerHost() {
	p.withHost("host.get_servertime", func(*call, *object, []any) (any, error) { return p.now(), nil })
	p.withHost("host.get_server_localtime", func(*call, *object, []any) (any, error) { return p.now(), nil })
	p.withHost("host.compute_free_memory", func(_ *call, host *object, _ []any) (any, error) {
		return p.db.find("host_metrics", host.str("metrics")).num("memory_free"), nil
	})
	p.withHost("host.compute_memory_overhead", func(_ *call, host *object, _ []any) (any, error) {
		return host.num("memory_overhead"), nil
	})
	p.withHost("host.get_server_certificate", func(_ *call, host *object, _ []any) (any, error) {
		return p.hostByRef(host.ref).certificatePEM(), nil
	})
	p.withHost("host.get_management_interface", func(_ *call, host *object, _ []any) (any, error) {
		for _, pif := range p.db.many("PIF", host.refs("PIFs")) {
			if pif.is("management") {
				return pif.ref, nil
			}
		}
		return nil, fail("NO_HOSTS_AVAILABLE")
	})
	p.withHost("host.get_uncooperative_resident_VMs", func(*call, *object, []any) (any, error) { return []string{}, nil })
	p.withHost("host.get_system_status_capabilities", func(*call, *object, []any) (any, error) {
		return statusCapabilities(), nil
	})
	p.withHost("host.set_hostname_live", func(_ *call, host *object, args []any) (any, error) {
		name := args[0].(string)
		if name == "" || strings.ContainsAny(name, " /\t\n") {
			return nil, fail("HOST_NAME_INVALID", "hostname invalid")
		}
		p.db.set(host, "hostname", name)
		return "", nil
	})
	p.withHost("host.set_power_on_mode", func(_ *call, host *object, args []any) (any, error) {
		p.db.set(host, "power_on_mode", args[0])
		p.db.set(host, "power_on_config", args[1])
		return "", nil
	})
	p.withHost("host.has_extension", func(*call, *object, []any) (any, error) { return false, nil })
	p.withHost("host.call_plugin", p.callPlugin)
	p.quick("host.list_methods", func(*call, []any) (any, error) { return p.methodNames(), nil })
}

// statusCapabilities lists what a status report could hold, as XML.
func statusCapabilities() string {
	var b strings.Builder
	b.WriteString("<?xml version=\"1.0\" ?>\n<system-status-capabilities>\n")
	for _, key := range []string{"xenserver-config", "xenserver-databases", "xenserver-logs"} {
		fmt.Fprintf(&b, "\t<capability content-type=\"text/plain\" default-checked=\"yes\" key=%q max-size=\"16777216\" "+
			"max-time=\"90\" min-size=\"-1\" min-time=\"-1\" pii=\"maybe\"/>\n", key)
	}
	b.WriteString("</system-status-capabilities>\n")
	return b.String()
}

// plugin is a script in dom0: its functions by name.
type plugin map[string]func(p *Pool, args map[string]string) (string, error)

// plugins are those that the simulator has.
var plugins = map[string]plugin{"coalesce-leaf": {"leaf-coalesce": (*Pool).leafCoalesce}}

// callPlugin runs a plugin's function. One that ends with an exception is
// XENAPI_PLUGIN_FAILURE with its name and text.
func (p *Pool) callPlugin(_ *call, host *object, args []any) (any, error) {
	name, fn := args[0].(string), args[1].(string)
	if p.hostByRef(host.ref).dead {
		return nil, fail("HOST_OFFLINE", host.ref)
	}
	functions, ok := plugins[name]
	if !ok {
		return nil, fail("XENAPI_MISSING_PLUGIN", name)
	}
	run, ok := functions[fn]
	if !ok {
		return nil, fail("UNKNOWN_XENAPI_PLUGIN_FUNCTION", fn)
	}
	return run(p, args[2].(map[string]string))
}

// leafCoalesce brings a VM's disks down to as few VHDs as there can be, at once.
func (p *Pool) leafCoalesce(args map[string]string) (string, error) {
	uuid, ok := args["vm_uuid"]
	if !ok {
		return "", fail("XENAPI_PLUGIN_FAILURE", "leaf-coalesce", "KeyError", "'vm_uuid'")
	}
	vm := p.db.byUUID["VM"][uuid]
	if vm == nil {
		return "", fail("XENAPI_PLUGIN_FAILURE", "leaf-coalesce", "Failure", "['UUID_INVALID', 'VM', '"+uuid+"']")
	}
	for _, vbd := range p.db.many("VBD", vm.refs("VBDs")) {
		vdi := p.db.find("VDI", vbd.str("VDI"))
		for vdi != nil {
			parent := vdi.m("sm_config")["vhd-parent"]
			base := p.db.byUUID["VDI"][parent]
			if base == nil {
				break
			}
			if len(p.vhdChildren(base)) == 1 {
				p.coalesce(parent)
				continue // with the parent that the disk has now
			}
			vdi = base
		}
	}
	return "True", nil
}

// cannotLeave says, for each VM on a host that could not be moved away, why.
func (p *Pool) cannotLeave(host *object) map[string][]string {
	out := map[string][]string{}
	free := map[string]int64{}
	for _, h := range p.hosts {
		o := p.db.find("host", h.ref)
		if h.ref != host.ref && !h.dead && o.is("enabled") {
			free[h.ref] = p.db.find("host_metrics", o.str("metrics")).num("memory_free")
		}
	}
	for _, vm := range p.db.many("VM", host.refs("resident_VMs")) {
		if vm.is("is_control_domain") {
			continue
		}
		if _, err := p.placeToLeave(vm, free); err != nil {
			out[vm.ref] = failureOf(err).description()
		}
	}
	return out
}

// placeToLeave finds a host for a VM that has to move, and takes its memory there.
func (p *Pool) placeToLeave(vm *object, free map[string]int64) (string, error) {
	if len(free) == 0 {
		return "", fail("NO_HOSTS_AVAILABLE", vm.ref)
	}
	if err := p.checkFeatures(vm); err != nil {
		return "", err
	}
	var why error
	for _, h := range p.hosts {
		if _, ok := free[h.ref]; !ok {
			continue
		}
		missing := slices.IndexFunc(p.storageOf(vm), func(sr *object) bool { return !p.sees(h, sr) })
		switch {
		case missing >= 0:
			why = fail("VM_REQUIRES_SR", vm.ref, p.storageOf(vm)[missing].ref)
		case free[h.ref] < vm.num("memory_static_max"):
			why = fail("HOST_NOT_ENOUGH_FREE_MEMORY", vm.ref)
		default:
			free[h.ref] -= vm.num("memory_static_max")
			return h.ref, nil
		}
	}
	return "", why
}

// canEvacuate refuses what host.evacuate could not do.
func (p *Pool) canEvacuate(host *object) error {
	why := p.cannotLeave(host)
	if len(why) == 0 {
		return nil
	}
	errs := []string{}
	for _, e := range why {
		errs = append(errs, strings.Join(e, ","))
	}
	slices.Sort(errs)
	return fail("CANNOT_EVACUATE_HOST", strings.Join(errs, "|"))
}

// evacuate moves all VMs of a host to others.
func (c *call) evacuate(ref string) error {
	p := c.pool
	var vms []string
	err := p.locked(func() error {
		host, err := p.db.need("host", ref)
		if err != nil {
			return err
		}
		if err := p.canEvacuate(host); err != nil {
			return err
		}
		for _, vm := range p.db.many("VM", host.refs("resident_VMs")) {
			if !vm.is("is_control_domain") {
				vms = append(vms, vm.ref)
			}
		}
		p.db.put(host, "current_operations", c.task, "evacuate")
		return nil
	})
	if err != nil {
		return err
	}
	defer func() {
		_ = p.locked(func() error {
			if host := p.db.find("host", ref); host != nil {
				p.db.drop(host, "current_operations", c.task)
			}
			return nil
		})
	}()
	for i, vm := range vms {
		to, err := p.evacuationTarget(ref, vm)
		if err != nil {
			return err
		}
		if to == "" {
			continue // it is gone, or has moved already
		}
		if err := c.poolMigrate(vm, to); err != nil {
			return err
		}
		_ = p.locked(func() error {
			p.setProgress(c.task, float64(i+1)/float64(len(vms)))
			return nil
		})
	}
	return nil
}

func (p *Pool) evacuationTarget(host, ref string) (string, error) {
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	vm := p.db.find("VM", ref)
	if vm == nil || vm.str("resident_on") != host {
		return "", nil
	}
	free := map[string]int64{}
	for _, h := range p.hosts {
		o := p.db.find("host", h.ref)
		if h.ref != host && !h.dead && o.is("enabled") {
			free[h.ref] = p.db.find("host_metrics", o.str("metrics")).num("memory_free")
		}
	}
	return p.placeToLeave(vm, free)
}

// How long a host's restarts take, roughly.
const (
	fuseTime    = 10 * time.Second // from the answer to the act
	rebootTime  = 180 * time.Second
	restartTime = 20 * time.Second
)
