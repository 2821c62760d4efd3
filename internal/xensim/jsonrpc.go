package xensim

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
)

// jsonCall is a JSON-RPC request: version 2.0 where it says so, else 1.0.
type jsonCall struct {
	v2     bool
	Method string
	ID     json.RawMessage
}

// serveJSONRPC answers POST /jsonrpc, versions 1.0 and 2.0.
func (h *simHost) serveJSONRPC(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Content-Length") == "" {
		servePage(w, r, "500 Internal Error", "require a content-length")
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxCall))
	if err != nil {
		servePage(w, r, "500 Internal Error", "the body could not be read")
		return
	}
	var in jsonCall
	params, err := decodeJSON(body, &in)
	if err != nil {
		servePage(w, r, "500 Internal Error", err.Error())
		return
	}
	v, err := h.pool.dispatch(request{host: h, local: isLocal(r), method: in.Method, params: params})
	if h.pool.hangUp(w, in.Method) {
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Access-Control-Allow-Headers", "X-Requested-With")
	reply(w, r, encodeJSON(in, v, err))
}

// decodeJSON reads a request as strictly as XAPI: the id is an integer or a
// string, and only version 2.0 may leave the parameters out.
func decodeJSON(body []byte, in *jsonCall) ([]any, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil {
		return nil, internalError("malformed JSON-RPC: %v", err)
	}
	invalid := func(name string) error { return internalError("malformed JSON-RPC: field %s", name) }
	if version, ok := fields["jsonrpc"]; ok {
		if in.v2 = string(version) == `"2.0"`; !in.v2 {
			return nil, invalid("jsonrpc")
		}
	}
	if m := fields["method"]; len(m) == 0 || m[0] != '"' || json.Unmarshal(m, &in.Method) != nil {
		return nil, invalid("method")
	}
	in.ID = fields["id"]
	if _, err := strconv.ParseInt(string(in.ID), 10, 64); err != nil && !bytes.HasPrefix(in.ID, []byte{'"'}) {
		return nil, invalid("id")
	}
	p := fields["params"]
	if in.v2 && (len(p) == 0 || string(p) == "null") {
		return []any{}, nil
	}
	d := json.NewDecoder(bytes.NewReader(p))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, invalid("params")
	}
	switch list := v.(type) {
	case []any:
		return fromJSON(list).([]any), nil
	case map[string]any:
		if in.v2 {
			return []any{fromJSON(list)}, nil
		}
	}
	return nil, invalid("params")
}

// fromJSON turns numbers into those that the model knows.
func fromJSON(v any) any {
	switch v := v.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, err := v.Float64()
		if err != nil {
			return v.String()
		}
		return f
	case []any:
		for i := range v {
			v[i] = fromJSON(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = fromJSON(v[k])
		}
	case nil:
		return ""
	}
	return v
}
