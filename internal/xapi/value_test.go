package xapi

import (
	"errors"
	"math"
	"testing"
	"time"
)

func TestValueInt(t *testing.T) {
	for _, tc := range []struct {
		in   any
		want int64
		bad  bool
	}{
		{nil, 0, false}, {"", 0, false}, {" 42 ", 42, false}, {"9223372036854775807", math.MaxInt64, false}, {int64(-7), -7, false},
		{3.0, 3, false}, {3.5, 0, true}, {"1e3", 0, true}, {"0x10", 0, true}, {true, 0, true}, {[]any{}, 0, true},
		{"9223372036854775808", 0, true}, {math.Inf(1), 0, true}, {math.NaN(), 0, true},
	} {
		got, err := Value{tc.in}.Int()
		if got != tc.want || (err != nil) != tc.bad || tc.bad && !errors.Is(err, ErrProtocol) {
			t.Errorf("Int of %#v: got %d, %v, want %d", tc.in, got, err, tc.want)
		}
	}
}

func TestValueTime(t *testing.T) {
	want := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, in := range []any{"20260102T03:04:05Z", "2026-01-02T03:04:05Z", "20260102T03:04:05", "2026-01-02T03:04:05", "20260102T030405Z",
		"2026-01-02T04:04:05+01:00", "20260102T03:04:05.0Z", want.In(time.FixedZone("x", 3600))} {
		got, err := Value{in}.Time()
		if err != nil || !got.Equal(want) || got.Location() != time.UTC {
			t.Errorf("Time of %v: got %v, %v", in, got, err)
		}
	}
	for _, in := range []any{nil, "", "19700101T00:00:00Z", time.Unix(0, 0)} {
		if got, err := (Value{in}).Time(); err != nil || !got.IsZero() {
			t.Errorf("Time of %v: got %v, %v, want never", in, got, err)
		}
	}
	if _, err := (Value{"yesterday"}).Time(); !errors.Is(err, ErrProtocol) {
		t.Errorf("Time of a word: %v", err)
	}
}

func TestValueOthers(t *testing.T) {
	for in, want := range map[any]bool{"true": true, "1": true, "False": false, "": false, int64(1): true, true: true, nil: false} {
		if got, err := (Value{in}).Bool(); err != nil || got != want {
			t.Errorf("Bool of %#v: got %v, %v", in, got, err)
		}
	}
	if got, err := (Value{"0.25"}).Float(); err != nil || got != 0.25 {
		t.Errorf("Float: %v, %v", got, err)
	}
	if m, err := (Value{map[string]any{"a": "1", "n": int64(2), "b": true}}).Map(); err != nil || m["a"] != "1" || m["n"] != "2" || m["b"] != "true" {
		t.Errorf("Map: %v, %v", m, err)
	}
	if m, err := (Value{}).Map(); err != nil || m == nil {
		t.Errorf("Map of nothing: %v, %v", m, err)
	}
	for name, err := range map[string]error{
		"map of maps": second(Value{map[string]any{"a": map[string]any{}}}.Map()), "set": second(Value{"word"}.Strings()),
		"refs": second(Value{[]any{[]any{}}}.Refs()), "record": second(Value{"word"}.Record()), "text": second(Value{[]any{}}.Text()),
		"bool": second(Value{"maybe"}.Bool()), "float": second(Value{"x"}.Float()),
	} {
		if !errors.Is(err, ErrProtocol) {
			t.Errorf("%s of the wrong type: %v", name, err)
		}
	}
	if !Ref("").Null() || !NullRef.Null() || Ref("OpaqueRef:1").Null() {
		t.Error("Null")
	}
}

func second[T any](_ T, err error) error { return err }

func TestErrorSentinels(t *testing.T) {
	for code, want := range sentinels {
		err := error(&Error{Code: code, Params: []string{"p"}})
		if !errors.Is(err, want) {
			t.Errorf("%s is not %v", code, want)
		}
		if errors.Is(err, ErrProtocol) || errors.Is(err, ErrUnreachable) {
			t.Errorf("%s is about reaching the host", code)
		}
	}
	if errors.Is(&Error{Code: "SOMETHING_NEW"}, ErrNotFound) {
		t.Error("an unknown code is a sentinel")
	}
	if got := (&Error{Code: "A", Params: []string{"b", "c"}}).Error(); got != "A [b; c]" {
		t.Error(got)
	}
}
