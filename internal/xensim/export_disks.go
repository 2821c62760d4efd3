package xensim

import (
	"strconv"
	"sync"
	"time"

	"github.com/dpxen/dpxen/internal/xensim/archive"
)

// exportSources are the disks of one export, attached to dom0 one after another.
type exportSources struct {
	t         *transfer
	keepAlive int
	// skipZeros says that zeros which were read are not sent.
	skipZeros bool

	mu      sync.Mutex
	current string // VBD
	zeros   int
}

func (p *Pool) newSources(t *transfer) *exportSources {
	return &exportSources{t: t, keepAlive: p.cfg.KeepAliveBlocks, skipZeros: zeroPolicies[p.cfg.ExportBlocks] == archive.SkipZero}
}

// exportSource is a disk that attaches itself when it is first read.
type exportSource struct {
	disk exportDisk
	all  *exportSources
	once sync.Once
	sr   string
	err  error
}

// Size gives the disk's size in bytes.
func (s *exportSource) Size() int64 { return s.disk.volume.image.Size() }

// ReadBlock reads a block of the attached disk.
func (s *exportSource) ReadBlock(i int64, buf []byte) ([]byte, bool, error) {
	s.once.Do(func() {
		s.err = s.all.attach(s.disk.vdi)
		p := s.all.t.pool
		p.db.mu.Lock()
		if vdi := p.db.find("VDI", s.disk.vdi); vdi != nil {
			s.sr = vdi.str("SR")
		}
		p.db.mu.Unlock()
		if err := p.lag(s.all.t.ctx, s.sr); s.err == nil {
			s.err = err
		}
	})
	if s.err != nil {
		return nil, false, s.err
	}
	if err := s.all.t.pool.faultOnRead(s.disk.vdi, i); err != nil {
		return nil, false, err
	}
	data, zero, err := s.disk.volume.image.ReadBlock(i, buf)
	if err != nil {
		return nil, false, fail("VDI_IO_ERROR", "Device I/O errors")
	}
	if err := s.all.t.pool.pass(s.all.t.ctx, s.sr, len(data)); err != nil {
		return nil, false, err
	}
	s.all.mu.Lock()
	if zero && s.all.skipZeros && i > 0 { // the first block is always sent
		s.all.zeros++
	} else {
		s.all.zeros = 0
	}
	s.all.mu.Unlock()
	return data, zero, nil
}

// Allocated tells whether a block was ever written, if only with zeros.
func (s *exportSource) Allocated(i int64) bool {
	if s.disk.volume.image.Allocated(i) {
		return true
	}
	s.all.mu.Lock()
	s.all.zeros++ // it is passed over without being read
	s.all.mu.Unlock()
	return false
}

// quiet says that nothing was sent for so long that a block of length zero is due.
func (s *exportSources) quiet(string, int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keepAlive < 0 || s.zeros < s.keepAlive {
		return false
	}
	s.zeros = 0
	return true
}

// attach plugs a disk into dom0, and unplugs the one before.
func (s *exportSources) attach(vdi string) error {
	s.detach()
	p := s.t.pool
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	if p.db.find("VDI", vdi) == nil {
		return fail("VDI_NOT_AVAILABLE", vdi)
	}
	vbd, err := p.plugDom0(s.t.host, vdi, "RO")
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.current, s.zeros = vbd, 0
	s.mu.Unlock()
	return nil
}

// detach unplugs the present disk. The task may be complete before dom0 has let
// go of it.
func (s *exportSources) detach() {
	s.mu.Lock()
	vbd := s.current
	s.current = ""
	s.mu.Unlock()
	s.t.pool.unplugDom0(vbd, detachTime)
}

// plugDom0 attaches a disk to a host's control domain; the database is locked.
func (p *Pool) plugDom0(h *simHost, vdi, mode string) (string, error) {
	dom0 := p.db.find("VM", h.dom0)
	n := 0
	for p.hasVBD(dom0, strconv.Itoa(n)) {
		n++
	}
	vbd := p.db.create("VBD", map[string]any{
		"VM": h.dom0, "VDI": vdi, "userdevice": strconv.Itoa(n), "mode": mode, "type": "Disk", "unpluggable": true,
		"other_config": map[string]string{"task_id": "", "is_owner": "false"},
	})
	if err := p.attachable(vbd); err != nil {
		p.db.remove(vbd)
		return "", err
	}
	p.attachVBD(vbd, true)
	return vbd.ref, nil
}

// unplugDom0 takes a disk out of dom0, after a while or at once.
func (p *Pool) unplugDom0(vbd string, after time.Duration) {
	if vbd == "" {
		return
	}
	drop := func() {
		p.db.mu.Lock()
		defer p.db.mu.Unlock()
		if o := p.db.find("VBD", vbd); o != nil {
			p.dropVBD(o)
		}
	}
	if after <= 0 || !p.spawn(func() {
		_ = p.wait(p.ctx, after) // when the pool closes it is taken out at once
		drop()
	}) {
		drop()
	}
}

func (p *Pool) hasVBD(vm *object, device string) bool {
	for _, vbd := range p.db.many("VBD", vm.refs("VBDs")) {
		if vbd.str("userdevice") == device {
			return true
		}
	}
	return false
}
