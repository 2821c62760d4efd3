package main

import (
	"fmt"
	"math/rand/v2"
	"strconv"
)

// oddNames are names that VMs really have, and some that nobody should give them.
var oddNames = []string{
	"web 01", "Büro-Server (alt)", "データベース", "a/b\\c", "CON", "..", "db-01", "db-01", "x'; rm -rf ~", "name with  two spaces ",
	"🐧", "%s%n", "<vm>&amp;", "-rf", "long-" + "0123456789012345678901234567890123456789012345678901234567890123456789",
}

// simArgs draws a pool.
func simArgs(rng *rand.Rand, seed uint64) []string {
	pick := func(list ...string) string { return list[rng.IntN(len(list))] }
	args := []string{
		"--hosts", strconv.Itoa(1 + rng.IntN(3)), "--vms", strconv.Itoa(2 + rng.IntN(3)), "--seed", strconv.FormatUint(seed, 10),
		"--disk-size", pick("1MiB", "2097152", "3000320", "4MiB", "8MiB"), "--content", pick("random", "random", "sparse", "zero"),
		"--product-version", pick("7.6", "8.0", "8.1", "8.2.1", "8.3.0", "8.4.0", "8.4.0"),
		"--local-sr", pick("ext", "ext", "lvm"), "--shared-sr", pick("nfs", "nfs", "lvmoiscsi"), "--speedup", "50",
		"--keepalive-blocks", pick("0", "0", "1", "2"), "--bandwidth", pick("3MiB", "6MiB", "12MiB", "0"),
	}
	if rng.IntN(4) == 0 {
		args = append(args, "--idempotent-maps")
	}
	return args
}

// furnish makes the pool a place where people work: names, more disks, power states, snapshots, keys and blocks of the
// users' own, and things that look like ours and are not.
func (s *site) furnish(rng *rand.Rand) error {
	a, err := s.login()
	if err != nil {
		return err
	}
	defer a.logout()
	st, err := s.dump()
	if err != nil {
		return err
	}
	for i := range st.VMs {
		if err := s.furnishVM(a, &st.VMs[i], rng); err != nil {
			return err
		}
	}
	return s.lookalikes(a, rng)
}

func (s *site) furnishVM(a *admin, vm *vmState, rng *rand.Rand) error {
	ref, err := a.ref("VM.get_by_uuid", vm.UUID)
	if err != nil {
		return err
	}
	calls, blocked := [][]any{}, ""
	if rng.IntN(2) == 0 {
		calls = append(calls, []any{"VM.set_name_label", ref, oddNames[rng.IntN(len(oddNames))]})
	}
	if rng.IntN(3) == 0 {
		calls = append(calls, []any{"VM.add_to_other_config", ref, "backup", "weekly"})
	}
	if rng.IntN(4) == 0 {
		calls = append(calls, []any{"VM.add_to_other_config", ref, "dpxen:note", "the administrator's own"})
	}
	if rng.IntN(3) == 0 {
		op := []string{"destroy", "revert", "pool_migrate", "suspend"}[rng.IntN(4)]
		blocked = op
		calls = append(calls, []any{"VM.add_to_blocked_operations", ref, op, "administrator: not now"})
	}
	if rng.IntN(3) == 0 {
		calls = append(calls, []any{"VM.add_tags", ref, "gold"})
	}
	for n := range rng.IntN(3) {
		if err := s.addDisk(a, vm, ref, strconv.Itoa(n+1), rng); err != nil {
			return err
		}
	}
	if rng.IntN(3) == 0 {
		calls = append(calls, []any{"VM.snapshot", ref, "before the update"})
	}
	if vm.PowerState == "Running" && rng.IntN(6) == 0 {
		if how := []string{"VM.pause", "VM.suspend"}[rng.IntN(2)]; how != "VM."+blocked {
			calls = append(calls, []any{how, ref})
		}
	}
	for _, c := range calls {
		if _, err := a.call(c[0].(string), c[1:]...); err != nil {
			return fmt.Errorf("furnish VM %s: %w", vm.UUID, err)
		}
	}
	return nil
}

// addDisk gives a VM one more disk with something on it, on the SR of its first disk or on any shared one.
func (s *site) addDisk(a *admin, vm *vmState, ref, device string, rng *rand.Rand) error {
	if len(vm.Disks) == 0 {
		return nil
	}
	sr, err := a.ref("SR.get_by_uuid", vm.Disks[0].VDI.SR)
	if err != nil {
		return err
	}
	if shared, ok := s.sharedSR(a); ok && rng.IntN(2) == 0 {
		sr = shared
	}
	size := []int64{1 << 20, 2 << 20, 5 << 19, 4 << 20}[rng.IntN(4)]
	vdi, err := a.ref("VDI.create", map[string]any{"SR": sr, "name_label": "data " + device, "virtual_size": strconv.FormatInt(size, 10),
		"type": "user", "sharable": false, "read_only": false, "other_config": map[string]any{"owner": "user"}})
	if err != nil {
		return err
	}
	uuid, err := a.ref("VDI.get_uuid", vdi)
	if err != nil {
		return err
	}
	vbd, err := a.ref("VBD.create", map[string]any{"VM": ref, "VDI": vdi, "userdevice": device, "bootable": false, "mode": "RW", "type": "Disk",
		"unpluggable": true, "empty": false, "other_config": map[string]any{}, "qos_algorithm_type": "", "qos_algorithm_params": map[string]any{}})
	if err != nil {
		return err
	}
	if vm.PowerState == "Running" {
		if _, err := a.call("VBD.plug", vbd); err != nil {
			return err
		}
	}
	return s.scribble(uuid, rng.Uint64(), 1+rng.IntN(64))
}

func (s *site) sharedSR(a *admin) (string, bool) {
	all, err := a.call("SR.get_all_records")
	if err != nil {
		return "", false
	}
	records, ok := all.(map[string]any)
	if !ok {
		return "", false
	}
	for ref, r := range records {
		if rec, ok := r.(map[string]any); ok && rec["name_label"] == "Shared storage" {
			return ref, true
		}
	}
	return "", false
}

// lookalikes are the users' own things that carry names like ours.
func (s *site) lookalikes(a *admin, rng *rand.Rand) error {
	pools, err := a.call("pool.get_all")
	if err != nil {
		return err
	}
	list, ok := pools.([]any)
	if !ok || len(list) != 1 {
		return fmt.Errorf("pool.get_all gave %v", pools)
	}
	sr, ok := s.sharedSR(a)
	if !ok {
		return fmt.Errorf("there is no shared SR")
	}
	nonce := fmt.Sprintf("%016x%016x", rng.Uint64(), rng.Uint64())
	loose := func(name string, config map[string]any) []any {
		return []any{"VDI.create", map[string]any{"SR": sr, "name_label": name, "virtual_size": "1048576", "type": "user",
			"sharable": false, "read_only": false, "other_config": config}}
	}
	calls := [][]any{
		{"pool.add_to_other_config", list[0], "dpxen-notes", "ask the storage team"},
		loose("dpxen carrier "+nonce, map[string]any{}),
		loose("loose disk", map[string]any{"dpxen:carrier": nonce}),
	}
	var st *state
	if st, err = s.dump(); err != nil {
		return err
	}
	vm := st.VMs[rng.IntN(len(st.VMs))]
	if vm.PowerState == "Running" || vm.PowerState == "Halted" {
		ref, err := a.ref("VM.get_by_uuid", vm.UUID)
		if err != nil {
			return err
		}
		calls = append(calls, []any{"VM.snapshot", ref, "dpxen snapshot " + nonce})
	}
	for _, c := range calls {
		if _, err := a.call(c[0].(string), c[1:]...); err != nil {
			return fmt.Errorf("lookalikes: %w", err)
		}
	}
	return nil
}
