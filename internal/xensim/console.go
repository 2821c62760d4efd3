package xensim

// showConsole gives a VM that has a domain its one console, as its host serves it,
// and takes it away from one that has none; the database is locked.
func (p *Pool) showConsole(vm *object) {
	host := p.db.find("host", vm.str("resident_on"))
	consoles := p.db.many("console", vm.refs("consoles"))
	if host == nil {
		for _, c := range consoles {
			p.db.remove(c)
		}
		return
	}
	if len(consoles) == 0 {
		consoles = append(consoles, p.db.create("console", map[string]any{"protocol": "rfb", "VM": vm.ref}))
		if vm.is("is_control_domain") {
			p.db.set(consoles[0], "protocol", "vt100")
		}
	}
	p.db.set(consoles[0], "location", "https://"+host.str("address")+"/console?uuid="+consoles[0].uuid())
}
