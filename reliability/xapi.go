package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// hostInfo and poolInfo are what xensim prints when it is ready.
type hostInfo struct {
	Name        string `json:"name"`
	HTTP        string `json:"http"`
	HTTPS       string `json:"https"`
	Fingerprint string `json:"fingerprint"`
	Socket      string `json:"socket"`
	Master      bool   `json:"master"`
}

type poolInfo struct {
	Hosts    []hostInfo `json:"hosts"`
	Username string     `json:"username"`
	Password string     `json:"password"`
	Control  string     `json:"control"`
}

// admin makes calls on the pool as an administrator would, by JSON-RPC.
type admin struct {
	url, user, password, session string
}

var httpClient = &http.Client{Timeout: 30 * time.Second}

// call makes one call; the session is put in front where there is one.
func (a *admin) call(method string, params ...any) (any, error) {
	if a.session != "" {
		params = append([]any{a.session}, params...)
	}
	body, err := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
	if err != nil {
		return nil, err
	}
	resp, err := httpClient.Post(a.url+"/jsonrpc", "application/json", bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", method, err)
	}
	defer func() { _ = resp.Body.Close() }() // it was read
	var out struct {
		Result any `json:"result"`
		Error  any `json:"error"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		return nil, fmt.Errorf("%s: %w", method, err)
	}
	if out.Error != nil {
		return nil, fmt.Errorf("%s: %v", method, out.Error)
	}
	return out.Result, nil
}

// ref is call for calls whose result is a reference.
func (a *admin) ref(method string, params ...any) (string, error) {
	v, err := a.call(method, params...)
	if err != nil {
		return "", err
	}
	s, ok := v.(string)
	if !ok {
		return "", fmt.Errorf("%s gave %v", method, v)
	}
	return s, nil
}

// records reads all objects of a class, by reference.
func (a *admin) records(class string) (map[string]map[string]any, error) {
	v, err := a.call(class + ".get_all_records")
	if err != nil {
		return nil, err
	}
	all, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%s.get_all_records gave %T", class, v)
	}
	out := map[string]map[string]any{}
	for ref, r := range all {
		if rec, ok := r.(map[string]any); ok {
			out[ref] = rec
		}
	}
	return out, nil
}

// login opens a session on the pool's master.
func (s *site) login() (*admin, error) {
	var info poolInfo
	if err := s.control(http.MethodGet, "/info", nil, &info); err != nil {
		return nil, err
	}
	a := &admin{user: s.pool.Username, password: s.pool.Password}
	for _, h := range info.Hosts {
		if h.Master {
			a.url = h.HTTP
		}
	}
	session, err := a.ref("session.login_with_password", a.user, a.password)
	if err != nil {
		return nil, err
	}
	a.session = session
	return a, nil
}

func (a *admin) logout() { _, _ = a.call("session.logout") } // sessions expire

// control calls the simulator's control endpoint.
func (s *site) control(method, path string, body, into any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequest(method, s.pool.Control+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	resp, err := httpClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // it was read
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("xensim: %s %s: %s: %s", method, path, resp.Status, text)
	}
	if into != nil {
		return json.Unmarshal(text, into)
	}
	return nil
}

// fault is one of the simulator's.
type fault struct {
	Name   string        `json:"name"`
	Method string        `json:"method,omitempty"`
	Skip   int           `json:"skip,omitempty"`
	Times  int           `json:"times,omitempty"`
	After  int64         `json:"after,omitempty"`
	Delay  time.Duration `json:"delay,omitempty"`
	Code   string        `json:"code,omitempty"`
	Params []string      `json:"params,omitempty"`
}

// scribble writes to a disk as a guest would.
func (s *site) scribble(vdi string, seed uint64, pieces int) error {
	form := url.Values{"vdi": {vdi}, "seed": {strconv.FormatUint(seed, 10)}, "n": {strconv.Itoa(pieces)}}
	return s.control(http.MethodPost, "/scribble?"+form.Encode(), nil, nil)
}
