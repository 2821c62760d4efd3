package main

import (
	"runtime"

	"github.com/spf13/cobra"
)

// versionDocument is what `version --json` prints.
type versionDocument struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := versionDocument{Version: a.version, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
			if a.json {
				return a.encode(v)
			}
			a.text().line("dpxen %s (%s, %s/%s)", v.Version, v.Go, v.OS, v.Arch)
			return nil
		},
	}
}
