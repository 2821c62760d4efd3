package main

import (
	"os"
	"path/filepath"
)

// defaultConfig is where the configuration is looked for. %ProgramData% is Windows' own, not a setting of ours.
func defaultConfig() string {
	return filepath.Join(os.Getenv("ProgramData"), "dpxen", "controller.yaml")
}

// Folders that init writes into a new configuration.
const (
	defaultStaging = `C:\dpxen\staging`
	defaultRestore = `C:\dpxen\restore`
	defaultState   = `C:\ProgramData\dpxen\state`
)
