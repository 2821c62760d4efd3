package xensim

import (
	"net/http"
	"slices"
	"strings"
	"testing"
)

// as gives a client with the session of an account.
func (p *Pool) as(t *testing.T, user string) *client {
	t.Helper()
	c := p.client(t, 0)
	c.session = c.ok("session.login_with_password", user, user+"-pw", "1.1", "test").(string)
	return c
}

func accounts(c *Config) {
	for _, role := range roleNames {
		c.Accounts = append(c.Accounts, Account{Name: "u-" + role, Role: role, Password: "u-" + role + "-pw"})
	}
}

func TestRoles(t *testing.T) {
	p := startPool(t, demo, accounts)
	root := p.login(t)
	vm := root.vm("web-01")
	// Each call with the least role that may make it.
	for _, call := range []struct {
		role, method string
		args         []any
	}{
		{"read-only", "VM.get_name_label", []any{vm}},
		{"vm-operator", "VM.hard_reboot", []any{vm}},
		{"vm-operator", "VM.add_to_other_config", []any{vm, "folder", "/a"}},
		{"vm-admin", "VM.set_name_label", []any{vm, "web-01"}},
		{"vm-power-admin", "VM.snapshot", []any{vm, "s"}},
		{"pool-operator", "host.disable", []any{root.host("xen2")}},
		{"pool-admin", "host.call_plugin", []any{root.host("xen1"), "none", "x", map[string]string{}}},
	} {
		for _, role := range roleNames {
			c := p.as(t, "u-"+role)
			_, err := c.call(call.method, call.args...)
			denied := isCode(err, "RBAC_PERMISSION_DENIED")
			if denied == allows(role, call.role) {
				t.Errorf("%s as %s: %v", call.method, role, err)
			}
			if call.method == "VM.add_to_other_config" && err == nil {
				root.ok("VM.remove_from_other_config", vm, "folder")
			}
		}
	}
	c := p.as(t, "u-read-only")
	got := c.fails("RBAC_PERMISSION_DENIED", "VM.snapshot", vm, "x")
	want := []string{"vm.snapshot", "No permission in user session. (Roles with this permission: pool-admin, pool-operator, vm-power-admin)"}
	if !slices.Equal(got, want) {
		t.Errorf("parameters %q", got)
	}
	c.fails("RBAC_PERMISSION_DENIED", "Async.VM.snapshot", vm, "x")
	p.as(t, "u-vm-operator").fails("RBAC_PERMISSION_DENIED", "VM.add_to_other_config", vm, "other", "")
	s := root.ok("session.get_record", root.session, c.session).(map[string]any)
	if s["is_local_superuser"] != false || s["auth_user_name"] != "u-read-only" || s["auth_user_sid"] == "" ||
		!slices.Contains(s["rbac_permissions"].([]any), any("vm.get_record")) {
		t.Errorf("session: %v", s)
	}
	// Tasks of others are not touched by those who are no operators.
	task := root.str("task.create", "mine", "")
	c.fails("RBAC_PERMISSION_DENIED", "task.cancel", task)
	own := c.str("task.create", "own", "")
	c.ok("task.destroy", own)
	p.as(t, "u-pool-operator").ok("task.destroy", task)
}

func TestRolesOfHandlers(t *testing.T) {
	p := startPool(t, demo, accounts)
	root := p.login(t)
	vm := root.vm("archive")
	c := p.as(t, "u-vm-operator")
	task := c.str("task.create", "export", "")
	if res := c.do(http.MethodGet, "/export?"+c.query("ref", vm, "task_id", task), nil); res.StatusCode != http.StatusForbidden {
		t.Errorf("export as an operator: %s", res.Status)
	}
	if r := c.task(task); r["status"] != "failure" || r["error_info"].([]any)[0] != "RBAC_PERMISSION_DENIED" || r["error_info"].([]any)[1] != "http/get_export" {
		t.Errorf("its task: %v", r)
	}
	admin := p.as(t, "u-vm-admin")
	if res := admin.export("ref", vm); res.StatusCode != http.StatusOK {
		t.Errorf("export as an admin: %s", res.Status)
	}
	if res := admin.do(http.MethodGet, "/pool/xmldbdump?"+admin.query(), nil); res.StatusCode != http.StatusForbidden {
		t.Errorf("the database as an admin: %s", res.Status)
	}
	basic := func(r *http.Request) { r.SetBasicAuth("u-read-only", "u-read-only-pw") }
	if res := c.do(http.MethodGet, "/export?ref="+vm, nil, basic); res.StatusCode != http.StatusForbidden {
		t.Errorf("with a password: %s", res.Status)
	}
}

func TestSubjects(t *testing.T) {
	p := startPool(t, withVMs(1), accounts)
	c := p.login(t)
	var subject, admin string
	for ref, v := range c.ok("subject.get_all_records").(map[string]any) {
		if v.(map[string]any)["other_config"].(map[string]any)["subject-name"] == "u-read-only" {
			subject = ref
		}
	}
	for ref, v := range c.ok("role.get_all_records").(map[string]any) {
		if r := v.(map[string]any); r["name_label"] == "pool-admin" && r["is_internal"] == false {
			admin = ref
		}
	}
	if c.str("role.get_uuid", admin) != "0165f154-ba3e-034e-6b27-5d271af109ba" { // as hosts have it
		t.Errorf("the role pool-admin is %s", admin)
	}
	if names := c.list("role.get_permissions_name_label", admin); !slices.Contains(names, "vm.destroy") || slices.Contains(names, "session.change_password") {
		t.Errorf("%d permissions", len(names))
	}
	if got := c.list("role.get_by_permission_name_label", "pool.enable_ha"); len(got) != 2 {
		t.Errorf("roles that enable HA: %v", got)
	}
	c.ok("subject.add_to_roles", subject, admin)
	c.fails("ROLE_ALREADY_EXISTS", "subject.add_to_roles", subject, admin)
	p.as(t, "u-read-only").ok("VM.hard_shutdown", c.vm("vm-01"))
	for _, role := range c.list("subject.get_roles", subject) {
		c.ok("subject.remove_from_roles", subject, role)
	}
	c.fails("ROLE_NOT_FOUND", "subject.remove_from_roles", subject, admin)
	c.fails("SESSION_AUTHORIZATION_FAILED", "session.login_with_password", "u-read-only", "u-read-only-pw", "1.1", "test")
	sid := c.str("subject.get_subject_identifier", subject)
	if got := c.list("session.get_all_subject_identifiers", c.session); !slices.Equal(got, []string{sid}) {
		t.Errorf("who is logged in: %v", got)
	}
	c.ok("session.logout_subject_identifier", c.session, sid)
	if got := c.list("session.get_all_subject_identifiers", c.session); len(got) != 0 {
		t.Errorf("who is still logged in: %v", got)
	}
	c.ok("subject.destroy", subject)
	c.fails("SESSION_AUTHORIZATION_FAILED", "session.login_with_password", "u-read-only", "u-read-only-pw", "1.1", "test")
	c.fails("SESSION_AUTHENTICATION_FAILED", "session.login_with_password", "u-read-only", "wrong", "1.1", "test")
	made := c.str("subject.create", map[string]any{"subject_identifier": "S-1", "other_config": map[string]string{}})
	if got := c.list("subject.get_roles", made); !slices.Equal(got, []string{admin}) {
		t.Errorf("roles of a new subject: %v", got)
	}
	c.fails("SUBJECT_ALREADY_EXISTS", "subject.create", map[string]any{"subject_identifier": "S-1"})
	for _, a := range []Account{{"x", "king", "p"}, {"", "read-only", "p"}, {"root", "read-only", "p"}, {"x", "read-only", ""}} {
		if p, err := New(Config{Accounts: []Account{a}, Data: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "account") {
			t.Errorf("account %+v: %v", a, err)
			_ = p.Close()
		}
	}
}

func TestRolesAreNoData(t *testing.T) {
	p := startPool(t, withVMs(1))
	c := p.login(t)
	if got := string(c.body(c.do(http.MethodGet, "/pool/xmldbdump?"+c.query(), nil))); strings.Contains(got, `<table name="role">`) || !strings.Contains(got, `<table name="VM">`) {
		t.Error("the dump of the database holds roles")
	}
	for _, e := range c.ok("event.from", []string{"*"}, "", 0.1).(map[string]any)["events"].([]any) {
		if e.(map[string]any)["class"] == "role" {
			t.Fatal("an event about a role")
		}
	}
}
