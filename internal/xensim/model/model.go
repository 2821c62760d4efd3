// Package model holds XAPI's data model: classes with their fields, messages,
// enums and errors, as data that the simulator's database and dispatcher are
// driven by. The table xapi.txt says where it comes from.
package model

import (
	"bufio"
	_ "embed"
	"fmt"
	"strconv"
	"strings"
	"sync"
)

//go:embed xapi.txt
var table string

// Qualifier says who may write a field.
type Qualifier byte

// The qualifiers: set by the server at run time only, given at construction, or
// writable by clients.
const (
	Runtime     Qualifier = 'R'
	Constructor Qualifier = 'C'
	ReadWrite   Qualifier = 'W'
)

// Field is a field of a class.
type Field struct {
	Name      string
	Type      *Type
	Qualifier Qualifier
	// Since and Removed are names of releases; Removed is mostly empty.
	Since, Removed string
	// Default is the value of a new record's field; HasDefault says whether the
	// model names it, so that a constructor may leave the field out.
	Default    any
	HasDefault bool
	// Index is the place of the field in its class.
	Index int
}

// Param is a parameter of a message. Optional ones came with a later release and
// may be left out at the end of a call.
type Param struct {
	Name     string
	Type     *Type
	Optional bool
	Default  any
	Since    string
}

// Message is a call that a class answers. Params leaves the session out;
// Session says whether one comes first.
type Message struct {
	Name           string
	Result         *Type
	Since, Removed string
	Session        bool
	Params         []Param
}

// Required counts the parameters that a caller must give, without the session.
func (m *Message) Required() int {
	n := 0
	for _, p := range m.Params {
		if !p.Optional {
			n++
		}
	}
	return n
}

// Class is a class of the data model.
type Class struct {
	Name     string
	Since    string
	Fields   []*Field
	Messages map[string]*Message
	// Implicit holds the names of the getters and setters that are made from
	// fields.
	Implicit map[string]bool
	// Roles names the least role that may make a call, where it is not the weakest
	// of all, and LocalRoot for calls that nobody may make over the network.
	Roles map[string]string

	byName map[string]*Field
}

// Stored says whether the database has a table of the class; the others only name
// calls, or records that calls give.
func (c *Class) Stored() bool { return c.Implicit["get_record"] || c.Name == "message" }

// Field gives the field of that name, or nil.
func (c *Class) Field(name string) *Field { return c.byName[name] }

// Model is the whole data model. It is not to be changed.
type Model struct {
	Classes []*Class
	Enums   map[string][]string
	// Errors maps a code to the names of its parameters.
	Errors map[string][]string

	byName   map[string]*Class
	releases map[string]Version
}

// Class gives the class of that name, or nil.
func (m *Model) Class(name string) *Class { return m.byName[name] }

// Version is an API version, host.API_version_major and minor.
type Version struct{ Major, Minor int }

// Less orders versions.
func (v Version) Less(w Version) bool {
	return v.Major < w.Major || v.Major == w.Major && v.Minor < w.Minor
}

// rolling is the API version from which xapi's package versions count as
// present: those after the last code name but one belong to XenServer 8.
var rolling = Version{2, 20}

// Has says whether a host of the version api knows what came with the release
// since.
func (m *Model) Has(api Version, since string) bool {
	if since == "" {
		return true
	}
	v, ok := m.releases[since]
	if !ok {
		v = rolling
	}
	return !api.Less(v)
}

// Visible says whether a host of the version api has the field. Fields that were
// removed stay in records, with their default.
func (m *Model) Visible(api Version, f *Field) bool {
	return m.Has(api, f.Since)
}

// Load gives the model, parsed once.
var Load = sync.OnceValue(func() *Model {
	m, err := parse(table)
	if err != nil {
		panic(err) // the table is part of the program; a test parses it
	}
	return m
})

func parse(text string) (*Model, error) {
	m := &Model{
		Enums: map[string][]string{}, Errors: map[string][]string{},
		byName: map[string]*Class{}, releases: map[string]Version{},
	}
	sc := bufio.NewScanner(strings.NewReader(text))
	sc.Buffer(make([]byte, 64<<10), 1<<20)
	var cur *Class
	for n := 1; sc.Scan(); n++ {
		if strings.HasPrefix(sc.Text(), "#") {
			continue
		}
		col := strings.Split(sc.Text(), "\t")
		var err error
		if col[0] == "class" {
			cur = &Class{
				Name: col[1], Since: col[2], Messages: map[string]*Message{},
				Implicit: map[string]bool{}, Roles: map[string]string{}, byName: map[string]*Field{},
			}
			m.Classes = append(m.Classes, cur)
			m.byName[cur.Name] = cur
		} else {
			err = m.line(cur, col)
		}
		if err != nil {
			return nil, fmt.Errorf("model: line %d: %w", n, err)
		}
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("model: reading the table: %w", err)
	}
	m.fillDefaults()
	return m, nil
}

func (m *Model) line(cur *Class, col []string) error {
	switch col[0] {
	case "release":
		major, minor, _ := strings.Cut(col[2], ".")
		a, err := strconv.Atoi(major)
		if err != nil {
			return fmt.Errorf("release %q: %w", col[2], err)
		}
		b, err := strconv.Atoi(minor)
		m.releases[col[1]] = Version{a, b}
		return err
	case "f":
		return cur.addField(col[1:])
	case "m":
		return cur.addMessage(col[1:])
	case "i":
		for name := range strings.FieldsSeq(col[1]) {
			cur.Implicit[name] = true
		}
	case "r":
		for name := range strings.FieldsSeq(col[2]) {
			cur.Roles[name] = col[1]
		}
	case "e":
		m.Enums[col[1]] = strings.Fields(col[2])
	case "error":
		m.Errors[col[1]] = strings.Fields(strings.Join(col[2:], " "))
	default:
		return fmt.Errorf("unknown kind of line %q", col[0])
	}
	return nil
}

func at(col []string, i int) string {
	if i < len(col) && col[i] != "-" {
		return col[i]
	}
	return ""
}

func (c *Class) addField(col []string) error {
	t, err := ParseType(at(col, 1))
	if err != nil {
		return err
	}
	f := &Field{Name: col[0], Type: t, Since: at(col, 3), Removed: at(col, 4), Index: len(c.Fields)}
	if q := at(col, 2); q != "" {
		f.Qualifier = Qualifier(q[0])
	}
	if d := at(col, 5); d != "" {
		f.HasDefault = true
		if f.Default, err = t.ParseDefault(d); err != nil {
			return err
		}
	}
	c.Fields = append(c.Fields, f)
	c.byName[f.Name] = f
	return nil
}

func (c *Class) addMessage(col []string) error {
	result, err := ParseType(col[1])
	if err != nil {
		return err
	}
	msg := &Message{Name: col[0], Result: result, Since: at(col, 2), Removed: at(col, 3)}
	for _, p := range col[4:] {
		if p == "session_id:session ref" {
			msg.Session = true
			continue
		}
		name, rest, _ := strings.Cut(p, ":")
		typ, def, optional := strings.Cut(rest, "=")
		t, err := ParseType(typ)
		if err != nil {
			return err
		}
		param := Param{Name: name, Type: t, Optional: optional}
		if optional {
			value, since, _ := strings.Cut(def, "@")
			param.Since = since
			if param.Default, err = t.ParseDefault(value); err != nil {
				return err
			}
		}
		msg.Params = append(msg.Params, param)
	}
	c.Messages[msg.Name] = msg
	return nil
}

func (m *Model) fillDefaults() {
	for _, c := range m.Classes {
		for _, msg := range c.Messages {
			for _, p := range msg.Params {
				p.Type.learn(m.Enums)
			}
		}
		for _, f := range c.Fields {
			f.Type.learn(m.Enums)
			if f.Default == nil {
				f.Default = f.Type.Zero(m.Enums)
			}
		}
	}
}
