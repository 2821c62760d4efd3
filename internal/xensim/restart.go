package xensim

import (
	"errors"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	// restoreFuse is how long a host waits before it restarts into a database that
	// was restored (db_restore_fuse_time), masterBoot how long that takes.
	restoreFuse = 30 * time.Second
	masterBoot  = 120 * time.Second
)

var (
	errRestarted = errors.New("the host was restarted")
	errToolstack = errors.New("the toolstack was restarted")
)

// connSet are the connections of a host but for those that a handler took over.
type connSet struct {
	mu   sync.Mutex
	open map[net.Conn]struct{}
}

// follow is told of a connection's state by the server.
func (s *connSet) follow(c net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch state {
	case http.StateNew:
		if s.open == nil {
			s.open = map[net.Conn]struct{}{}
		}
		s.open[c] = struct{}{}
	case http.StateClosed, http.StateHijacked:
		delete(s.open, c)
	}
}

// reset breaks all connections.
func (s *connSet) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		reset(c)
	}
}

// reset breaks a TCP connection without a farewell.
func reset(c net.Conn) {
	if own, ok := c.(*conn); ok {
		c = own.Conn // TLS has no time for its farewell
	}
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // else an orderly end will do
	}
	_ = c.Close()
}

// restartToolstack restarts XAPI on all hosts: sessions and tasks are lost, exports and imports end with their connections, and
// new connections are reset for a while. Nobody undoes what an import has made by then; disks that were plugged into dom0 for
// streams are taken out when XAPI is up again.
func (p *Pool) restartToolstack(d time.Duration) {
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	p.stopToolstack()
	p.startToolstack(d)
}

// stopToolstack ends XAPI on all hosts. The database is locked, so that nobody is served between the end of the sessions and
// that of the connections.
func (p *Pool) stopToolstack() {
	for _, h := range p.hosts {
		h.goDown(true)
	}
	p.forgetSessions()
	p.forgetOperations()
}

// goDown resets a host's connections, those of exports and imports too, and lets nobody in. Where XAPI is dead nobody cleans up
// after them. The database is locked.
func (h *simHost) goDown(dead bool) {
	h.down = true
	h.fell = h.fell || dead
	h.conns.reset()
	for _, a := range h.pool.activities {
		switch {
		case a.stream == nil || a.stream.host != h:
		case dead && a.cancel != nil:
			a.cancel(errToolstack)
		default:
			reset(a.stream.stream.Conn)
		}
	}
}

// comeUp lets clients in again.
func (h *simHost) comeUp() {
	h.pool.removeLeaked(h)
	if h.fell {
		h.pool.forgetTasks(h)
	}
	h.down, h.fell = false, false
}

// forgetTasks drops what an XAPI that died had not ended, once it is up again (cancel_tasks.ml): all tasks if it is the master,
// those resident on it if it is a member. An export or import that a member died in keeps its task, if a client has made that
// on the master, and the VM its operation, until the master's XAPI is restarted. The database is locked.
func (p *Pool) forgetTasks(h *simHost) {
	for _, o := range p.db.all("task") {
		s := o.str("status")
		if h == p.master() || o.str("resident_on") == h.ref && (s == "pending" || s == "cancelling") {
			p.dropTask(o)
		}
	}
	for _, vm := range p.db.all("VM") {
		for task := range maps.Clone(vm.m("current_operations")) {
			if p.db.find("task", task) == nil {
				p.db.drop(vm, "current_operations", task)
				p.updateAllowed(vm)
			}
		}
	}
}

// startToolstack has an XAPI that was ended up again after a while. What calls did that were on their way when it ended, and
// whose answers nobody had, such as to log in, is over then.
func (p *Pool) startToolstack(d time.Duration) {
	p.spawn(func() {
		_ = p.wait(p.ctx, d) // when the pool closes nobody connects any more
		p.db.mu.Lock()
		defer p.db.mu.Unlock()
		p.endSessions()
		p.forgetOperations()
		for _, h := range p.hosts {
			h.comeUp()
		}
	})
}

// forgetOperations lets no VM have operations whose tasks are gone; the database is locked.
func (p *Pool) forgetOperations() {
	for _, vm := range p.db.all("VM") {
		if len(vm.m("current_operations")) > 0 {
			p.db.set(vm, "current_operations", map[string]string{})
			p.updateAllowed(vm)
		}
	}
}

// removeLeaked takes out of a host's dom0 what streams had plugged in that are gone; the database is locked.
func (p *Pool) removeLeaked(h *simHost) {
	dom0 := p.db.find("VM", h.dom0)
	if dom0 == nil {
		return
	}
	for _, vbd := range p.db.many("VBD", dom0.refs("VBDs")) {
		if _, streams := vbd.m("other_config")["task_id"]; !streams {
			continue
		}
		vdi := p.db.find("VDI", vbd.str("VDI"))
		p.dropVBD(vbd)
		if vdi != nil {
			p.updateVDI(vdi)
		}
	}
}

// restartInto restarts the master, after a while, into another database: its VMs
// end with it, sessions and tasks are gone, connections are reset until it is up
// again, storage stays as it is. XAPI also forgets the other hosts, which join
// again; here they stay.
func (p *Pool) restartInto(records map[string]map[string]savedObject) {
	p.spawn(func() {
		if p.wait(p.ctx, restoreFuse) != nil {
			return
		}
		p.db.mu.Lock()
		defer p.db.mu.Unlock()
		master := p.master()
		for _, vm := range p.db.all("VM") {
			if vm.str("resident_on") == master.ref && !vm.is("is_control_domain") {
				_ = p.powerOff(vm.ref) // it was just found
			}
		}
		others := slices.Collect(maps.Values(p.activities)) // of tasks that are forgotten now
		p.stopToolstack()
		for _, a := range others {
			if a.cancel != nil {
				a.cancel(errRestarted)
			}
		}
		for class, table := range records {
			for ref, s := range table {
				if o := p.db.find(class, ref); o != nil {
					table[ref] = savedObject{o, s.vals}
				}
			}
		}
		p.installDatabase(records)
		for _, h := range p.hosts {
			p.memory(h)
		}
		p.startToolstack(masterBoot)
	})
}
