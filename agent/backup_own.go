package agent

import (
	"context"
	"fmt"

	"github.com/dpxen/dpxen/internal/xva"
)

// keepOwn keeps the VM's own record as it is while it is halted, since its snapshot's has lost some of it.
func (b *backup) keepOwn(ctx context.Context, j *job) error {
	vm, err := b.readVM(ctx, j.VM)
	if err != nil {
		return err
	}
	if b.facts.Own, err = xva.OwnRecord(vm.Fields); err != nil {
		return fmt.Errorf("keep the VM's own record: %w", err)
	}
	return nil
}
