package xensim

import (
	"fmt"
	"testing"
	"time"
)

func TestTasks(t *testing.T) {
	p := startPool(t, withVMs(1))
	c := p.login(t)
	vm := c.vm("vm-01")
	r := c.task(c.str("Async.VM.snapshot", vm, "s"))
	if refs := c.list("VM.get_by_name_label", "s"); r["status"] != "success" || r["result"] != "<value>"+refs[0]+"</value>" || r["progress"] != 1.0 {
		t.Errorf("snapshot: %v", r)
	}
	r = c.task(c.str("Async.VM.clean_shutdown", vm))
	if r["status"] != "success" || r["result"] != "" || r["name_label"] != "Async.VM.clean_shutdown" || fmt.Sprint(r["allowed_operations"]) != "[destroy]" {
		t.Errorf("shutdown: %v", r)
	}
	failed := c.str("Async.VM.clean_shutdown", vm)
	if r = c.task(failed); r["status"] != "failure" || fmt.Sprint(r["error_info"]) != "[VM_BAD_POWER_STATE "+vm+" running halted]" {
		t.Errorf("second shutdown: %v", r)
	}
	c.fails("OPERATION_NOT_ALLOWED", "task.cancel", failed)
	c.ok("task.destroy", failed)
	c.fails("HANDLE_INVALID", "task.get_status", failed)

	own := c.str("task.create", "label", "description")
	if r = c.record("task", own); r["status"] != "pending" || r["type"] != "<none/>" || r["name_label"] != "label" || r["progress"] != 0.0 {
		t.Errorf("created: %v", r)
	}
	c.ok("task.cancel", own)
	if r = c.record("task", own); r["status"] != "pending" || len(r["current_operations"].(map[string]any)) != 1 {
		t.Errorf("cancelled without a worker: %v", r)
	}
	c.ok("task.add_to_other_config", own, "k", "v")
	c.ok("task.destroy", own)
	if r = c.record("task", own); r["status"] != "pending" || fmt.Sprint(r["current_operations"]) != "map[task:destroy]" {
		t.Errorf("destroyed while pending: %v", r)
	}
	c.ok("task.set_status", own, "cancelled")
	c.fails("HANDLE_INVALID", "task.get_status", own)
}

func TestExpiry(t *testing.T) {
	p := startPool(t, withVMs(1), func(c *Config) { c.Speedup = 1e6; c.MinExpiry = time.Second }) // so long a call may take
	c := p.login(t)
	task := c.str("Async.VM.hard_shutdown", c.vm("vm-01"))
	eventually(t, "the finished task is collected", func() bool {
		p.db.mu.Lock()
		defer p.db.mu.Unlock()
		return p.db.find("task", task) == nil
	})
	eventually(t, "the idle session expires", func() bool {
		p.db.mu.Lock()
		defer p.db.mu.Unlock()
		return p.db.find("session", c.session) == nil
	})
	c.fails("SESSION_INVALID", "VM.get_all")
}

func TestServerWaits(t *testing.T) {
	p := startPool(t, withVMs(2), func(c *Config) { c.Speedup = 2000 })
	c := p.login(t)
	vm := c.halt("vm-02")
	if err := p.locked(func() error {
		p.db.put(p.db.find("VM", vm), "current_operations", "OpaqueRef:other", "export")
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	c.fails("OTHER_OPERATION_IN_PROGRESS", "VM.start", vm, false, false)
	if d := time.Since(begin); d < 50*time.Millisecond {
		t.Errorf("VM.start gave up after %v, not 120 s / 2000", d)
	}
	waiting := c.str("Async.VM.destroy", vm)
	if err := p.locked(func() error {
		p.db.drop(p.db.find("VM", vm), "current_operations", "OpaqueRef:other")
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if r := c.task(waiting); r["status"] != "success" {
		t.Errorf("destroy: %v", r)
	}
}

func TestEvents(t *testing.T) {
	p := startPool(t, withVMs(2))
	c := p.login(t)
	from := func(classes []string, token string, timeout float64) (map[string]map[string]any, string) {
		t.Helper()
		r := c.ok("event.from", classes, token, timeout).(map[string]any)
		out := map[string]map[string]any{}
		for _, e := range r["events"].([]any) {
			m := e.(map[string]any)
			out[m["ref"].(string)] = m
		}
		if n := r["valid_ref_counts"].(map[string]any)["vm"]; n != int64(len(c.list("VM.get_all"))) {
			t.Errorf("valid_ref_counts of vm: %v", n)
		}
		return out, r["token"].(string)
	}
	all, token := from([]string{"VM", "task"}, "", 1.5)
	vm := c.vm("vm-01")
	if len(all) != len(c.list("VM.get_all")) || all[vm]["operation"] != "add" || all[vm]["class"] != "vm" || all[vm]["timestamp"] != "0.0" {
		t.Errorf("first: %d events, %v", len(all), all[vm])
	}
	if len(token) != 41 {
		t.Errorf("token %q", token)
	}
	none, token := from([]string{"pool"}, token, 0.01)
	if len(none) != 0 {
		t.Errorf("events: %v", none)
	}
	c.ok("VM.set_name_label", vm, "renamed")
	snap := c.str("VM.snapshot", vm, "s")
	changed, token := from([]string{"vm"}, token, 5.5)
	if changed[vm]["operation"] != "mod" || changed[vm]["snapshot"].(map[string]any)["name_label"] != "renamed" || changed[snap]["operation"] != "add" {
		t.Errorf("changed: %v", changed)
	}
	c.ok("VM.destroy", snap)
	gone, token := from([]string{"VM/" + snap}, token, 5.5)
	if _, has := gone[snap]["snapshot"]; gone[snap]["operation"] != "del" || has || len(gone) != 1 {
		t.Errorf("gone: %v", gone)
	}
	done := make(chan string)
	other := p.client(t, 0)
	other.session = c.session
	go func() {
		r, err := other.call("event.from", []string{"*"}, token, 30.5)
		if err != nil {
			done <- err.Error()
			return
		}
		done <- fmt.Sprint(len(r.(map[string]any)["events"].([]any)) > 0)
	}()
	c.ok("event.inject", "vm", vm)
	if got := <-done; got != "true" {
		t.Errorf("blocked event.from: %s", got)
	}
	c.fails("EVENT_FROM_TOKEN_PARSE_FAILURE", "event.from", []string{"*"}, "x", 1.5)
	c.fails("SESSION_NOT_REGISTERED", "event.next")
	c.ok("event.register", []string{"vm"})
	c.ok("VM.set_name_label", vm, "again")
	if got := c.ok("event.next").([]any); len(got) != 1 || got[0].(map[string]any)["operation"] != "mod" {
		t.Errorf("event.next: %v", got)
	}
	// Whoever falls behind too far has lost events, is told so once, and goes on from there.
	for i := range nextQueue + 1 {
		c.ok("VM.set_name_label", vm, fmt.Sprint("name ", i))
	}
	c.fails("EVENTS_LOST", "event.next")
	c.ok("VM.set_name_label", vm, "at last")
	if got := c.ok("event.next").([]any); len(got) != 1 {
		t.Errorf("event.next after a loss: %v", got)
	}
	c.ok("event.unregister", []string{"*"})
}
