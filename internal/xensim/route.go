package xensim

import (
	"net/http"
	"strings"
)

// route is one of XAPI's handlers. As in XAPI a path belongs to the longest of a
// method's prefixes that it begins with, letter by letter.
type route struct {
	method, prefix string
	serve          func(*simHost, http.ResponseWriter, *http.Request)
}

// routes in their order; of two prefixes of one path the longer counts.
var routes = []route{
	{http.MethodGet, "/export", (*simHost).serveExport},
	{http.MethodGet, "/export_metadata", (*simHost).serveExportMetadata},
	{http.MethodPut, "/import", (*simHost).serveImport},
	{http.MethodPut, "/import_metadata", (*simHost).serveImportMetadata},
	{http.MethodGet, "/export_raw_vdi", (*simHost).serveExportRaw},
	{http.MethodPut, "/import_raw_vdi", (*simHost).serveImportRaw},
	{http.MethodGet, "/pool/xmldbdump", (*simHost).serveDatabase},
	{http.MethodPut, "/pool/xmldbdump", (*simHost).serveDatabase},
	{http.MethodPost, "/jsonrpc", (*simHost).serveJSONRPC},
	{http.MethodPost, "/", (*simHost).serveXMLRPC},
	{http.MethodOptions, "/", (*simHost).serveOptions},
	{http.MethodGet, "/", (*simHost).serveFiles},
}

// route finds the handler of a request. A method that no handler has is not
// implemented, a path that none of a method's handlers has is forbidden.
func (h *simHost) route(w http.ResponseWriter, r *http.Request) {
	best, known := route{}, false
	for _, t := range routes {
		if t.method != r.Method {
			continue
		}
		known = true
		if strings.HasPrefix(r.URL.Path, t.prefix) && len(t.prefix) > len(best.prefix) {
			best = t
		}
	}
	switch {
	case best.serve != nil:
		best.serve(h, w, r)
	case known:
		servePage(w, r, "403 Forbidden", "")
	default:
		servePage(w, r, "501 Method not implemented", "")
	}
}

// serveFiles stands for the web pages of a host, of which there are none.
func (h *simHost) serveFiles(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/" {
		servePage(w, r, "403 Forbidden", "")
		return
	}
	servePage(w, r, "404 Not Found", "")
}

// serveOptions answers a browser that asks what it may send from other origins.
func (h *simHost) serveOptions(w http.ResponseWriter, r *http.Request) {
	allowed := "X-Requested-With"
	if asked := r.Header.Get("Access-Control-Request-Headers"); asked != "" {
		allowed = asked + ", " + allowed
	}
	w.Header().Set("Access-Control-Allow-Headers", allowed)
	w.Header().Set("Access-Control-Allow-Methods", "PUT")
	w.Header()["Content-Type"] = nil // net/http would guess one
	reply(w, r, nil)
}
