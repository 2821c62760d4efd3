package xensim

import (
	"encoding/pem"
	"net"
	"slices"
	"strings"

	"github.com/dpxen/dpxen/internal/xensim/xmlrpc"
)

// nbdPort is where hosts serve disks as network block devices.
const nbdPort = 10809

// nbdInfo tells where a disk can be read over NBD: one record for each address of
// each host that has the SR, on networks whose purpose is NBD (xapi_vdi.ml,
// get_nbd_info). Nothing listens there in the simulator.
func (p *Pool) nbdInfo(c *call, ref string) (any, error) {
	vdi, err := p.db.need("VDI", ref)
	if err != nil {
		return nil, err
	}
	if vdi.str("type") == "cbt_metadata" {
		return nil, fail("VDI_INCOMPATIBLE_TYPE", ref, "cbt_metadata")
	}
	sr := p.db.find("SR", vdi.str("SR"))
	out := []any{}
	for _, h := range p.hosts {
		if sr == nil || !p.sees(h, sr) {
			continue
		}
		for _, ip := range p.nbdAddresses(h) {
			out = append(out, xmlrpc.Members{
				{Name: "exportname", Value: "/" + vdi.uuid() + "?session_id=" + c.session},
				{Name: "address", Value: ip}, {Name: "port", Value: int64(nbdPort)},
				{Name: "cert", Value: h.certificatePEM()}, {Name: "subject", Value: h.name},
			})
		}
	}
	return out, nil
}

// nbdAddresses gives a host's addresses on networks for NBD.
func (p *Pool) nbdAddresses(h *simHost) []string {
	var out []string
	for _, pif := range p.db.many("PIF", p.db.find("host", h.ref).refs("PIFs")) {
		network := p.db.find("network", pif.str("network"))
		if network == nil || !pif.is("currently_attached") ||
			!slices.ContainsFunc(network.refs("purpose"), func(s string) bool { return strings.HasSuffix(s, "nbd") }) {
			continue
		}
		for _, ip := range append([]string{pif.str("IP")}, pif.refs("IPv6")...) {
			if host, _, err := net.SplitHostPort(ip); err == nil {
				ip = host // the simulator's hosts share an address and differ in ports
			}
			if ip != "" {
				out = append(out, ip)
			}
		}
	}
	return out
}

// certificatePEM gives the host's certificate in PEM.
func (h *simHost) certificatePEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.cert.Certificate[0]}))
}
