package xensim

import "github.com/dpxen/dpxen/internal/xensim/disk"

// demoSpecs are the VMs of the scenario "demo": what a backup tool meets, small.
// One has a disk that is no multiple of 1 MiB on the shared and one on a local
// SR; one has a name that no file system likes; two have the same name.
func (p *Pool) demoSpecs() []vmSpec {
	const mib = 1 << 20
	size := p.cfg.DiskSize
	ext4 := max(size, disk.MinExt4Size)
	return []vmSpec{
		{name: "web-01", running: true, host: 0, vifs: 1, tags: []string{"gold"}, disks: []diskSpec{
			{name: "root", size: ext4, kind: disk.Ext4, shared: true},
		}},
		{name: "db-01", running: true, host: 1, vifs: 2, tags: []string{"gold", "db"}, disks: []diskSpec{
			{name: "root", size: size, kind: disk.Sparse, shared: true},
			{name: "data", size: size/2 + mib/2 + 512*3, kind: disk.Random},
		}},
		{name: `Büro/"ERP": *Köln*? <ß>`, running: false, host: 0, vifs: 1, disks: []diskSpec{
			{name: "root", size: size, kind: disk.Sparse, shared: true},
		}},
		{name: "twin", running: true, host: 0, vifs: 1, disks: []diskSpec{
			{name: "root", size: size / 2, kind: disk.Random, shared: true},
		}},
		{name: "twin", running: false, host: 1, vifs: 1, disks: []diskSpec{
			{name: "root", size: size / 2, kind: disk.Random},
		}},
		{name: "installer", running: true, host: 1, vifs: 1, iso: true, disks: []diskSpec{
			{name: "root", size: size, kind: disk.Sparse, shared: true},
		}},
		{name: "archive", running: false, host: 1, vifs: 1, disks: []diskSpec{
			{name: "root", size: 3*mib + 1000*512, kind: disk.Random, shared: true},
			{name: "empty", size: size, kind: disk.Zero},
		}},
	}
}
