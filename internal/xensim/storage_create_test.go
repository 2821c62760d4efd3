package xensim

import (
	"slices"
	"strings"
	"testing"
)

func nfs(path string) map[string]string {
	return map[string]string{"server": "192.0.2.9", "serverpath": path}
}

func TestCreateSR(t *testing.T) {
	p := startPool(t, withVMs(1))
	c := p.login(t)
	host := c.list("host.get_all")[0]
	create := func(config map[string]string, kind string) []any {
		return []any{host, config, "1073741824", "made", "", kind, "user", true, map[string]string{}}
	}
	if got := c.fails("SR_UNKNOWN_DRIVER", "SR.create", create(nfs("/a"), "floppy")...); !slices.Equal(got, []string{"floppy"}) {
		t.Errorf("unknown driver: %v", got)
	}
	c.fails("SR_BACKEND_FAILURE_102", "SR.create", create(map[string]string{}, "nfs")...)
	c.fails("SR_BACKEND_FAILURE_101", "SR.create", create(map[string]string{"server": "x"}, "nfs")...)
	sr := c.str("SR.create", create(nfs("/a"), "NFS")...)
	r := c.record("SR", sr)
	if r["type"] != "nfs" || r["physical_size"] != "1073741824" || len(r["PBDs"].([]any)) != 2 || r["shared"] != true {
		t.Errorf("the SR: %v", r)
	}
	vdi := c.str("VDI.create", map[string]any{"name_label": "kept", "SR": sr, "virtual_size": "8388608", "type": "user", "sharable": false,
		"read_only": false, "other_config": map[string]string{}})
	p.writeAt(t, vdi, 5)
	uuid, used := c.str("VDI.get_uuid", vdi), c.str("SR.get_physical_utilisation", sr)
	if got := c.fails("SR_HAS_PBD", "SR.destroy", sr); !slices.Equal(got, []string{sr}) {
		t.Errorf("destroy of a plugged SR: %v", got)
	}
	if ops := c.list("SR.get_allowed_operations", sr); slices.Contains(ops, "destroy") || !slices.Contains(ops, "vdi_create") {
		t.Errorf("allowed operations: %v", ops)
	}
	// A forgotten SR comes back with its disks.
	for _, pbd := range c.list("SR.get_PBDs", sr) {
		c.ok("PBD.unplug", pbd)
	}
	c.fails("SR_NOT_EMPTY", "SR.destroy", sr)
	srUUID := c.str("SR.get_uuid", sr)
	c.ok("SR.forget", sr)
	c.fails("UUID_INVALID", "VDI.get_by_uuid", uuid)
	if got := c.str("SR.probe", host, nfs("/a"), "nfs", map[string]string{}); !strings.Contains(got, srUUID) {
		t.Errorf("probe: %s", got)
	}
	if got := c.str("SR.probe", host, nfs("/b"), "nfs", map[string]string{}); strings.Contains(got, "<UUID>") {
		t.Errorf("probe of another place: %s", got)
	}
	sr = c.str("SR.introduce", srUUID, "back", "", "nfs", "user", true, map[string]string{})
	c.fails("SR_UUID_EXISTS", "SR.introduce", srUUID, "back", "", "nfs", "user", true, map[string]string{})
	pbd := c.str("PBD.create", map[string]any{"host": host, "SR": sr, "device_config": nfs("/a"), "other_config": map[string]string{}})
	if got := c.fails("PBD_EXISTS", "PBD.create", map[string]any{"host": host, "SR": sr, "device_config": nfs("/a")}); !slices.Equal(got, []string{sr, host, pbd}) {
		t.Errorf("a second PBD: %v", got)
	}
	c.fails("SR_NOT_ATTACHED", "SR.scan", sr)
	c.ok("PBD.plug", pbd)
	vdi = c.str("VDI.get_by_uuid", uuid)
	if got := c.str("SR.get_physical_utilisation", sr); got != used || c.str("VDI.get_name_label", vdi) != "kept" {
		t.Errorf("the SR holds %s, want %s", got, used)
	}
	// One forgotten disk can be introduced.
	c.ok("VDI.forget", vdi)
	vdi = c.str("VDI.introduce", uuid, "kept", "", sr, "user", false, false, map[string]string{}, uuid)
	if got := c.str("VDI.get_uuid", vdi); got != uuid {
		t.Errorf("introduced %s", got)
	}
	c.ok("VDI.destroy", vdi)
	c.ok("PBD.unplug", pbd)
	c.ok("SR.destroy", sr)
	c.fails("HANDLE_INVALID", "PBD.get_uuid", pbd)
}
