package xensim

import "maps"

// registerBlobs adds the records of blobs. Their contents travel over a handler
// that is not simulated.
func (p *Pool) registerBlobs() {
	for _, class := range []string{"pool", "VM", "host", "network", "SR"} {
		p.quick(class+".create_new_blob", func(_ *call, args []any) (any, error) {
			o, err := p.db.need(class, args[0].(string))
			if err != nil {
				return nil, err
			}
			name := args[1].(string)
			if _, ok := o.m("blobs")[name]; ok {
				return nil, fail("MAP_DUPLICATE_KEY", class, "blobs", o.ref, name)
			}
			blob := p.newBlob(args[2].(string), args[3])
			p.db.put(o, "blobs", name, blob.ref)
			return blob.ref, nil
		})
	}
	p.quick("blob.create", func(_ *call, args []any) (any, error) {
		return p.newBlob(args[0].(string), args[1]).ref, nil
	})
	p.quick("blob.destroy", c2(func(_ *call, ref string) error {
		blob, err := p.db.need("blob", ref)
		if err != nil {
			return err
		}
		p.dropBlob(blob)
		return nil
	}))
}

func (p *Pool) newBlob(mime string, public any) *object {
	if mime == "" {
		mime = "application/octet-stream"
	}
	return p.db.create("blob", map[string]any{"mime_type": mime, "public": public, "last_updated": p.now()})
}

// dropBlob removes a blob and what names it.
func (p *Pool) dropBlob(blob *object) {
	for _, class := range []string{"pool", "VM", "host", "network", "SR"} {
		for _, o := range p.db.tables[class] {
			for name, ref := range o.m("blobs") {
				if ref == blob.ref {
					left := maps.Clone(o.m("blobs"))
					delete(left, name)
					p.db.set(o, "blobs", left)
				}
			}
		}
	}
	p.db.remove(blob)
}
