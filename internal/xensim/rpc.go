package xensim

import (
	"io"
	"net/http"
	"strconv"

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
	reply(w, "text/xml", out)
}

func reply(w http.ResponseWriter, contentType string, body []byte) {
	head := w.Header()
	head.Set("Content-Type", contentType)
	head.Set("Content-Length", strconv.Itoa(len(body)))
	head.Set("Access-Control-Allow-Origin", "*")
	head.Set("Access-Control-Allow-Headers", "X-Requested-With")
	head["Date"] = nil
	_, _ = w.Write(body) // the client may be gone; the call has been made
}
