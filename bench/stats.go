package main

import (
	"cmp"
	"slices"
)

// spread is the middle and the ends of some figures.
type spread struct{ median, low, high float64 }

func spreadOf(figures []float64) spread {
	if len(figures) == 0 {
		return spread{}
	}
	s := slices.Clone(figures)
	slices.SortFunc(s, cmp.Compare[float64])
	middle := s[len(s)/2]
	if len(s)%2 == 0 {
		middle = (s[len(s)/2-1] + middle) / 2
	}
	return spread{median: middle, low: s[0], high: s[len(s)-1]}
}

// of makes a spread of what f says of each sample.
func of(samples []sample, f func(sample) float64) spread {
	figures := make([]float64, len(samples))
	for i, s := range samples {
		figures[i] = f(s)
	}
	return spreadOf(figures)
}

// ratio compares two contenders round by round, for what disturbs a round disturbs both.
func ratio(a, b []sample) spread {
	var figures []float64
	for i := range min(len(a), len(b)) {
		figures = append(figures, a[i].rate()/b[i].rate())
	}
	return spreadOf(figures)
}
