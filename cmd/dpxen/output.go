package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/dustin/go-humanize"
)

// clean escapes what does not belong in a line of text: control characters, invalid UTF-8, what cannot be seen, and in
// ASCII output everything else. What hosts and agents say never reaches a terminal or a log in any other way.
func clean(s string, ascii bool) string {
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case strconv.IsPrint(r) && (!ascii || r < utf8.RuneSelf):
			b.WriteRune(r)
		default:
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		}
		s = s[n:]
	}
	return b.String()
}

// printer writes cleaned lines.
type printer struct {
	w     io.Writer
	ascii bool
}

// line writes one line, whatever the arguments hold.
func (p printer) line(format string, args ...any) {
	fmt.Fprintln(p.w, strings.TrimRight(clean(fmt.Sprintf(format, args...), p.ascii), " "))
}

// table writes rows as columns, the first row being the heading.
func (p printer) table(rows [][]string) error {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		cells := make([]string, len(row))
		for i, cell := range row {
			if cells[i] = clean(cell, p.ascii); cell == "" && i < len(row)-1 {
				cells[i] = "-"
			}
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print a table: %w", err)
	}
	for line := range strings.Lines(b.String()) {
		fmt.Fprintln(p.w, strings.TrimRight(line, " \n"))
	}
	return nil
}

// text is the printer of what people read on the screen or in a file.
func (a *app) text() printer { return printer{w: a.out} }

// log is the printer of a session, whose reader may be Data Protector: plain ASCII unless somebody watches.
func (a *app) log() printer { return printer{w: a.out, ascii: !a.terminal} }

// complain prints an error, each of its lines cleaned.
func (a *app) complain(err error) {
	if err == nil {
		return
	}
	for i, line := range strings.Split(strings.TrimSpace(err.Error()), "\n") {
		prefix := "dpxen: "
		if i > 0 {
			prefix = "  "
		}
		fmt.Fprintf(a.err, "%s%s\n", prefix, clean(strings.TrimSpace(line), false))
	}
}

// encode prints one JSON document on one line.
func (a *app) encode(v any) error {
	enc := json.NewEncoder(a.out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	return nil
}

// size puts a number of bytes for people.
func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

// took puts a duration for people, the more exactly the shorter it is.
func took(d time.Duration) string {
	switch {
	case d < time.Second/10:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(time.Second / 10).String()
	}
	return d.Round(time.Second).String()
}

// seconds is took of a number of seconds.
func seconds(s float64) string { return took(time.Duration(s * float64(time.Second))) }

// moment puts a time for people, in the local zone.
func moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format(time.DateTime)
}

// plural is "1 disk", "2 disks".
func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}

// place names a VM with its pool, as pool/name.
func place(pool, name string) string {
	if pool == "" {
		return name
	}
	return pool + "/" + name
}
