package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dpxen/dpxen/controller"
)

// restoreDPHelp is in the help of restore.
const restoreDPHelp = "With --spec, restore is for the post-exec of a Data Protector restore: lines and exit codes are as Data Protector\n" +
	"takes them, the folder is the specification's, and no selector is needed. Without --mode it then verifies and lists\n" +
	"what Data Protector has brought, and changes no VM. With --mode only that is restored: not what lay there before,\n" +
	"nor what is of another specification, and no VM twice from one file (--again does both).\n"

// restoreDP is restore where Data Protector starts it.
func (a *app) restoreDP(cmd *cobra.Command, f *restoreFlags, args []string) error {
	if f.dryRun {
		return usagef("--dry-run is not for Data Protector: without --mode, --spec lists and changes nothing")
	}
	spec := strings.TrimSpace(f.spec)
	if spec == "" || len(spec) > maxDPValue {
		return usagef("--spec %.80q is no name of a backup specification", f.spec)
	}
	f.req.Spec = spec
	id, _ := os.LookupEnv("SESSIONID") // of the restore; whether it is there is not documented
	if len(id) > maxDPValue {
		id = ""
	}
	a.dp = &controller.DP{Spec: spec, Session: id}
	if f.mode == "" {
		return a.listRestore(cmd, f, args)
	}
	s := &session{action: controller.ActionRestore}
	var policy controller.Spec
	s.verdict = func(r *controller.Report, code int) (exit int, says string) {
		exit = dpExit(policy.DPCode(code), runtime.GOOS)
		c := r.Counts()
		return exit, dpSays(exit, fmt.Sprintf("%d of %s restored", c.Good, plural(c.Selected, "VM")))
	}
	return a.session(cmd.Context(), s, func(ctx context.Context, begin beginFunc) (*controller.Report, error) {
		req, err := f.request(cmd, time.Local)
		s.mode = req.Mode
		if err != nil {
			return nil, err
		}
		c, err := begin()
		if err != nil {
			return nil, err
		}
		policy, _ = c.Config().Spec(spec)
		if err := specSource(&req, c.Config(), policy, args); err != nil {
			return nil, err
		}
		return c.Restore(ctx, req)
	})
}

// specSource is source with the specification's folder.
func specSource(req *controller.RestoreRequest, cfg *controller.Config, spec controller.Spec, files []string) error {
	if req.From == "" {
		req.From = cmp.Or(spec.Restore, cfg.Restore)
	}
	if err := restoredInPlace(req.From, cfg); err != nil && len(files) == 0 {
		return err
	}
	return source(req, cfg, files)
}

// restoredInPlace says where the files are when the folder has none: Data Protector restores to where it has saved from,
// unless it is told another place.
func restoredInPlace(folder string, cfg *controller.Config) error {
	if n := exports(cfg.Staging); n > 0 && exports(folder) == 0 && folder != cfg.Staging {
		return usagef("restore folder %s has no file, and the staging folder has %d: were they restored to where they were saved? Restore them "+
			"into the restore folder, or give --from %s", folder, n, cfg.Staging)
	}
	return nil
}

// listRestore verifies and lists, and changes nothing.
func (a *app) listRestore(cmd *cobra.Command, f *restoreFlags, args []string) error {
	if len(args) > 0 {
		return usagef("without --mode the whole folder is listed: leave the FILEs out, or use dpxen verify")
	}
	at, err := parseAt(f.at, time.Local)
	if err != nil {
		return err
	}
	req := f.req
	req.Selection, req.At = f.Selection, at
	if f.from != "" {
		req.From = absolute(f.from)
	}
	c, err := a.controller(nil)
	if err != nil {
		return err
	}
	policy, _ := c.Config().Spec(req.Spec)
	if err := restoredInPlace(cmp.Or(req.From, policy.Restore, c.Config().Restore), c.Config()); err != nil {
		return errors.Join(err, c.Close())
	}
	p := a.log()
	each := func(file controller.ListedFile) { p.listed(&file) }
	if a.json {
		each = nil
	} else {
		p.line("without --mode: files are verified and listed, and no VM is changed")
	}
	list, err := c.ListRestore(cmd.Context(), req, each)
	err = errors.Join(err, c.Close())
	switch {
	case err != nil && !a.json:
		a.complain(err)
		p.line("%s", controller.ResultLine(nil, codeOf(err)))
		return withCode(codeOf(err))
	case err != nil:
		return err
	case a.json:
		if err := a.encode(list); err != nil {
			return err
		}
		return withCode(listCode(list))
	}
	p.listing(list, &f.req)
	return withCode(listCode(list))
}

// listed prints what came of one file.
func (p printer) listed(f *controller.ListedFile) {
	what := fmt.Sprintf("%s  %s file of %s, %s", place(f.Pool, f.Name), f.Kind, f.Taken.Format(time.RFC3339), size(f.Bytes))
	if f.DPSession != "" {
		what += ", session " + f.DPSession
	}
	switch {
	case f.OK():
		p.line("GOOD    %s, %s: %s", what, plural(len(f.Verified.Disks), "disk"), f.File)
		return
	case f.Refused != "":
		p.line("REFUSED %s: %s", what, oneLine(f.Refused))
	default:
		p.line("DAMAGED %s: %s: %s", what, f.Verified.Problem, oneLine(f.Verified.Error))
	}
	if f.Advice != "" {
		p.line("        do: %s", f.Advice)
	}
}

// listing prints the rest of a listing, and what to type to go on.
func (p printer) listing(list *controller.RestoreListing, req *controller.RestoreRequest) {
	var skipped []string
	for _, s := range list.Skipped {
		skipped = append(skipped, s.File+": "+oneLine(s.Reason))
	}
	for i, text := range skipped {
		if i == remarksShown {
			p.line("SKIPPED and %d more", len(skipped)-i)
			break
		}
		p.line("SKIPPED %s", text)
	}
	kinds := map[controller.Kind]int{}
	good := 0
	for i := range list.Files {
		if f := &list.Files[i]; f.OK() {
			kinds[f.Kind]++
			good++
		}
	}
	again := ""
	if req.Again {
		again = " --again"
	}
	for _, mode := range []controller.Mode{controller.AllOnline, controller.AllOffline} {
		if n := kinds[mode.Kind()]; n > 0 {
			p.line("NOTE    to restore the %s: dpxen restore --spec %s --mode %s%s", plural(n, string(mode.Kind())+" file"), req.Spec, mode, again)
		}
	}
	code := listCode(list)
	p.line("RESULT %s code=%d good=%d/%d session=-", controller.ResultWord(code), code, good, len(list.Files))
}

// listCode is 0 where every file would be restored, else 5 where one is damaged, 3 where some would be, 1 where none.
func listCode(list *controller.RestoreListing) int {
	good, damaged := 0, false
	for i := range list.Files {
		f := &list.Files[i]
		switch {
		case f.OK():
			good++
		case f.Reason == controller.ReasonIntegrity, f.Refused == "":
			damaged = true
		}
	}
	switch {
	case damaged:
		return controller.CodeIntegrity
	case good == len(list.Files):
		return exitOK
	case good > 0:
		return controller.CodeSome
	}
	return controller.CodeNone
}
