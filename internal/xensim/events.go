package xensim

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dpxen/dpxen/internal/xensim/xmlrpc"
)

// subscription is what a session asked event.register for.
type subscription struct {
	classes []string
	since   uint64
}

func (p *Pool) registerEvents() {
	p.slow("event.from", eventFrom)
	p.slow("event.next", eventNext)
	p.quick("event.register", func(c *call, args []any) (any, error) {
		s := p.subscriptions[c.session]
		if s == nil {
			s = &subscription{since: p.db.gen}
			p.subscriptions[c.session] = s
		}
		s.classes = append(s.classes, args[0].([]string)...)
		return "", nil
	})
	p.quick("event.unregister", func(c *call, args []any) (any, error) {
		if s := p.subscriptions[c.session]; s != nil {
			for _, class := range args[0].([]string) {
				s.classes = without(s.classes, class)
			}
			if len(s.classes) == 0 || slices.Contains(args[0].([]string), "*") {
				delete(p.subscriptions, c.session)
			}
		}
		return "", nil
	})
	p.quick("event.get_current_id", func(*call, []any) (any, error) { return int64(p.db.gen), nil })
	p.quick("event.inject", func(_ *call, args []any) (any, error) {
		for _, c := range p.db.model.Classes {
			if strings.EqualFold(c.Name, args[0].(string)) {
				o, err := p.db.need(c.Name, args[1].(string))
				if err != nil {
					return nil, err
				}
				p.db.touch(o)
				return token(p.db.gen), nil
			}
		}
		return nil, fail("HANDLE_INVALID", args[0].(string), args[1].(string))
	})
}

func token(gen uint64) string { return fmt.Sprintf("%020d,%020d", gen, 0) }

func parseToken(s string) (uint64, error) {
	if s == "" {
		return 0, nil
	}
	a, b, ok := strings.Cut(s, ",")
	gen, err := strconv.ParseUint(a, 10, 64)
	if _, err2 := strconv.ParseUint(b, 10, 64); err != nil || err2 != nil || !ok {
		return 0, fail("EVENT_FROM_TOKEN_PARSE_FAILURE", s)
	}
	return gen, nil
}

// wants says whether a list of classes as clients give it covers an object:
// "*", a class in any case, or CLASS/REF.
func wants(classes []string, class, ref string) bool {
	for _, c := range classes {
		name, only, one := strings.Cut(c, "/")
		if c == "*" || strings.EqualFold(name, class) && (!one || only == ref) {
			return true
		}
	}
	return false
}

// hidden are the classes that make no events; roles are no part of the database.
var hidden = []string{"session", "event", "role"}

// eventsSince lists what changed after a generation: adds, mods, dels.
func (p *Pool) eventsSince(classes []string, since uint64, numeric bool) []any {
	var changed []*object
	for class, table := range p.db.tables {
		if slices.Contains(hidden, class) {
			continue
		}
		for ref, o := range table {
			if o.modified > since && wants(classes, class, ref) {
				changed = append(changed, o)
			}
		}
	}
	slices.SortFunc(changed, func(a, b *object) int {
		if (a.created > since) != (b.created > since) {
			if a.created > since {
				return -1
			}
			return 1
		}
		if a.modified < b.modified {
			return -1
		}
		return 1
	})
	out := []any{}
	for _, o := range changed {
		op := "mod"
		if o.created > since {
			op = "add"
		}
		out = append(out, append(p.eventHead(o.modified, o.class.Name, op, o.ref, numeric),
			xmlrpc.Member{Name: "snapshot", Value: p.record(o)}))
	}
	for _, d := range p.db.deleted {
		if d.gen > since && d.created <= since && !slices.Contains(hidden, d.class) && wants(classes, d.class, d.ref) {
			out = append(out, p.eventHead(d.gen, d.class, "del", d.ref, numeric))
		}
	}
	return out
}

func (p *Pool) eventHead(gen uint64, class, op, ref string, numeric bool) xmlrpc.Members {
	head := xmlrpc.Members{
		{Name: "id", Value: strconv.FormatUint(gen, 10)}, {Name: "timestamp", Value: "0.0"},
		{Name: "class", Value: strings.ToLower(class)}, {Name: "operation", Value: op}, {Name: "ref", Value: ref},
	}
	if numeric {
		head[0].Value, head[1].Value = int64(gen), p.now()
	}
	return head
}

// awaitEvents blocks until something of the classes changed, or the time is over.
// It leaves the database locked.
func (c *call) awaitEvents(classes []string, since uint64, limit time.Duration, numeric bool) ([]any, error) {
	p := c.pool
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		p.db.mu.Lock()
		if p.db.find("session", c.session) == nil {
			return nil, fail("SESSION_INVALID", c.session)
		}
		events := p.eventsSince(classes, since, numeric)
		if len(events) > 0 {
			return events, nil
		}
		changed := p.db.change()
		p.db.mu.Unlock()
		select {
		case <-changed:
		case <-timer.C:
			p.db.mu.Lock()
			return []any{}, nil
		case <-c.ctx.Done():
			p.db.mu.Lock()
			return nil, c.cancelled()
		}
	}
}

func eventFrom(c *call, args []any) (any, error) {
	p := c.pool
	classes := args[0].([]string)
	since, err := parseToken(args[1].(string))
	if err != nil {
		return nil, err
	}
	limit := time.Duration(min(max(args[2].(float64), 0), 3600) * float64(time.Second))
	events, err := c.awaitEvents(classes, since, limit, false)
	defer p.db.mu.Unlock()
	if err != nil {
		return nil, err
	}
	counts := xmlrpc.Members{}
	for _, class := range p.db.model.Classes {
		if !slices.Contains(hidden, class.Name) && class.Stored() {
			counts = append(counts, xmlrpc.Member{
				Name: strings.ToLower(class.Name), Value: xmlrpc.Int32(len(p.db.tables[class.Name])),
			})
		}
	}
	return xmlrpc.Members{
		{Name: "events", Value: events}, {Name: "valid_ref_counts", Value: counts}, {Name: "token", Value: token(p.db.gen)},
	}, nil
}

// nextQueue is how many changes a session that registered may be behind before it has lost some. XAPI keeps ten megabytes
// of them for event.next, which is about as many; those of event.from are never lost.
const nextQueue = 2000

// eventNext serves the older way to follow events.
func eventNext(c *call, _ []any) (any, error) {
	p := c.pool
	p.db.mu.Lock()
	s := p.subscriptions[c.session]
	lost := s != nil && p.db.gen-s.since > nextQueue
	if lost {
		s.since = p.db.gen
	}
	p.db.mu.Unlock()
	if s == nil {
		return nil, fail("SESSION_NOT_REGISTERED", c.session)
	}
	if lost {
		return nil, fail("EVENTS_LOST")
	}
	events, err := c.awaitEvents(s.classes, s.since, 30*time.Second, true)
	defer p.db.mu.Unlock()
	if err != nil {
		return nil, err
	}
	s.since = p.db.gen
	return events, nil
}
