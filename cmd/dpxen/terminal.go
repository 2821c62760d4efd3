package main

import (
	"io"
	"os"

	"golang.org/x/term"
)

// isTerminal tells whether somebody watches the output.
func isTerminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
