package xensim

import (
	"context"
	"errors"
	"time"

	"github.com/dpxen/dpxen/internal/xensim/xmlrpc"
)

const (
	// taskKept is how long a finished task can still be read.
	taskKept = 65 * time.Minute
	// taskStalled is after which time a task without progress is destroyed.
	taskStalled = 24 * time.Hour
	// maxTasks is when the oldest finished tasks go early.
	maxTasks = 200
)

var errCancelled = errors.New("the task was cancelled")

// activity is what works on a task.
type activity struct {
	session string
	user    string // auth_user_sid of the session; empty for root
	started time.Time
	// finished is set when the task is; destroy says that it goes then.
	finished time.Time
	destroy  bool
	cancel   context.CancelCauseFunc
	// lastProgress and progressAt serve the expiry of stalled tasks.
	lastProgress float64
	progressAt   time.Time
	fixed        bool
	stream       *transfer // an export or import
}

func (p *Pool) registerTask() {
	p.quick("task.create", func(c *call, args []any) (any, error) {
		return p.newTask(c.host, c.session, args[0].(string), args[1].(string), ""), nil
	})
	p.quick("task.cancel", taskCancel)
	p.quick("task.destroy", taskDestroy)
	p.quick("task.set_status", func(_ *call, args []any) (any, error) {
		o, err := p.db.need("task", args[0].(string))
		if err != nil {
			return nil, err
		}
		p.db.set(o, "status", args[1])
		if s := args[1].(string); s != "pending" && s != "cancelling" {
			p.closeTask(o)
		}
		return "", nil
	})
}

// newTask makes a pending task; the database is locked.
func (p *Pool) newTask(h *simHost, session, label, description, parent string) string {
	fields := map[string]any{
		"name_label": label, "name_description": description, "created": p.now(), "status": "pending",
		"resident_on": h.ref, "type": "<none/>", "allowed_operations": []string{"cancel", "destroy"},
	}
	if parent != "" {
		fields["subtask_of"] = parent
	}
	o := p.db.create("task", fields)
	now := time.Now()
	p.activities[o.ref] = &activity{session: session, started: now, progressAt: now}
	if s := p.db.find("session", session); s != nil {
		p.activities[o.ref].user = s.str("auth_user_sid")
		p.db.set(s, "tasks", append(s.refs("tasks"), o.ref))
	}
	return o.ref
}

// attach makes ctx follow the cancellation of a task; the database is locked. The
// caller must call release when the work is over.
func (p *Pool) attach(ctx context.Context, task string) (_ context.Context, release func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	if a := p.activities[task]; a != nil {
		a.cancel = cancel
	}
	return ctx, func() { cancel(nil) }
}

// startAsync makes a task for a call and runs it in the background.
func (p *Pool) startAsync(c *call, m *method, args []any) (any, error) {
	p.db.mu.Lock()
	c.task = p.newTask(c.host, c.session, "Async."+m.name, "", "")
	ctx, release := p.attach(c.ctx, c.task)
	p.db.mu.Unlock()
	c.ctx = ctx
	ref := c.task
	p.spawn(func() {
		defer release()
		v, err := m.run(c, args)
		p.checkAfter(m.name)
		result := ""
		if err == nil && !m.void {
			result = string(xmlrpc.Append(nil, v))
		}
		p.finishTask(ref, result, err)
	})
	return ref, nil
}

// finishTask ends a task with a result or an error.
func (p *Pool) finishTask(ref, result string, err error) {
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	o := p.db.find("task", ref)
	if o == nil || o.str("status") != "pending" && o.str("status") != "cancelling" {
		return
	}
	switch {
	case err == nil:
		p.db.set(o, "status", "success")
		p.db.set(o, "result", result)
	case errors.Is(err, errCancelled) || isCode(err, "TASK_CANCELLED"):
		p.db.set(o, "status", "cancelled")
		p.db.set(o, "error_info", []string{"TASK_CANCELLED", ref})
	default:
		p.db.set(o, "status", "failure")
		p.db.set(o, "error_info", failureOf(err).description())
	}
	p.closeTask(o)
}

// closeTask writes what every ended task has; the database is locked.
func (p *Pool) closeTask(o *object) {
	p.db.set(o, "progress", 1.0)
	p.db.set(o, "finished", p.now())
	p.db.set(o, "current_operations", map[string]string{})
	p.db.set(o, "allowed_operations", []string{"destroy"})
	a := p.activities[o.ref]
	if a == nil {
		return
	}
	a.finished = time.Now()
	if a.destroy {
		p.dropTask(o)
	}
}

func (p *Pool) dropTask(o *object) {
	if a := p.activities[o.ref]; a != nil {
		if s := p.db.find("session", a.session); s != nil {
			p.db.set(s, "tasks", without(s.refs("tasks"), o.ref))
		}
	}
	delete(p.activities, o.ref)
	p.db.remove(o)
}

// setProgress moves a task's progress; the database is locked.
func (p *Pool) setProgress(ref string, f float64) {
	if o := p.db.find("task", ref); o != nil && o.str("status") == "pending" {
		p.db.set(o, "progress", f)
	}
}

// fixTask makes a task that can no longer be cancelled; the database is locked.
func (p *Pool) fixTask(ref string) {
	if o := p.db.find("task", ref); o != nil {
		p.db.set(o, "allowed_operations", []string{"destroy"})
		if a := p.activities[ref]; a != nil {
			a.fixed = true
		}
	}
}

func taskCancel(c *call, args []any) (any, error) {
	p := c.pool
	o, err := p.db.need("task", args[0].(string))
	if err != nil {
		return nil, err
	}
	if err := p.ownTask(c, o.ref, "task.cancel/any"); err != nil {
		return nil, err
	}
	a := p.activities[o.ref]
	if s := o.str("status"); s != "pending" && s != "cancelling" || a == nil || a.fixed {
		return nil, fail("OPERATION_NOT_ALLOWED", "task cannot be cancelled")
	}
	p.db.set(o, "current_operations", map[string]string{c.task: "cancel"})
	if a.cancel != nil {
		a.cancel(errCancelled)
	}
	return "", nil
}

// ownTask refuses tasks of other users to those who are no operators of the pool.
func (p *Pool) ownTask(c *call, task, permission string) error {
	s, a := p.db.find("session", c.session), p.activities[task]
	if s == nil || a == nil || s.is("is_local_superuser") || allows(p.roles[c.session], "pool-operator") {
		return nil
	}
	if a.user != s.str("auth_user_sid") {
		return deniedTo(permission, "pool-operator")
	}
	return nil
}

// taskDestroy removes a final task. One that is pending is only marked, whether anybody works on it or not, and goes when it ends.
func taskDestroy(c *call, args []any) (any, error) {
	p := c.pool
	o, err := p.db.need("task", args[0].(string))
	if err != nil {
		return nil, err
	}
	if err := p.ownTask(c, o.ref, "task.destroy/any"); err != nil {
		return nil, err
	}
	if a := p.activities[o.ref]; a != nil && a.finished.IsZero() {
		a.destroy = true
		p.db.set(o, "current_operations", map[string]string{"task": "destroy"})
		return "", nil
	}
	p.dropTask(o)
	return "", nil
}

// cancelled gives the error of a call whose context ended.
func (c *call) cancelled() error {
	if errors.Is(context.Cause(c.ctx), errCancelled) {
		return fail("TASK_CANCELLED", c.task)
	}
	return internalError("the server is shutting down")
}

// expireTasks drops tasks that finished long ago, beyond the limit, or stalled.
func (p *Pool) expireTasks() {
	finished := 0
	var oldest *object
	for _, o := range p.db.all("task") {
		a := p.activities[o.ref]
		if a == nil {
			continue
		}
		if a.finished.IsZero() {
			if f, _ := o.get("progress").(float64); f != a.lastProgress {
				a.lastProgress, a.progressAt = f, time.Now()
			}
			if time.Since(a.progressAt) > p.expiry(taskStalled) {
				p.dropTask(o)
			}
			continue
		}
		if time.Since(a.finished) > p.expiry(taskKept) {
			p.dropTask(o)
			continue
		}
		finished++
		if oldest == nil {
			oldest = o
		}
	}
	if finished > maxTasks && len(p.db.tables["task"]) > maxTasks && oldest != nil {
		p.dropTask(oldest)
	}
}
