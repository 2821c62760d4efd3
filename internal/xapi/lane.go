package xapi

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	xenapi "github.com/terra-farm/go-xen-api-client"
)

// laneScheme is the URL scheme under which the library meets our transport.
const laneScheme = "xapi"

// emptySuccess is what the library gets to read instead of XAPI's reply: its decoder runs in a goroutine of its own,
// where a malformed reply would bring the process down, and it trims strings.
const emptySuccess = `<methodResponse><params><param><value><struct><member><name>Status</name><value>Success</value>` +
	`</member></struct></value></param></params></methodResponse>`

// exchange is one request and its reply as lane.RoundTrip carries it out: it gets the body that the library wrote.
type exchange func(body []byte) error

// lane is one client of the library. Calls on it must not overlap; lanes sees to that.
type lane struct {
	api *xenapi.Client
	run exchange // of the call under way; set and used in the caller's goroutine
	err error
}

func newLane() (*lane, error) {
	l := &lane{}
	tr := &http.Transport{}
	tr.RegisterProtocol(laneScheme, l)
	api, err := xenapi.NewClient(laneScheme+"://lane/", tr)
	if err != nil {
		return nil, fmt.Errorf("client library: %w", err)
	}
	l.api = api
	return l, nil
}

// call makes the library write a request and carries it out with run, whose error it returns.
func (l *lane) call(method string, args []any, run exchange) (err error) {
	l.run, l.err = run, nil
	defer func() {
		l.run = nil
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: the client library panicked: %v: %w", method, p, ErrProtocol)
		}
	}()
	_, libErr := l.api.APICall(method, args...)
	if l.err != nil {
		return l.err
	}
	if libErr != nil {
		return fmt.Errorf("%s: client library: %w", method, libErr)
	}
	return nil
}

// RoundTrip implements http.RoundTripper for the library. It is called in the goroutine of call.
func (l *lane) RoundTrip(req *http.Request) (*http.Response, error) {
	if l.run == nil { // close
		return reply(req, failingBody{}), nil
	}
	body, err := io.ReadAll(req.Body)
	if err == nil {
		err = req.Body.Close()
	}
	if err == nil {
		err = l.run(body)
	}
	l.err = err
	return reply(req, io.NopCloser(strings.NewReader(emptySuccess))), nil
}

func reply(req *http.Request, body io.ReadCloser) *http.Response {
	return &http.Response{Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: body, ContentLength: -1, Request: req}
}

// close ends the library's goroutine, which waits for replies for ever, by a reply that cannot be read.
func (l *lane) close() {
	l.run = nil
	_, err := l.api.APICall("session.closing")
	_ = err // it is the one that ends the goroutine
}

var errLaneClosed = errors.New("client is closed")

type failingBody struct{}

func (failingBody) Read([]byte) (int, error) { return 0, errLaneClosed }
func (failingBody) Close() error             { return nil }
