package xva

import (
	"bytes"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// anyField draws a value as XAPI's records have them; kept tells whether it can be brought back.
func anyField(rt *rapid.T) (v any, kept bool) {
	word := rapid.StringOf(rapid.RuneFrom([]rune("aä<&>\"]\t €\U0001F600")))
	switch rapid.IntRange(0, 9).Draw(rt, "kind") {
	case 0:
		return rapid.Bool().Draw(rt, "bool"), true
	case 1:
		return rapid.Int64().Draw(rt, "int"), true
	case 2:
		return rapid.Float64().Draw(rt, "float"), true
	case 3:
		return rapid.SampledFrom([]float64{math.NaN(), math.Inf(1), math.Inf(-1)}).Draw(rt, "no number"), false
	case 4:
		var list []any
		for _, s := range rapid.SliceOfN(word, 0, 3).Draw(rt, "list") {
			list = append(list, s)
		}
		return append([]any{}, list...), true
	case 5:
		m := map[string]any{}
		for k, s := range rapid.MapOfN(word, word, 0, 3).Draw(rt, "map") {
			m[k] = s
		}
		return m, true
	case 6:
		return rapid.SampledFrom([]any{nil, []any{int64(1)}, []any{[]any{}}, map[string]any{"a": true}}).Draw(rt, "other"), false
	case 7:
		return "a\x01\xff", false
	}
	return word.Draw(rt, "string"), true
}

// asValue is what a field of a record is in ova.xml.
func asValue(v any) Value {
	switch x := v.(type) {
	case bool:
		return boolean(x)
	case int64:
		return text(strconv.FormatInt(x, 10))
	case float64:
		return double(strconv.FormatFloat(x, 'g', -1, 64))
	case []any:
		var items []Value
		for _, item := range x {
			items = append(items, text(item.(string)))
		}
		return set(items...)
	case map[string]any:
		m := structOf()
		for _, k := range slices.Sorted(maps.Keys(x)) {
			m = m.with(k, text(x[k].(string)))
		}
		return m
	}
	return text(v.(string))
}

func written(v Value) string { return string(appendValue(nil, v)) }

// TestOwnRecordProperty: what a VM's record has, of the fields that can be brought back, is what the ova.xml of its snapshot has
// afterwards, and nothing else in it is another; what XAPI would not take as a field is left out and does no harm; a second
// time changes nothing, and what is written is read again.
func TestOwnRecordProperty(t *testing.T) {
	snapshot, err := ParseOVA(testOVA(testDisk{"Ref:1", 1 << 20}))
	if err != nil {
		t.Fatal(err)
	}
	before, err := snapshot.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	names := append(slices.Clone(ownFields), "VBDs", "NVRAM", "power_state", "snapshot_of", "no_such_field")
	rapid.Check(t, func(rt *rapid.T) {
		record, want := map[string]any{}, map[string]Value{}
		for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom(names), 0, 12, rapid.ID).Draw(rt, "fields") {
			v, kept := anyField(rt)
			if record[name] = v; kept && slices.Contains(ownFields, name) {
				want[name] = asValue(v)
			}
		}
		own, err := OwnRecord(record)
		if err != nil {
			rt.Fatalf("keep %#v: %v", record, err)
		}
		got, err := snapshot.WithOwn(own)
		if err != nil {
			rt.Fatalf("lay %s over: %v", own, err)
		}
		for _, name := range slices.Concat(names, snapshot.VMRecord().Names()) {
			is, there := got.VMField(name)
			should, known := want[name]
			if !known {
				should, known = snapshot.VMField(name)
			}
			if there != known || there && written(is) != written(should) {
				rt.Fatalf("%s is %s, want %s", name, written(is), written(should))
			}
		}
		bytesOf := func(o *OVA) []byte {
			b, err := o.Bytes()
			if err != nil {
				rt.Fatal(err)
			}
			return b
		}
		again, err := got.WithOwn(own)
		if err != nil || !bytes.Equal(bytesOf(again), bytesOf(got)) {
			rt.Fatalf("a second time changes it (%v)", err)
		}
		read, err := ParseOVA(bytesOf(got))
		if err != nil || !bytes.Equal(bytesOf(read), bytesOf(got)) {
			rt.Fatalf("it is read otherwise (%v)", err)
		}
		if !bytes.Equal(bytesOf(snapshot), before) {
			rt.Fatal("the snapshot's own was changed")
		}
	})
}

// FuzzWithOwn: whatever stands in a manifest, an ova.xml comes of it that can be read, with the disks that it had, or an error.
func FuzzWithOwn(f *testing.F) {
	for _, s := range []string{`{"uuid":"x"}`, `{"order":1e999}`, `{"tags":["a",1]}`, `{"platform":{"a":"b"}}`, `{"tags":null}`, `{} {}`, `[]`, `{"name_label":"\u0001"}`, "{"} {
		f.Add([]byte(s))
	}
	snapshot, err := ParseOVA(testOVA(testDisk{"Ref:1", 1 << 20}))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, own []byte) {
		got, err := snapshot.WithOwn(own)
		if err != nil {
			return
		}
		b, err := got.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		read, err := ParseOVA(b)
		if err != nil {
			t.Fatalf("%s made %.300s: %v", own, b, err)
		}
		was, wasErr := snapshot.Disks()
		is, isErr := read.Disks()
		if (wasErr == nil) != (isErr == nil) || len(was) != len(is) {
			t.Fatalf("%d disks (%v), there were %d (%v)", len(is), isErr, len(was), wasErr)
		}
	})
}

func TestOwnRecordBounds(t *testing.T) {
	if _, err := OwnRecord(map[string]any{"name_description": strings.Repeat("x", MaxOwnRecord)}); err == nil {
		t.Error("a record without bounds was kept")
	}
	o, err := ParseOVA(testOVA(testDisk{"Ref:1", 1 << 20}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.WithOwn(bytes.Repeat([]byte(" "), MaxOwnRecord+1)); err == nil {
		t.Error("a record without bounds was taken")
	}
	if same, err := o.WithOwn(nil); err != nil || same != o {
		t.Errorf("no record: %v", err)
	}
}
