package xensim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"
)

// Scribble writes n pieces to a disk as a guest would; equal seeds on equal disks
// give equal disks.
func (p *Pool) Scribble(vdiUUID string, seed uint64, n int) error {
	p.db.mu.Lock()
	vdi := p.db.byUUID["VDI"][vdiUUID]
	if vdi == nil || p.volumes[vdi.ref] == nil || p.volumes[vdi.ref].image == nil {
		p.db.mu.Unlock()
		return fmt.Errorf("xensim: no disk has the uuid %s", vdiUUID)
	}
	image := p.volumes[vdi.ref].image
	p.db.mu.Unlock()
	if err := image.Scribble(seed, n); err != nil {
		return fmt.Errorf("xensim: writing to VDI %s: %w", vdiUUID, err)
	}
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	if vdi = p.db.byUUID["VDI"][vdiUUID]; vdi != nil {
		p.written(vdi, int64(n)<<20)
	}
	return nil
}

// SetGuest says how a VM's guest takes a clean shutdown: it ignores it, or needs
// the given simulated time. Zero values bring the usual guest back.
func (p *Pool) SetGuest(vmUUID string, ignoresShutdown bool, takes time.Duration) error {
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	vm := p.db.byUUID["VM"][vmUUID]
	if vm == nil {
		return fmt.Errorf("xensim: no VM has the uuid %s", vmUUID)
	}
	p.guests[vm.ref] = &guest{ignores: ignoresShutdown, takes: takes}
	return nil
}

// SetHostDown resets a host's connections, open and new ones, or lets them in
// again. A dead host is also no longer live in the pool.
func (p *Pool) SetHostDown(name string, down, dead bool) error {
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	for _, h := range p.hosts {
		if h.name == name || h.uuid == name {
			h.dead = dead
			if down {
				h.goDown(dead)
			} else {
				h.comeUp()
			}
			p.setLive(h, !dead)
			return nil
		}
	}
	return fmt.Errorf("xensim: no host is named %s", name)
}

// SetMaster makes the named host the pool's master, as after a failover.
func (p *Pool) SetMaster(name string) error {
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	for _, h := range p.hosts {
		if h.name == name || h.uuid == name {
			return p.setMaster(h.ref)
		}
	}
	return fmt.Errorf("xensim: no host is named %s", name)
}

// startControl serves the control endpoint, if there is one.
func (p *Pool) startControl() {
	if p.ctlLn == nil {
		return
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /dump", func(w http.ResponseWriter, r *http.Request) {
		s, err := p.Dump(r.Context())
		answerJSON(w, s, err)
	})
	mux.HandleFunc("GET /calls", func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, p.Calls(), nil) })
	mux.HandleFunc("DELETE /calls", func(w http.ResponseWriter, _ *http.Request) {
		p.ClearCalls()
		answerJSON(w, map[string]bool{"ok": true}, nil)
	})
	mux.HandleFunc("GET /journal", func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, p.Journal(), nil) })
	mux.HandleFunc("GET /info", func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, p.Info(), nil) })
	mux.HandleFunc("GET /invariants", func(w http.ResponseWriter, _ *http.Request) {
		answerJSON(w, map[string]bool{"ok": true}, p.CheckInvariants())
	})
	mux.HandleFunc("POST /scribble", func(w http.ResponseWriter, r *http.Request) {
		seed, err := strconv.ParseUint(r.FormValue("seed"), 10, 64)
		n, err2 := strconv.Atoi(r.FormValue("n"))
		if err = errors.Join(err, err2); err == nil {
			err = p.Scribble(r.FormValue("vdi"), seed, n)
		}
		answerJSON(w, map[string]bool{"ok": true}, err)
	})
	mux.HandleFunc("GET /faults", func(w http.ResponseWriter, _ *http.Request) {
		answerJSON(w, map[string]any{"names": FaultNames(), "armed": p.Faults()}, nil)
	})
	post(mux, "/fault", p.Inject)
	post(mux, "/shape", p.SetShape)
	post(mux, "/host", func(in struct {
		Host string `json:"host"`
		Down bool   `json:"down"`
		Dead bool   `json:"dead"`
	},
	) error {
		return p.SetHostDown(in.Host, in.Down, in.Dead)
	})
	post(mux, "/guest", func(in struct {
		VM    string `json:"vm"`
		Crash bool   `json:"crash"`
	},
	) error {
		return p.StopGuest(in.VM, in.Crash)
	})
	post(mux, "/master", func(in struct {
		Host string `json:"host"`
	},
	) error {
		return p.SetMaster(in.Host)
	})
	mux.HandleFunc("POST /clock", func(w http.ResponseWriter, r *http.Request) {
		by, err := time.ParseDuration(r.FormValue("by"))
		if err == nil {
			p.ShiftClock(by)
		}
		answerJSON(w, map[string]bool{"ok": true}, err)
	})
	mux.HandleFunc("DELETE /fault", func(w http.ResponseWriter, r *http.Request) {
		p.Clear(r.FormValue("name"))
		answerJSON(w, map[string]bool{"ok": true}, nil)
	})
	p.control = &http.Server{Handler: mux, ReadHeaderTimeout: headTotalTimeout}
	p.spawn(func() {
		if err := p.control.Serve(p.ctlLn); err != nil && !errors.Is(err, http.ErrServerClosed) {
			p.logf("the control endpoint stopped: %v", err)
		}
	})
}

// post adds a request whose body is one JSON value; the answer repeats it.
func post[T any](mux *http.ServeMux, path string, do func(T) error) {
	mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		var in T
		err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&in)
		if err == nil {
			err = do(in)
		}
		answerJSON(w, in, err)
	})
}

func (p *Pool) listenControl() error {
	if p.cfg.Control == "" {
		return nil
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(context.Background(), "tcp", p.cfg.Control)
	if err != nil {
		return fmt.Errorf("xensim: listening for control: %w", err)
	}
	p.ctlLn, p.ctlAddr = ln, "http://"+ln.Addr().String()
	return nil
}

func (p *Pool) closeControl() error {
	if p.ctlLn == nil {
		return nil
	}
	var err error
	if p.control != nil {
		err = p.control.Close()
	}
	if e := p.ctlLn.Close(); e != nil && !errors.Is(e, net.ErrClosed) {
		err = errors.Join(err, e)
	}
	return err
}

func answerJSON(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		v = map[string]string{"error": err.Error()}
	}
	_ = json.NewEncoder(w).Encode(v) // the client may be gone
}
