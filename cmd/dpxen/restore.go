package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dpxen/dpxen/controller"
)

// restoreFlags are the flags of a restore.
type restoreFlags struct {
	selectors
	from, at string
	asNew    newName
	networks []string
	srs      []string
	mapFile  string
	dryRun   bool
	spec     string
	req      controller.RestoreRequest
}

// newName is the value of --as-new[=NAME].
type newName struct {
	set  bool
	name string
}

// bareFlag is what --as-new means without a value.
const bareFlag = "true"

func (n *newName) String() string { return n.name }

// Type is that of a flag without a value, which --as-new may be.
func (n *newName) Type() string { return "bool" }

func (n *newName) Set(s string) error {
	switch strings.TrimSpace(s) {
	case "":
		return fmt.Errorf("want --as-new, or --as-new=NAME")
	case bareFlag:
		s = ""
	}
	n.set, n.name = true, s
	return nil
}

func (a *app) restoreCommand() *cobra.Command {
	var f restoreFlags
	cmd := &cobra.Command{
		Use:   "restore [--spec NAME] --mode MODE [selectors] [--from DIR] [FILE...]",
		Short: "Restore VMs from files that Data Protector brought back",
		Long: "restore takes the newest file of each VM from the configured restore folder or --from DIR; --at and\n" +
			"--dp-session choose others, FILEs (names in that folder, or paths anywhere) just these. Every file is verified\n" +
			"before anything of it goes to a host. online and allOnline restore online files, offline and allOffline\n" +
			"offline ones; with FILEs no selector is needed.\n\n" +
			"A VM that exists keeps its record, UUID and MACs; its disks are replaced while it runs, and it is stopped for\n" +
			"the exchange alone. One that does not exist is made from an offline file, from an online one with --recreate.\n" +
			"--as-new makes another VM in any case, with a new UUID and new MACs.\n\n" + restorePlaceHelp + "\n" + restoreDPHelp + "\n" + selectorHelp + "\n" + codesHelp,
		Example: "  dpxen restore --mode online --vm web-01\n" +
			"  dpxen restore --mode allOffline --from /var/lib/dpxen/staging --at '2026-11-22 20:30'\n" +
			"  dpxen restore --mode offline --as-new=web-01-test --network 'Production=Lab' FILE\n" +
			"  dpxen restore --mode offline --adopt /mnt/usb/web-01.xva\n" +
			"  dpxen restore --mode allOffline --pool dr --map dr.yaml --start --dry-run\n" +
			"  dpxen restore --spec XEN_NIGHTLY --mode allOnline      (in the post-exec of Data Protector's restore)",
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed(specFlag) {
				return a.forDataProtector(func() error { return a.restoreDP(cmd, &f, args) })
			}
			if f.req.Again {
				return usagef("--again is about restores that Data Protector starts: give --spec as well")
			}
			if f.dryRun {
				return a.with(func(c *controller.Controller) error {
					req, err := f.request(cmd, time.Local)
					if err == nil {
						err = source(&req, c.Config(), args)
					}
					if err != nil {
						return err
					}
					return a.dryRun(cmd.Context(), c, req)
				})
			}
			s := &session{action: controller.ActionRestore}
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
				if err := source(&req, c.Config(), args); err != nil {
					return nil, err
				}
				return c.Restore(ctx, req)
			})
		},
	}
	f.add(cmd)
	a.addWire(cmd)
	return cmd
}

func (f *restoreFlags) add(cmd *cobra.Command) {
	f.addMode(cmd)
	f.addNames(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.spec, specFlag, "", "started by Data Protector, whose backup specification `NAME` the files are of")
	flags.BoolVar(&f.req.Again, "again", false, "with --spec: also files of earlier restores, and VMs restored from them already")
	flags.StringVar(&f.from, "from", "", "folder `DIR` with the files (default: the configured restore folder)")
	flags.StringVar(&f.at, "at", "", "the newest file not after `TIME`: 2026-11-22T20:30:00Z, or \"2026-11-22 20:30\" local")
	flags.StringVar(&f.req.DPSession, "dp-session", "", "files of the Data Protector session `ID` only")
	flags.BoolVar(&f.req.Adopt, "adopt", false, "FILEs may lack a manifest: exports made elsewhere, proven by their own checksums")
	flags.Var(&f.asNew, "as-new", "restore as a new VM, `[=NAME]` or the former name; it is not started")
	flags.Lookup("as-new").NoOptDefVal = bareFlag
	flags.BoolVar(&f.req.Recreate, "recreate", false, "make a VM that is absent from an online file")
	flags.BoolVar(&f.req.Start, "start", false, "start the VM at the end")
	flags.StringArrayVar(&f.srs, "sr", nil, "put all disks on the storage repository `NAME` or UUID, or those that were on OLD on NEW: OLD=NEW; may be repeated")
	flags.StringArrayVar(&f.networks, "network", nil, "connect what was on network OLD to NEW: `OLD=NEW`, names or UUIDs; may be repeated")
	flags.StringVar(&f.req.ToHost, "to-host", "", "restore to the host `NAME` or UUID: it has to see the SRs, and is where the VM starts by preference")
	flags.StringVar(&f.mapFile, "map", "", "YAML `FILE` that says where pools and VMs go, their networks and SRs, and their start order")
	flags.BoolVarP(&f.dryRun, "dry-run", "n", false, "only say what would be done, VM by VM; nothing is changed")
	flags.BoolVar(&f.req.AllowConflicts, "allow-conflicts", false, "restore although the VM is in another pool, its MAC is taken, or a network is missing")
	flags.StringVar(&f.req.Pool, "pool", "", "restore into the pool `NAME` or UUID (default: the pool that the VM is or was in)")
	flags.BoolVar(&f.req.LowerVersion, "lower-version", false,
		"make VMs anew from files of a newer release than the host's: what it does not know of their settings is lost")
	flags.BoolVar(&f.req.KeepOldDisks, "keep-old-disks", false, "keep the disks that were replaced, renamed")
	flags.BoolVar(&f.req.DeleteFirst, "delete-first", false,
		"delete the old disks before the new ones arrive, where storage has no room for both: nothing to go back to")
	flags.BoolVar(&f.req.ForceOff, "force-off", false, "power the VM off hard when its clean shutdown fails")
	flags.BoolVar(&f.req.DiscardMemory, "discard-memory", false, "discard the memory of a suspended VM")
}

// request is what the flags ask for; times without a zone are in loc.
func (f *restoreFlags) request(cmd *cobra.Command, loc *time.Location) (controller.RestoreRequest, error) {
	req := f.req
	var err error
	if req.Mode, err = f.parsed(cmd); err != nil {
		return req, err
	}
	req.Selection = f.Selection
	req.AsNew, req.NewName = f.asNew.set, f.asNew.name
	switch {
	case req.AsNew && req.Recreate:
		return req, usagef("--as-new makes a new VM, --recreate the former one: use one of them")
	case req.KeepOldDisks && req.DeleteFirst:
		return req, usagef("--keep-old-disks and --delete-first contradict each other: use one of them")
	}
	if req.At, err = parseAt(f.at, loc); err != nil {
		return req, err
	}
	if f.from != "" {
		req.From = absolute(f.from)
	}
	if req.Networks, err = parsePairs("--network", f.networks); err != nil {
		return req, err
	}
	if err := f.storage(&req); err != nil {
		return req, err
	}
	if f.mapFile != "" {
		req.Map, err = controller.LoadRestoreMap(f.mapFile)
	}
	return req, err
}

// storage reads --sr: one SR for all, or OLD=NEW.
func (f *restoreFlags) storage(req *controller.RestoreRequest) error {
	var pairs []string
	for _, sr := range f.srs {
		switch {
		case strings.Contains(sr, "="):
			pairs = append(pairs, sr)
		case req.SR != "" && req.SR != sr:
			return usagef("--sr: all disks cannot go to both %q and %q; say OLD=NEW for some", req.SR, sr)
		default:
			req.SR = sr
		}
	}
	if len(pairs) == 0 {
		return nil
	}
	var err error
	req.SRs, err = parsePairs("--sr", pairs)
	return err
}

// parseAt reads a moment: RFC 3339, or a local time to the minute or second.
func parseAt(s string, loc *time.Location) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	for _, layout := range []string{"2006-01-02 15:04", time.DateTime} {
		if t, err := time.ParseInLocation(layout, s, loc); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usagef("--at %q: write 2026-11-22T20:30:00Z, or \"2026-11-22 20:30\" for local time", s)
}

// restorePlaceHelp is in the help of restore.
const restorePlaceHelp = "VMs go back to the pool that they are or were in; --pool, --to-host, --sr and --network send them elsewhere, --map\n" +
	"says so for many in a file. (--host chooses VMs by the host that they were on.) Everything that can be known is\n" +
	"checked for all VMs before the first byte goes to a host: room, networks, UUIDs, MAC addresses, releases. What is\n" +
	"refused fails that VM; the others are restored. With --start, VMs are started in their start order, with their delays.\n" +
	"--dry-run ends with the code that the restore would end with if nothing came up on the way. An agent that does not\n" +
	"answer makes it 3; a VM is restored by any other agent of its pool all the same, and refused where there is none.\n"

// parsePairs reads OLD=NEW pairs.
func parsePairs(flag string, pairs []string) (map[string]string, error) {
	networks := map[string]string{}
	for _, pair := range pairs {
		from, to, ok := strings.Cut(pair, "=")
		if !ok || from == "" || to == "" {
			return nil, usagef("%s %q: write OLD=NEW", flag, pair)
		}
		if other, twice := networks[from]; twice && other != to {
			return nil, usagef("%s: %q is to become both %q and %q", flag, from, other, to)
		}
		networks[from] = to
	}
	return networks, nil
}

// source settles where the files are: FILEs become absolute paths, and where all are in one folder that is the source.
func source(req *controller.RestoreRequest, cfg *controller.Config, files []string) error {
	if len(files) == 0 {
		return hintStaging(req, cfg)
	}
	folder := req.From
	if folder == "" {
		folder = cfg.Restore
	}
	dirs := map[string]bool{}
	for _, file := range files {
		path := absolute(file)
		if inFolder := filepath.Join(folder, file); filepath.Base(file) == file && exists(inFolder) {
			path = inFolder
		}
		if !exists(path) {
			return noFile(req, folder, file)
		}
		req.Files = append(req.Files, path)
		dirs[filepath.Dir(path)] = true
	}
	if req.From == "" && len(dirs) == 1 {
		req.From = filepath.Dir(req.Files[0])
	}
	return nil
}

// noFile says that a FILE is nowhere.
func noFile(req *controller.RestoreRequest, folder, file string) error {
	if req.AsNew && req.NewName == "" {
		return usagef("there is no file %s, here or in %s; to name the new VM, write --as-new=%s", file, folder, file)
	}
	return usagef("there is no file %s, here or in %s", file, folder)
}

// hintStaging says where the files are when the restore folder is empty and the staging folder is not.
func hintStaging(req *controller.RestoreRequest, cfg *controller.Config) error {
	if req.From != "" || exports(cfg.Restore) > 0 {
		return nil
	}
	if n := exports(cfg.Staging); n > 0 {
		return usagef("restore folder %s has no file: restore the files to it with Data Protector first, or use the %s of the staging folder with --from %s",
			cfg.Restore, plural(n, "file"), cfg.Staging)
	}
	return nil
}

// exports counts the exports in a folder; one that cannot be read has none.
func exports(folder string) int {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return 0
	}
	n := 0
	for _, e := range entries {
		if e.Type().IsRegular() && filepath.Ext(e.Name()) == ".xva" {
			n++
		}
	}
	return n
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
