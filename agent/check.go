package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dpxen/dpxen/certs"
	"github.com/dpxen/dpxen/internal/xapi"
)

// Exit codes of a check (DESIGN section 5).
const (
	CodeGood        = 0
	CodeFailed      = 1
	CodeConfig      = 2
	CodeUnreachable = 10
	CodeAuth        = 12
)

// CheckResult is one line of a check.
type CheckResult struct {
	What   string // "configuration", "certificate", "XAPI login", "pool"
	Detail string // what was found, or why it failed
	Code   int    // CodeGood, or the exit code that the failure gives
}

// String returns the line: PASS or FAIL, what, and the detail.
func (r CheckResult) String() string {
	verdict := "PASS"
	if r.Code != CodeGood {
		verdict = "FAIL"
	}
	return fmt.Sprintf("%s %s: %s", verdict, r.What, r.Detail)
}

// Check reads the configuration at path and tries all that an agent needs:
// certificates, the login to XAPI, the pool. It stops at what makes the rest
// impossible. The exit code is that of the last result.
func Check(ctx context.Context, path string) []CheckResult {
	cfg, err := LoadConfig(path)
	if err != nil {
		return []CheckResult{{"configuration", err.Error(), CodeConfig}}
	}
	out := []CheckResult{{"configuration", filepath.Clean(path), CodeGood}, {"limits", cfg.Limits.String(), CodeGood}}
	a, err := New(*cfg, hclog.NewNullLogger())
	if err != nil {
		return append(out, setupFailure(err))
	}
	defer a.Close(context.WithoutCancel(ctx)) //nolint:errcheck // the check's result stands
	left := int(time.Until(a.certs.NotAfter()).Hours() / 24)
	out = append(out, CheckResult{"certificate", fmt.Sprintf("%s, %d days left (until %s)", a.certs.Identity(), left,
		a.certs.NotAfter().Format(time.DateOnly)), CodeGood})
	p, err := a.checkPool(ctx)
	if err != nil {
		return append(out, CheckResult{"XAPI login", fmt.Sprintf("%s: %v", cfg.XAPI.URL, err), codeOf(err)})
	}
	out = append(out, CheckResult{"XAPI login", cfg.XAPI.URL, CodeGood})
	name := p.Pool.Name
	if name == "" {
		name = p.Pool.UUID
	}
	detail := fmt.Sprintf("%s, %s %s, %d hosts, %d storage repositories", name, p.Pool.ProductBrand,
		p.Pool.ProductVersion, len(p.Hosts), len(p.SRs))
	for _, w := range p.Warnings {
		detail += "; " + w
	}
	return append(out, CheckResult{"pool", detail, CodeGood})
}

// setupFailure tells what New could not do without.
func setupFailure(err error) CheckResult {
	what, code := "certificate", CodeAuth
	switch {
	case errors.Is(err, xapi.ErrConfig):
		what, code = "XAPI settings", CodeConfig
	case errors.Is(err, os.ErrNotExist), errors.Is(err, certs.ErrMismatch), errors.Is(err, certs.ErrKeyReadable):
		code = CodeConfig
	}
	return CheckResult{what, err.Error(), code}
}

func codeOf(err error) int {
	switch {
	case errors.Is(err, xapi.ErrAuth), errors.Is(err, xapi.ErrCertificate):
		return CodeAuth
	case errors.Is(err, xapi.ErrConfig):
		return CodeConfig
	case errors.Is(err, xapi.ErrUnreachable):
		return CodeUnreachable
	}
	return CodeFailed
}
