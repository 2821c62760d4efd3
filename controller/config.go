package controller

import (
	"time"

	"github.com/dpxen/dpxen/internal/staging"
	"github.com/dpxen/dpxen/internal/transfer"
)

// Config is controller.yaml. Paths are absolute once it is loaded.
type Config struct {
	Staging string        `mapstructure:"staging"` // folder that backups are written to
	Restore string        `mapstructure:"restore"` // folder that Data Protector restores files to
	State   string        `mapstructure:"state"`   // folder of sessions; never within the other two
	TLS     TLSFiles      `mapstructure:"tls"`
	Agents  []AgentConfig `mapstructure:"agents"`
	Digest  string        `mapstructure:"digest"` // of new files, see staging.NewDigest
	// ReadBack: a new file is read back from the disk before it is called good.
	ReadBack bool `mapstructure:"read_back"`
	// WireCompression compresses what agents and this controller send each other: WireNone or WireZstd.
	WireCompression string `mapstructure:"wire_compression"`

	Limits       Limits          `mapstructure:"limits"`
	Timing       Timing          `mapstructure:"timing"`
	Sets         map[string]Set  `mapstructure:"sets"`
	ExcludeDisks []DiskRule      `mapstructure:"exclude_disks"` // disks that no backup takes
	MaxAge       time.Duration   `mapstructure:"max_age"`       // VMs without a good backup for longer are told of; 0 = none is
	SpecDefaults Spec            `mapstructure:"spec_defaults"`
	Specs        map[string]Spec `mapstructure:"specs"` // each filled up from SpecDefaults

	file string // where it came from, for messages
}

// TLSFiles are the controller's own certificate and what it trusts.
type TLSFiles struct {
	CA   string `mapstructure:"ca"`
	Cert string `mapstructure:"cert"`
	Key  string `mapstructure:"key"`
	CRL  string `mapstructure:"crl"` // optional
}

// AgentConfig is one agent.
type AgentConfig struct {
	Name    string `mapstructure:"name"`    // as in its certificate
	Address string `mapstructure:"address"` // HOST:PORT
	Pool    string `mapstructure:"pool"`    // UUID of its pool; empty = the one that it says
}

// Limits are numbers of VMs that are worked on at the same time, and the time between two beginnings.
type Limits struct {
	Total   int `mapstructure:"total"`
	PerHost int `mapstructure:"per_host"`
	PerSR   int `mapstructure:"per_sr"`
	PerPool int `mapstructure:"per_pool"`

	// Of single hosts, SRs and pools, by name or UUID, in place of the above.
	Hosts map[string]int `mapstructure:"hosts"`
	SRs   map[string]int `mapstructure:"srs"`
	Pools map[string]int `mapstructure:"pools"`

	Bandwidth int64 `mapstructure:"bandwidth"` // bytes a second that all transfers move together; 0 = no limit

	Stagger time.Duration `mapstructure:"stagger"` // between two VMs' snapshots on one SR; 0 = none
}

// Timing holds what administrators rarely and tests always change. No duration is shorter than 100 ms.
type Timing struct {
	Lease          time.Duration `mapstructure:"lease"`           // agents keep a cut transfer so long; at most 10 min
	Window         int64         `mapstructure:"window"`          // bytes under way unacknowledged per transfer
	Heartbeat      time.Duration `mapstructure:"heartbeat"`       // something is told at least so often
	BackoffMin     time.Duration `mapstructure:"backoff_min"`     // first pause before a cut stream is attached again
	BackoffMax     time.Duration `mapstructure:"backoff_max"`     // longest such pause
	Retries        int           `mapstructure:"retries"`         // attempts at a VM beyond the first, beside those that the waits below allow
	BusyWait       time.Duration `mapstructure:"busy_wait"`       // how long a VM is tried again that is busy with other operations
	ClaimWait      time.Duration `mapstructure:"claim_wait"`      // how long a VM is tried again that another session works on
	ShutdownLimit  time.Duration `mapstructure:"shutdown_limit"`  // of a clean shutdown
	ReleaseTimeout time.Duration `mapstructure:"release_timeout"` // agents may take so long to clean up after a VM
	ConnectTimeout time.Duration `mapstructure:"connect_timeout"` // until an agent has answered for the first time
	CallTimeout    time.Duration `mapstructure:"call_timeout"`    // of a question about what exists
	CancelPoll     time.Duration `mapstructure:"cancel_poll"`     // a cancel request is looked for so often
	XAPIOutage     time.Duration `mapstructure:"xapi_outage"`     // how long a pool's XAPI, or all its agents, may be away and its VMs still be tried again
	StallLimit     time.Duration `mapstructure:"stall_limit"`     // without bytes and progress for so long is stalled
	VMLimit        time.Duration `mapstructure:"vm_limit"`        // one VM may take so long in all, however much it moves
	LockWait       time.Duration `mapstructure:"lock_wait"`       // a restore for Data Protector waits so long for another one
}

// Set is a named selection, evaluated when it is used. See Selection for the meaning.
type Set struct {
	Set     []string `mapstructure:"set"` // other sets; each is chosen as it is by itself
	VM      []string `mapstructure:"vm"`
	Tag     []string `mapstructure:"tag"`
	Pool    []string `mapstructure:"pool"`
	Host    []string `mapstructure:"host"`
	SR      []string `mapstructure:"sr"`
	Power   []string `mapstructure:"power"`
	MinSize int64    `mapstructure:"min_size"` // bytes
	MaxSize int64    `mapstructure:"max_size"` // bytes, 0 = no bound
	Exclude []string `mapstructure:"exclude"`
}

// Spec is how the sessions of one Data Protector backup specification run.
type Spec struct {
	// Set chooses the VMs of an online or offline mode, as Select does by a set's name; of an all mode only its Exclude counts.
	Set `mapstructure:",squash"`

	Mode        string `mapstructure:"mode"`         // a Mode, in any case
	Select      string `mapstructure:"select"`       // the name of a set
	Partial     string `mapstructure:"partial"`      // PartialSave or PartialFail
	DPMode      string `mapstructure:"dp_mode"`      // what a DP mode other than full means: DPModeWarn, Refuse, Ignore
	KeepSets    int    `mapstructure:"keep_sets"`    // saved sessions whose files stay in the staging folder
	KeepUnsaved bool   `mapstructure:"keep_unsaved"` // keep files that DP did not save
	Warnings    string `mapstructure:"warnings"`     // WarningsOK or WarningsFail: what code 4 becomes
	Restore     string `mapstructure:"restore"`      // folder that Data Protector restores its files to; empty = the common one
	// OfflineSnapshot: in an offline mode VMs are down for a snapshot only, see Request.
	OfflineSnapshot bool `mapstructure:"offline_snapshot"`
}

// Values of Config.WireCompression.
const (
	WireNone = "none"
	WireZstd = transfer.WireZstd
)

// Values of a Spec's fields.
const (
	PartialSave  = "save" // DP saves the good VMs although others failed
	PartialFail  = "fail" // DP saves nothing unless all are good
	DPModeWarn   = "warn"
	DPModeRefuse = "refuse"
	DPModeIgnore = "ignore"
	WarningsOK   = "ok"
	WarningsFail = "fail"
)

// DefaultConfig returns what holds where controller.yaml says nothing.
func DefaultConfig() *Config {
	return &Config{
		Digest: staging.DefaultDigest, ReadBack: true, WireCompression: WireNone,
		Limits: Limits{Total: 8, PerHost: 2, PerSR: 2, PerPool: 4, Stagger: 2 * time.Second},
		Timing: Timing{
			Lease:          120 * time.Second,
			Window:         16 << 20,
			Heartbeat:      60 * time.Second,
			BackoffMin:     time.Second,
			BackoffMax:     30 * time.Second,
			Retries:        2,
			BusyWait:       10 * time.Minute,
			ClaimWait:      5 * time.Minute,
			ShutdownLimit:  20 * time.Minute,
			ReleaseTimeout: 10 * time.Minute,
			ConnectTimeout: 10 * time.Second,
			CallTimeout:    2 * time.Minute,
			CancelPoll:     time.Second,
			XAPIOutage:     3 * time.Minute,
			StallLimit:     30 * time.Minute,
			VMLimit:        7 * 24 * time.Hour,
			LockWait:       2 * time.Hour,
		},
		SpecDefaults: Spec{
			Mode: string(AllOnline), Partial: PartialSave, DPMode: DPModeWarn, Warnings: WarningsOK,
		},
	}
}

// Spec returns the specification of that name, or the defaults where it has no entry of its own.
func (c *Config) Spec(name string) (spec Spec, found bool) {
	if spec, found = c.Specs[name]; found {
		return spec, true
	}
	return c.SpecDefaults, false
}
