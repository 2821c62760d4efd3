package main

// controllerPoints and armAgents are replaced when failpoints come.
func (h *history) controllerPoints() string { return "" }
func (h *history) armAgents()               {}
func runFlips(*settings, *tally) error      { return nil }
func runFuzz(*settings, *tally) error       { return nil }
func runCases(*settings, *tally) error      { return nil }
