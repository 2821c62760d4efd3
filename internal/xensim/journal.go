package xensim

import (
	"slices"
	"sync"
	"time"
)

// maxDeeds is how many deeds the journal keeps; the oldest go first.
const maxDeeds = 100_000

// Deed is one thing that the pool did, as an onlooker writes it down: what clients may do at the same time is checked by it.
type Deed struct {
	Seq   int       `json:"seq"`
	Time  time.Time `json:"time"`            // of this machine's clock
	What  string    `json:"what"`            // export, import, snapshot, migrate or master
	End   bool      `json:"end,omitempty"`   // of what began before; migrate and master have no beginning
	Host  string    `json:"host"`            // its name: the one that reads or writes the disks; of a snapshot, where the VM runs
	VM    string    `json:"vm,omitempty"`    // UUID; of the export of a snapshot, that of the VM which it is of
	Name  string    `json:"name,omitempty"`  // of that VM
	SRs   []string  `json:"srs,omitempty"`   // names of those with its disks
	Task  string    `json:"task,omitempty"`  // tells exports and imports of one VM apart
	Error string    `json:"error,omitempty"` // of an end
}

// diary is the journal of a pool. Its zero value is ready.
type diary struct {
	mu    sync.Mutex
	deeds []Deed
	seq   int
}

func (d *diary) add(e Deed) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seq++
	e.Seq, e.Time = d.seq, time.Now().UTC()
	if len(d.deeds) >= maxDeeds {
		d.deeds = slices.Delete(d.deeds, 0, maxDeeds/10)
	}
	d.deeds = append(d.deeds, e)
}

// Journal returns what the pool did, in order: the beginnings and ends of exports, imports and snapshots with host and SRs,
// and the moves of VMs and of the master.
func (p *Pool) Journal() []Deed {
	p.diary.mu.Lock()
	defer p.diary.mu.Unlock()
	return slices.Clone(p.diary.deeds)
}

// deed begins a deed on a VM, or on an SR where that is given; what it returns ends it. The database is not locked.
func (p *Pool) deed(what, host, vm, sr, task string) (end func(error)) {
	e := Deed{What: what, Host: host, Task: task}
	p.db.mu.Lock()
	if o := p.db.find("VM", vm); o != nil {
		for _, sr := range p.storageOf(o) {
			if sr.str("content_type") != "iso" {
				e.SRs = append(e.SRs, sr.str("name_label"))
			}
		}
		if of := p.db.find("VM", o.str("snapshot_of")); of != nil {
			o = of
		}
		e.VM, e.Name = o.uuid(), o.str("name_label")
		if h := p.hostByRef(o.str("resident_on")); host == "" && h != nil {
			e.Host = h.name
		}
	}
	if o := p.db.find("SR", sr); o != nil {
		e.SRs = []string{o.str("name_label")}
	}
	p.db.mu.Unlock()
	p.diary.add(e)
	return func(err error) {
		e.End = true
		if err != nil {
			e.Error = err.Error()
		}
		p.diary.add(e)
	}
}
