package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/dpxen/dpxen/internal/xva"
)

// poolState is what the demo reads of the simulator's dump.
type poolState struct {
	VMs             []vmState         `json:"vms"`
	Snapshots       []vmState         `json:"snapshots"`
	Carriers        []vmState         `json:"carriers"`
	Orphans         []diskState       `json:"orphans"`
	PoolOtherConfig map[string]string `json:"pool_other_config"`
}

type vmState struct {
	UUID       string            `json:"uuid"`
	Name       string            `json:"name"`
	PowerState string            `json:"power_state"`
	Blocked    map[string]string `json:"blocked_operations"`
	Config     map[string]string `json:"other_config"`
	Disks      []struct {
		UserDevice string    `json:"userdevice"`
		Type       string    `json:"type"`
		Empty      bool      `json:"empty"`
		VDI        diskState `json:"vdi"`
	} `json:"disks"`
	VIFs []struct {
		Device string `json:"device"`
		MAC    string `json:"mac"`
	} `json:"vifs"`
}

type diskState struct {
	UUID   string `json:"uuid"`
	SHA256 string `json:"sha256"`
}

// dump asks the simulator for the truth.
func (d *demo) dump(ctx context.Context) (*poolState, error) {
	var s poolState
	return &s, d.control(ctx, http.MethodGet, "/dump", nil, &s)
}

// control calls the simulator's control endpoint.
func (d *demo) control(ctx context.Context, method, path string, form url.Values, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, d.pool.Control+path+"?"+form.Encode(), nil)
	if err != nil {
		return fmt.Errorf("ask the simulator: %w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("ask the simulator: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		return fmt.Errorf("ask the simulator for %s: %s: %s", path, resp.Status, text)
	}
	if into == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return fmt.Errorf("ask the simulator for %s: %w", path, err)
	}
	return nil
}

// scribble lets every guest write to its disks.
func (d *demo) scribble(ctx context.Context, s *poolState) (changed int, err error) {
	for _, vm := range s.VMs {
		for _, disk := range vm.Disks {
			if disk.Type != "Disk" || disk.Empty {
				continue
			}
			changed++
			form := url.Values{"vdi": {disk.VDI.UUID}, "seed": {strconv.Itoa(changed)}, "n": {"5"}}
			if err := d.control(ctx, http.MethodPost, "/scribble", form, nil); err != nil {
				return changed, err
			}
		}
	}
	return changed, nil
}

// facts are what must be the same before and after, by a name that tells what differs.
func (s *poolState) facts() map[string]string {
	out := map[string]string{}
	for _, vm := range s.VMs {
		id := fmt.Sprintf("VM %q %s", vm.Name, vm.UUID)
		out[id+": power state"] = vm.PowerState
		for _, disk := range vm.Disks {
			if disk.Type == "Disk" {
				out[id+": disk "+disk.UserDevice] = disk.VDI.SHA256
			} else {
				out[id+": drive "+disk.UserDevice] = disk.VDI.UUID
			}
		}
		for _, vif := range vm.VIFs {
			out[id+": MAC "+vif.Device] = vif.MAC
		}
	}
	return out
}

// compare returns every difference from an earlier state.
func (s *poolState) compare(before *poolState) error {
	was, is := before.facts(), s.facts()
	var errs []error
	for what, value := range was {
		if is[what] != value {
			errs = append(errs, fmt.Errorf("%s is %q and was %q", what, is[what], value))
		}
	}
	for what, value := range is {
		if _, ok := was[what]; !ok {
			errs = append(errs, fmt.Errorf("%s is %q and was not there", what, value))
		}
	}
	return errors.Join(errs...)
}

// clean returns everything of ours that is left in the pool.
func (s *poolState) clean() error {
	var errs []error
	for key := range s.PoolOtherConfig {
		if strings.HasPrefix(key, "dpxen:") {
			errs = append(errs, fmt.Errorf("journal entry %s is left", key))
		}
	}
	for _, vm := range s.Snapshots {
		errs = append(errs, fmt.Errorf("snapshot %q is left", vm.Name))
	}
	for _, vm := range s.Carriers {
		errs = append(errs, fmt.Errorf("carrier %q is left", vm.Name))
	}
	for _, disk := range s.Orphans {
		errs = append(errs, fmt.Errorf("disk %s is left", disk.UUID))
	}
	for _, vm := range s.VMs {
		if len(vm.Blocked) > 0 {
			errs = append(errs, fmt.Errorf("VM %q has blocked operations: %v", vm.Name, vm.Blocked))
		}
		for key := range vm.Config {
			if strings.HasPrefix(key, "dpxen:") {
				errs = append(errs, fmt.Errorf("VM %q has the key %s", vm.Name, key))
			}
		}
	}
	return errors.Join(errs...)
}

// checkExt4 reads the disk with a file system out of its staged file, holds it against the host's, and has it checked by
// e2fsck where that is installed.
func (d *demo) checkExt4(ctx context.Context, s *poolState, mode string) error {
	const name = "web-01"
	entry, err := d.newest(name, strings.ToLower(strings.TrimPrefix(mode, "all")))
	if err != nil {
		return err
	}
	raw := d.path("web-01-" + mode + ".img")
	sum, err := extractDisk(entry.Path, raw)
	if err != nil {
		return fmt.Errorf("read the disk of %s out of %s: %w", name, entry.Base(), err)
	}
	for _, vm := range s.VMs {
		if vm.Name == name && vm.Disks[0].VDI.SHA256 != sum {
			return fmt.Errorf("the disk in %s has SHA-256 %s, the host's %s", entry.Base(), sum, vm.Disks[0].VDI.SHA256)
		}
	}
	fsck := findFsck()
	if fsck == "" {
		fmt.Fprintf(d.out, "  (e2fsck is not installed: the file system of %s is not checked)\n", name)
		return nil
	}
	out, err := exec.CommandContext(ctx, fsck, "-fn", raw).CombinedOutput()
	if err != nil {
		return fmt.Errorf("e2fsck -fn on the disk of %s: %w: %s", name, err, out)
	}
	d.right("%s: e2fsck finds the ext4 file system in the staged file of %s clean", mode, name)
	return nil
}

// findFsck finds e2fsck, which is often in a folder that is not on a user's PATH; empty where it is not installed.
func findFsck() string {
	for _, name := range []string{"e2fsck", "/sbin/e2fsck", "/usr/sbin/e2fsck"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

// extractDisk writes the first disk of an XVA file as a raw image and returns its SHA-256.
func extractDisk(path, raw string) (sum string, err error) {
	in, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer in.Close()
	r, err := xva.NewReader(in, xva.ReaderOptions{RequireExactEnd: true})
	if err != nil {
		return "", err
	}
	defer r.Close()
	disks, err := r.OVA().Disks()
	if err != nil || len(disks) == 0 {
		return "", fmt.Errorf("no disk in it: %w", err)
	}
	out, err := os.Create(raw)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if err := out.Truncate(disks[0].Size); err != nil {
		return "", err
	}
	for {
		block, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", err
		}
		if block.Dir != disks[0].Dir {
			continue
		}
		if _, err := out.WriteAt(block.Data, block.Offset); err != nil {
			return "", err
		}
	}
	if _, err := out.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	h := sha256.New()
	if _, err := io.Copy(h, out); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
