package xapi

import (
	"context"
	"errors"
	"fmt"
	"regexp"
)

// Snapshot takes a snapshot of a VM and gives its reference. ignoreVDIs are disks to leave out; honoured says that
// the host did (also when there were none): releases before XCP-ng 8.3 and XenServer 8 cannot, and their snapshot has
// every disk.
func (c *Client) Snapshot(ctx context.Context, vm Ref, name string, ignoreVDIs []Ref) (snap Ref, honoured bool, err error) {
	const method = "VM.snapshot"
	if len(ignoreVDIs) > 0 {
		snap, err = c.asyncRef(ctx, "snapshot", method, vm, name, ignoreVDIs)
		if !hasCode(err, "MESSAGE_PARAMETER_COUNT_MISMATCH") {
			return snap, err == nil, err
		}
	}
	snap, err = c.asyncRef(ctx, "snapshot", method, vm, name)
	return snap, err == nil && len(ignoreVDIs) == 0, err
}

// asyncRef makes a long call whose result is a reference.
func (c *Client) asyncRef(ctx context.Context, label, method string, args ...any) (Ref, error) {
	result, err := c.CallAsync(ctx, label, method, args...)
	if err != nil {
		return "", err
	}
	if Ref(result).Null() {
		return "", fmt.Errorf("%s: no reference in the result %q: %w", method, result, ErrProtocol)
	}
	return Ref(result), nil
}

// SetIsATemplate makes a VM a template or a template a VM.
func (c *Client) SetIsATemplate(ctx context.Context, vm Ref, template bool) error {
	return c.SetVMField(ctx, vm, "is_a_template", template)
}

// DestroyVM deletes the record of a halted VM, template or snapshot, not its disks. That it is gone already is success.
func (c *Client) DestroyVM(ctx context.Context, vm Ref) error {
	_, err := c.CallAsync(ctx, "destroy VM", "VM.destroy", vm)
	return unlessGone(err, vm)
}

// unlessGone takes away the error that says that the object itself is gone.
func unlessGone(err error, ref Ref) error {
	var e *Error
	if errors.As(err, &e) && e.Code == "HANDLE_INVALID" && (len(e.Params) < 2 || Ref(e.Params[1]) == ref) {
		return nil
	}
	return err
}

// CleanShutdown asks the guest to shut down and waits until it is halted. When ctx ends the task is cancelled, but the
// guest may still power off later.
func (c *Client) CleanShutdown(ctx context.Context, vm Ref) error {
	_, err := c.CallAsync(ctx, "clean shutdown", "VM.clean_shutdown", vm)
	return err
}

// HardShutdown powers a VM off, and discards the memory image of a suspended one.
func (c *Client) HardShutdown(ctx context.Context, vm Ref) error {
	_, err := c.CallAsync(ctx, "hard shutdown", "VM.hard_shutdown", vm)
	return err
}

// Start starts a halted VM where XAPI sees fit.
func (c *Client) Start(ctx context.Context, vm Ref) error {
	const startPaused, force = false, false
	_, err := c.CallAsync(ctx, "start", "VM.start", vm, startPaused, force)
	return err
}

// AssertCanBootHere asks whether a host could start a VM now; the *Error says why it could not. The memory that the VM has
// there, where it runs, is not taken for free (VM.assert_can_boot_here; reference section 2.3).
func (c *Client) AssertCanBootHere(ctx context.Context, vm, host Ref) error {
	_, err := c.Call(ctx, "VM.assert_can_boot_here", vm, host)
	return err
}

var fieldName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]*$`)

// setter makes a call without result on a field of a VM.
func (c *Client) setter(ctx context.Context, verb, field string, args ...any) error {
	if !fieldName.MatchString(field) {
		return fmt.Errorf("field %q of VM: not a name", field)
	}
	_, err := c.Call(ctx, "VM."+verb+field, args...)
	return err
}

// SetVMField sets a field by VM.set_FIELD.
func (c *Client) SetVMField(ctx context.Context, vm Ref, field string, value any) error {
	return c.setter(ctx, "set_", field, vm, value)
}

// AddToVMMap adds a key to a map of a VM; ErrDuplicateKey when it is there.
func (c *Client) AddToVMMap(ctx context.Context, vm Ref, field, key, value string) error {
	return c.setter(ctx, "add_to_", field, vm, key, value)
}

// RemoveFromVMMap removes a key from a map of a VM; one that is not there is no error.
func (c *Client) RemoveFromVMMap(ctx context.Context, vm Ref, field, key string) error {
	return c.setter(ctx, "remove_from_", field, vm, key)
}

// AddVMTag adds a tag.
func (c *Client) AddVMTag(ctx context.Context, vm Ref, tag string) error {
	return c.setter(ctx, "add_", "tags", vm, tag)
}

// RemoveVMTag removes a tag.
func (c *Client) RemoveVMTag(ctx context.Context, vm Ref, tag string) error {
	return c.setter(ctx, "remove_", "tags", vm, tag)
}

// AddBlockedOperation makes XAPI refuse an operation with OPERATION_BLOCKED and the message; ErrDuplicateKey when it
// is blocked already.
func (c *Client) AddBlockedOperation(ctx context.Context, vm Ref, operation, message string) error {
	return c.AddToVMMap(ctx, vm, "blocked_operations", operation, message)
}

// RemoveBlockedOperation lets an operation be done again.
func (c *Client) RemoveBlockedOperation(ctx context.Context, vm Ref, operation string) error {
	return c.RemoveFromVMMap(ctx, vm, "blocked_operations", operation)
}
