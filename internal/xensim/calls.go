package xensim

import "maps"

// count notes that a call came in, whatever becomes of it.
func (p *Pool) count(method string) {
	p.callsMu.Lock()
	defer p.callsMu.Unlock()
	if p.calls == nil {
		p.calls = map[string]int{}
	}
	p.calls[method]++
}

// Calls tells how many calls of each method have come in since the start or the last ClearCalls, by any protocol and at any
// host. Exports and imports are none.
func (p *Pool) Calls() map[string]int {
	p.callsMu.Lock()
	defer p.callsMu.Unlock()
	return maps.Clone(p.calls)
}

// ClearCalls begins to count anew.
func (p *Pool) ClearCalls() {
	p.callsMu.Lock()
	defer p.callsMu.Unlock()
	p.calls = nil
}
