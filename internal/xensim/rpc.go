package xensim

import (
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/dpxen/dpxen/internal/xensim/xmlrpc"
)

// maxCall bounds the body of a call.
const maxCall = 64 << 20

// serveXMLRPC answers a POST with a method call in XML.
func (h *simHost) serveXMLRPC(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Content-Length") == "" {
		servePage(w, r, "500 Internal Error", "require a content-length")
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxCall))
	if err != nil {
		servePage(w, r, "500 Internal Error", "the body could not be read")
		return
	}
	name, params, err := xmlrpc.DecodeCall(body)
	if err != nil {
		servePage(w, r, "500 Internal Error", failureOf(err).Error())
		return
	}
	v, err := h.pool.dispatch(request{host: h, local: isLocal(r), method: name, params: params})
	if h.pool.hangUp(w, name) {
		return
	}
	var out []byte
	switch {
	case err != nil:
		out = xmlrpc.AppendFailure(nil, failureOf(err).description())
	case name == listMethods:
		out = xmlrpc.AppendBare(nil, v)
	default:
		out = xmlrpc.AppendSuccess(nil, v)
	}
	w.Header().Set("Content-Type", "text/xml")
	w.Header().Set("Access-Control-Allow-Headers", "X-Requested-With")
	reply(w, r, out)
}

// reply writes an answer of known length with the headers that all of them have.
func reply(w http.ResponseWriter, r *http.Request, body []byte) {
	head := w.Header()
	head.Set("Content-Length", strconv.Itoa(len(body)))
	head.Set("Access-Control-Allow-Origin", "*")
	head.Set("Cache-Control", "no-cache, no-store")
	head.Set("Connection", "keep-alive")
	if asked := strings.ToLower(r.Header.Get("Connection")); r.Close || asked == "close" || !r.ProtoAtLeast(1, 1) && asked != "keep-alive" {
		head.Set("Connection", "close")
	}
	head["Date"] = nil
	_, _ = w.Write(body) // the client may be gone; the call has been made
}
