package xensim

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"

	"github.com/dpxen/dpxen/internal/xensim/model"
	"github.com/dpxen/dpxen/internal/xensim/xmlrpc"
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
	out, err := encodeJSON(in, v, err)
	if err != nil {
		servePage(w, r, "500 Internal Error", err.Error())
		return
	}
	reply(w, "application/json", out)
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

func encodeJSON(in jsonCall, v any, err error) ([]byte, error) {
	id := in.ID
	if in.Version == "2.0" {
		if err != nil {
			f := failureOf(err)
			return json.Marshal(map[string]any{
				"jsonrpc": "2.0", "id": id,
				"error": map[string]any{"code": 1, "message": f.Code, "data": append([]string{}, f.Params...)},
			})
		}
		return json.Marshal(map[string]any{"jsonrpc": "2.0", "result": toJSON(v), "id": id})
	}
	if err != nil {
		return json.Marshal(map[string]any{"result": nil, "error": failureOf(err).description(), "id": id})
	}
	return json.Marshal(map[string]any{"result": toJSON(v), "error": nil, "id": id})
}

// toJSON turns results into what package json writes as XAPI does.
func toJSON(v any) any {
	switch v := v.(type) {
	case xmlrpc.Members:
		out := make(map[string]any, len(v))
		for _, m := range v {
			out[m.Name] = toJSON(m.Value)
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = toJSON(e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = toJSON(e)
		}
		return out
	case model.DateTime:
		return string(v)
	case nil:
		return ""
	}
	return v
}
