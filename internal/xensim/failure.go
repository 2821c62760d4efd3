package xensim

import (
	"errors"
	"fmt"
	"strings"

	"github.com/dpxen/dpxen/internal/xensim/archive"
)

// Failure is an API error as XAPI gives it: a code and its parameters.
type Failure struct {
	Code   string
	Params []string
}

// Error gives the failure as XAPI prints it on its error pages.
func (f *Failure) Error() string {
	return f.Code + ": [ " + strings.Join(f.Params, "; ") + " ]"
}

func fail(code string, params ...string) error {
	return &Failure{Code: code, Params: params}
}

func internalError(format string, args ...any) error {
	return fail("INTERNAL_ERROR", fmt.Sprintf(format, args...))
}

// failureOf turns any error into what a client is told.
func failureOf(err error) *Failure {
	var f *Failure
	if errors.As(err, &f) {
		return f
	}
	var a *archive.Failure
	if errors.As(err, &a) {
		return &Failure{Code: a.Code, Params: a.Params}
	}
	return &Failure{Code: "INTERNAL_ERROR", Params: []string{err.Error()}}
}

func (f *Failure) description() []string {
	return append([]string{f.Code}, f.Params...)
}

func isCode(err error, code string) bool {
	var f *Failure
	return errors.As(err, &f) && f.Code == code
}
