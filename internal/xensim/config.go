package xensim

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dpxen/dpxen/internal/xensim/model"
)

// Config says what pool is simulated. The zero value gives two hosts, no VMs and
// waits as long as on real hosts.
type Config struct {
	// Hosts is the number of hosts of the pool; the first is its master.
	Hosts int
	// VMs is the number of VMs, a mix of running and halted, each with one disk of
	// DiskSize bytes of Content: ext4, half (it compresses to that), random, sparse or zero.
	VMs      int
	DiskSize int64
	Content  string
	// Scenario is a set of VMs by name, in place of VMs: "demo".
	Scenario string
	// Checksum is the kind of checksum in exports: xxhash or sha1. Empty chooses it
	// by ProductVersion.
	Checksum string
	// Seed makes UUIDs and contents repeatable.
	Seed uint64
	// User and Password are what a login must give. An empty password is replaced
	// by a random one.
	User, Password string
	// Accounts are users with a role; each becomes a subject of the pool.
	Accounts []Account
	// Listen is the address of the first host; the others take the ports after it,
	// or any port where it is 0. Empty means 127.0.0.1:0.
	Listen string
	// Data is a folder for the contents of disks; empty means a temporary one that
	// goes with Close.
	Data string
	// Socket is a folder that gets a unix socket for each host, NAME.sock. Empty
	// means none.
	Socket string
	// Speedup divides every simulated wait; 0 means 1. Expiries are divided as well
	// but never fall under MinExpiry (0 means one minute).
	Speedup   float64
	MinExpiry time.Duration
	// ProductVersion is the release that the hosts claim, for example 7.6, 8.2.1 or
	// 8.4.0. It decides fields, checksums and what can be imported.
	ProductVersion string
	// LocalSR and SharedSR are the types of the storage repositories: ext, nfs, lvm,
	// lvmoiscsi … Those that begin with lvm are thick.
	LocalSR, SharedSR string
	// SRSize is the size in bytes of each storage repository; 0 means 1 TiB.
	SRSize int64
	// IdempotentMaps lets add_to_ succeed when the key holds the same value already
	// (db_idempotent_map).
	IdempotentMaps bool
	// KeepAliveBlocks is after how many zero blocks in a row an export writes a block
	// of length zero, as hosts do every 5 s without data: 0 means 850, which is 5 s
	// of reading on a real host (10 in the scenario demo); a negative number means
	// never.
	KeepAliveBlocks int
	// ExportBlocks is how exports find the blocks of a disk that they send: raw reads
	// all and sends what is not zero (the usual way), nbd sends the extents that an
	// NBD server calls data (some SRs since 8.0), bitmap sends the allocated blocks of
	// a VHD, 2 MiB each (XAPI since 26.0). Empty means raw.
	ExportBlocks string
	// Bandwidth limits each export and import in bytes a second; 0 means no limit.
	Bandwidth int64
	// Control is the address of the control endpoint; empty means none.
	Control string
	// Check makes the pool check its invariants after every call that changes
	// something; a violation is told by CheckInvariants.
	Check bool
	// Log, if any, is told what goes wrong inside the simulator.
	Log func(string)
}

// release is what a product version stands for.
type release struct {
	version  string
	api      model.Version
	xapi     [2]int
	brand    string
	xxhash   bool
	platform string
}

// releases in ascending order; xapi is the pair of numbers in an export.
var releases = []release{
	{"6.5.0", model.Version{Major: 2, Minor: 3}, [2]int{1, 3}, "XenServer", false, "1.9.0"},
	{"7.0.0", model.Version{Major: 2, Minor: 5}, [2]int{1, 9}, "XenServer", false, "2.1.0"},
	{"7.1.0", model.Version{Major: 2, Minor: 6}, [2]int{1, 14}, "XenServer", false, "2.2.0"},
	{"7.6.0", model.Version{Major: 2, Minor: 11}, [2]int{1, 110}, "XenServer", false, "2.7.1"},
	{"8.0.0", model.Version{Major: 2, Minor: 12}, [2]int{1, 160}, "Citrix Hypervisor", false, "3.0.0"},
	{"8.1.0", model.Version{Major: 2, Minor: 14}, [2]int{1, 214}, "Citrix Hypervisor", true, "3.1.0"},
	{"8.2.1", model.Version{Major: 2, Minor: 15}, [2]int{1, 249}, "Citrix Hypervisor", true, "3.2.1"},
	{"8.3.0", model.Version{Major: 2, Minor: 21}, [2]int{24, 16}, "XCP-ng", true, "3.4.0"},
	{"8.4.0", model.Version{Major: 2, Minor: 21}, [2]int{24, 16}, "XenServer", true, "3.4.0"},
}

func releaseOf(version string) (release, error) {
	if version == "" {
		return releases[len(releases)-1], nil
	}
	for _, r := range releases {
		if version == r.version || len(version) >= 3 && version[:3] == r.version[:3] {
			r.version = version
			return r, nil
		}
	}
	return release{}, fmt.Errorf("xensim: unknown product version %q", version)
}

func (c Config) withDefaults() (Config, error) {
	if c.Hosts == 0 {
		c.Hosts = 2
	}
	if c.DiskSize == 0 {
		c.DiskSize = 64 << 20
	}
	if c.Content == "" {
		c.Content = "random"
	}
	if c.User == "" {
		c.User = "root"
	}
	if c.Listen == "" {
		c.Listen = "127.0.0.1:0"
	}
	if c.Speedup == 0 {
		c.Speedup = 1
	}
	if c.MinExpiry == 0 {
		c.MinExpiry = time.Minute
	}
	if c.LocalSR == "" {
		c.LocalSR = "ext"
	}
	if c.SharedSR == "" {
		c.SharedSR = "nfs"
	}
	if c.SRSize == 0 {
		c.SRSize = 1 << 40
	}
	if c.KeepAliveBlocks == 0 {
		c.KeepAliveBlocks = 850
		if c.Scenario == "demo" {
			c.KeepAliveBlocks = 10 // its disks are small, and the case is common
		}
	}
	if c.Password == "" {
		b := make([]byte, 12)
		if _, err := rand.Read(b); err != nil {
			return c, fmt.Errorf("xensim: choosing a password: %w", err)
		}
		c.Password = hex.EncodeToString(b)
	}
	switch {
	case c.Hosts < 0 || c.Hosts > 64:
		return c, fmt.Errorf("xensim: %d hosts, but a pool has 1 to 64", c.Hosts)
	case c.VMs < 0 || c.DiskSize < 0 || c.Speedup < 0:
		return c, fmt.Errorf("xensim: numbers must not be negative")
	case c.Checksum != "" && c.Checksum != "sha1" && c.Checksum != "xxhash":
		return c, fmt.Errorf("xensim: unknown checksum %q; it is xxhash or sha1", c.Checksum)
	case c.ExportBlocks != "" && !exportBlocks(c.ExportBlocks):
		return c, fmt.Errorf("xensim: unknown choice of blocks %q; it is raw, nbd or bitmap", c.ExportBlocks)
	case c.Scenario != "" && c.Scenario != "demo":
		return c, fmt.Errorf("xensim: unknown scenario %q; there is demo", c.Scenario)
	}
	for _, a := range c.Accounts {
		if a.Name == "" || a.Name == c.User || a.Password == "" || !slices.Contains(roleNames, a.Role) {
			return c, fmt.Errorf("xensim: account %q with the role %q: an account has a name of its own, a password and one of the roles %s",
				a.Name, a.Role, strings.Join(roleNames, ", "))
		}
	}
	switch c.Content {
	case "ext4", "half", "random", "sparse", "zero":
	default:
		return c, fmt.Errorf("xensim: unknown content %q; it is ext4, half, random, sparse or zero", c.Content)
	}
	return c, nil
}
