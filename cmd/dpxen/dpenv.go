package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dpxen/dpxen/controller"
)

// specFlag names the backup specification.
const specFlag = "spec"

// maxDPValue bounds what is taken from Data Protector's environment, in bytes.
const maxDPValue = 512

// dpFlags are what Data Protector says in its environment, and may be said by flags instead, which then win. At some levels
// and on some platforms it says only a part, or nothing.
type dpFlags struct {
	spec, mode, session, key, owner  string
	preview, restarted, smexit, bdac string
	object                           bool
	lookup                           func(string) (string, bool) // the environment; os.LookupEnv when nil
}

// dpVariables are Data Protector's variables with the flags that stand for them.
var dpVariables = []struct {
	name, flag, usage string
	value             func(*dpFlags) *string
	late              bool // post-exec only
}{
	{"DATALIST", specFlag, "backup specification `NAME`", func(f *dpFlags) *string { return &f.spec }, false},
	{"MODE", "dp-mode", "Data Protector's `MODE` of backup: full, incremental …", func(f *dpFlags) *string { return &f.mode }, false},
	{"SESSIONID", "dp-session", "Data Protector's session `ID`", func(f *dpFlags) *string { return &f.session }, false},
	{"PREVIEW", "dp-preview", "`1` in a preview, which changes nothing", func(f *dpFlags) *string { return &f.preview }, false},
	{"RESTARTED", "dp-restarted", "`1` where the session is a restart", func(f *dpFlags) *string { return &f.restarted }, false},
	{"SMEXIT", "dp-smexit", "exit `CODE` of the Session Manager", func(f *dpFlags) *string { return &f.smexit }, true},
	{"BDACC", "dp-bdacc", "exit `CODE` of the Disk Agent", func(f *dpFlags) *string { return &f.bdac }, true},
	{"SESSIONKEY", "", "", func(f *dpFlags) *string { return &f.key }, false},
	{"OWNER", "", "", func(f *dpFlags) *string { return &f.owner }, false},
}

// add adds the flags to pre-exec, or to post-exec.
func (f *dpFlags) add(cmd *cobra.Command, post bool) {
	for _, v := range dpVariables {
		if v.flag != "" && (post || !v.late) {
			cmd.Flags().StringVar(v.value(f), v.flag, "", v.usage+" (default: "+v.name+" of the environment)")
		}
	}
}

// dp is what was said, by flags and environment.
func (f *dpFlags) dp(cmd *cobra.Command) (controller.DP, error) {
	lookup := f.lookup
	if lookup == nil {
		lookup = os.LookupEnv
	}
	for _, v := range dpVariables {
		to := v.value(f)
		if v.flag == "" || !cmd.Flags().Changed(v.flag) {
			*to, _ = lookup(v.name)
		}
		*to = strings.TrimSpace(*to)
		if len(*to) > maxDPValue || strings.ContainsFunc(*to, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return controller.DP{}, usagef("%s is no value of Data Protector's: %.80q", v.name, *to)
		}
	}
	dp := controller.DP{Spec: f.spec, Mode: f.mode, Owner: f.owner, Session: f.session, SessionKey: f.key, Object: f.object}
	var err error
	if dp.Preview, err = dpSwitch("PREVIEW", f.preview); err != nil {
		return dp, err
	}
	if dp.Restarted, err = dpSwitch("RESTARTED", f.restarted); err != nil {
		return dp, err
	}
	if dp.SMExit, err = dpCode("SMEXIT", f.smexit); err != nil {
		return dp, err
	}
	dp.BDACC, err = dpCode("BDACC", f.bdac)
	return dp, err
}

func dpSwitch(name, value string) (bool, error) {
	switch value {
	case "", "0":
		return false, nil
	case "1":
		return true, nil
	}
	return false, usagef("%s is %.80q: 0 and 1 are known", name, value)
}

// dpCode reads an exit code; nil where there is none.
func dpCode(name, value string) (*int, error) {
	if value == "" {
		return nil, nil
	}
	n, err := strconv.Atoi(value)
	if err != nil {
		return nil, usagef("%s is %.80q, which is no exit code", name, value)
	}
	return &n, nil
}

// dpExit is a code as Data Protector of that system understands it at every level: 0 for success; a failure is negative on
// Windows, where session-level commands fail so alone, and 1 to 125 elsewhere.
func dpExit(code int, goos string) int {
	switch {
	case code == 0:
		return 0
	case goos == "windows":
		return -1
	case code < 1 || code > 125:
		return 1
	}
	return code
}

// dpSays is the line that tells what Data Protector is told.
func dpSays(exit int, why string) string {
	if exit == 0 {
		return fmt.Sprintf("DP      told to go on (exit 0): %s", why)
	}
	return fmt.Sprintf("DP      told of a failure (exit %d): %s", exit, why)
}
