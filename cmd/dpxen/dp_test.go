package main

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/dpxen/dpxen/controller"
)

func number(n int) *int { return &n }

func TestDPEnvironment(t *testing.T) {
	for name, tt := range map[string]struct {
		env  map[string]string
		args []string
		want controller.DP
		err  string
	}{
		"nothing": {},
		"all": {env: map[string]string{"DATALIST": "XEN", "MODE": "full", "OWNER": `DOM\u@h`, "SESSIONID": "2026/11/23-1",
			"SESSIONKEY": "R-7", "PREVIEW": "0", "RESTARTED": "1", "SMEXIT": "10", "BDACC": "0"},
			want: controller.DP{Spec: "XEN", Mode: "full", Owner: `DOM\u@h`, Session: "2026/11/23-1", SessionKey: "R-7", Restarted: true,
				SMExit: number(10), BDACC: number(0)}},
		"flags win": {env: map[string]string{"DATALIST": "XEN", "SMEXIT": "0"}, args: []string{"--spec", "OTHER", "--dp-smexit", "12"},
			want: controller.DP{Spec: "OTHER", SMExit: number(12)}},
		"an empty flag wins": {env: map[string]string{"SMEXIT": "0"}, args: []string{"--dp-smexit="}},
		"preview unclear":    {env: map[string]string{"PREVIEW": "yes"}, err: "PREVIEW"},
		"code unclear":       {env: map[string]string{"SMEXIT": "zero"}, err: "SMEXIT"},
		"control characters": {env: map[string]string{"DATALIST": "a\x1bb"}, err: "DATALIST"},
		"endless":            {env: map[string]string{"OWNER": strings.Repeat("x", maxDPValue+1)}, err: "OWNER"},
	} {
		t.Run(name, func(t *testing.T) {
			f := &dpFlags{lookup: func(k string) (string, bool) { v, ok := tt.env[k]; return v, ok }}
			cmd := &cobra.Command{Use: "x"}
			f.add(cmd, true)
			if err := cmd.ParseFlags(tt.args); err != nil {
				t.Fatal(err)
			}
			got, err := f.dp(cmd)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || codeOf(err) != exitUsage {
					t.Errorf("got %v, want a usage error about %s", err, tt.err)
				}
				return
			}
			if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestDPExit(t *testing.T) {
	for _, tt := range []struct{ code, unix, windows int }{{0, 0, 0}, {1, 1, -1}, {20, 20, -1}, {130, 1, -1}, {-1, 1, -1}, {126, 1, -1}} {
		if u, w := dpExit(tt.code, "linux"), dpExit(tt.code, "windows"); u != tt.unix || w != tt.windows {
			t.Errorf("%d: %d and %d on Windows, want %d and %d", tt.code, u, w, tt.unix, tt.windows)
		}
	}
}

// Whatever is written, Data Protector gets short lines of ASCII, and never waits long for the next.
func TestDPLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l := newDPLines(&out, time.Minute)
		for _, text := range []string{"Bücher\x1b[31m\r\n", strings.Repeat("word ", 100) + "\n", strings.Repeat("q", 500) + "\n", "in two ", "parts\n"} {
			if n, err := l.Write([]byte(text)); n != len(text) || err != nil {
				t.Fatal(n, err)
			}
		}
		time.Sleep(10*time.Minute + time.Second)
		if _, err := l.Write([]byte("the end")); err != nil {
			t.Fatal(err)
		}
		l.close()
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		for _, line := range lines {
			if len(line) >= 200 || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("no message: %q", line)
			}
		}
		if n := strings.Count(out.String(), "has been at work for"); n != 10 {
			t.Errorf("%d lines in ten minutes of silence, want 10", n)
		}
		if got := strings.Join(strings.Fields(out.String()), ""); strings.Count(got, "word") != 100 || strings.Count(got, "q") != 500 {
			t.Errorf("something of the long lines is gone:\n%s", out.String())
		}
		if lines[len(lines)-1] != "the end" || !strings.Contains(out.String(), "in two parts\n") {
			t.Errorf("got\n%s", out.String())
		}
	})
}

// Whatever is in the environment is taken as it is, within bounds, or is a usage error that names the variable.
func FuzzDPEnvironment(f *testing.F) {
	f.Add("XEN", "full", "2026/11/23-1", "0", "1", "10", "0", "R-7", `DOM\u@h`)
	f.Add("", "", "", "yes", "", "zero", "999999999999999999999", "", "")
	f.Add("a\x1bb", strings.Repeat("x", maxDPValue+1), "\xff\xfe", "1", "0", "-1", "", " ", "\n")
	f.Fuzz(func(t *testing.T, datalist, mode, session, preview, restarted, smexit, bdacc, key, owner string) {
		env := map[string]string{"DATALIST": datalist, "MODE": mode, "SESSIONID": session, "PREVIEW": preview, "RESTARTED": restarted,
			"SMEXIT": smexit, "BDACC": bdacc, "SESSIONKEY": key, "OWNER": owner}
		flags := &dpFlags{lookup: func(k string) (string, bool) { v, ok := env[k]; return v, ok }}
		cmd := &cobra.Command{Use: "x"}
		flags.add(cmd, true)
		dp, err := flags.dp(cmd)
		if err != nil {
			if codeOf(err) != exitUsage || len(err.Error()) > 1000 {
				t.Errorf("not a short usage error: %v", err)
			}
			return
		}
		for name, value := range map[string]string{"DATALIST": dp.Spec, "MODE": dp.Mode, "SESSIONID": dp.Session, "SESSIONKEY": dp.SessionKey,
			"OWNER": dp.Owner} {
			if len(value) > maxDPValue || value != strings.TrimSpace(env[name]) {
				t.Errorf("%s is %q and was taken as %q", name, env[name], value)
			}
		}
		dp.Saved()
	})
}
