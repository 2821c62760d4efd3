package disk

// SameBlock tells whether block i of both images is known to be equal without
// reading it: both refer to the same bytes. False says nothing about the bytes.
// Both images must be of one Store.
func (im *Image) SameBlock(o *Image, i int64) bool {
	a, ok := im.origin(i)
	if !ok {
		return false
	}
	b, ok := o.origin(i)
	return ok && a == b
}

// origin is where a block's bytes come from, in a form that can be compared.
type origin struct {
	length int
	zero   bool
	stored bool
	slot   uint32
	base   generator
}

func (im *Image) origin(i int64) (origin, bool) {
	im.mu.RLock()
	defer im.mu.RUnlock()
	if im.check(i) != nil {
		return origin{}, false
	}
	o := origin{length: im.length(i)}
	r := im.refs[i]
	switch {
	case im.isZero(i):
		o.zero = true
	case r.src == srcBase:
		o.base = im.base
	case r.src == srcSlot:
		o.stored, o.slot = true, r.n
	default:
		o.base = im.store.generator(r.src - srcSeed)
	}
	return o, true
}
