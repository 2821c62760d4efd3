package controller

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// CheckStatus is what came of a check.
type CheckStatus string

// The statuses.
const (
	CheckPass CheckStatus = "PASS"
	CheckWarn CheckStatus = "WARN" // it works, or is not used yet; somebody should look at it
	CheckFail CheckStatus = "FAIL" // sessions fail, or Data Protector does not run them
)

// Check is one thing that `dpxen doctor` has looked at.
type Check struct {
	Name    string      `json:"name"`              // such as "agent" or "staging folder"
	Subject string      `json:"subject,omitempty"` // which one
	Status  CheckStatus `json:"status"`
	Text    string      `json:"text"`
	Advice  string      `json:"advice,omitempty"` // what to do; empty where it passed
}

// DoctorOptions say where to look and how long.
type DoctorOptions struct {
	Options
	Limit time.Duration // of all that is asked of agents; a minute when 0
	DP    DPHost
}

// doctorLimit bounds what agents are asked, unless the options say otherwise.
const doctorLimit = time.Minute

// doctor collects checks.
type doctor struct {
	cfg    *Config
	o      DoctorOptions
	checks []Check
}

// Doctor looks at everything that a session needs and says of each thing whether it is in order: cfg is the configuration, or
// nil where it cannot be used, and loadErr then says why. It changes nothing but a probe file in the staging folder, which it
// removes, and ends in time also where no agent answers.
func Doctor(ctx context.Context, cfg *Config, loadErr error, o DoctorOptions) []Check {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Limit <= 0 {
		o.Limit = doctorLimit
	}
	d := &doctor{cfg: cfg, o: o}
	if cfg == nil {
		d.fail("configuration", "", "correct the file; nothing that depends on it could be looked at", "%v", loadErr)
	} else {
		d.pass("configuration", "", "%s, %d in specs", agentsCount(len(cfg.Agents)), len(cfg.Specs))
		d.certificates()
		d.folders()
		d.sessions()
		d.agents(ctx)
	}
	d.dataProtector()
	return d.checks
}

func agentsCount(n int) string {
	if n == 1 {
		return "1 agent"
	}
	return fmt.Sprintf("%d agents", n)
}

// CheckCode is the exit code of checks: 0 all pass, 4 some warn, 1 one fails.
func CheckCode(checks []Check) int {
	code := CodeOK
	for _, c := range checks {
		switch c.Status {
		case CheckFail:
			return CodeNone
		case CheckWarn:
			code = CodeWarnings
		case CheckPass:
		}
	}
	return code
}

func (d *doctor) pass(name, subject, format string, a ...any) {
	d.add(CheckPass, name, subject, "", format, a...)
}

func (d *doctor) warn(name, subject, advice, format string, a ...any) {
	d.add(CheckWarn, name, subject, advice, format, a...)
}

func (d *doctor) fail(name, subject, advice, format string, a ...any) {
	d.add(CheckFail, name, subject, advice, format, a...)
}

func (d *doctor) add(status CheckStatus, name, subject, advice, format string, a ...any) {
	text := strings.ReplaceAll(strings.TrimSpace(fmt.Sprintf(format, a...)), "\n", "; ")
	d.checks = append(d.checks, Check{Name: name, Subject: subject, Status: status, Text: text, Advice: advice})
}
