package xensim

import "slices"

func (p *Pool) registerRoles() {
	role := func(name string, run func(o *object) any) {
		p.quick(name, func(_ *call, args []any) (any, error) {
			o, err := p.db.need("role", args[0].(string))
			if err != nil {
				return nil, err
			}
			return run(o), nil
		})
	}
	role("role.get_permissions", func(o *object) any { return p.leaves(o, func(l *object) string { return l.ref }) })
	role("role.get_permissions_name_label", func(o *object) any { return p.leaves(o, (*object).name) })
	role("role.get_by_permission", func(o *object) any { return p.rolesWith(o.ref) })
	p.quick("role.get_by_permission_name_label", func(_ *call, args []any) (any, error) {
		return p.rolesWith(roleRef(args[0].(string))), nil
	})
	p.registerSubjects()
}

// registerSubjects adds the calls about users of a directory.
func (p *Pool) registerSubjects() {
	p.quick("session.get_all_subject_identifiers", func(*call, []any) (any, error) {
		out := []string{}
		for _, s := range p.db.all("session") {
			if sid := s.str("auth_user_sid"); sid != "" && !slices.Contains(out, sid) {
				out = append(out, sid)
			}
		}
		return out, nil
	})
	p.quick("session.logout_subject_identifier", func(c *call, args []any) (any, error) {
		for _, s := range p.db.all("session") {
			if s.str("auth_user_sid") == args[0] && s.ref != c.session {
				p.dropSession(s.ref)
			}
		}
		return "", nil
	})
	p.quick("subject.create", func(_ *call, args []any) (any, error) {
		f, err := p.recordFields("subject", args[0])
		if err != nil {
			return nil, err
		}
		for _, o := range p.db.tables["subject"] {
			if o.str("subject_identifier") == f["subject_identifier"] {
				return nil, fail("SUBJECT_ALREADY_EXISTS")
			}
		}
		return p.db.create("subject", f).ref, nil
	})
	p.quick("subject.destroy", c2(func(_ *call, ref string) error {
		o, err := p.db.need("subject", ref)
		if err == nil {
			p.db.remove(o)
		}
		return err
	}))
	subject := func(name string, run func(o *object, role string) (any, error)) {
		p.quick(name, func(_ *call, args []any) (any, error) {
			o, err := p.db.need("subject", args[0].(string))
			if err != nil {
				return nil, err
			}
			role := ""
			if len(args) > 1 {
				role = args[1].(string)
			}
			return run(o, role)
		})
	}
	subject("subject.add_to_roles", func(o *object, role string) (any, error) {
		switch {
		case p.db.find("role", role) == nil:
			return nil, fail("ROLE_NOT_FOUND")
		case slices.Contains(o.refs("roles"), role):
			return nil, fail("ROLE_ALREADY_EXISTS")
		}
		p.db.set(o, "roles", append(slices.Clone(o.refs("roles")), role))
		return "", nil
	})
	subject("subject.remove_from_roles", func(o *object, role string) (any, error) {
		if !slices.Contains(o.refs("roles"), role) {
			return nil, fail("ROLE_NOT_FOUND")
		}
		p.db.set(o, "roles", without(o.refs("roles"), role))
		return "", nil
	})
	subject("subject.get_permissions_name_label", func(o *object, _ string) (any, error) {
		return p.permissionsOf(p.roleOf(o)), nil
	})
}

// leaves gives something of the permissions that a role is made of.
func (p *Pool) leaves(role *object, of func(*object) string) []string {
	subs := p.db.many("role", role.refs("subroles"))
	if len(subs) == 0 {
		return []string{of(role)}
	}
	out := make([]string, len(subs))
	for i, s := range subs {
		out[i] = of(s)
	}
	return out
}

// rolesWith gives the roles that have a permission.
func (p *Pool) rolesWith(permission string) []string {
	out := []string{}
	for _, name := range roleNames {
		if o := p.db.find("role", roleRef(name)); o != nil && slices.Contains(o.refs("subroles"), permission) {
			out = append(out, o.ref)
		}
	}
	return out
}
