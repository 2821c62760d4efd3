package xapi

import (
	"context"
	"errors"
	"strconv"
	"time"
)

// VBDSpec is what a new VBD is made of. Device names are XAPI's choice; UserDevice is the position.
type VBDSpec struct {
	VM, VDI                      Ref
	UserDevice, Mode, Type       string // "0", "RW" or "RO", "Disk" or "CD"
	Bootable, Unpluggable, Empty bool
	QOSAlgorithmType             string
	QOSAlgorithmParams           map[string]string
	OtherConfig                  map[string]string
}

// CreateVBD joins a disk to a VM without plugging it.
func (c *Client) CreateVBD(ctx context.Context, s VBDSpec) (Ref, error) {
	vdi := s.VDI
	if vdi.Null() {
		vdi = NullRef
	}
	v, err := c.Call(ctx, "VBD.create", Record{
		"VM": s.VM, "VDI": vdi, "userdevice": s.UserDevice, "bootable": s.Bootable, "mode": s.Mode, "type": s.Type,
		"unpluggable": s.Unpluggable, "empty": s.Empty, "other_config": s.OtherConfig,
		"qos_algorithm_type": s.QOSAlgorithmType, "qos_algorithm_params": s.QOSAlgorithmParams,
	})
	if err != nil {
		return "", err
	}
	return v.Ref()
}

// DestroyVBD deletes an unplugged VBD; ErrNotFound when it is gone.
func (c *Client) DestroyVBD(ctx context.Context, vbd Ref) error {
	_, err := c.Call(ctx, "VBD.destroy", vbd)
	return err
}

// UnplugVBD detaches a disk from a running VM.
func (c *Client) UnplugVBD(ctx context.Context, vbd Ref) error {
	_, err := c.CallAsync(ctx, "unplug VBD", "VBD.unplug", vbd)
	return err
}

// DestroyVDI deletes a disk. VDI_IN_USE, which dom0 causes for seconds after an export, is tried again for
// Timeouts.InUse. That the disk is gone already is success.
func (c *Client) DestroyVDI(ctx context.Context, vdi Ref) error {
	deadline := time.Now().Add(c.t.InUse)
	for {
		_, err := c.CallAsync(ctx, "destroy VDI", "VDI.destroy", vdi)
		if !errors.Is(err, ErrInUse) || time.Now().After(deadline) {
			return unlessGone(err, vdi)
		}
		if pause(ctx, c.t.InUsePause) != nil {
			return err
		}
	}
}

// SetVDIName renames a disk.
func (c *Client) SetVDIName(ctx context.Context, vdi Ref, name string) error {
	_, err := c.Call(ctx, "VDI.set_name_label", vdi, name)
	return err
}

// AddToVDIOtherConfig adds a key; ErrDuplicateKey when it is there.
func (c *Client) AddToVDIOtherConfig(ctx context.Context, vdi Ref, key, value string) error {
	_, err := c.Call(ctx, "VDI.add_to_other_config", vdi, key, value)
	return err
}

// RemoveFromVDIOtherConfig removes a key; one that is not there is no error.
func (c *Client) RemoveFromVDIOtherConfig(ctx context.Context, vdi Ref, key string) error {
	_, err := c.Call(ctx, "VDI.remove_from_other_config", vdi, key)
	return err
}

// RemoveFromVDISMConfig removes a key of VDI.sm_config; one that is not there is no error.
func (c *Client) RemoveFromVDISMConfig(ctx context.Context, vdi Ref, key string) error {
	_, err := c.Call(ctx, "VDI.remove_from_sm_config", vdi, key)
	return err
}

// ScanSR makes XAPI read the SR's disks and sizes again.
func (c *Client) ScanSR(ctx context.Context, sr Ref) error {
	_, err := c.CallAsync(ctx, "scan SR", "SR.scan", sr)
	return err
}

// UpdateSR makes XAPI read the SR's sizes again.
func (c *Client) UpdateSR(ctx context.Context, sr Ref) error {
	_, err := c.CallAsync(ctx, "update SR", "SR.update", sr)
	return err
}

// VIFSpec is what a new VIF is made of. An empty MAC lets XAPI choose one.
type VIFSpec struct {
	VM, Network              Ref
	Device, MAC              string
	MTU                      int64  // 0 = 1500
	LockingMode              string // "" = network_default
	IPv4Allowed, IPv6Allowed []string
	OtherConfig              map[string]string
	QOSAlgorithmType         string
	QOSAlgorithmParams       map[string]string
}

// CreateVIF gives a VM a network interface without plugging it.
func (c *Client) CreateVIF(ctx context.Context, s VIFSpec) (Ref, error) {
	mtu, locking := s.MTU, s.LockingMode
	if mtu == 0 {
		mtu = 1500
	}
	if locking == "" {
		locking = "network_default"
	}
	v, err := c.Call(ctx, "VIF.create", Record{
		"VM": s.VM, "network": s.Network, "device": s.Device, "MAC": s.MAC, "MTU": strconv.FormatInt(mtu, 10),
		"locking_mode": locking, "ipv4_allowed": s.IPv4Allowed, "ipv6_allowed": s.IPv6Allowed,
		"other_config": s.OtherConfig, "qos_algorithm_type": s.QOSAlgorithmType,
		"qos_algorithm_params": s.QOSAlgorithmParams,
	})
	if err != nil {
		return "", err
	}
	return v.Ref()
}

// DestroyVIF deletes an unplugged VIF; ErrNotFound when it is gone.
func (c *Client) DestroyVIF(ctx context.Context, vif Ref) error {
	_, err := c.Call(ctx, "VIF.destroy", vif)
	return err
}
