package xapi

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

const (
	schemeHTTP  = "http"
	schemeHTTPS = "https"
	schemeUnix  = "unix"
)

// endpoint is where a host listens.
type endpoint struct {
	scheme string
	host   string // without brackets; empty for a socket
	port   string // empty = the scheme's own
	path   string // of the socket
}

// parseURL reads a configured address.
func parseURL(text string) (endpoint, error) {
	u, err := url.Parse(text)
	if err != nil {
		return endpoint{}, fmt.Errorf("%q is no URL", text)
	}
	switch u.Scheme {
	case schemeUnix:
		if u.Host != "" || !strings.HasPrefix(u.Path, "/") {
			return endpoint{}, fmt.Errorf("%q: want unix:///path", text)
		}
		return endpoint{scheme: schemeUnix, path: u.Path}, nil
	case schemeHTTP, schemeHTTPS:
		if u.User != nil || (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.Fragment != "" {
			return endpoint{}, fmt.Errorf("want %s://host[:port] and nothing else", u.Scheme)
		}
		return newEndpoint(u.Scheme, u.Host)
	}
	return endpoint{}, fmt.Errorf("%q: want https://host, http://host or unix:///path", text)
}

// newEndpoint makes an endpoint of an address as XAPI tells it: a name or an IP address, perhaps with a port.
func newEndpoint(scheme, address string) (endpoint, error) {
	host, port, err := splitAddress(address)
	return endpoint{scheme: scheme, host: host, port: port}, err
}

// splitAddress splits host and port. IPv6 addresses come with and without brackets.
func splitAddress(address string) (host, port string, err error) {
	bare := strings.TrimSuffix(strings.TrimPrefix(address, "["), "]")
	if ip, err := netip.ParseAddr(bare); err == nil && ip.Zone() == "" {
		return bare, "", nil
	}
	host = address
	if strings.Contains(address, ":") {
		if host, port, err = net.SplitHostPort(address); err != nil {
			return "", "", fmt.Errorf("address %q has no valid form", address)
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return "", "", fmt.Errorf("address %q has no valid port", address)
		}
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.Zone() == "" {
		return host, port, nil
	}
	valid := func(r rune) bool {
		return r == '-' || r == '.' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
	}
	if host == "" || len(host) > 253 || strings.ContainsFunc(host, func(r rune) bool { return !valid(r) }) {
		return "", "", errors.New("address has no valid host name")
	}
	return host, port, nil
}

// dial gives network and address for net.Dialer.
func (e endpoint) dial() (network, address string) {
	if e.scheme == schemeUnix {
		return "unix", e.path
	}
	return "tcp", net.JoinHostPort(e.host, e.number())
}

// number is the port's number.
func (e endpoint) number() string {
	switch {
	case e.port != "":
		return e.port
	case e.scheme == schemeHTTPS:
		return "443"
	}
	return "80"
}

// authority is what goes into the Host header and a URL.
func (e endpoint) authority() string {
	switch {
	case e.scheme == schemeUnix:
		return "localhost"
	case e.port != "":
		return net.JoinHostPort(e.host, e.port)
	case strings.Contains(e.host, ":"):
		return "[" + e.host + "]"
	}
	return e.host
}

// String names the endpoint for messages.
func (e endpoint) String() string {
	if e.scheme == schemeUnix {
		return "unix://" + e.path
	}
	return e.scheme + "://" + e.authority()
}

// isAt reports whether a host record's address means this endpoint: the same host and, where the record has a port,
// that port.
func (e endpoint) isAt(address string) bool {
	host, port, err := splitAddress(address)
	if err != nil || e.scheme == schemeUnix || (port != "" && port != e.number()) {
		return false
	}
	a, errA := netip.ParseAddr(host)
	b, errB := netip.ParseAddr(e.host)
	if errA == nil && errB == nil {
		return a.Unmap() == b.Unmap()
	}
	return strings.EqualFold(strings.TrimSuffix(host, "."), strings.TrimSuffix(e.host, "."))
}
