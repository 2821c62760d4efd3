package agent

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// Whatever stands under our prefix in the pool: it is understood, or named as strange, and never both or neither.
func FuzzLedger(f *testing.F) {
	c := &claim{j: &journal{agent: "xs1"}, work: owner{Session: "s", Key: "k", Nonce: strings.Repeat("a", 32)}}
	vs, err := values(c.record(time.Date(2026, 11, 22, 20, 0, 0, 0, time.UTC)), strings.Repeat("{}", 900))
	if err != nil {
		f.Fatal(err)
	}
	whole := ""
	for i, v := range vs {
		whole += fmt.Sprintf("dpxen:%s:swap.%d\t%s\n", testVM, i, v)
	}
	f.Add(whole)
	f.Add("dpxen:" + testVM + ":claim\t" + vs[0] + "\ndpxen:take:" + strings.Repeat("b", 32) + ".7\t" + vs[0])
	f.Add("dpxen:" + testVM + ":claim.2147483647\t" + vs[0])
	f.Add("dpxen:::\t{}\ndpxen:x:y.-1\t{\"v\":1}\nother\tvalue\ndpxen:a:b\t" + strings.Repeat("[", 2000))
	f.Fuzz(func(t *testing.T, text string) {
		all := map[string]string{}
		for line := range strings.Lines(text) {
			key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
			all[key] = value
		}
		l := parseLedger(all)
		known := map[string]int{}
		for _, e := range append(slices.Clone(l.entries), l.takes...) {
			for _, key := range e.Keys {
				known[key]++
			}
			if e.Complete {
				_ = e.decode(new(swapNote)) // an error is as good
			}
			if key := l.free(e.VM + ":" + e.Step); all[key] != "" {
				t.Errorf("key %q is free and in use", key)
			}
			if key := l.freeAfter(keyPrefix+e.VM+":"+e.Step, []entry{e}); l.raw[key] != "" {
				t.Errorf("key %q is free and in use", key)
			}
		}
		for key := range all {
			_, strange := l.unknown[key]
			if ours := strings.HasPrefix(key, keyPrefix); ours != (known[key] == 1) && ours != strange || known[key] > 1 || strange && known[key] > 0 {
				t.Errorf("key %q: known %d times, strange %v", key, known[key], strange)
			}
		}
		j := &journal{}
		j.observe(l)
		j.uselessTakes(l)
		j.worksIn(l, time.Now())
	})
}
