package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/dpxen/dpxen/certs"
	"github.com/dpxen/dpxen/internal/rpc"
	agentv1 "github.com/dpxen/dpxen/proto/dpxen/agent/v1"
)

// certificateWarning is how long before its certificate's end an agent begins to warn.
const certificateWarning = 30 * 24 * time.Hour

// lastCalls is how long calls that still run get at the very end, when all work is done.
const lastCalls = 5 * time.Second

// Serve answers controllers on l, or on the configured address when l is nil,
// until ctx ends. Then it takes no new transfers, gives the running ones the
// time Timing.Drain, ends the others and cleans up after them, all the while
// telling outcomes to who asks, logs out of XAPI and returns nil. What could
// not be cleaned up in Timing.Stop is in the journal for the next start.
func (a *Agent) Serve(ctx context.Context, l net.Listener) error {
	srv, err := a.newServer()
	if err != nil {
		return err
	}
	if l == nil {
		if l, err = (&net.ListenConfig{}).Listen(ctx, "tcp", a.cfg.Listen); err != nil {
			return fmt.Errorf("listen on %s: %w", a.cfg.Listen, err)
		}
	}
	if err := a.serveMetrics(ctx); err != nil {
		return errors.Join(err, l.Close())
	}
	a.addrMu.Lock()
	a.addr = l.Addr()
	a.addrMu.Unlock()
	a.log.Info("agent started", "agent", a.cfg.Name, "version", a.version, "address", l.Addr().String(),
		"xapi", a.cfg.XAPI.URL, "certificate_until", a.certs.NotAfter())
	if left := time.Until(a.certs.NotAfter()); left < certificateWarning {
		a.log.Warn("the agent's certificate ends soon; renew it", "until", a.certs.NotAfter())
	}
	a.work.Go(func() { a.watchXAPI(a.ctx, srv) })
	a.work.Go(func() {
		a.sweeper.atStart(a.ctx)
		a.sweeper.loop(a.ctx)
	})
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	select {
	case err = <-served:
		err = fmt.Errorf("serve on %s: %w", l.Addr(), err)
	case <-ctx.Done():
		a.log.Info("agent stopping", "open_transfers", a.jobs.Len())
	}
	a.shutdown(srv)
	return err
}

func (a *Agent) newServer() (*rpc.Server, error) {
	policy := certs.PeerPolicy{Role: certs.Controller, Allow: a.cfg.Allow}
	srv, err := rpc.NewServer(rpc.ServerOptions{TLS: a.certs.ServerConfig(policy), Logger: a.log.Named("rpc"),
		Registry: a.registry, Identify: func(cs tls.ConnectionState) (certs.Identity, error) {
			return a.certs.CheckClient(cs, policy)
		}})
	if err != nil {
		return nil, fmt.Errorf("set up the agent's server: %w", err)
	}
	agentv1.RegisterAgentServiceServer(srv, &service{agent: a})
	return srv, nil
}

// shutdown ends what runs, in order: new transfers, running ones, whatever is
// in the background, calls, the session with XAPI.
func (a *Agent) shutdown(srv *rpc.Server) {
	a.opening.Lock()
	a.closing = true
	a.opening.Unlock()
	drain := time.NewTimer(a.cfg.Timing.Drain)
	defer drain.Stop()
	for _, j := range a.jobs.All() {
		select {
		case <-j.done:
			continue
		case <-drain.C:
		}
		break
	}
	a.cancel(errStopping)
	a.work.Wait() // bounded: cleanups have a limit of their own once the agent stops

	ctx, cancel := context.WithTimeout(context.Background(), lastCalls)
	defer cancel()
	srv.Shutdown(ctx)
	if err := a.Close(ctx); err != nil {
		a.log.Warn("session with XAPI not ended", "err", err)
	}
	a.log.Info("agent stopped")
}

// cleanupContext is what a job cleans up under: it outlives the job's own
// context, is bounded by Timing.Cleanup, and by Timing.Stop once the agent stops.
func (a *Agent) cleanupContext(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.cfg.Timing.Cleanup)
	stop := context.AfterFunc(a.ctx, func() {
		t := time.AfterFunc(a.cfg.Timing.Stop, cancel)
		context.AfterFunc(ctx, func() { t.Stop() })
	})
	return ctx, func() { stop(); cancel() }
}

// watchXAPI keeps the health of XAPI up to date, and notes when it was away:
// claims cannot be renewed then.
func (a *Agent) watchXAPI(ctx context.Context, srv *rpc.Server) {
	answers := true
	for {
		one, cancel := context.WithTimeout(ctx, a.cfg.Timing.Health)
		pool, err := a.xapi.Pool(one)
		a.locate(one, pool, err)
		cancel()
		if ctx.Err() != nil {
			return
		}
		state := healthpb.HealthCheckResponse_SERVING
		if err != nil {
			state = healthpb.HealthCheckResponse_NOT_SERVING
			a.quiet.away()
		}
		srv.Health.SetServingStatus(rpc.HealthXAPI, state)
		if answers != (err == nil) {
			answers = err == nil
			a.log.Warn("XAPI changed", "answers", answers, "err", err)
		}
		if sleep(ctx, a.cfg.Timing.Health) != nil {
			return
		}
	}
}

// serveMetrics answers Prometheus where the configuration says so, until the agent stops.
func (a *Agent) serveMetrics(ctx context.Context) error {
	if a.cfg.Metrics.Listen == "" {
		return nil
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a.cfg.Metrics.Listen)
	if err != nil {
		return fmt.Errorf("listen for metrics on %s: %w", a.cfg.Metrics.Listen, err)
	}
	a.addrMu.Lock()
	a.metricsAddr = l.Addr()
	a.addrMu.Unlock()
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(a.registry, promhttp.HandlerOpts{}))
	h := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	a.work.Go(func() {
		if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			a.log.Error("metrics are no longer served", "err", err)
		}
	})
	context.AfterFunc(a.ctx, func() {
		if err := h.Close(); err != nil {
			a.log.Debug("metrics listener", "err", err)
		}
	})
	return nil
}
