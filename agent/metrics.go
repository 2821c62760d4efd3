package agent

import (
	"io"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// metrics are the agent's own; gRPC's are beside them. Nothing is labelled by VM.
type metrics struct {
	bytes      *prometheus.CounterVec
	sessions   *prometheus.CounterVec
	seconds    *prometheus.HistogramVec
	windowFull prometheus.Counter
	reattaches *prometheus.CounterVec
	swept      prometheus.Counter
}

func newMetrics(r prometheus.Registerer, open func() int) *metrics {
	m := &metrics{
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "dpxen_agent_bytes_total",
			Help: "Bytes of logical streams between XAPI and controllers."}, []string{"direction"}),
		sessions: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "dpxen_agent_sessions_total",
			Help: "Transfers that ended, by direction and state."}, []string{"direction", "state"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "dpxen_agent_session_seconds",
			Help:    "Duration of transfers, cleanup included.",
			Buckets: prometheus.ExponentialBuckets(1, 4, 9)}, []string{"direction"}),
		windowFull: prometheus.NewCounter(prometheus.CounterOpts{Name: "dpxen_agent_window_full_seconds_total",
			Help: "Time in which exports waited for acknowledgements."}),
		reattaches: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "dpxen_agent_reattach_total",
			Help: "Streams that went on with a transfer, by what had become of the one before."}, []string{"reason"}),
		swept: prometheus.NewCounter(prometheus.CounterOpts{Name: "dpxen_agent_sweep_removed_total",
			Help: "Actions that sweeps have done: objects removed, VMs mended or started, journal entries removed."}),
	}
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), m.bytes, m.sessions, m.seconds, m.windowFull, m.reattaches, m.swept,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "dpxen_agent_sessions",
			Help: "Open transfers."}, func() float64 { return float64(open()) }))
	return m
}

// finished counts a transfer that ended.
func (m *metrics) finished(direction string, out outcome, took time.Duration) {
	state := "failed"
	if out.Succeeded {
		state = "succeeded"
	}
	m.sessions.WithLabelValues(direction, state).Inc()
	m.seconds.WithLabelValues(direction).Observe(took.Seconds())
}

func (m *metrics) reattached(reason string) { m.reattaches.WithLabelValues(reason).Inc() }

// meter counts what passes through r and how long nobody read from it.
type meter struct {
	r        io.Reader
	passed   prometheus.Counter
	idle     prometheus.Counter
	returned time.Time // when the last Read returned
	observe  func(n int, reading bool)
}

// Read reads from r. observe is told when a read begins and what it brought.
func (m *meter) Read(p []byte) (int, error) {
	if !m.returned.IsZero() {
		m.idle.Add(time.Since(m.returned).Seconds())
	}
	m.observe(0, true)
	n, err := m.r.Read(p)
	m.observe(n, false)
	m.passed.Add(float64(n))
	m.returned = time.Now()
	return n, err
}

// counting is a writer that only counts.
type counting struct{ to prometheus.Counter }

// Write counts p.
func (c counting) Write(p []byte) (int, error) {
	c.to.Add(float64(len(p)))
	return len(p), nil
}
