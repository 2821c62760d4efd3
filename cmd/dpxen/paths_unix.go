//go:build !windows

package main

// defaultConfig is where the configuration is looked for.
func defaultConfig() string { return "/etc/dpxen/controller.yaml" }

// Folders that init writes into a new configuration.
const (
	defaultStaging = "/var/lib/dpxen/staging"
	defaultRestore = "/var/lib/dpxen/restore"
	defaultState   = "/var/lib/dpxen/state"
)
