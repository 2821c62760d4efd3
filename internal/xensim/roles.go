package xensim

import (
	"crypto/md5" //nolint:gosec // XAPI makes the uuids of roles by it; no secret is at stake
	"crypto/subtle"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/uuid"
)

// Account is a user beside the root of a pool: a subject of an external directory
// with one of XAPI's roles.
type Account struct {
	Name, Role, Password string
}

// roleNames are the static roles, from the most powerful to the weakest
// (datamodel_roles.ml).
var roleNames = []string{"pool-admin", "pool-operator", "vm-power-admin", "vm-admin", "vm-operator", "read-only"}

// localRoot is the role, in the model's table, of calls that no subject may make.
const localRoot = "local-root"

// httpActions are the names of handlers, as permissions, with the least role that
// may use them.
var httpActions = map[string][2]string{
	"VM.export": {"get_export", "vm-admin"}, "VM.import": {"put_import", "vm-admin"},
	"VM.export_metadata": {"get_export_metadata", "vm-admin"}, "VM.metadata_import": {"put_import_metadata", "vm-admin"},
	"VDI.export_raw": {"get_export_raw_vdi", "vm-admin"}, "VDI.import": {"put_import_raw_vdi", "vm-admin"},
	"dump database": {"get_pool_xml_db_sync", "pool-admin"},
}

// keyRoles are keys of other_config that weaker roles may write than the field.
var keyRoles = map[string]map[string]string{
	"vm": {"folder": "vm-operator", "XenCenter.CustomFields.*": "vm-operator", "pci": "pool-admin"},
	"sr": {"folder": "vm-operator", "XenCenter.CustomFields.*": "vm-operator"}, "vdi": {"folder": "vm-operator", "XenCenter.CustomFields.*": "vm-operator"},
	"network": {"folder": "vm-operator", "XenCenter.CustomFields.*": "vm-operator", "XenCenterCreateInProgress": "vm-operator"},
	"task":    {"applies_to": "vm-operator", "XenCenterUUID": "vm-operator", "XenCenterMeddlingActionTitle": "vm-operator"},
}

// allows says whether a role has what a permission wants.
func allows(role, want string) bool {
	have, need := slices.Index(roleNames, role), slices.Index(roleNames, want)
	return have >= 0 && need >= 0 && have <= need
}

// deniedTo is the error for a role that lacks a permission.
func deniedTo(permission, want string) error {
	with := []string{}
	for _, r := range roleNames {
		if allows(r, want) {
			with = append(with, r)
		}
	}
	return fail("RBAC_PERMISSION_DENIED", permission,
		"No permission in user session. (Roles with this permission: "+strings.Join(with, ", ")+")")
}

// wantedRole gives the least role for a call.
func (p *Pool) wantedRole(method string) string {
	class, name, _ := strings.Cut(method, ".")
	if c := p.db.model.Class(class); c != nil && c.Roles[name] != "" {
		return c.Roles[name]
	}
	return "read-only"
}

// permitted checks a session's role against a call; the database is locked.
func (p *Pool) permitted(session, method string, args []any) error {
	s := p.db.find("session", session)
	if s == nil || s.is("is_local_superuser") {
		return nil
	}
	permission, want := strings.ToLower(method), p.wantedRole(method)
	class, call, _ := strings.Cut(permission, ".")
	if (call == "add_to_other_config" || call == "remove_from_other_config") && len(args) > 1 {
		if key, role := keyRole(class, textOf(args[1])); role != "" {
			permission, want = permission+"/key:"+key, role
		}
	}
	if !allows(p.roles[session], want) {
		return deniedTo(permission, want)
	}
	return nil
}

// keyRole gives the role for a key of other_config that has one of its own.
func keyRole(class, key string) (pattern, role string) {
	for k, role := range keyRoles[class] {
		prefix, open := strings.CutSuffix(k, "*")
		if key == k || open && strings.HasPrefix(key, prefix) {
			return k, role
		}
	}
	return "", ""
}

// permittedHandler checks a session's role against a handler.
func (p *Pool) permittedHandler(session, label string) error {
	s := p.db.find("session", session)
	action, known := httpActions[label]
	if s == nil || s.is("is_local_superuser") || !known || allows(p.roles[session], action[1]) {
		return nil
	}
	return deniedTo("http/"+action[0], action[1])
}

// identify checks a name and a password. Root has no subject.
func (p *Pool) identify(user, password string) (subject string, ok bool) {
	u := subtle.ConstantTimeCompare([]byte(user), []byte(p.cfg.User))
	if w := subtle.ConstantTimeCompare([]byte(password), []byte(p.cfg.Password)); u&w == 1 {
		return nullRef, true
	}
	for i, a := range p.cfg.Accounts {
		u := subtle.ConstantTimeCompare([]byte(user), []byte(a.Name))
		if w := subtle.ConstantTimeCompare([]byte(password), []byte(a.Password)); u&w == 1 {
			return p.subjects[i], true
		}
	}
	return nullRef, false
}

// roleOf gives the most powerful role of a subject, or none.
func (p *Pool) roleOf(subject *object) string {
	for _, name := range roleNames {
		if slices.Contains(subject.refs("roles"), roleRef(name)) {
			return name
		}
	}
	return ""
}

// newSubjectSession makes a session for a subject with its role's permissions.
func (p *Pool) newSubjectSession(h *simHost, user, originator, subject string) (string, error) {
	if subject == nullRef {
		return p.newSession(h, user, originator), nil
	}
	o := p.db.find("subject", subject)
	if o == nil || p.roleOf(o) == "" {
		return "", fail("SESSION_AUTHORIZATION_FAILED", user, "Subject is not in the pool, or has no role")
	}
	ref := p.newSession(h, user, originator)
	s := p.db.find("session", ref)
	p.db.set(s, "is_local_superuser", false)
	p.db.set(s, "subject", subject)
	p.db.set(s, "auth_user_sid", o.str("subject_identifier"))
	p.db.set(s, "rbac_permissions", p.permissionsOf(p.roleOf(o)))
	p.roles[ref] = p.roleOf(o)
	return ref, nil
}

// roleUUID derives a role's uuid from its name (gen_rbac.ml).
func roleUUID(name string) string {
	u := uuid.UUID(md5.Sum([]byte(name))) //nolint:gosec // see the import
	return u.String()
}

func roleRef(name string) string { return "OpaqueRef:" + roleUUID(name) }

// permissions gives the names of all permissions with the least role of each.
func (p *Pool) permissions() map[string]string {
	out := map[string]string{}
	for name, m := range p.methods {
		if role := p.wantedRole(name); m.session && role != localRoot {
			out[strings.ToLower(name)] = role
		}
	}
	for _, a := range httpActions {
		out["http/"+a[0]] = a[1]
	}
	for class, keys := range keyRoles {
		for key, role := range keys {
			for _, call := range []string{"add_to", "remove_from"} {
				out[class+"."+call+"_other_config/key:"+key] = role
			}
		}
	}
	return out
}

func (p *Pool) permissionsOf(role string) []string {
	out := []string{}
	for name, want := range p.permissions() {
		if allows(role, want) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// addRoles makes the records of roles, of the permissions that they are made of,
// and of the subjects. The calls must have been registered.
func (p *Pool) addRoles() {
	if !p.db.model.Has(p.api, "midnight-ride") {
		return
	}
	all := p.permissions()
	names := slices.Sorted(maps.Keys(all))
	for _, name := range names {
		p.db.insert("role", roleRef(name), map[string]any{
			"uuid": roleUUID(name), "name_label": name, "name_description": "A basic permission", "is_internal": true,
		})
	}
	for _, role := range roleNames {
		sub := []string{}
		for _, name := range names {
			if allows(role, all[name]) {
				sub = append(sub, roleRef(name))
			}
		}
		p.db.insert("role", roleRef(role), map[string]any{
			"uuid": roleUUID(role), "name_label": role, "name_description": "The role " + role, "subroles": sub,
		})
	}
	for i, a := range p.cfg.Accounts {
		o := p.db.create("subject", map[string]any{
			"subject_identifier": fmt.Sprintf("S-1-5-21-1000-2000-3000-%d", 1100+i), "roles": []string{roleRef(a.Role)},
			"other_config": map[string]string{"subject-name": a.Name, "subject-gecos": a.Name, "subject-is-group": "false"},
		})
		p.subjects = append(p.subjects, o.ref)
	}
}
