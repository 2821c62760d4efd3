// Command xensim simulates a pool of XenServer hosts. When it is ready it prints
// one line of JSON with the addresses on standard output, and serves until it is
// told to end.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/dpxen/dpxen/internal/xensim"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "xensim:", strings.TrimPrefix(err.Error(), "xensim: "))
		os.Exit(1) //nolint:gocritic // nothing deferred matters any more
	}
}

func command() *cobra.Command {
	cfg := xensim.Config{Log: func(s string) { fmt.Fprintln(os.Stderr, s) }}
	var size, srSize, bandwidth, passwordFile string
	var vms int
	var accounts []string
	cmd := &cobra.Command{
		Use:   "xensim",
		Short: "A simulated pool of XenServer hosts for real XAPI clients",
		Long: "xensim answers XAPI clients as a pool of XenServer hosts would: XML-RPC, JSON-RPC,\n" +
			"sessions, tasks, snapshots, /export and /import. When ready it prints one line of\n" +
			"JSON with its addresses, and serves until it receives SIGTERM.",
		Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, s := range []struct {
				flag, text string
				to         *int64
			}{{"disk-size", size, &cfg.DiskSize}, {"sr-size", srSize, &cfg.SRSize}, {"bandwidth", bandwidth, &cfg.Bandwidth}} {
				n, err := humanize.ParseBytes(s.text)
				if err != nil || n > 1<<60 {
					return fmt.Errorf("--%s %q is not a size such as 64MiB", s.flag, s.text)
				}
				*s.to = int64(n)
			}
			cfg.VMs = vms
			if cfg.Scenario != "" && cmd.Flags().Changed("vms") {
				return errors.New("--vms and --scenario exclude each other")
			}
			if passwordFile != "" {
				b, err := os.ReadFile(passwordFile)
				if err != nil {
					return fmt.Errorf("reading the password: %w", err)
				}
				if cfg.Password = strings.TrimRight(string(b), "\r\n"); cfg.Password == "" {
					return fmt.Errorf("the password in %s is empty", passwordFile)
				}
			}
			for _, s := range accounts {
				a, err := readAccount(s)
				if err != nil {
					return err
				}
				cfg.Accounts = append(cfg.Accounts, a)
			}
			return serve(cmd.Context(), cmd.OutOrStdout(), cfg)
		},
	}
	f := cmd.Flags()
	f.IntVar(&cfg.Hosts, "hosts", 2, "hosts in the pool; the first is the master")
	f.IntVar(&vms, "vms", 6, "VMs, a mix of running and halted")
	f.StringVar(&size, "disk-size", "64MiB", "size of each VM's disk")
	f.StringVar(&cfg.Content, "content", "random", "what disks hold: ext4, half (compresses to that), random, sparse or zero")
	f.StringVar(&cfg.Scenario, "scenario", "", "a set of VMs by name: demo")
	f.StringVar(&cfg.Checksum, "checksum", "", "checksums of exports: xxhash or sha1 (by product version)")
	f.Uint64Var(&cfg.Seed, "seed", 1, "seed of uuids and contents")
	f.StringVar(&cfg.User, "user", "root", "user name")
	f.StringVar(&passwordFile, "password-file", "", "file with the password (a random one)")
	f.StringArrayVar(&accounts, "account", nil, "a user with a role, NAME:ROLE:PASSWORDFILE; may be repeated")
	f.StringVar(&cfg.Listen, "listen", "127.0.0.1:0", "address of the first host, or of all, separated by commas")
	f.StringVar(&cfg.Data, "data", "", "folder for the contents of disks (a temporary one)")
	f.StringVar(&cfg.Socket, "socket", "", "folder for a unix socket per host")
	f.Float64Var(&cfg.Speedup, "speedup", 1, "divides every simulated wait")
	f.StringVar(&cfg.ProductVersion, "product-version", "", "release that the hosts claim: 7.6, 8.2.1, 8.4.0 … (8.4.0)")
	f.StringVar(&cfg.LocalSR, "local-sr", "ext", "type of the local storage repositories")
	f.StringVar(&cfg.SharedSR, "shared-sr", "nfs", "type of the shared storage repository")
	f.StringVar(&srSize, "sr-size", "1TiB", "size of each storage repository")
	f.StringVar(&bandwidth, "bandwidth", "0", "limit of each export and import a second (none)")
	f.StringVar(&cfg.ExportBlocks, "export-blocks", "raw", "how exports choose blocks: raw, nbd or bitmap")
	f.IntVar(&cfg.KeepAliveBlocks, "keepalive-blocks", 0, "zero blocks in a row after which an export writes an empty one (850)")
	f.BoolVar(&cfg.IdempotentMaps, "idempotent-maps", false, "adding an equal key to a map succeeds")
	f.StringVar(&cfg.Control, "control", "", "address of the control endpoint (none)")
	return cmd
}

// readAccount reads NAME:ROLE:PASSWORDFILE.
func readAccount(s string) (xensim.Account, error) {
	parts := strings.SplitN(s, ":", 3)
	if len(parts) != 3 {
		return xensim.Account{}, fmt.Errorf("--account %q is not NAME:ROLE:PASSWORDFILE", s)
	}
	b, err := os.ReadFile(parts[2])
	if err != nil {
		return xensim.Account{}, fmt.Errorf("reading the password of account %s: %w", parts[0], err)
	}
	return xensim.Account{Name: parts[0], Role: parts[1], Password: strings.TrimRight(string(b), "\r\n")}, nil
}

// serve runs the pool until ctx ends, and says on out where it is.
func serve(ctx context.Context, out io.Writer, cfg xensim.Config) error {
	pool, err := xensim.New(cfg)
	if err != nil {
		return err
	}
	pool.Start()
	line, err := json.Marshal(pool.Info())
	if err != nil {
		return errors.Join(fmt.Errorf("printing the addresses: %w", err), pool.Close())
	}
	if _, err := fmt.Fprintln(out, string(line)); err != nil {
		return errors.Join(fmt.Errorf("printing the addresses: %w", err), pool.Close())
	}
	<-ctx.Done()
	return pool.Close()
}
