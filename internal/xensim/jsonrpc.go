package xensim

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
)

// jsonCall is a JSON-RPC request of either version.
type jsonCall struct {
	Version string          `json:"jsonrpc"`
	Method  string          `json:"method"`
	Params  json.RawMessage `json:"params"`
	ID      json.RawMessage `json:"id"`
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
	reply(w, "application/json", encodeJSON(in, v, err))
}

func decodeJSON(body []byte, in *jsonCall) ([]any, error) {
	if err := json.Unmarshal(body, in); err != nil {
		return nil, internalError("malformed JSON-RPC: %v", err)
	}
	if id := bytes.TrimSpace(in.ID); len(id) == 0 || bytes.Equal(id, []byte("null")) {
		return nil, internalError("malformed JSON-RPC: no id")
	}
	p := bytes.TrimSpace(in.Params)
	if len(p) == 0 || bytes.Equal(p, []byte("null")) {
		return []any{}, nil
	}
	d := json.NewDecoder(bytes.NewReader(p))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, internalError("malformed JSON-RPC: %v", err)
	}
	if list, ok := v.([]any); ok {
		return fromJSON(list).([]any), nil
	}
	return []any{fromJSON(v)}, nil
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
