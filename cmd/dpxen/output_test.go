package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestClean(t *testing.T) {
	for _, c := range []struct{ in, text, ascii string }{
		{"web-01 it's \"a\" C:\\x", "web-01 it's \"a\" C:\\x", "web-01 it's \"a\" C:\\x"},
		{"büro 東", "büro 東", `b\u00fcro \u6771`},
		{"\x1b[31mred\x07\r\n\t", `\x1b[31mred\a\r\n\t`, `\x1b[31mred\a\r\n\t`},
		{"a\u202eb\u200b\u0085", `a\u202eb\u200b\u0085`, `a\u202eb\u200b\u0085`},
		{"\xff\xc3(\ufffd", `\xff\xc3(` + "\ufffd", `\xff\xc3(\ufffd`},
		{"\U0001f600", "\U0001f600", `\U0001f600`},
	} {
		if got := clean(c.in, false); got != c.text {
			t.Errorf("text of %q: %s, want %s", c.in, got, c.text)
		}
		if got := clean(c.in, true); got != c.ascii {
			t.Errorf("ASCII of %q: %s, want %s", c.in, got, c.ascii)
		}
	}
}

// TestNothingRawIsPrinted holds it of any text, on every way out.
func TestNothingRawIsPrinted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.OneOf(rapid.String(), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) })).Draw(t, "text")
		var b bytes.Buffer
		p := printer{w: &b, ascii: true}
		p.line("a %s b", s)
		if err := p.table([][]string{{"HEAD", "MORE"}, {s, s}}); err != nil {
			t.Fatal(err)
		}
		if got := strings.Count(b.String(), "\n"); got != 3 {
			t.Errorf("%d lines of %q: %q", got, s, b.String())
		}
		(&app{err: &b}).complain(errors.New(s))
		for _, r := range clean(b.String(), true) {
			if r >= 0x7f || r < ' ' {
				t.Fatalf("%q was printed as %q", s, b.String())
			}
		}
		for _, r := range b.String() {
			if r < ' ' && r != '\n' || r == 0x7f {
				t.Fatalf("%q was printed as %q", s, b.String())
			}
		}
	})
}

func TestTable(t *testing.T) {
	var b bytes.Buffer
	if err := (printer{w: &b}).table([][]string{{"A", "B", "C"}, {"büro", "", ""}, {"x", "1\t2", "end"}}); err != nil {
		t.Fatal(err)
	}
	want := "A     B     C\nbüro  -\nx     1\\t2  end\n"
	if b.String() != want {
		t.Errorf("table:\n%q, want\n%q", b.String(), want)
	}
}
