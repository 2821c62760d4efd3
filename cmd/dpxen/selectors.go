package main

import (
	"fmt"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/dpxen/dpxen/controller"
)

// selectorHelp is in the help of every command with selectors.
const selectorHelp = "MODE is online or offline with selectors, allOnline or allOffline for every VM; case does not matter.\n" +
	"A selector's value is a name, a UUID, a pattern such as 'db-*', or re:REGEXP. VMs that --vm, --tag or --set name\n" +
	"are chosen; the other selectors narrow that, or choose alone; --exclude always leaves out: a VM by its name, or\n" +
	"KIND:VALUE with tag, pool, host, sr, power, larger, smaller (than a size) or set as KIND. Templates, snapshots and\n" +
	"control domains are no VMs. VMs with the tag dpxen:no-backup or xo:no-bak, and replicas that Xen Orchestra keeps,\n" +
	"are backed up only where --vm (or vm: in a set) has their whole name or UUID.\n"

// selectors are the flags that say which VMs are meant.
type selectors struct {
	mode string
	controller.Selection
}

// addMode adds --mode.
func (s *selectors) addMode(cmd *cobra.Command) {
	cmd.Flags().StringVar(&s.mode, "mode", "", "`MODE`: online, allOnline, offline or allOffline")
}

// addNames adds the selectors that a backup's file knows as well as the pool does.
func (s *selectors) addNames(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringArrayVar(&s.VM, "vm", nil, "choose VMs by `NAME`, UUID, pattern or re:REGEXP; may be repeated")
	flags.StringArrayVar(&s.Tag, "tag", nil, "choose VMs with this `TAG`; may be repeated")
	flags.StringArrayVar(&s.Host, "host", nil, "VMs on this host, by `NAME` or UUID; may be repeated")
	flags.StringArrayVar(&s.Power, "power", nil, "VMs in this `STATE`: running, halted, paused or suspended; may be repeated")
	flags.Var((*byteSize)(&s.MinSize), "min-size", "VMs whose disks have at least this `SIZE` together, such as 100GiB")
	flags.Var((*byteSize)(&s.MaxSize), "max-size", "VMs whose disks have at most this `SIZE` together")
	flags.StringArrayVar(&s.Exclude, "exclude", nil, "leave out VMs by `NAME`, UUID, pattern, re:REGEXP or KIND:VALUE; may be repeated")
	flags.StringArrayVar(&s.Sets, "set", nil, "choose the set `NAME` of the configuration; may be repeated")
}

// addPlaces adds the selectors that ask the pools.
func (s *selectors) addPlaces(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringArrayVar(&s.Pool, "pool", nil, "VMs of this pool, by `NAME` or UUID; may be repeated")
	flags.StringArrayVar(&s.SR, "sr", nil, "VMs with a disk on this storage repository, by `NAME` or UUID; may be repeated")
}

// byteSize is a flag's number of bytes, such as 100GiB.
type byteSize int64

// Set reads it.
func (b *byteSize) Set(text string) error {
	n, err := humanize.ParseBytes(text)
	if err != nil || n == 0 || n > 1<<62 {
		return fmt.Errorf("want a size such as 100GiB")
	}
	*b = byteSize(n)
	return nil
}

func (b *byteSize) String() string {
	if *b == 0 {
		return ""
	}
	return size(int64(*b))
}

// Type names it in help.
func (b *byteSize) Type() string { return "size" }

// parsed returns the mode that was asked for.
func (s *selectors) parsed(cmd *cobra.Command) (controller.Mode, error) {
	if s.mode == "" {
		return "", usagef("--mode is missing: use online, allOnline, offline or allOffline (see `%s --help`)", cmd.CommandPath())
	}
	return controller.ParseMode(s.mode)
}

// backupFlags are the flags of a backup and of its plan.
type backupFlags struct {
	selectors
	forceOff, withMemory bool
	offlineSnapshot      bool
	compress             string
}

func (f *backupFlags) add(cmd *cobra.Command) {
	f.addMode(cmd)
	f.addNames(cmd)
	f.addPlaces(cmd)
	flags := cmd.Flags()
	flags.BoolVar(&f.forceOff, "force-off", false, "offline: power a VM off hard when its clean shutdown fails")
	flags.BoolVar(&f.withMemory, "with-memory", false, "offline: back up a suspended VM with its memory")
	flags.BoolVar(&f.offlineSnapshot, "offline-snapshot", false,
		"offline: shut a VM down for a snapshot only, start it again at once, then export the snapshot")
	flags.StringVar(&f.compress, "compress", "", "have the host compress with `METHOD` gzip or zstd; costs its CPU")
}

// request is what the flags ask for.
func (f *backupFlags) request(cmd *cobra.Command) (controller.Request, error) {
	mode, err := f.parsed(cmd)
	if err != nil {
		return controller.Request{}, err
	}
	switch f.compress {
	case "none":
		f.compress = ""
	case "", "gzip", "zstd":
	default:
		return controller.Request{}, usagef("--compress %q: use gzip, zstd or none", f.compress)
	}
	if f.offlineSnapshot && mode.Kind() != controller.KindOffline {
		return controller.Request{}, usagef("--offline-snapshot is about offline modes: %s takes snapshots of VMs that run anyway", mode)
	}
	return controller.Request{Mode: mode, Selection: f.Selection, ForceOff: f.forceOff, WithMemory: f.withMemory,
		Compression: f.compress, OfflineSnapshot: f.offlineSnapshot}, nil
}
