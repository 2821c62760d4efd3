package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/dpxen/dpxen/certs"
	"github.com/dpxen/dpxen/internal/rpc"
	"github.com/dpxen/dpxen/internal/transfer"
	"github.com/dpxen/dpxen/internal/xapi"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// devVersion is the program version unless SetVersion is called.
const devVersion = "devel"

// sweeper finishes or undoes what the journal says. sweep.go has it.
type sweeper interface {
	// atStart runs before the first call is served: it takes care of the records of this agent's own name, which are
	// from before its start. It returns soon; what has to wait goes on in the background until ctx ends.
	atStart(ctx context.Context)
	// sweepVM sweeps one VM's work, which the journal shows as dead, so that the VM can be claimed again. An error says that
	// it cannot be, for now.
	sweepVM(ctx context.Context, vm string) error
	// sweep sweeps the whole journal on a caller's behalf.
	sweep(ctx context.Context, o sweepOptions) ([]sweepAction, error)
	// loop sweeps at the interval Timing.Sweep until ctx ends.
	loop(ctx context.Context)
}

// Agent is the service beside one host. New makes one, Serve runs it once.
type Agent struct {
	cfg      Config
	version  string
	protocol *agentv1.ProtocolRange
	log      hclog.Logger
	audit    audit
	certs    *certs.Source
	xapi     *xapi.Client
	journal  *journal
	power    *power
	jobs     *transfer.Registry[*job]
	sweeper  sweeper
	metrics  *metrics
	pacer    *rate.Limiter // of all transfers; nil = no limit
	quiet    quiet         // when XAPI was last away
	place    whereabouts   // where the agent stands, as long as XAPI answers
	registry *prometheus.Registry

	// ctx is that of the jobs: it ends after the streams have, when the agent stops.
	ctx    context.Context
	cancel context.CancelCauseFunc
	work   sync.WaitGroup // jobs and all that runs beside them

	opening  sync.Mutex // guards the count of open transfers against the limit
	jobsOpen int        // under opening
	closing  bool       // under opening: no new transfers

	watchMu sync.Mutex
	watches map[string]*watching // by the VM's UUID

	addrMu      sync.Mutex
	addr        net.Addr
	metricsAddr net.Addr
}

// New makes an agent from a configuration that LoadConfig returned, or one
// built from Defaults. It reads certificates and the XAPI password, and does
// not speak to XAPI yet.
func New(cfg Config, log hclog.Logger) (*Agent, error) {
	if log == nil {
		log = hclog.NewNullLogger()
	}
	source, err := certs.NewSource(cfg.TLS.files())
	if err != nil {
		return nil, fmt.Errorf("load the agent's certificate: %w", err)
	}
	if id := source.Identity(); id.Role != certs.Agent || id.Name != cfg.Name {
		return nil, fmt.Errorf("the certificate %s is for %s, not for agent %s", cfg.TLS.Cert, id, cfg.Name)
	}
	if cfg.Timing.XAPI.StreamIdle <= 0 {
		cfg.Timing.XAPI.StreamIdle = cfg.Timing.Stall
	}
	if cfg.Timing.XAPI.Cancel <= 0 { // a cleanup has to get through several tasks that do not end
		cfg.Timing.XAPI.Cancel = min(30*time.Second, cfg.Timing.Cleanup/6)
	}
	trail := audit{log.Named("audit")}
	client, err := xapi.New(xapi.Config{
		URL: cfg.XAPI.URL, Username: cfg.XAPI.Username, PasswordFile: cfg.XAPI.PasswordFile,
		Fingerprints: cfg.XAPI.Fingerprints, CAFile: cfg.XAPI.CA, Insecure: cfg.XAPI.Insecure,
		Originator: "dpxen-agent/" + cfg.Name, Timeouts: cfg.Timing.XAPI, Changed: trail.changed, Admit: standing})
	if err != nil {
		return nil, fmt.Errorf("set up the connection to XAPI: %w", err)
	}
	registry := prometheus.NewRegistry()
	a := &Agent{cfg: cfg, version: devVersion, protocol: rpc.OwnProtocol(), log: log.Named("agent"), audit: trail, certs: source, xapi: client,
		journal:  newJournal(client, cfg.Name, cfg.Timing),
		power:    &power{calls: client, timing: cfg.Timing},
		jobs:     transfer.NewRegistry[*job](cfg.Timing.Remember),
		registry: registry, watches: map[string]*watching{}, pacer: cfg.Limits.limiter()}
	a.metrics = newMetrics(registry, a.jobs.Len)
	a.ctx, a.cancel = context.WithCancelCause(context.Background())
	a.sweeper = newSweeper(a)
	return a, nil
}

// SetVersion sets the program version that GetHost tells. Call it before Serve.
func (a *Agent) SetVersion(v string) { a.version = v }

// SetProtocol sets the range of protocol versions that the agent says it speaks, instead of rpc.OwnProtocol. It is for trying
// out how an agent of another version gets on with a controller. Call it before Serve.
func (a *Agent) SetProtocol(r *agentv1.ProtocolRange) { a.protocol = r }

// Addr returns the address that Serve listens on; nil before.
func (a *Agent) Addr() net.Addr {
	a.addrMu.Lock()
	defer a.addrMu.Unlock()
	return a.addr
}

// MetricsAddr returns the address that metrics are served on; nil where they are not.
func (a *Agent) MetricsAddr() net.Addr {
	a.addrMu.Lock()
	defer a.addrMu.Unlock()
	return a.metricsAddr
}

// Close frees what New made. It is for an agent that is not served: Serve does
// it at its end.
func (a *Agent) Close(ctx context.Context) error {
	a.cancel(errStopping)
	if err := a.xapi.Close(ctx); err != nil && !errors.Is(err, xapi.ErrUnreachable) {
		return fmt.Errorf("log out of XAPI: %w", err)
	}
	return nil
}

func (a *Agent) retry() backoff { return a.power.retry() }

// transport returns the kind of XAPI address: "https", "http" or "unix".
func (a *Agent) transport() string {
	u, err := url.Parse(a.cfg.XAPI.URL)
	if err != nil {
		return ""
	}
	return u.Scheme
}
