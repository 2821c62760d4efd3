package agent

import (
	"time"

	"github.com/dpxen/dpxen/certs"
	"github.com/dpxen/dpxen/internal/xapi"
)

// Config is agent.yaml (DESIGN section 5). LoadConfig fills it; a program that
// builds one itself begins with Defaults.
type Config struct {
	// Name is the agent's name, as in its certificate.
	Name string `mapstructure:"name"`
	// Listen is the address to listen on, host:port.
	Listen string `mapstructure:"listen"`
	// TLS names the mutual-TLS files.
	TLS TLSConfig `mapstructure:"tls"`
	// Allow lists the controllers that may connect, by name; empty = any of this CA.
	Allow []string `mapstructure:"allow"`
	// XAPI says how to reach the host's XAPI.
	XAPI XAPIConfig `mapstructure:"xapi"`
	// Metrics says where Prometheus may ask; off when Listen is empty.
	Metrics MetricsConfig `mapstructure:"metrics"`
	// Limits bound what runs at once, and what it takes of the machine.
	Limits LimitsConfig `mapstructure:"limits"`
	// Log says what the log looks like.
	Log LogConfig `mapstructure:"log"`
	// Timing holds every interval and time limit.
	Timing Timing `mapstructure:"timing"`
}

// TLSConfig names PEM files; paths are relative to the configuration file.
type TLSConfig struct {
	CA   string `mapstructure:"ca"`
	Cert string `mapstructure:"cert"`
	Key  string `mapstructure:"key"`
	CRL  string `mapstructure:"crl"` // empty = no revocation list
}

func (t TLSConfig) files() certs.Files {
	return certs.Files{CA: t.CA, Cert: t.Cert, Key: t.Key, CRL: t.CRL}
}

// XAPIConfig says how to reach XAPI.
type XAPIConfig struct {
	// URL is https://HOST, http://HOST or unix:///var/lib/xcp/xapi.
	URL      string `mapstructure:"url"`
	Username string `mapstructure:"username"`
	// PasswordFile has mode 0600; its first line is the password. Not needed for unix.
	PasswordFile string `mapstructure:"password_file"`
	// For https exactly one of the following: pinned certificates, for any host of the pool; a CA file; or nothing checked.
	Fingerprints []string `mapstructure:"fingerprints"`
	CA           string   `mapstructure:"ca"`
	Insecure     bool     `mapstructure:"insecure"`
	// Host is the name or UUID of the host that the agent stands beside, where the address in URL does not tell.
	Host string `mapstructure:"host"`
}

// MetricsConfig says where metrics are served.
type MetricsConfig struct {
	Listen string `mapstructure:"listen"`
}

// LimitsConfig bounds what runs at once, and what it takes of the machine. What is 0 is not limited.
type LimitsConfig struct {
	// Transfers is the most that may be open; more get BUSY.
	Transfers int `mapstructure:"transfers"`
	// Window is the most bytes of a transfer that may be under way unacknowledged, whatever the controller asks for.
	Window ByteSize `mapstructure:"window"`
	// Memory is what the process tries to stay within (as GOMEMLIMIT does): it collects garbage more often near it.
	Memory ByteSize `mapstructure:"memory"`
	// CPUs is how many it uses at a time (as GOMAXPROCS).
	CPUs int `mapstructure:"cpus"`
	// Nice is its least niceness, 1 to 19.
	Nice int `mapstructure:"nice"`
	// Bandwidth is how many bytes a second pass between XAPI and controllers, in all transfers and both directions together.
	Bandwidth ByteSize `mapstructure:"bandwidth"`
}

// LogConfig says what the log looks like.
type LogConfig struct {
	Level  string `mapstructure:"level"`  // trace, debug, info, warn or error
	Format string `mapstructure:"format"` // json or text; empty = text on a terminal, else json
}

// Timing holds every interval and limit. In the file they are written with a
// unit, such as 120s, and are at least 100ms.
type Timing struct {
	// Lease is how long a transfer lives detached when the controller does not say.
	Lease time.Duration `mapstructure:"lease"`
	// Claim is how long a claim on a VM stands without renewal; it is renewed three times as often.
	Claim time.Duration `mapstructure:"claim"`
	// Progress is the interval of progress messages and of asking XAPI's task.
	Progress time.Duration `mapstructure:"progress"`
	// Stall is how long neither bytes nor task progress may come.
	Stall time.Duration `mapstructure:"stall"`
	// Shutdown is the limit of a clean shutdown when the controller does not say.
	Shutdown time.Duration `mapstructure:"shutdown"`
	// Late is how much longer than that limit a guest whose shutdown was given up is watched.
	Late time.Duration `mapstructure:"late"`
	// Watch is the interval of that watching.
	Watch time.Duration `mapstructure:"watch"`
	// Start is how long starting a VM again is tried.
	Start time.Duration `mapstructure:"start"`
	// Settle is how long to find out what became of a call whose answer was lost.
	Settle time.Duration `mapstructure:"settle"`
	// Cleanup bounds the cleanup of a transfer; what is left then is the sweep's.
	Cleanup time.Duration `mapstructure:"cleanup"`
	// Sweep is the interval of the sweep.
	Sweep time.Duration `mapstructure:"sweep"`
	// Remember is how long a finished transfer can be looked up.
	Remember time.Duration `mapstructure:"remember"`
	// Drain is how long an agent that is stopped lets running transfers go on.
	Drain time.Duration `mapstructure:"drain"`
	// Stop is how long their cleanups may take after that.
	Stop time.Duration `mapstructure:"stop"`
	// Health is the interval of asking whether XAPI answers.
	Health time.Duration `mapstructure:"health"`
	// RetryMin and RetryMax space repeated calls to XAPI.
	RetryMin time.Duration `mapstructure:"retry_min"`
	RetryMax time.Duration `mapstructure:"retry_max"`
	// XAPI bounds single calls; zero fields have the defaults of package xapi.
	XAPI xapi.Timeouts `mapstructure:"-"`
}

// Defaults returns a configuration with everything set that has a default.
func Defaults() Config {
	return Config{
		Listen: "0.0.0.0:7443",
		XAPI:   XAPIConfig{URL: "https://127.0.0.1", Username: "root"},
		Limits: LimitsConfig{Transfers: 16, Window: 64 << 20},
		Log:    LogConfig{Level: "info"},
		Timing: Timing{
			Lease: 120 * time.Second, Claim: 4 * time.Minute, Progress: 10 * time.Second, Stall: 30 * time.Minute,
			Shutdown: 20 * time.Minute, Late: 5 * time.Minute, Watch: 10 * time.Second, Start: 30 * time.Minute,
			Settle: 5 * time.Minute, Cleanup: 40 * time.Minute, Sweep: 5 * time.Minute, Remember: 10 * time.Minute,
			Drain: 30 * time.Second, Stop: 90 * time.Second, Health: 15 * time.Second, RetryMin: 200 * time.Millisecond, RetryMax: 20 * time.Second,
		},
	}
}
