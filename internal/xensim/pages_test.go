package xensim

import (
	"strconv"
	"testing"
)

// TestErrorPages compares whole answers with what http_svr.ml writes.
func TestErrorPages(t *testing.T) {
	c := startPool(t, demo).login(t)
	for request, want := range map[string]struct{ status, extra, body string }{
		"GET /export?uuid=x HTTP/1.0": {
			"HTTP/1.0 401 Unauthorized", "WWW-Authenticate: Basic realm=\"VM.export\"\r\n",
			"<html><body><h1>HTTP 401 unauthorised</h1>Please check your credentials and retry.</body></html>",
		},
		"GET /export?uuid=x&session_id=" + c.session + " HTTP/1.1": {
			"HTTP/1.1 500 Internal Error", "",
			"<html><body><h1>HTTP 500 internal server error</h1>An unexpected error occurred; please wait a while and try again. " +
				"If the problem persists, please contact your support representative." +
				"<h1> Additional information </h1>UUID_INVALID: [ VM; x ]</body></html>",
		},
	} {
		page := want.status + "\r\ncontent-length: " + strconv.Itoa(len(want.body)) + "\r\ncontent-type: text/html\r\nconnection: close\r\n" +
			"cache-control: no-cache, no-store\r\n" + want.extra + "\r\n" + want.body
		if got := c.exchange(request + "\r\nHost: x\r\n\r\n"); got != page {
			t.Errorf("%s:\n%q\nwant\n%q", request, got, page)
		}
	}
}
