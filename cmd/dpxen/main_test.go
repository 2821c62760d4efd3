package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain lets scripts run dpxen as a program of its own.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"dpxen": func() { os.Exit(program()) }})
}

// TestScripts runs the scripts. Beside testscript's own commands they have:
//
//	code N PROGRAM ARGS…         the program must end with exit code N
//	xva FILE [zstd]              write an export that somebody else made
//	stage DIR NAME MODE          stage a backup of the VM NAME, as dpxen does; $STAGED is its file
//	flip FILE OFFSET             change one byte; an offset below 0 counts from the end
//	cut FILE N                   take N bytes from the end
//	agent DIR NAME               serve a made-up pool with a certificate of the authority in DIR; its address is $NAME
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code": scriptCode, "xva": scriptXVA, "stage": scriptStage, "flip": scriptFlip, "cut": scriptCut, "agent": scriptAgent,
		},
	})
}

func wantArgs(ts *testscript.TestScript, neg bool, args []string, atLeast int, usage string) {
	if neg || len(args) < atLeast {
		ts.Fatalf("usage: %s", usage)
	}
}

func scriptCode(ts *testscript.TestScript, neg bool, args []string) {
	wantArgs(ts, neg, args, 2, "code N PROGRAM ARGS…")
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func scriptFlip(ts *testscript.TestScript, neg bool, args []string) {
	wantArgs(ts, neg, args, 2, "flip FILE OFFSET")
	file := ts.MkAbs(args[0])
	data, err := os.ReadFile(file)
	ts.Check(err)
	at, err := strconv.Atoi(args[1])
	ts.Check(err)
	if at < 0 {
		at += len(data)
	}
	data[at] ^= 1
	ts.Check(os.WriteFile(file, data, 0o600))
}

func scriptCut(ts *testscript.TestScript, neg bool, args []string) {
	wantArgs(ts, neg, args, 2, "cut FILE N")
	file := ts.MkAbs(args[0])
	data, err := os.ReadFile(file)
	ts.Check(err)
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	ts.Check(os.WriteFile(file, data[:len(data)-n], 0o600))
}

// testUUID is the n-th UUID of the tests.
func testUUID(n int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012x", n) }
