package xapi

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// asyncCall scripts Async.METHOD with a task that f makes.
func asyncCall(h *fakeHost, method string, f func(args []any) string) {
	h.on("Async."+method, func(args []any) (any, error) { return f(args), nil })
}

func TestCallAsync(t *testing.T) {
	h := newFakeHost(t, "127.0.0.1:0", false)
	c := connect(t, h, nil)
	refs := map[string]string{}
	for name, f := range map[string]func() string{
		"VM.ref":    func() string { return h.newTask("success", "<value>OpaqueRef:new</value>") },
		"VM.void":   func() string { return h.newTask("success", "") },
		"VM.fails":  func() string { return h.newTask("failure", "", "VM_BAD_POWER_STATE", "r", "halted", "running") },
		"VM.mute":   func() string { return h.newTask("failure", "") },
		"VM.stops":  func() string { return h.newTask("cancelled", "") },
		"VM.gone":   func() string { return "OpaqueRef:task-none" },
		"VM.notask": func() string { return "OpaqueRef:NULL" },
		"VM.later": func() string {
			ref := h.newTask("pending", "")
			time.AfterFunc(20*time.Millisecond, func() { h.endTask(ref, "success", "<value>done</value>") })
			return ref
		},
	} {
		asyncCall(h, name, func([]any) string { refs[name] = f(); return refs[name] })
	}
	for method, want := range map[string]struct {
		result string
		err    error
	}{
		"VM.ref": {"OpaqueRef:new", nil}, "VM.void": {"", nil}, "VM.later": {"done", nil}, "VM.fails": {"", ErrPowerState}, "VM.stops": {"", ErrCancelled},
		"VM.gone": {"", ErrTaskGone}, "VM.notask": {"", ErrProtocol}, "VM.mute": {"", errAny},
	} {
		result, err := c.CallAsync(t.Context(), "work", method, "a")
		if result != want.result || !is(err, want.err) {
			t.Errorf("%s: got %q, %v", method, result, err)
		}
		if errors.Is(err, ErrNotFound) {
			t.Errorf("%s: a task that is gone reads as an object that is: %v", method, err)
		}
		if task := h.task(refs[method]); task != nil && !task.destroyed {
			t.Errorf("%s: its task was left behind", method)
		}
	}
}

// errAny stands for any error in tables.
var errAny = errors.New("any")

// is reports whether an error is the wanted one: none for nil, any for errAny.
func is(err, want error) bool {
	return errors.Is(err, want) || err != nil && errors.Is(want, errAny)
}

func TestCallAsyncFallsBackToThePlainCall(t *testing.T) {
	h := newFakeHost(t, "127.0.0.1:0", false)
	h.on("VM.snapshot", func(args []any) (any, error) { return "OpaqueRef:snap", nil })
	c := connect(t, h, nil)
	if ref, _, err := c.Snapshot(t.Context(), "OpaqueRef:vm", "n", nil); err != nil || ref != "OpaqueRef:snap" {
		t.Errorf("got %s, %v", ref, err)
	}
	if _, err := c.CallAsync(t.Context(), "x", "VM.unknown"); !errors.Is(err, ErrUnsupported) {
		t.Errorf("got %v", err)
	}
}

func TestCallAsyncCancelled(t *testing.T) {
	for name, tc := range map[string]struct {
		onCancel  func(task *fakeTask)
		result    string
		want      []error
		destroyed bool
	}{
		"cancelled":       {func(t *fakeTask) { t.status, t.errorInfo = "cancelled", []string{"TASK_CANCELLED", "r"} }, "", []error{context.Canceled, ErrCancelled}, true},
		"success at last": {func(t *fakeTask) { t.status, t.result = "success", "<value>ok</value>" }, "ok", nil, true},
		"failure":         {func(t *fakeTask) { t.status, t.errorInfo = "failure", []string{"VM_LACKS_FEATURE", "r"} }, "", []error{context.Canceled, ErrLacksFeature}, true},
		"goes on":         {func(t *fakeTask) { t.status = "cancelling" }, "", []error{context.Canceled, ErrTaskPending}, false},
	} {
		h := newFakeHost(t, "127.0.0.1:0", false)
		var ref string
		started := make(chan struct{})
		asyncCall(h, "VM.work", func([]any) string { ref = h.newTask("pending", ""); close(started); return ref })
		h.on("task.cancel", func(args []any) (any, error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.tasks[args[1].(string)].cancels++
			tc.onCancel(h.tasks[args[1].(string)])
			return nil, fail("OPERATION_NOT_ALLOWED", "even so the task's end is awaited")
		})
		c := connect(t, h, func(cfg *Config) { cfg.Timeouts.Cancel = 300 * time.Millisecond })
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-started; cancel() }() // as early as the answer that names the task is under way
		result, err := c.CallAsync(ctx, "work", "VM.work")
		if result != tc.result || (err != nil) != (tc.want != nil) {
			t.Errorf("%s: got %q, %v", name, result, err)
		}
		for _, want := range tc.want {
			if !errors.Is(err, want) {
				t.Errorf("%s: %v is not %v", name, err, want)
			}
		}
		if task := h.task(ref); task.cancels != 1 || task.destroyed != tc.destroyed {
			t.Errorf("%s: task %+v", name, task)
		}
		cancel()
	}
	h := newFakeHost(t, "127.0.0.1:0", false)
	c := connect(t, h, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.CallAsync(ctx, "work", "VM.work"); !errors.Is(err, context.Canceled) || h.called("Async.VM.work") != 0 {
		t.Errorf("begun although cancelled: %v", err)
	}
}

func TestTaskOutlivesAnOutage(t *testing.T) {
	h := newFakeHost(t, "127.0.0.1:0", false)
	var ref string
	asyncCall(h, "VM.work", func([]any) string { ref = h.newTask("pending", ""); return ref })
	standard := h.calls["task.get_record"]
	looks := 0
	h.on("task.get_record", func(args []any) (any, error) {
		if looks++; looks < 5 {
			return nil, fail("HOST_STILL_BOOTING")
		}
		h.endTask(ref, "success", "")
		return standard(args)
	})
	c := connect(t, h, nil)
	if _, err := c.CallAsync(t.Context(), "work", "VM.work"); err != nil {
		t.Errorf("got %v", err)
	}
	h.on("task.get_record", func([]any) (any, error) { h.stop(); return nil, fail("HOST_STILL_BOOTING") })
	if _, err := c.CallAsync(t.Context(), "work", "VM.work"); !errors.Is(err, ErrUnreachable) {
		t.Errorf("after the outage's limit: %v", err)
	}
}

func TestRecords(t *testing.T) {
	h := newFakeHost(t, "127.0.0.1:0", false)
	vm := map[string]any{
		"uuid": "u", "name_label": " näme ", "power_state": "Hibernated", "is_a_template": false, "is_a_snapshot": true, "snapshot_of": "", "suspend_VDI": "OpaqueRef:NULL",
		"VBDs": []any{"OpaqueRef:b1", "OpaqueRef:b2"}, "tags": []any{}, "other_config": map[string]any{"k": "v"}, "memory_static_max": 4294967296, "VCPUs_max": 2,
		"snapshot_time": time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), "allowed_operations": []any{"export", "teleport"},
		"current_operations": map[string]any{"OpaqueRef:t": "teleport"}, "groups": []any{"new"}, "NVRAM": map[string]any{"EFI-variables": "large"}, "HVM_shadow_multiplier": 1.0,
	}
	h.on("VM.get_all_records", func([]any) (any, error) { return map[string]any{"OpaqueRef:1": vm}, nil })
	h.on("VM.get_record", func(args []any) (any, error) {
		if args[1] != "OpaqueRef:1" {
			return nil, fail("HANDLE_INVALID", "VM", args[1].(string))
		}
		return vm, nil
	})
	h.on("VM.get_by_uuid", func(args []any) (any, error) {
		if args[1] != "u" {
			return nil, fail("UUID_INVALID", "VM", args[1].(string))
		}
		return "OpaqueRef:1", nil
	})
	h.on("VM.get_by_name_label", func([]any) (any, error) { return []any{"OpaqueRef:1", "OpaqueRef:2"}, nil })
	c := connect(t, h, nil)
	all, err := c.VMs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	one, err := c.VMByUUID(t.Context(), "u")
	if err != nil {
		t.Fatal(err)
	}
	for _, got := range []VM{all["OpaqueRef:1"], one} {
		if got.Ref != "OpaqueRef:1" || got.Name != " näme " || got.PowerState != "Hibernated" || !got.IsSnapshot || !got.SnapshotOf.Null() || len(got.VBDs) != 2 ||
			got.OtherConfig["k"] != "v" || got.MemoryStaticMax != 1<<32 || got.SnapshotTime.Year() != 2026 || got.CurrentOperations["OpaqueRef:t"] != "teleport" ||
			got.Appliance != "" || got.BlockedOperations == nil {
			t.Errorf("got %+v", got)
		}
	}
	if all["OpaqueRef:1"].Fields != nil || one.Fields["NVRAM"] == nil || one.Fields["name_label"] != " näme " {
		t.Error("whole records are for VMs that are read alone")
	}
	if refs, err := c.VMsByName(t.Context(), "x"); err != nil || len(refs) != 2 {
		t.Errorf("by name: %v, %v", refs, err)
	}
	for name, err := range map[string]error{"ref": second(c.VM(t.Context(), "OpaqueRef:9")), "uuid": second(c.VMByUUID(t.Context(), "none"))} {
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for field, bad := range map[string]any{"memory_static_max": "many", "VBDs": "x", "other_config": []any{}, "is_a_template": "maybe", "snapshot_time": "soon"} {
		was := vm[field]
		vm[field] = bad
		if _, err := c.VMs(t.Context()); !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), field) {
			t.Errorf("%s = %v: %v", field, bad, err)
		}
		vm[field] = was
	}
}

func TestSnapshotOnOldHosts(t *testing.T) {
	h := newFakeHost(t, "127.0.0.1:0", false)
	old := false
	asyncCall(h, "VM.snapshot", func(args []any) string {
		if len(args) == 4 && old {
			return h.newTask("failure", "", "MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.snapshot", "2", "3")
		}
		return h.newTask("success", "<value>OpaqueRef:s</value>")
	})
	c := connect(t, h, nil)
	for _, tc := range []struct {
		old      bool
		ignore   []Ref
		honoured bool
	}{{false, []Ref{"d"}, true}, {true, []Ref{"d"}, false}, {true, nil, true}} {
		old = tc.old
		ref, honoured, err := c.Snapshot(t.Context(), "vm", "n", tc.ignore)
		if err != nil || ref != "OpaqueRef:s" || honoured != tc.honoured {
			t.Errorf("%+v: %s, %v, %v", tc, ref, honoured, err)
		}
	}
	h.on("Async.VM.snapshot", func(args []any) (any, error) {
		if len(args) == 4 {
			return nil, fail("MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.snapshot", "2", "3")
		}
		return h.newTask("success", "<value>OpaqueRef:s</value>"), nil
	})
	if ref, honoured, err := c.Snapshot(t.Context(), "vm", "n", []Ref{"d"}); err != nil || ref != "OpaqueRef:s" || honoured {
		t.Errorf("refused at once: %s, %v, %v", ref, honoured, err)
	}
}

func TestDestroy(t *testing.T) {
	h := newFakeHost(t, "127.0.0.1:0", false)
	c := connect(t, h, nil)
	tries := 0
	asyncCall(h, "VDI.destroy", func(args []any) string {
		tries++
		switch {
		case args[1] == "held":
			return h.newTask("failure", "", "VDI_IN_USE", "held", "destroy")
		case args[1] == "gone":
			return h.newTask("failure", "", "HANDLE_INVALID", "VDI", "gone")
		case args[1] == "orphan":
			return h.newTask("failure", "", "HANDLE_INVALID", "SR", "other")
		case tries < 4:
			return h.newTask("failure", "", "VDI_IN_USE", "x", "destroy")
		}
		return h.newTask("success", "")
	})
	if err := c.DestroyVDI(t.Context(), "x"); err != nil || tries != 4 {
		t.Errorf("after VDI_IN_USE: %v, %d tries", err, tries)
	}
	if err := c.DestroyVDI(t.Context(), "gone"); err != nil {
		t.Errorf("gone: %v", err)
	}
	if err := c.DestroyVDI(t.Context(), "orphan"); !errors.Is(err, ErrNotFound) {
		t.Errorf("something else gone: %v", err)
	}
	hasty := connect(t, h, func(cfg *Config) { cfg.Timeouts.InUse = 200 * time.Millisecond })
	if err := hasty.DestroyVDI(t.Context(), "held"); !errors.Is(err, ErrInUse) {
		t.Errorf("held: %v", err)
	}
	asyncCall(h, "VM.destroy", func(args []any) string { return h.newTask("failure", "", "HANDLE_INVALID", "VM", args[1].(string)) })
	if err := c.DestroyVM(t.Context(), "vm"); err != nil {
		t.Errorf("VM gone: %v", err)
	}
}

func TestPoolAndMaster(t *testing.T) {
	h := newFakeHost(t, "127.0.0.1:0", false)
	master := "OpaqueRef:host1"
	h.on("host.get_servertime", func(args []any) (any, error) {
		if args[1] != master {
			return nil, fail("HANDLE_INVALID", "host", args[1].(string))
		}
		return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), nil
	})
	other := map[string]any{"a": "b"}
	h.on("pool.get_other_config", func([]any) (any, error) { return other, nil })
	h.on("pool.add_to_other_config", func(args []any) (any, error) {
		if _, ok := other[args[2].(string)]; ok {
			return nil, fail("MAP_DUPLICATE_KEY", "pool", "other_config", "r", args[2].(string))
		}
		other[args[2].(string)] = args[3]
		return "", nil
	})
	h.on("pool.remove_from_other_config", func(args []any) (any, error) { delete(other, args[2].(string)); return "", nil })
	c := connect(t, h, nil)
	for range 2 {
		if now, err := c.ServerTime(t.Context()); err != nil || now.Day() != 2 {
			t.Fatalf("%v, %v", now, err)
		}
	}
	if n := h.called("pool.get_all_records"); n != 1 {
		t.Errorf("pool read %d times", n)
	}
	// The master's record changes, for example by a pool restore.
	master = "OpaqueRef:host9"
	h.on("pool.get_all_records", func([]any) (any, error) {
		return map[string]any{"OpaqueRef:pool": map[string]any{"master": master}}, nil
	})
	if _, err := c.ServerTime(t.Context()); err != nil {
		t.Errorf("new master: %v", err)
	}
	if err := c.AddToPoolOtherConfig(t.Context(), "dpxen:k", `{"a":"<&>"}`); err != nil || other["dpxen:k"] != `{"a":"<&>"}` {
		t.Errorf("add: %v, %v", err, other)
	}
	if err := c.AddToPoolOtherConfig(t.Context(), "dpxen:k", "2"); !errors.Is(err, ErrDuplicateKey) {
		t.Errorf("add again: %v", err)
	}
	if err := c.RemoveFromPoolOtherConfig(t.Context(), "dpxen:k"); err != nil {
		t.Error(err)
	}
	if m, err := c.PoolOtherConfig(t.Context()); err != nil || len(m) != 1 {
		t.Errorf("%v, %v", m, err)
	}
	h.on("host.get_servertime", nil)
	h.mu.Lock()
	delete(h.calls, "host.get_servertime")
	h.mu.Unlock()
	if _, err := c.ServerTime(t.Context()); !errors.Is(err, ErrUnsupported) {
		t.Errorf("no servertime: %v", err)
	}
	h.on("pool.get_all_records", func([]any) (any, error) { return map[string]any{}, nil })
	if _, err := c.Pool(t.Context()); !errors.Is(err, ErrProtocol) {
		t.Errorf("no pool: %v", err)
	}
}

func TestDeviceSpecs(t *testing.T) {
	h := newFakeHost(t, "127.0.0.1:0", false)
	var rec map[string]any
	create := func(args []any) (any, error) { rec = args[1].(map[string]any); return "OpaqueRef:new", nil }
	h.on("VBD.create", create)
	h.on("VIF.create", create)
	c := connect(t, h, nil)
	if ref, err := c.CreateVBD(t.Context(), VBDSpec{VM: "vm", UserDevice: "3", Mode: "RO", Type: "CD", Empty: true}); err != nil || ref != "OpaqueRef:new" ||
		rec["VDI"] != string(NullRef) || rec["userdevice"] != "3" || rec["empty"] != true || rec["bootable"] != false {
		t.Errorf("VBD: %v, %v", rec, err)
	}
	if _, err := c.CreateVIF(t.Context(), VIFSpec{VM: "vm", Network: "net", Device: "0", MAC: "aa:bb", IPv4Allowed: []string{"10.0.0.1"}, OtherConfig: map[string]string{"k": "v"}}); err != nil ||
		rec["MTU"] != "1500" || rec["locking_mode"] != "network_default" || rec["MAC"] != "aa:bb" || rec["other_config"].(map[string]any)["k"] != "v" || len(rec["ipv4_allowed"].([]any)) != 1 {
		t.Errorf("VIF: %v, %v", rec, err)
	}
}
