package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dpxen/dpxen/controller"
)

// verifyParallel is how many files of a folder are read at the same time.
const verifyParallel = 2

func (a *app) verifyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "verify [FILE...]",
		Short: "Read backups again: digest, archive, every block",
		Long: "verify reads FILEs, or without FILE every one in the staging folder, from first to last byte: the archive's\n" +
			"structure, each block's own checksum, and that every disk is whole. A file with a manifest beside it is held\n" +
			"to the manifest as well: name, length, digest. Any .xva will do, compressed or not, whoever made it.\n\n" +
			"FILEs need no configuration, nor does --staging DIR. With --json there is one object a file and line.\n\n" +
			"Exit code: 0 good, 5 a file is damaged, 2 a FILE does not exist, 1 a file cannot be read.",
		Example: "  dpxen verify\n  dpxen verify /var/lib/dpxen/restore/*.xva\n  dpxen verify --json web-01.xva",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return a.verifyFolder(cmd.Context())
			}
			return a.verifyFiles(cmd.Context(), args)
		},
	}
}

// verifyFolder verifies the staging folder.
func (a *app) verifyFolder(ctx context.Context) error {
	folder := absolute(a.staging)
	if a.staging == "" {
		cfg, err := a.load()
		if err != nil {
			return err
		}
		folder = cfg.Staging
	}
	var trouble error
	var told []controller.VerifyResult
	results, err := controller.VerifyFolder(ctx, folder, verifyParallel, func(r controller.VerifyResult) {
		trouble = errors.Join(trouble, a.tellVerified(&r))
		told = append(told, r)
	})
	if errors.Is(err, context.Canceled) {
		return errors.Join(trouble, a.verifyCancelled(told, len(results)-len(told)))
	}
	if err == nil && len(results) == 0 {
		a.complain(fmt.Errorf("there is no backup in %s", folder))
	}
	if err = errors.Join(err, trouble); err != nil {
		return err
	}
	return withCode(verifyCode(results, exitIntegrity))
}

// verifyFiles verifies files by name. That one is missing is told before hours are spent on the others.
func (a *app) verifyFiles(ctx context.Context, args []string) error {
	files, err := verifiable(args)
	if err != nil {
		return err
	}
	var results []controller.VerifyResult
	for _, file := range files {
		r := controller.VerifyFile(ctx, file)
		if ctx.Err() != nil {
			return a.verifyCancelled(results, len(files)-len(results))
		}
		if err := a.tellVerified(&r); err != nil {
			return err
		}
		results = append(results, r)
	}
	return withCode(verifyCode(results, exitUsage))
}

// verifyCancelled says how far it came. What was found damaged stays so.
func (a *app) verifyCancelled(results []controller.VerifyResult, rest int) error {
	bad := 0
	for _, r := range results {
		if !r.OK {
			bad++
		}
	}
	a.complain(fmt.Errorf("cancelled: %s read, %d of them not good; nothing is known of the other %d", plural(len(results), "file"), bad, rest))
	if code := verifyCode(results, exitOK); code == exitIntegrity {
		return withCode(code)
	}
	return withCode(controller.CodeCancelled)
}

// verifiable returns the files that are meant: links are followed, and a manifest beside its export is the export's.
func verifiable(args []string) ([]string, error) {
	var files []string
	var faults []error
	for _, arg := range args {
		info, err := os.Stat(arg)
		switch {
		case err != nil:
			faults = append(faults, fmt.Errorf("file %s: %w", arg, errors.Unwrap(err)))
			continue
		case info.IsDir():
			faults = append(faults, fmt.Errorf("%s is a folder: name the files in it, or use --staging %s", arg, arg))
			continue
		}
		if stem, ok := strings.CutSuffix(arg, ".json"); ok && exists(stem+".xva") {
			arg = stem + ".xva"
		}
		if link, err := os.Lstat(arg); err == nil && link.Mode()&os.ModeSymlink != 0 {
			if target, err := filepath.EvalSymlinks(arg); err == nil {
				arg = target
			}
		}
		if !slices.Contains(files, arg) {
			files = append(files, arg)
		}
	}
	if len(faults) > 0 {
		return nil, usagef("%w", errors.Join(faults...))
	}
	return files, nil
}

// tellVerified prints what came of one file.
func (a *app) tellVerified(r *controller.VerifyResult) error {
	if a.json {
		return a.encode(r)
	}
	p := a.text()
	switch {
	case r.OK:
		held := "held to its manifest"
		if !r.Manifest {
			held = "no manifest"
		}
		p.line("OK       %s: VM %s, %s, %s in %s, %s %s, %s", r.File, orDash(r.VM), plural(len(r.Disks), "disk"), size(r.Bytes),
			seconds(r.Seconds), r.DigestAlgorithm, r.Digest, held)
	case r.Problem == controller.ProblemUnreadable, r.Problem == controller.ProblemMissing:
		p.line("UNREAD   %s: %s: %s", r.File, r.Problem, r.Error)
	default:
		p.line("DAMAGED  %s: %s: %s", r.File, r.Problem, r.Error)
	}
	return nil
}

// verifyCode is that of the worst result: damage, then what could not be read. missing is the code of a file that is not
// there.
func verifyCode(results []controller.VerifyResult, missing int) int {
	code := exitOK
	for i := range results {
		r := &results[i]
		switch {
		case r.OK:
		case r.Problem == controller.ProblemMissing && code != exitIntegrity:
			code = missing
		case r.Problem == controller.ProblemMissing:
		case r.Problem != controller.ProblemUnreadable:
			code = exitIntegrity
		case code == exitOK:
			code = controller.CodeNone
		}
	}
	return code
}
