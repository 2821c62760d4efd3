package xensim

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// params are the arguments of a handler: cookies, which win, and the query.
type params struct {
	cookies map[string]string
	query   url.Values
}

func paramsOf(r *http.Request) params {
	p := params{cookies: map[string]string{}, query: r.URL.Query()}
	for _, line := range r.Header.Values("Cookie") {
		// Both "a=b; c=d" and the older "a=b&c=d" are taken.
		for part := range strings.FieldsFuncSeq(line, func(c rune) bool { return c == ';' || c == '&' }) {
			if k, v, ok := strings.Cut(strings.TrimSpace(part), "="); ok {
				if u, err := url.QueryUnescape(v); err == nil {
					v = u
				}
				p.cookies[k] = v
			}
		}
	}
	return p
}

// get gives a parameter; of several of one name the first counts.
func (p params) get(name string) string {
	if v, ok := p.cookies[name]; ok {
		return v
	}
	return p.query.Get(name)
}

func (p params) has(name string) bool {
	_, cookie := p.cookies[name]
	return cookie || p.query.Has(name)
}

// transfer is an /export or /import under way.
type transfer struct {
	*call
	stream *stream
	args   params
	secure bool
	// ownSession says that the session was made for Basic authentication.
	ownSession bool
	release    func()
}

// begin authenticates a handler's request, takes its connection over and adopts
// or makes its task. It answers itself and gives nil where that fails.
func (h *simHost) begin(w http.ResponseWriter, r *http.Request, label string) *transfer {
	p := h.pool
	t := &transfer{args: paramsOf(r), secure: isSecure(r)}
	t.call = &call{pool: p, ctx: p.ctx, host: h, local: isLocal(r), method: label}
	ok, wrong := p.authorise(t, r)
	s, err := takeOver(w, r)
	if err != nil {
		return nil
	}
	t.stream = s
	if !ok {
		if wrong {
			_ = p.wait(t.ctx, loginDelay) // at worst the pool closes; the answer is the same
		}
		p.finishTask(t.args.get("task_id"), "", fail("SESSION_AUTHENTICATION_FAILED"))
		t.answer(s.page("401 Unauthorized", "", `WWW-Authenticate: Basic realm="`+label+`"`))
		return nil
	}
	p.db.mu.Lock()
	denied := p.permittedHandler(t.session, label)
	p.db.mu.Unlock()
	if denied != nil {
		p.finishTask(t.args.get("task_id"), "", denied)
		t.answer(s.page("403 Forbidden", ""))
		if t.ownSession {
			p.db.mu.Lock()
			p.dropSession(t.session)
			p.db.mu.Unlock()
		}
		return nil
	}
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	if t.args.has("task_id") {
		t.task = t.args.get("task_id")
		if _, err := p.db.need("task", t.task); err != nil {
			t.answer(s.internal(err))
			return nil
		}
	} else {
		t.task = p.newTask(h, t.session, label, "", t.args.get("subtask_of"))
	}
	ctx, release := p.attach(t.ctx, t.task)
	if a := p.activities[t.task]; a != nil {
		a.stream = t
	}
	stop := context.AfterFunc(ctx, func() {
		if errors.Is(context.Cause(ctx), errToolstack) {
			reset(s.Conn)
		}
	})
	t.ctx, t.release = ctx, func() { stop(); release() }
	return t
}

// authorise accepts the unix socket, else a session, else Basic credentials. As in
// XAPI only the first of these that the request has counts. It says whether a
// password was wrong, too.
func (p *Pool) authorise(t *transfer, r *http.Request) (ok, wrong bool) {
	user, password, basic := r.BasicAuth()
	subject, right := p.identify(user, password)
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	t.session = t.args.get("session_id")
	switch {
	case t.args.has("session_id") && !t.local:
		return p.useSession(t.session), false
	case t.local && p.useSession(t.session):
		return true, false
	case t.local || basic && right:
		if t.local {
			user, subject = p.cfg.User, nullRef
		}
		session, err := p.newSubjectSession(t.host, user, "HTTP request using Basic auth", subject)
		if err != nil {
			return false, false
		}
		t.session, t.ownSession = session, true
		return true, false
	}
	return false, basic
}

// answer ends a transfer whose last bytes were written with the given error, if
// any: the client may be gone, and there is nobody else to tell.
func (t *transfer) answer(error) {
	_ = t.stream.end()
}

// end completes the task and closes the connection.
func (t *transfer) end(result string, err error) {
	if !t.restarted() { // else whoever would tell is gone
		t.pool.finishTask(t.task, result, err)
	}
	t.close()
}

func (t *transfer) close() {
	p := t.pool
	if t.restarted() {
		reset(t.stream.Conn)
	}
	_ = t.stream.end()
	if t.release != nil {
		t.release()
	}
	if t.ownSession {
		p.db.mu.Lock()
		p.dropSession(t.session)
		p.db.mu.Unlock()
	}
}

// restarted says that the toolstack was restarted under the transfer.
func (t *transfer) restarted() bool { return errors.Is(context.Cause(t.ctx), errToolstack) }

// broken turns the error of a transfer into what its task tells.
func (t *transfer) broken(err error) error {
	if errors.Is(context.Cause(t.ctx), errCancelled) {
		return fail("TASK_CANCELLED", t.task)
	}
	return err
}

// unblock ends reads and writes of the connection when the task is cancelled or
// the pool closes.
func (t *transfer) unblock() func() bool {
	return context.AfterFunc(t.ctx, func() {
		if t.restarted() {
			reset(t.stream.Conn)
			return
		}
		_ = t.stream.SetDeadline(time.Unix(1, 0)) // at worst the client's end decides
	})
}

// keepSession touches the caller's session while a long stream runs, every 30 s.
func (t *transfer) keepSession() func() {
	ctx, stop := context.WithCancel(t.ctx)
	t.pool.spawn(func() {
		for t.pool.wait(ctx, 30*time.Second) == nil {
			t.pool.db.mu.Lock()
			t.pool.useSession(t.session)
			t.pool.db.mu.Unlock()
		}
	})
	return stop
}

// reject answers with an error page before the handler has taken the task over:
// a client's own task stays as it is.
func (t *transfer) reject(err error) {
	t.answer(t.stream.internal(err))
	t.leave()
}

// leave ends a transfer without completing a client's own task.
func (t *transfer) leave() {
	if !t.args.has("task_id") {
		t.pool.finishTask(t.task, "", nil)
	}
	t.close()
}

// bare answers with a status and no body, as XAPI does where a handler refuses
// what it was sent. The client may be gone, and the task tells as well.
func (t *transfer) bare(version, status string) {
	_ = t.stream.writeLines(version+" "+status, "Connection: close", "Cache-Control: no-cache, no-store")
}

// redirect sends the client to another host, by the scheme it came with, with the
// path and the query it gave.
func (t *transfer) redirect(to *simHost, r *http.Request) {
	scheme := "https"
	if !t.secure && !t.local {
		scheme = "http"
	}
	location := scheme + "://" + to.address + r.URL.EscapedPath()
	if r.URL.RawQuery != "" {
		location += "?" + r.URL.RawQuery
	}
	t.answer(t.stream.writeLines(
		"HTTP/1.1 302 Found",
		"Connection: close",
		"Cache-Control: no-cache, no-store",
		"Location: "+location,
	))
	t.leave() // a client's own task goes on elsewhere
}
