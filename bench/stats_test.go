package main

import (
	"strings"
	"testing"
)

func TestSpread(t *testing.T) {
	for _, tc := range []struct {
		in   []float64
		want spread
	}{
		{nil, spread{}},
		{[]float64{3}, spread{3, 3, 3}},
		{[]float64{5, 1, 3}, spread{3, 1, 5}},
		{[]float64{4, 1, 2, 9}, spread{3, 1, 9}},
	} {
		if got := spreadOf(tc.in); got != tc.want {
			t.Errorf("%v: %v instead of %v", tc.in, got, tc.want)
		}
	}
}

func TestRatioIsRoundByRound(t *testing.T) {
	a := []sample{{bytes: 10 << 20, seconds: 1}, {bytes: 10 << 20, seconds: 4}}
	b := []sample{{bytes: 10 << 20, seconds: 2}, {bytes: 10 << 20, seconds: 2}, {bytes: 1, seconds: 1}}
	if got := ratio(a, b); got != (spread{1.25, 0.5, 2}) {
		t.Errorf("ratio %v", got)
	}
}

func TestMetric(t *testing.T) {
	text := "# HELP a_b x\na_bc 3\na_b 1.5e+09\n"
	if got, err := metric(strings.NewReader(text), "a_b"); err != nil || got != 1.5e9 {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := metric(strings.NewReader(text), "b"); err == nil {
		t.Error("a metric that is not there was found")
	}
}
