package xensim

import (
	"crypto/x509"
	"maps"
	"slices"
	"strings"
)

// hostCPUs is how many processors each host has.
const hostCPUs = 16

// addInventory makes the records of what is in a host.
func (p *Pool) addInventory(h *simHost) {
	for n := range int64(hostCPUs) {
		p.db.create("host_cpu", map[string]any{
			"host": h.ref, "number": n, "vendor": "GenuineIntel", "speed": int64(2400), "modelname": "Simulated CPU", "family": int64(6),
			"model": int64(85), "stepping": "7", "flags": "fpu de tsc msr pae", "features": "00000000-00000000-00000000-00000000",
		})
	}
	for _, pif := range p.db.many("PIF", p.db.find("host", h.ref).refs("PIFs")) {
		m := p.db.create("PIF_metrics", map[string]any{
			"carrier": true, "vendor_id": "8086", "vendor_name": "Simulated", "device_id": "10fb", "device_name": "10 Gigabit Ethernet",
			"speed": int64(10000), "duplex": true, "pci_bus_path": "0000:04:00.0", "last_updated": p.now(),
		})
		p.db.set(pif, "metrics", m.ref)
	}
	p.addCertificates(h)
}

// addCertificates makes the records of a host's certificates: that for clients
// and that for other hosts of the pool.
func (p *Pool) addCertificates(h *simHost) {
	cert, err := x509.ParseCertificate(h.cert.Certificate[0])
	if err != nil {
		return // it was made a moment ago
	}
	hex := strings.ToUpper(strings.TrimPrefix(h.fingerprint, "sha256:"))
	pairs := make([]string, len(hex)/2)
	for i := range pairs {
		pairs[i] = hex[2*i : 2*i+2]
	}
	for _, kind := range []string{"host", "host_internal"} {
		p.db.create("Certificate", map[string]any{
			"type": kind, "host": h.ref, "fingerprint": strings.Join(pairs, ":"),
			"not_before": dateOf(cert.NotBefore), "not_after": dateOf(cert.NotAfter),
		})
	}
}

// addDrivers makes the records of the storage drivers.
func (p *Pool) addDrivers() {
	for _, kind := range slices.Sorted(maps.Keys(drivers)) {
		features := map[string]any{"SR_PROBE": int64(1), "VDI_CREATE": int64(1), "VDI_DELETE": int64(1), "VDI_ATTACH": int64(1), "VDI_DETACH": int64(1)}
		if kind != "iso" && kind != "udev" {
			for _, f := range []string{
				"SR_UPDATE", "VDI_RESIZE", "VDI_CLONE", "VDI_SNAPSHOT", "VDI_MIRROR", "VDI_GENERATE_CONFIG", "VDI_UPDATE", "VDI_CONFIG_CBT",
			} {
				features[f] = int64(1)
			}
			features["VDI_RESET_ON_BOOT"] = int64(2)
		}
		configuration := map[string]string{}
		for _, w := range drivers[kind] {
			configuration[w.key] = "where the storage is (required)"
		}
		p.db.create("SM", map[string]any{
			"name_label": kind, "name_description": "simulated storage of the kind " + kind, "type": kind, "vendor": "xensim",
			"version": "2.0", "required_api_version": "1.0", "configuration": configuration, "features": features,
			"capabilities": slices.Sorted(maps.Keys(features)), "driver_filename": "/opt/xensource/sm/" + kind + "SR",
		})
	}
}
