package xensim

import (
	"bufio"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
)

// agentName is what hosts call themselves in the Server header.
const agentName = "XAPI/2.0 (xensim)"

// headings are those of XAPI's error pages, where they are not the reason.
var headings = map[string]string{
	"400": "bad request", "401": "unauthorised", "403": "forbidden", "408": "request timeout",
	"431": "request header fields too large", "500": "internal server error", "501": "Method Not Implemented",
}

// texts are what XAPI's error pages say below the heading.
var texts = map[string]string{
	"400": "The HTTP request was malformed. Please correct and retry.",
	"401": "Please check your credentials and retry.",
	"403": "Access to the requested resource is forbidden.",
	"408": "Timed out waiting for the request.",
	"431": "Exceeded the maximum header size.",
	"500": "An unexpected error occurred; please wait a while and try again. If the problem persists, please contact your " +
		"support representative.",
}

// errorPage gives the html of one of XAPI's error pages.
func errorPage(status, detail string) []byte {
	code, reason, _ := strings.Cut(status, " ")
	if h, ok := headings[code]; ok {
		reason = h
	}
	var b strings.Builder
	fmt.Fprintf(&b, "<html><body><h1>HTTP %s %s</h1>", html.EscapeString(code), html.EscapeString(reason))
	b.WriteString(texts[code])
	if detail != "" {
		b.WriteString("<h1> Additional information </h1>")
		b.WriteString(html.EscapeString(detail))
	}
	b.WriteString("</body></html>")
	return []byte(b.String())
}

// pageHead gives status line and headers of an error page.
func pageHead(version, status string, length int, extra []string) []byte {
	lines := []string{
		version + " " + status,
		"content-length: " + strconv.Itoa(length),
		"content-type: text/html",
		"connection: close",
		"cache-control: no-cache, no-store",
	}
	lines = append(lines, extra...)
	return []byte(strings.Join(lines, "\r\n") + "\r\n\r\n")
}

// stream is a connection that a handler took over from net/http, so that it
// controls every byte of the answer.
type stream struct {
	net.Conn
	r *bufio.Reader
	// version is the HTTP version that answers to this request have.
	version string
	length  int64
}

// takeOver hijacks the connection of a request whose body was not touched.
func takeOver(w http.ResponseWriter, r *http.Request) (*stream, error) {
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, fmt.Errorf("xensim: taking the connection over: %w", err)
	}
	s := &stream{Conn: c, r: rw.Reader, version: "HTTP/1.1", length: r.ContentLength}
	if r.ProtoAtLeast(1, 1) {
		return s, nil
	}
	s.version = "HTTP/1.0"
	return s, nil
}

// Read reads the request's body and whatever follows it.
func (s *stream) Read(p []byte) (int, error) { return s.r.Read(p) }

func (s *stream) writeLines(lines ...string) error {
	_, err := io.WriteString(s.Conn, strings.Join(lines, "\r\n")+"\r\n\r\n")
	return err
}

// page writes an error page.
func (s *stream) page(status, detail string, extra ...string) error {
	body := errorPage(status, detail)
	_, err := s.Write(append(pageHead(s.version, status, len(body), extra), body...))
	return err
}

// internal writes the page that XAPI gives for an exception.
func (s *stream) internal(err error) error {
	return s.page("500 Internal Error", failureOf(err).Error())
}

// end closes the connection after a moment for the client to read the answer to
// a request whose body was not read in full.
func (s *stream) end() error {
	if t, ok := s.Conn.(*conn); ok {
		if tc, ok := t.Conn.(*net.TCPConn); ok {
			_ = tc.CloseWrite() // the client may be gone already
		}
	}
	return s.Close()
}

func servePage(w http.ResponseWriter, r *http.Request, status, detail string) {
	s, err := takeOver(w, r)
	if err != nil {
		http.Error(w, status, http.StatusInternalServerError)
		return
	}
	_ = s.page(status, detail) // the client may be gone; nobody else to tell
	_ = s.end()
}
