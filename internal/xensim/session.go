package xensim

import (
	"time"

	"github.com/dpxen/dpxen/internal/xensim/model"
)

const (
	// loginDelay is how long XAPI waits before it refuses a password.
	loginDelay = 5 * time.Second
	// sessionIdle is how long a session lives without a call.
	sessionIdle = 24 * time.Hour
	// maxSessions of one originator, or of one user, is when the least recently used
	// sessions go.
	maxSessions = 500
)

func (p *Pool) registerSession() {
	p.slow("session.login_with_password", login)
	p.slow("session.slave_local_login_with_password", login)
	p.quick("session.logout", func(c *call, _ []any) (any, error) {
		p.dropSession(c.session)
		return "", nil
	})
	p.quick("session.local_logout", func(c *call, _ []any) (any, error) {
		p.dropSession(c.session)
		return "", nil
	})
	p.onMember("session.logout", "session.local_logout", "session.get_uuid", "session.get_this_host")
}

// login serves both forms of login. Over TCP a member sends the caller to the
// master; over the unix socket any password will do.
func login(c *call, args []any) (any, error) {
	p := c.pool
	user, password := args[0].(string), args[1].(string)
	local := c.method == "session.slave_local_login_with_password"
	if err := p.faultOnLogin(c); err != nil {
		return nil, err
	}
	p.db.mu.Lock()
	slave := c.host.ref != p.master().ref
	p.db.mu.Unlock()
	if slave && !c.local && !local {
		return nil, fail("HOST_IS_SLAVE", p.masterAddress())
	}
	subject := nullRef
	if !c.local {
		var ok bool
		if subject, ok = p.identify(user, password); !ok {
			return nil, c.refuseLogin(user)
		}
	}
	originator := ""
	if len(args) > 3 {
		originator, _ = args[3].(string)
	}
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	ref, err := p.newSubjectSession(c.host, user, originator, subject)
	if err != nil {
		return nil, err
	}
	return ref, nil
}

// refuseLogin waits, as XAPI does, before it says that a password is wrong.
func (c *call) refuseLogin(user string) error {
	if err := c.pool.wait(c.ctx, loginDelay); err != nil {
		return err
	}
	return fail("SESSION_AUTHENTICATION_FAILED", user, "Authentication failure")
}

// newSession makes a session; the database is locked.
func (p *Pool) newSession(h *simHost, user, originator string) string {
	now := p.now()
	o := p.db.create("session", map[string]any{
		"this_host": h.ref, "last_active": now, "validation_time": now, "auth_user_name": user,
		"is_local_superuser": true, "originator": originator,
	})
	p.sessionUse[o.ref] = time.Now()
	p.limitSessions("originator", originator)
	p.limitSessions("auth_user_name", user)
	return o.ref
}

func (p *Pool) limitSessions(field, value string) {
	var oldest *object
	n := 0
	for _, o := range p.db.tables["session"] {
		if o.str(field) != value {
			continue
		}
		n++
		if oldest == nil || p.sessionUse[o.ref].Before(p.sessionUse[oldest.ref]) {
			oldest = o
		}
	}
	if n > maxSessions {
		p.dropSession(oldest.ref)
	}
}

func (p *Pool) dropSession(ref string) {
	if o := p.db.find("session", ref); o != nil {
		p.db.remove(o)
	}
	delete(p.sessionUse, ref)
	delete(p.subscriptions, ref)
	delete(p.roles, ref)
}

// checkSession refuses calls without a valid session, and calls that only the
// master serves.
func (c *call) checkSession(member bool, args []any) error {
	p := c.pool
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	if !member && c.host.ref != p.master().ref {
		return fail("HOST_IS_SLAVE", p.masterAddressLocked())
	}
	if !p.useSession(c.session) {
		return fail("SESSION_INVALID", c.session)
	}
	return p.permitted(c.session, c.method, args)
}

// useSession says whether a session is valid and counts the use.
func (p *Pool) useSession(ref string) bool {
	o := p.db.find("session", ref)
	if o == nil {
		return false
	}
	now := time.Now()
	p.sessionUse[ref] = now
	if then, err := time.Parse(dateLayout, string(o.get("last_active").(model.DateTime))); err != nil || now.Sub(then) > 10*time.Minute {
		p.db.set(o, "last_active", p.now())
	}
	return true
}

// expireSessions drops sessions that were idle for too long and have no pending
// task.
func (p *Pool) expireSessions() {
	limit := p.expiry(sessionIdle)
	busy := map[string]bool{}
	for _, a := range p.activities {
		busy[a.session] = true
	}
	for ref, used := range p.sessionUse {
		if time.Since(used) > limit && !busy[ref] {
			p.dropSession(ref)
		}
	}
}
