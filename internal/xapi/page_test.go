package xapi

import (
	"errors"
	"net/http"
	"strings"
	"testing"
)

// An error page of XAPI's is anybody's text: it becomes one short line, and a failure only where it has one.
func FuzzErrorPage(f *testing.F) {
	f.Add(500, "<html><body><h1>HTTP 500 internal server error</h1>An unexpected error occurred; please wait a while and try again. "+
		"If the problem persists, please contact your support representative.<h1> Additional information </h1>"+
		"VM_BAD_POWER_STATE: [ OpaqueRef:1; halted; running ]</body></html>")
	f.Add(401, "<html><body><h1>401 unauthorised</h1></body></html>")
	f.Add(503, strings.Repeat("<", 5000)+strings.Repeat("A_B: [", 500))
	f.Add(200, "<style>"+strings.Repeat("&#x41;_", 300)+"X_Y: [;;;]")
	f.Fuzz(func(t *testing.T, status int, page string) {
		if len(page) > maxPage {
			page = page[:maxPage]
		}
		err := statusError(status, page)
		if err == nil {
			t.Fatal("an answer that is no success is no error")
		}
		var e *Error
		if errors.As(err, &e) && (e.Code == "" || !strings.Contains(page+pageText(page), e.Code)) {
			t.Errorf("the failure %q is not on the page", e.Code)
		}
		if !errors.As(err, &e) && len(err.Error()) > 4096+len(http.StatusText(status)) {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
	})
}
