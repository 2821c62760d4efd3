package xensim

import (
	"net/http"
	"strings"
	"time"
)

// faultOnCall is asked before every call.
func (p *Pool) faultOnCall(r request) error {
	if !p.faults.any() {
		return nil
	}
	if f, ok := p.hit("toolstack-restart", r.method, r.host.name); ok {
		p.restartToolstack(f.Delay)
		return internalError("%s", errToolstack) // which nobody hears: the connection is gone
	}
	if f, ok := p.hit("database-rolled-back", r.method, r.host.name); ok {
		p.restartToolstack(f.Delay)
		p.rollBack()
		return internalError("%s", errToolstack)
	}
	if f, ok := p.hit("call-slow", r.method, r.host.name); ok {
		_ = p.wait(p.ctx, f.Delay) // when the pool closes the call may as well go on
	}
	if f, ok := p.hit("host-booting", r.method, r.host.name); ok {
		return f.failure("HOST_STILL_BOOTING")
	}
	if f, ok := p.hit("call-fails", r.method, r.host.name); ok {
		return f.failure("INTERNAL_ERROR", "injected")
	}
	if strings.HasSuffix(r.method, ".add_to_other_config") {
		if f, ok := p.hit("map-duplicate", r.method); ok {
			class, _, _ := strings.Cut(r.method, ".")
			params := []string{class, "other_config"}
			for _, v := range r.params[min(1, len(r.params)):] {
				s, _ := v.(string)
				params = append(params, s)
			}
			return f.failure("MAP_DUPLICATE_KEY", params[:min(4, len(params))]...)
		}
	}
	if strings.HasPrefix(r.method, "session.") {
		return nil
	}
	if _, ok := p.hit("session-invalid", r.method, r.host.name); ok {
		p.dropSessions()
	}
	return nil
}

func (p *Pool) dropSessions() {
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	p.endSessions()
}

// endSessions ends all sessions; the database is locked.
func (p *Pool) endSessions() {
	for _, o := range p.db.all("session") {
		p.dropSession(o.ref)
	}
}

func (p *Pool) faultOnLogin(c *call) error {
	if f, ok := p.hit("login-slow", c.method, c.host.name); ok && p.wait(c.ctx, f.Delay) != nil {
		return c.cancelled()
	}
	if f, ok := p.hit("login-fails", c.method, c.host.name); ok {
		return f.failure("SESSION_AUTHENTICATION_FAILED", p.cfg.User, "Authentication failure")
	}
	return nil
}

func (p *Pool) faultOnStart(vm string) error {
	if f, ok := p.hit("start-fails", "VM.start", p.lockedNames("VM", vm)...); ok {
		return f.failure("HOST_NOT_ENOUGH_FREE_MEMORY", "1073741824", "1048576")
	}
	return nil
}

func (p *Pool) faultOnShutdown(vm string) (ignores bool, late time.Duration) {
	names := p.lockedNames("VM", vm)
	if _, ok := p.hit("shutdown-ignored", "VM.clean_shutdown", names...); ok {
		return true, 0
	}
	if f, ok := p.hit("shutdown-late", "VM.clean_shutdown", names...); ok {
		return false, f.Delay
	}
	return false, 0
}

func (p *Pool) faultOnSnapshot(vm string) error {
	if f, ok := p.hit("snapshot-fails", "VM.snapshot", p.lockedNames("VM", vm)...); ok {
		return f.failure("SR_BACKEND_FAILURE_44", "", "There is insufficient space", "")
	}
	return nil
}

func (p *Pool) faultOnVDI(vdi, op string) error {
	if f, ok := p.hit("vdi-in-use", "VDI."+op, p.lockedNames("VDI", vdi)...); ok {
		return f.failure("VDI_IN_USE", vdi, op)
	}
	return nil
}

// faultOnAttach wants the database locked, as does faultSRFull.
func (p *Pool) faultOnAttach(vdi string) error {
	if f, ok := p.hit("vdi-not-available", "", p.names("VDI", vdi)...); ok {
		return f.failure("SR_BACKEND_FAILURE_46", "", "The VDI is not available", "")
	}
	return nil
}

func (p *Pool) faultSRFull(sr *object) bool {
	_, ok := p.hit("sr-full", "", sr.ref, sr.uuid(), sr.name())
	return ok
}

// hangUp breaks the connection of a call that was executed.
func (p *Pool) hangUp(w http.ResponseWriter, method string) bool {
	if !p.faults.any() {
		return false
	}
	if _, ok := p.hit("answer-lost", method); !ok {
		return false
	}
	if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
		_ = c.Close() // to break it is the purpose
	}
	return true
}

func (p *Pool) faultOnRead(vdi string, block int64) error {
	if !p.faults.any() {
		return nil
	}
	p.faults.mu.Lock()
	armed := false
	for _, a := range p.faults.list {
		armed = armed || a.Name == "export-read-error" && block<<20 >= a.After
	}
	p.faults.mu.Unlock()
	if !armed {
		return nil
	}
	if f, ok := p.hit("export-read-error", "", p.lockedNames("VDI", vdi)...); ok {
		return f.failure("VDI_IO_ERROR", "Device I/O errors")
	}
	return nil
}

func (p *Pool) faultOnImport() error {
	if f, ok := p.hit("import-fails-at-start", ""); ok {
		return f.failure("IMPORT_ERROR", "injected")
	}
	return nil
}

func (p *Pool) faultOnImportEnd() error {
	if f, ok := p.hit("import-fails-at-end", ""); ok {
		return f.failure("VDI_IO_ERROR", "Device I/O errors")
	}
	return nil
}

func (p *Pool) faultOnReplace() error {
	if f, ok := p.hit("import-fails-between", ""); ok {
		return f.failure("INTERNAL_ERROR", "injected")
	}
	return nil
}
