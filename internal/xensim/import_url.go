package xensim

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/dpxen/dpxen/internal/xensim/archive"
)

const (
	// maxRedirects is how often VM.import goes on to another place.
	maxRedirects = 5
	// maxAnswerHead bounds the headers of the server that is asked, in bytes.
	maxAnswerHead = 64 << 10
)

func (p *Pool) registerImport() { p.slow("VM.import", vmImport) }

// vmImport fetches an archive by HTTP and imports it as /import does (xapi_vm.ml).
// The simulator goes to addresses of this machine only.
func vmImport(c *call, args []any) (any, error) {
	p, sr := c.pool, args[1].(string)
	p.db.mu.Lock()
	o, err := p.db.need("SR", sr)
	var host *simHost
	if err == nil {
		host, _ = p.hostSeeing(c.host, []*object{o})
	}
	p.db.mu.Unlock()
	switch {
	case err != nil:
		return nil, err
	case host == nil:
		return nil, fail("SR_HAS_NO_PBDS", sr)
	}
	conn, body, err := fetchArchive(c.ctx, args[0].(string))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(c.ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })() // at worst the server decides
	local := *c
	local.host = host
	im := &importer{t: &transfer{call: &local}, p: p, sr: sr, restore: args[2].(bool), force: args[3].(bool)}
	if err := im.receive(body); err != nil {
		var f *archive.Failure
		switch {
		case c.ctx.Err() != nil:
			return nil, c.cancelled()
		case errors.As(err, &f):
			return nil, f.Plain()
		}
		return nil, err
	}
	return im.finish(), nil
}

// fetchArchive asks for a URL, and where its answer sends it. The body is what
// follows the headers, as it comes.
func fetchArchive(ctx context.Context, from string) (net.Conn, io.Reader, error) {
	for range maxRedirects + 1 {
		conn, res, body, err := getOnce(ctx, from) //nolint:bodyclose // the body is read from the connection itself
		if err != nil {
			return nil, nil, err
		}
		if res.StatusCode == http.StatusOK {
			if res.ContentLength >= 0 { // XAPI would wait until the server closes
				body = io.LimitReader(body, res.ContentLength)
			}
			return conn, body, nil
		}
		_ = conn.Close() // nothing more is wanted of it
		if res.StatusCode/100 != 3 {
			return nil, nil, fail("IMPORT_ERROR", fmt.Sprintf("%d %s", res.StatusCode, http.StatusText(res.StatusCode)))
		}
		if from = res.Header.Get("Location"); from == "" {
			return nil, nil, fail("IMPORT_ERROR", "Redirect with no new location")
		}
	}
	return nil, nil, fail("IMPORT_ERROR", "Maximum redirect limit reached")
}

func getOnce(ctx context.Context, from string) (net.Conn, *http.Response, io.Reader, error) {
	u, err := url.Parse(from)
	switch {
	case err != nil || u.Scheme == "" || u.Scheme == "http" && u.Hostname() == "":
		return nil, nil, nil, internalError("Failure(%q)", "Failed to parse URI: "+from)
	case u.Scheme == "https":
		return nil, nil, nil, fail("SSL_VERIFY_ERROR", "certificate verify failed") // no authority is known here
	case u.Scheme != "http":
		return nil, nil, nil, internalError("Failure(%q)", "Unsupported URI scheme: "+u.Scheme)
	}
	conn, err := dialHere(ctx, u)
	if err != nil {
		return nil, nil, nil, err
	}
	request := "GET " + u.RequestURI() + " HTTP/1.1\r\nhost: " + u.Host + "\r\nuser-agent: " + agentName + "\r\n\r\n"
	if _, err := io.WriteString(conn, request); err != nil {
		_ = conn.Close() // the first error is what counts
		return nil, nil, nil, internalError(`Unix.Unix_error(Unix.EPIPE, "write", "")`)
	}
	head := &io.LimitedReader{R: conn, N: maxAnswerHead}
	body := bufio.NewReaderSize(head, 32<<10)
	res, err := http.ReadResponse(body, nil)
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		err = fail("IMPORT_ERROR_PREMATURE_EOF")
	case err != nil:
		err = fail("IMPORT_ERROR", err.Error())
	}
	if err != nil {
		_ = conn.Close() // as above
		return nil, nil, nil, err
	}
	head.N = 1 << 62
	return conn, res, body, nil
}

// dialHere connects to an address of this machine.
func dialHere(ctx context.Context, u *url.URL) (net.Conn, error) {
	port := u.Port()
	if port == "" {
		port = "80"
	}
	var d net.Dialer
	addrs, err := net.DefaultResolver.LookupIPAddr(ctx, u.Hostname())
	if err != nil || len(addrs) == 0 {
		return nil, internalError("Not_found")
	}
	for _, a := range addrs {
		if !a.IP.IsLoopback() {
			return nil, internalError(`Unix.Unix_error(Unix.ENETUNREACH, "connect", "")`)
		}
	}
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(addrs[0].String(), port))
	if err != nil {
		return nil, internalError(`Unix.Unix_error(Unix.ECONNREFUSED, "connect", "")`)
	}
	return conn, nil
}
