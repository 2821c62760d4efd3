package xapi

import (
	"fmt"
	"html"
	"net/http"
	"regexp"
	"strings"
)

const (
	userAgent = "dpxen"
	maxHead   = 64 << 10 // bytes of an answer's head
	maxPage   = 64 << 10 // bytes of an error page that are read
)

// statusError says what an answer other than 200 means. page is its body, which may hold XAPI's failure.
func statusError(status int, page string) error {
	if e := pageError(page); e != nil {
		return e
	}
	what := fmt.Sprintf("HTTP %d %s", status, http.StatusText(status))
	if text := clip(pageText(page)); text != "" {
		what += ": " + text
	}
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("%w: %s", ErrAuth, what)
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return fmt.Errorf("%w: %s", ErrUnreachable, what)
	}
	return fmt.Errorf("%w: %s", ErrProtocol, what)
}

// pageFailure is how XAPI writes a failure into its error pages: CODE: [ p1; p2 ] (reference section 1.1).
var pageFailure = regexp.MustCompile(`(?s)\b([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+): ?\[(.*)\]`)

// pageError finds XAPI's failure in an error page; nil when there is none.
func pageError(page string) *Error {
	m := pageFailure.FindStringSubmatch(pageText(page))
	if m == nil {
		return nil
	}
	e := &Error{Code: m[1]}
	for p := range strings.SplitSeq(m[2], ";") {
		if p = strings.TrimSpace(p); p != "" {
			e.Params = append(e.Params, clip(p))
		}
	}
	return e
}

var (
	titleTags = regexp.MustCompile(`(?is)<(head|style|script)\b.*?</(head|style|script)>`)
	tags      = regexp.MustCompile(`<[^>]*>`)
)

// pageText gives the text of a page of HTML.
func pageText(page string) string {
	return strings.TrimSpace(html.UnescapeString(tags.ReplaceAllString(titleTags.ReplaceAllString(page, " "), " ")))
}
