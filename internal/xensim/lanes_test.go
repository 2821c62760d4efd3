package xensim

import (
	"io"
	"net/http"
	"testing"
	"time"
)

// exportTime exports a VM from a host and says how long that took.
func (c *client) exportTime(vm string) time.Duration {
	c.t.Helper()
	begin := time.Now()
	res := c.do(http.MethodGet, "/export?ref="+vm+"&session_id="+c.session, nil)
	if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK {
		c.t.Fatalf("%s, %v", res.Status, err)
	}
	return time.Since(begin)
}

func TestShapes(t *testing.T) {
	p := startPool(t, func(c *Config) { c.VMs = 2; c.Content = "random"; c.DiskSize = 2 << 20 })
	c := p.login(t)
	vm := ""
	for _, i := range p.Info().VMs {
		if i.PowerState == halted {
			vm = c.str("VM.get_by_uuid", i.UUID)
		}
	}
	sr := c.str("VDI.get_SR", c.str("VBD.get_VDI", c.list("VM.get_VBDs", vm)[0]))
	for _, object := range []string{"xen1", "xen2", c.str("SR.get_uuid", sr)} {
		if err := p.SetShape(Shape{Object: object, Bandwidth: 8 << 20}); err != nil {
			t.Fatal(err)
		}
	}
	host := c
	if res := c.do(http.MethodGet, "/export?ref="+vm+"&session_id="+c.session, nil); res.StatusCode == http.StatusFound {
		host = p.client(t, 1)
		host.session = c.session
	}
	if took := host.exportTime(vm); took < 200*time.Millisecond {
		t.Errorf("2 MiB at 8 MiB/s took %v", took)
	}
	if err := p.SetShape(Shape{Object: "xen1", Latency: 100 * time.Second}); err != nil { // 100 ms
		t.Fatal(err)
	}
	begin := time.Now()
	c.ok("VM.get_uuid", vm)
	if took := time.Since(begin); took < 100*time.Millisecond {
		t.Errorf("a call with 100 ms of latency took %v", took)
	}
	if err := p.SetShape(Shape{Object: "nothing"}); err == nil {
		t.Error("something was shaped that is not there")
	}
}
