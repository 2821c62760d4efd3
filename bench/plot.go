package main

import (
	"image/color"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	_ "gonum.org/v1/plot/vg/vgsvg" // for Save
)

// plotRatios draws a bar for each table: how many times as fast as curl dpxen was, with the spread over the rounds.
func plotRatios(path string, done []result) error {
	p := plot.New()
	p.Title.Text = "dpxen ÷ curl over HTTPS, the higher the better"
	p.X.Label.Text = "ratio of MiB/s"
	p.X.Min = 0
	var values plotter.Values
	var errs spreads
	var names []string
	for i := len(done) - 1; i >= 0; i-- { // the first one at the top
		r := done[i]
		if len(r.samples["dpxen"]) == 0 {
			continue // it compares dpxen with itself
		}
		x := ratio(r.samples["dpxen"], r.samples[r.base])
		errs.XYs = append(errs.XYs, plotter.XY{X: x.median, Y: float64(len(values))})
		errs.XErrors = append(errs.XErrors, struct{ Low, High float64 }{x.low - x.median, x.high - x.median})
		values = append(values, x.median)
		names = append(names, strings.ReplaceAll(r.name, ", staging", ""))
	}
	if len(values) == 0 {
		return nil
	}
	bars, err := plotter.NewBarChart(values, vg.Points(10))
	if err != nil {
		return err
	}
	bars.Horizontal = true
	bars.Color = color.RGBA{R: 70, G: 130, B: 180, A: 255}
	whiskers, err := plotter.NewXErrorBars(errs)
	if err != nil {
		return err
	}
	p.Add(plotter.NewGrid(), bars, whiskers)
	p.NominalY(names...)
	return p.Save(9*vg.Inch, vg.Length(len(values))*0.32*vg.Inch+vg.Inch, path)
}

// spreads are points with errors along x.
type spreads struct {
	plotter.XYs
	plotter.XErrors
}
