package xapi

import (
	"context"
	"fmt"
)

// record reads one object.
func record[T any](ctx context.Context, c *Client, class string, ref Ref, decode func(*fields) T) (T, error) {
	var zero T
	v, err := c.Call(ctx, class+".get_record", ref)
	if err != nil {
		return zero, err
	}
	return decodeOne(class, ref, v, decode)
}

func decodeOne[T any](class string, ref Ref, v Value, decode func(*fields) T) (T, error) {
	var zero T
	rec, err := v.Record()
	if err != nil {
		return zero, fmt.Errorf("record of %s %s: %w", class, ref, err)
	}
	f := &fields{class: class, ref: ref, rec: rec}
	out := decode(f)
	if f.err != nil {
		return zero, f.err
	}
	return out, nil
}

// recordByUUID reads the object of a UUID.
func recordByUUID[T any](ctx context.Context, c *Client, class, uuid string, decode func(*fields) T) (T, error) {
	var zero T
	v, err := c.Call(ctx, class+".get_by_uuid", uuid)
	if err != nil {
		return zero, err
	}
	ref, err := v.Ref()
	if err != nil {
		return zero, fmt.Errorf("%s of UUID %s: %w", class, uuid, err)
	}
	return record(ctx, c, class, ref, decode)
}

// records reads all objects of a class in one call. Of their records only what decode asks for is kept.
func records[T any](ctx context.Context, c *Client, class string, decode func(*fields) T) (map[Ref]T, error) {
	v, err := c.fetch(ctx, class+".get_all_records", askedBy(decode))
	if err != nil {
		return nil, err
	}
	all, err := v.Record()
	if err != nil {
		return nil, fmt.Errorf("records of %s: %w", class, err)
	}
	out := make(map[Ref]T, len(all))
	for key := range all {
		ref := Ref(key)
		if out[ref], err = decodeOne(class, ref, all.Get(key), decode); err != nil {
			return nil, err
		}
		delete(all, key) // there may be tens of thousands
	}
	return out, nil
}

// fetch makes a call that reads a map of records, of whose fields those of keep are wanted.
func (c *Client) fetch(ctx context.Context, method string, keep map[string]bool) (Value, error) {
	v, err := c.call(ctx, terms{limit: c.t.Call, keep: keep}, method, nil)
	if err != nil {
		return Value{}, fmt.Errorf("%s: %w", method, err)
	}
	return v, nil
}

// askedBy gives the names of the fields that decode asks for.
func askedBy[T any](decode func(*fields) T) map[string]bool {
	f := &fields{asked: map[string]bool{}}
	decode(f)
	return f.asked
}

// VMs reads every VM, template, snapshot and control domain of the pool, without VM.Fields.
func (c *Client) VMs(ctx context.Context) (map[Ref]VM, error) {
	return records(ctx, c, "VM", func(f *fields) VM {
		vm := decodeVM(f)
		vm.Fields = nil
		return vm
	})
}

// VBDs reads every VBD of the pool.
func (c *Client) VBDs(ctx context.Context) (map[Ref]VBD, error) {
	return records(ctx, c, "VBD", decodeVBD)
}

// VDIs reads every VDI of the pool.
func (c *Client) VDIs(ctx context.Context) (map[Ref]VDI, error) {
	return records(ctx, c, "VDI", decodeVDI)
}

// VIFs reads every VIF of the pool.
func (c *Client) VIFs(ctx context.Context) (map[Ref]VIF, error) {
	return records(ctx, c, "VIF", decodeVIF)
}

// SRs reads every SR of the pool.
func (c *Client) SRs(ctx context.Context) (map[Ref]SR, error) { return records(ctx, c, "SR", decodeSR) }

// PBDs reads every PBD of the pool.
func (c *Client) PBDs(ctx context.Context) (map[Ref]PBD, error) {
	return records(ctx, c, "PBD", decodePBD)
}

// Hosts reads every host of the pool. Their addresses are remembered: a change of the master is followed to one of
// them only.
func (c *Client) Hosts(ctx context.Context) (map[Ref]Host, error) {
	hosts, err := records(ctx, c, "host", decodeHost)
	if err == nil {
		c.rememberHosts(hosts)
	}
	return hosts, err
}

// Networks reads every network of the pool.
func (c *Client) Networks(ctx context.Context) (map[Ref]Network, error) {
	return records(ctx, c, "network", decodeNetwork)
}

// GuestMetrics reads what the guest tools of every VM report.
func (c *Client) GuestMetrics(ctx context.Context) (map[Ref]GuestMetrics, error) {
	return records(ctx, c, "VM_guest_metrics", decodeGuestMetrics)
}

// VM reads one VM; ErrNotFound when it is gone.
func (c *Client) VM(ctx context.Context, ref Ref) (VM, error) {
	return record(ctx, c, "VM", ref, decodeVM)
}

// VMByUUID reads the VM of a UUID; ErrNotFound when there is none.
func (c *Client) VMByUUID(ctx context.Context, uuid string) (VM, error) {
	return recordByUUID(ctx, c, "VM", uuid, decodeVM)
}

// VMsByName finds VMs by their exact name: templates and snapshots as well.
func (c *Client) VMsByName(ctx context.Context, label string) ([]Ref, error) {
	v, err := c.Call(ctx, "VM.get_by_name_label", label)
	if err != nil {
		return nil, err
	}
	return v.Refs()
}

// VBD reads one VBD; ErrNotFound when it is gone.
func (c *Client) VBD(ctx context.Context, ref Ref) (VBD, error) {
	return record(ctx, c, "VBD", ref, decodeVBD)
}

// VDI reads one VDI; ErrNotFound when it is gone.
func (c *Client) VDI(ctx context.Context, ref Ref) (VDI, error) {
	return record(ctx, c, "VDI", ref, decodeVDI)
}

// VDIByUUID reads the VDI of a UUID; ErrNotFound when there is none.
func (c *Client) VDIByUUID(ctx context.Context, uuid string) (VDI, error) {
	return recordByUUID(ctx, c, "VDI", uuid, decodeVDI)
}

// VIF reads one VIF; ErrNotFound when it is gone.
func (c *Client) VIF(ctx context.Context, ref Ref) (VIF, error) {
	return record(ctx, c, "VIF", ref, decodeVIF)
}

// SR reads one SR; ErrNotFound when it is gone.
func (c *Client) SR(ctx context.Context, ref Ref) (SR, error) {
	return record(ctx, c, "SR", ref, decodeSR)
}

// Host reads one host; ErrNotFound when it is gone.
func (c *Client) Host(ctx context.Context, ref Ref) (Host, error) {
	return record(ctx, c, "host", ref, decodeHost)
}

// Task reads a task; ErrNotFound when it is gone.
func (c *Client) Task(ctx context.Context, ref Ref) (Task, error) {
	return record(ctx, c, "task", ref, decodeTask)
}
