package xensim

import (
	"fmt"
	"strconv"

	"github.com/dpxen/dpxen/internal/xensim/disk"
	"github.com/dpxen/dpxen/internal/xensim/model"
)

const (
	networkName = "Pool-wide network associated with eth0"
	hostMemory  = 1 << 40
	dom0Memory  = 4 << 30
	isoSize     = 8 << 20
)

// storage are the SRs that populate makes.
type storage struct {
	shared, iso, isoVDI *object
	local               []*object
}

// populate makes the pool's records.
func (p *Pool) populate() error {
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	pool := p.db.create("pool", map[string]any{
		"name_label": "xensim", "other_config": map[string]string{"auto_poweron": "true"}, "tls_verification_enabled": true,
	})
	network := p.db.create("network", map[string]any{"name_label": networkName, "bridge": "xenbr0"})
	second := p.db.create("network", map[string]any{"name_label": "Backup network", "bridge": "xenbr1"})
	for _, h := range p.hosts {
		p.addHost(h, network)
	}
	p.db.set(pool, "master", p.hosts[0].ref)
	st, err := p.addStorage()
	if err != nil {
		return err
	}
	for _, f := range []string{"default_SR", "suspend_image_SR", "crash_dump_SR"} {
		p.db.set(pool, f, st.shared.ref)
	}
	p.updatePool()
	p.addDrivers()
	p.addTemplates()
	return p.addVMs(st, network, second)
}

// cpuFeatures are the hexadecimal words that a guest may count on after a
// migration to any host of the pool.
const cpuFeatures = "1fcbfbff-f7fa3223-2d93fbff-00000423-00000001-000007ab-00000000-00000000-00001000-9c000400"

func (p *Pool) addHost(h *simHost, network *object) {
	r := p.release
	now := p.now()
	metrics := p.db.create("host_metrics", map[string]any{"memory_total": int64(hostMemory), "live": true, "last_updated": now})
	xapi := fmt.Sprintf("%d.%d", r.xapi[0], r.xapi[1])
	o := p.db.create("host", map[string]any{
		"uuid": h.uuid, "name_label": h.name, "hostname": h.name, "address": h.address, "enabled": true,
		"API_version_major": int64(r.api.Major), "API_version_minor": int64(r.api.Minor), "API_version_vendor": "XenSource",
		"memory_overhead": int64(512 << 20), "metrics": metrics.ref, "edition": "free", "power_on_mode": "",
		"sched_policy": "credit", "supported_bootloaders": []string{"pygrub", "eliloader"},
		"capabilities": []string{"xen-3.0-x86_64", "hvm-3.0-x86_32", "hvm-3.0-x86_64"},
		"cpu_info": map[string]string{
			"cpu_count": "16", "socket_count": "2", "vendor": "GenuineIntel", "modelname": "Simulated CPU",
			"features_pv": cpuFeatures, "features_hvm": cpuFeatures, "features_pv_host": cpuFeatures, "features_hvm_host": cpuFeatures,
		},
		"license_server": map[string]string{"address": "localhost", "port": "27000"}, "https_only": false,
		"software_version": map[string]string{
			"product_version": r.version, "product_version_text": r.version, "product_version_text_short": r.version,
			"product_brand": r.brand, "build_number": "xensim", "platform_name": "XCP", "platform_version": r.platform,
			"hostname": h.name, "date": "2024-06-01", "xapi": xapi, "xapi_build": xapi + ".0", "xen": "4.17.4", "linux": "4.19.0+1",
			"dbv": "0.0.1", "network_backend": "openvswitch",
		},
		"virtual_hardware_platform_versions": []int64{0, 1, 2},
		"bios_strings": map[string]string{
			"bios-vendor": "xensim", "bios-version": "1.0", "system-manufacturer": "xensim", "system-product-name": "Simulated host",
			"system-version": "1", "system-serial-number": h.uuid[:8], "oem-1": "Xen", "hp-rombios": "",
		},
	})
	h.ref = o.ref
	p.db.create("PIF", map[string]any{
		"device": "eth0", "network": network.ref, "host": h.ref, "MAC": seededMAC(h.uuid, "0"), "MTU": int64(1500), "VLAN": int64(-1),
		"physical": true, "currently_attached": true, "management": true, "IP": h.address, "ip_configuration_mode": "Static",
	})
	domain := p.createVM(map[string]any{
		"name_label": "Control domain on host: " + h.name, "memory_static_max": int64(dom0Memory), "memory_dynamic_max": int64(dom0Memory),
		"memory_dynamic_min": int64(dom0Memory), "VCPUs_max": int64(4), "VCPUs_at_startup": int64(4), "domain_type": "pv",
	})
	for f, v := range map[string]any{
		"is_control_domain": true, "power_state": running, "domid": int64(0), "resident_on": h.ref, "affinity": h.ref,
		"allowed_operations": []string{"data_source_op", "changing_memory_live", "changing_dynamic_range"},
	} {
		p.db.set(domain, f, v)
	}
	h.dom0 = domain.ref
	p.showConsole(domain)
	p.db.set(o, "control_domain", domain.ref)
	p.addInventory(h)
	p.updateHost(o)
	p.memory(h)
}

func (p *Pool) addSR(name, kind, content string, shared bool, hosts []*simHost) *object {
	sr := p.db.create("SR", map[string]any{
		"name_label": name, "type": kind, "content_type": content, "shared": shared, "physical_size": p.cfg.SRSize,
	})
	for _, h := range hosts {
		p.db.create("PBD", map[string]any{
			"host": h.ref, "SR": sr.ref, "currently_attached": true,
			"device_config": deviceConfig(kind, sr.uuid(), h.name),
		})
	}
	p.updateSR(sr)
	return sr
}

// deviceConfig is how a host reaches an SR, by its kind.
func deviceConfig(kind, uuid, host string) map[string]string {
	switch kind {
	case "ext", "lvm":
		return map[string]string{"device": "/dev/disk/by-id/scsi-" + host}
	case "nfs":
		return map[string]string{"server": "192.0.2.1", "serverpath": "/srv/xen"}
	case "smb":
		return map[string]string{"server": `\\192.0.2.1\xen`}
	case "lvmoiscsi":
		return map[string]string{"target": "192.0.2.1", "targetIQN": "iqn.2020-01.test.xensim:store", "SCSIid": "3600140" + uuid[:8]}
	case "lvmohba":
		return map[string]string{"SCSIid": "3600140" + uuid[:8]}
	default:
		return map[string]string{"location": "/srv/" + uuid}
	}
}

func (p *Pool) addStorage() (*storage, error) {
	st := &storage{shared: p.addSR("Shared storage", p.cfg.SharedSR, "user", true, p.hosts)}
	for _, h := range p.hosts {
		sr := p.addSR("Local storage on "+h.name, p.cfg.LocalSR, "user", false, []*simHost{h})
		p.db.put(sr, "other_config", "i18n-key", "local-storage")
		st.local = append(st.local, sr)
	}
	st.iso = p.addSR("ISO library", "iso", "iso", true, p.hosts)
	image, err := p.disks.New(isoSize, disk.Content{Kind: disk.Random, Seed: p.cfg.Seed ^ 0x150})
	if err != nil {
		return nil, fmt.Errorf("xensim: making an ISO: %w", err)
	}
	st.isoVDI = p.addVDI(st.iso, image, 0, map[string]any{"name_label": "install.iso", "read_only": true, "type": "user"})
	p.db.set(st.isoVDI, "location", "install.iso")
	p.db.set(st.isoVDI, "physical_utilisation", int64(isoSize))
	p.spend(st.iso, isoSize, 0)
	return st, nil
}

func (p *Pool) addTemplates() {
	for _, name := range []string{"Other install media", "Debian Bookworm 12", "Windows Server 2022 (64-bit)"} {
		vm := p.createVM(map[string]any{
			"name_label": name, "is_a_template": true, "memory_static_max": int64(1 << 30), "memory_dynamic_max": int64(1 << 30),
			"memory_dynamic_min": int64(1 << 30), "VCPUs_max": int64(1), "VCPUs_at_startup": int64(1),
			"HVM_boot_policy": "BIOS order", "domain_type": "hvm",
			"other_config": map[string]string{"default_template": "true"},
		})
		p.db.set(vm, "is_default_template", true)
		p.updateAllowed(vm)
	}
	vm := p.createVM(map[string]any{
		"name_label": "house template", "is_a_template": true, "memory_static_max": int64(1 << 30), "VCPUs_max": int64(1),
		"VCPUs_at_startup": int64(1),
	})
	p.updateAllowed(vm)
}

// diskSpec and vmSpec say what VMs populate makes.
type diskSpec struct {
	name   string
	size   int64
	kind   disk.Kind
	shared bool
}

type vmSpec struct {
	name    string
	running bool
	host    int
	disks   []diskSpec
	iso     bool
	noTools bool
	vifs    int
	tags    []string
}

func (p *Pool) addVMs(st *storage, networks ...*object) error {
	specs := p.plainSpecs()
	if p.cfg.Scenario == "demo" {
		specs = p.demoSpecs()
	}
	for i, s := range specs {
		if err := p.addVM(i, s, st, networks); err != nil {
			return fmt.Errorf("xensim: making VM %q: %w", s.name, err)
		}
	}
	return nil
}

func (p *Pool) plainSpecs() []vmSpec {
	kind, err := disk.ParseKind(p.cfg.Content)
	if err != nil {
		kind = disk.Random
	}
	out := make([]vmSpec, p.cfg.VMs)
	for i := range out {
		out[i] = vmSpec{
			name: fmt.Sprintf("vm-%02d", i+1), running: i%2 == 0, host: i / 2 % len(p.hosts), vifs: 1,
			disks: []diskSpec{{name: "root", size: p.cfg.DiskSize, kind: kind, shared: i%3 != 2}},
		}
	}
	return out
}

func (p *Pool) addVM(i int, s vmSpec, st *storage, networks []*object) error {
	seed := p.cfg.Seed*1_000_003 + uint64(i)*101
	vm := p.createVM(map[string]any{
		"name_label": s.name, "name_description": "made by xensim", "memory_static_max": int64(1 << 30), "memory_dynamic_max": int64(1 << 30),
		"memory_dynamic_min": int64(1 << 30), "memory_static_min": int64(512 << 20), "VCPUs_max": int64(2), "VCPUs_at_startup": int64(2),
		"actions_after_shutdown": "destroy", "actions_after_reboot": "restart", "actions_after_crash": "restart",
		"HVM_boot_policy": "BIOS order", "HVM_boot_params": map[string]string{"order": "cd", "firmware": "bios"}, "domain_type": "hvm",
		"platform":      map[string]string{"acpi": "1", "apic": "true", "pae": "true", "viridian": "true", "vga": "std"},
		"generation_id": fmt.Sprintf("%d:%d", seed, seed+1), "tags": s.tags,
		"other_config": map[string]string{"mac_seed": p.db.newUUID(), "base_template_name": "Other install media"},
	})
	p.db.set(vm, "bios_strings", map[string]string{"bios-vendor": "Xen", "system-manufacturer": "Xen"})
	h := p.hosts[s.host%len(p.hosts)]
	for n, d := range s.disks {
		sr := st.local[s.host%len(st.local)]
		if d.shared {
			sr = st.shared
		}
		image, err := p.disks.New(d.size, disk.Content{Kind: d.kind, Seed: seed + uint64(n)})
		if err != nil {
			return err
		}
		vdi := p.addVDI(sr, image, image.Utilisation(), map[string]any{
			"name_label": s.name + " " + d.name, "type": []string{"system", "user"}[min(n, 1)],
		})
		if _, err := p.createVBD(map[string]any{
			"VM": vm.ref, "VDI": vdi.ref, "userdevice": strconv.Itoa(n), "bootable": n == 0, "mode": "RW", "type": "Disk",
			"unpluggable": true, "other_config": map[string]string{"owner": ""},
		}); err != nil {
			return err
		}
	}
	cd := map[string]any{"VM": vm.ref, "userdevice": "3", "mode": "RO", "type": "CD", "empty": !s.iso, "unpluggable": true}
	if s.iso {
		cd["VDI"] = st.isoVDI.ref
	}
	if _, err := p.createVBD(cd); err != nil {
		return err
	}
	for n := range s.vifs {
		if _, err := p.createVIF(map[string]any{
			"VM": vm.ref, "device": strconv.Itoa(n), "network": networks[n%len(networks)].ref, "MTU": int64(1500), "MAC": "",
		}); err != nil {
			return err
		}
	}
	if !s.noTools {
		p.addGuest(vm)
	}
	if s.running {
		return p.powerOn(vm.ref, h, false)
	}
	p.updateAllowed(vm)
	return nil
}

// addGuest gives a VM what a guest with drivers tells.
func (p *Pool) addGuest(vm *object) {
	g := p.db.create("VM_guest_metrics", map[string]any{
		"os_version":         map[string]string{"name": "Debian GNU/Linux 12 (bookworm)", "distro": "debian", "major": "12", "minor": "5", "uname": "6.1.0"},
		"PV_drivers_version": map[string]string{"major": "7", "minor": "30", "micro": "0", "build": "15"},
		"networks":           map[string]string{"0/ip": "192.0.2.10", "0/ipv4/0": "192.0.2.10"},
		"last_updated":       model.Epoch, "PV_drivers_detected": true, "PV_drivers_up_to_date": true,
		"can_use_hotplug_vbd": "yes", "can_use_hotplug_vif": "yes",
	})
	p.db.set(vm, "guest_metrics", g.ref)
}
