package xensim

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/dpxen/dpxen/internal/xensim/model"
)

// whereParser reads the expressions of get_all_records_where: comparisons of
// fields and quoted strings, joined by "and", "or" and "not", in parentheses. As in
// XAPI a quoted string has no escapes, "and" and "or" bind equally, from the left,
// and "not" takes all that follows it.
type whereParser struct {
	class *model.Class
	words []string // a quoted string keeps its opening quote
}

type predicate func(*object) bool

// parseWhere gives a test of objects; nil means all of them.
func parseWhere(c *model.Class, expr string) (func(*object) bool, error) {
	if strings.TrimSpace(expr) == "true" {
		return nil, nil
	}
	words, err := whereWords(expr)
	if err == nil {
		p := &whereParser{class: c, words: words}
		var keep predicate
		if keep, err = p.expression(); err == nil && len(p.words) == 0 {
			return keep, nil
		}
		if err == nil {
			err = fmt.Errorf("%q is too much", p.words[0])
		}
	}
	return nil, fail("INVALID_VALUE", expr, err.Error())
}

// whereWords splits an expression; it needs no spaces between its words.
func whereWords(expr string) ([]string, error) {
	var words []string
	for {
		expr = strings.TrimLeft(expr, " \t\n")
		switch {
		case expr == "":
			return words, nil
		case expr[0] == '"':
			end := strings.IndexByte(expr[1:], '"')
			if end < 0 {
				return nil, errors.New("a quote is missing")
			}
			words, expr = append(words, expr[:end+1]), expr[end+2:]
			continue
		}
		word := ""
		for _, w := range []string{"=", "(", ")", "true", "false", "field", "and", "or", "not"} {
			if strings.HasPrefix(expr, w) {
				word = w
			}
		}
		if word == "" {
			return nil, fmt.Errorf("%q is not understood", expr)
		}
		words, expr = append(words, word), expr[len(word):]
	}
}

func (p *whereParser) take() string {
	if len(p.words) == 0 {
		return ""
	}
	w := p.words[0]
	p.words = p.words[1:]
	return w
}

func (p *whereParser) expression() (predicate, error) {
	left, err := p.term()
	for err == nil && len(p.words) > 0 && (p.words[0] == "and" || p.words[0] == "or") {
		a, both := left, p.take() == "and"
		var b predicate
		b, err = p.term()
		left = func(o *object) bool {
			if both {
				return a(o) && b(o)
			}
			return a(o) || b(o)
		}
	}
	return left, err
}

func (p *whereParser) term() (predicate, error) {
	if len(p.words) > 0 && (p.words[0] == "field" || strings.HasPrefix(p.words[0], `"`)) {
		return p.comparison()
	}
	switch w := p.take(); w {
	case "true":
		return func(*object) bool { return true }, nil
	case "false":
		return func(*object) bool { return false }, nil
	case "not":
		in, err := p.expression()
		return func(o *object) bool { return !in(o) }, err
	case "(":
		in, err := p.expression()
		if err == nil && p.take() != ")" {
			err = errors.New("a parenthesis is missing")
		}
		return in, err
	default:
		return nil, fmt.Errorf("%q is not expected", w)
	}
}

func (p *whereParser) comparison() (predicate, error) {
	left, err := p.value()
	if err != nil {
		return nil, err
	}
	if w := p.take(); w != "=" {
		return nil, fmt.Errorf("%q stands for an equals sign", w)
	}
	right, err := p.value()
	return func(o *object) bool { return left(o) == right(o) }, err
}

// value reads a quoted string or field "name". Names may be written as in the
// records or as in XAPI's database (name__label).
func (p *whereParser) value() (func(*object) string, error) {
	field := false
	w := p.take()
	if w == "field" {
		field, w = true, p.take()
	}
	text, quoted := strings.CutPrefix(w, `"`)
	if !quoted {
		return nil, fmt.Errorf("%q is no quoted string", w)
	}
	if !field {
		return func(*object) string { return text }, nil
	}
	if text == "_ref" || text == "ref" {
		return func(o *object) string { return o.ref }, nil
	}
	f := p.class.Field(strings.TrimPrefix(text, "_"))
	if f == nil {
		f = p.class.Field(strings.ReplaceAll(text, "__", "_"))
	}
	if f == nil {
		return nil, fmt.Errorf("%s has no field %s", p.class.Name, text)
	}
	return func(o *object) string { return databaseValue(o.vals[f.Index]) }, nil
}

// databaseText gives a scalar as XAPI's database keeps it.
func databaseText(v any) string {
	switch v := v.(type) {
	case bool:
		return strconv.FormatBool(v)
	case string:
		return v
	case model.DateTime:
		return string(v)
	case int64:
		return strconv.FormatInt(v, 10)
	}
	return ""
}
