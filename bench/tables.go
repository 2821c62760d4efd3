package main

import "fmt"

// table is contenders who do the same on the same scene.
type table struct {
	name, note string
	set        stageSettings
	vms        int
	restore    bool
	base       string // contender that the others are compared with
	target     string // ratio that dpxen is meant to reach, for the reader
	list       func(vms []string) []contender
	rawBytes   bool // measure raw TLS of the same bytes too
	rounds     int  // instead of the flag's
}

// result is a table that was measured.
type result struct {
	table
	order   []string
	samples map[string][]sample
}

// backups is the usual list for backups.
func backups(vms []string) []contender {
	return []contender{dpxenBackup(vms), curlBackup("https", vms), curlBackup("http", vms)}
}

func restores([]string) []contender {
	return []contender{dpxenRestore(), curlRestore("https"), curlRestore("http")}
}

// tables are all that is measured, in the document's order.
func tables(cfg *settings) []table {
	var out []table
	for _, place := range []struct{ name, dir string }{{"memory", cfg.memory}, {"disk", cfg.work}} {
		for _, n := range []int{1, 4} {
			set := stageSettings{stage: place.dir, vms: n, size: cfg.size, content: "random", agent: cfg.agent}
			if n > 1 {
				set.size = cfg.four
			}
			what := fmt.Sprintf("%d VM of %s, staging in %s", n, set.size, place.name)
			if n > 1 {
				what = fmt.Sprintf("%d VMs of %s each, staging in %s", n, set.size, place.name)
			}
			out = append(out,
				table{name: "backup: " + what, set: set, vms: n, base: "curl https", target: "1.0", list: backups, rawBytes: place.name == "memory" && n == 1},
				table{name: "restore: " + what, set: set, vms: n, base: "curl -T https", target: "1.0", list: restores, restore: true})
		}
	}
	for _, n := range []int{1, 4} {
		set := stageSettings{stage: cfg.memory, vms: n, size: cfg.four, content: "random", agent: cfg.agent, bandwidth: "171MiB"}
		if n == 1 {
			set.size = "4GiB" // half a minute: what a session costs once weighs little
		}
		out = append(out, table{name: fmt.Sprintf("shaped: backup, %d at a time, XAPI giving 171 MiB/s a stream", n), set: set, vms: n, base: "curl https", target: "0.98",
			list: func(vms []string) []contender {
				return []contender{dpxenBackup(vms), curlBackup("https", vms)}
			}})
	}
	for _, way := range []string{"socket", "http", "https"} {
		set := stageSettings{stage: cfg.memory, vms: 1, size: cfg.size, content: "random", agent: way}
		out = append(out, table{name: "way: backup of 1 VM, the agent reaching XAPI by " + way, set: set, vms: 1, base: "curl https",
			list: func(vms []string) []contender { return []contender{dpxenBackup(vms), curlBackup("https", vms)} }})
	}
	out = append(out, packings(cfg)...)
	sizes := []string{"1GiB", "4GiB"}
	if cfg.large {
		sizes = append(sizes, "16GiB", "64GiB")
	}
	for _, content := range []string{"sparse", "random"} {
		for _, size := range sizes {
			if content == "random" && size == "64GiB" {
				continue // the disk does not allow it
			}
			set := stageSettings{stage: cfg.work, vms: 1, size: size, content: content, agent: cfg.agent}
			out = append(out, table{name: "size: backup of 1 " + content + " VM of " + size, set: set, vms: 1, base: "curl https", rounds: 2,
				list: func(vms []string) []contender { return []contender{dpxenBackup(vms), curlBackup("https", vms)} }})
		}
	}
	return out
}

// packings tell when compression pays: by content, and by the network between host and client.
func packings(cfg *settings) []table {
	var out []table
	contents := map[string]string{"half": "data that compresses to a half", "random": "random data"}
	for _, link := range []struct {
		name string
		bits float64
		size string
	}{{"100 Mbit/s", 100e6, "192MiB"}, {"1 Gbit/s", 1e9, "1GiB"}, {"loopback", 0, "1GiB"}} {
		for _, content := range []string{"half", "random"} {
			set := stageSettings{stage: cfg.memory, vms: 1, size: link.size, content: content, agent: cfg.agent, link: link.bits}
			out = append(out, table{name: "compression: " + contents[content] + " over " + link.name + ", backup of 1 VM of " + link.size, set: set, vms: 1,
				note: "MiB/s are of the archive as it is unpacked. The simulator compresses for the host, in its own CPU time.",
				base: plainName, rounds: 2, list: func(vms []string) []contender {
					return []contender{dpxenPacked(plainName, vms), dpxenPacked("dpxen, wire zstd", vms, "--wire-compression", "zstd"),
						dpxenPacked("dpxen, host zstd", vms, "--compress", "zstd"), dpxenPacked("dpxen, host gzip", vms, "--compress", "gzip")}
				}})
		}
	}
	return out
}

const plainName = "dpxen, plain"

// measure runs the table.
func (t table) measure(cfg *settings) (r result, err error) {
	t.set.profiles, t.set.memory = cfg.profiles, cfg.memory
	s, err := newScene(cfg.bin, cfg.work, t.set)
	if err != nil {
		return r, err
	}
	defer s.close()
	vms, err := s.halted(t.vms)
	if err != nil {
		return r, err
	}
	between := s.clear
	if t.restore {
		args := []string{"backup", "--mode", "offline"}
		for _, vm := range vms {
			args = append(args, "--vm", vm)
		}
		if err := s.dpxen(args...); err != nil {
			return r, err
		}
		between = func() error { return nil }
	}
	list := t.list(vms)
	if t.rawBytes {
		list = append(list, rawTLS(2<<30))
	}
	rounds := t.rounds
	if rounds == 0 {
		rounds = cfg.rounds
	}
	r = result{table: t}
	for _, c := range list {
		r.order = append(r.order, c.name)
	}
	r.samples, err = alternate(s, rounds, between, list...)
	return r, err
}
