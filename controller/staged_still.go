package controller

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/dpxen/dpxen/internal/staging"
)

// A file is proven as it is staged, and a session may go on for hours after that: who clears a full disk in the meantime, or
// unmounts it, takes away what the session calls good, and whoever writes to a file makes another one of it. So its end, and the
// one that says that Data Protector has saved the files, look once more whether they are there, and read again those alone that
// were written to since.

// stillStaged fails the good VMs whose files are not in the folder any more, as they were proven, as the session ends.
func (b *backup) stillStaged(ctx context.Context) {
	lost := b.s.snapshot().lost(ctx, "when the session ended")
	if len(lost) == 0 {
		return
	}
	var told []string
	b.s.note(func(r *Report) { told = r.lose(lost) })
	for _, text := range told {
		b.emit(Event{Type: EventWarning, Message: text})
	}
}

// lost are the places in the report of good VMs whose files are not in the folder any more as they were proven, and why; when
// is now.
func (r *Report) lost(ctx context.Context, when string) map[int]string {
	lost := map[int]string{}
	for i, vm := range r.VMs {
		if vm.Status != StatusGood {
			continue
		}
		e := staging.Inspect(filepath.Join(r.Folder, vm.File))
		if e.State != staging.Complete || e.Manifest.Session != r.ID {
			lost[i] = fmt.Sprintf("its file %s was staged and proven, and was gone from the staging folder %s (%s)", vm.File, when, e.State)
			continue
		}
		if !writtenSince(e) {
			continue
		}
		again, _ := verifyEntry(ctx, e)
		if again.OK {
			continue
		}
		text := "its file %s was staged and proven, and was damaged %s: %s"
		if ctx.Err() != nil {
			text = "its file %s was staged and proven, and was written to, and not proven again %s: %s"
		}
		lost[i] = fmt.Sprintf(text, vm.File, when, again.Error)
	}
	return lost
}

// writtenSince tells whether the export was written to after its manifest, which is the last that a commit writes.
func writtenSince(e staging.Entry) bool {
	export, err := os.Lstat(e.Path)
	if err != nil {
		return true
	}
	manifest, err := os.Lstat(filepath.Join(filepath.Dir(e.Path), e.Name.Manifest()))
	return err != nil || export.ModTime().After(manifest.ModTime())
}

// lose makes failed VMs of those whose files are lost, and says of each why.
func (r *Report) lose(lost map[int]string) (told []string) {
	for i := range r.VMs {
		text, ok := lost[i]
		if vm := &r.VMs[i]; ok && vm.Status == StatusGood {
			vm.Status, vm.Reason, vm.Error, vm.Advice = StatusFailed, ReasonStaging, text, adviceFor(ReasonStaging)
			vm.File, vm.Bytes, vm.Digest, vm.DigestAlgorithm = "", 0, "", ""
			told = append(told, vm.Pool+"/"+vm.Name+": "+text)
		}
	}
	return told
}

// lostUnsaved are those whose files had gone, or were not the same any more, before Data Protector said that it had saved them:
// nobody knows what it has. Of a folder that is not there nothing is known.
func (r *Report) lostUnsaved(ctx context.Context) map[int]string {
	if _, err := staging.Open(r.Folder, staging.Options{ReadOnly: true, RequireMarker: true}); err != nil {
		return nil // whoever deletes the files says it
	}
	return r.lost(ctx, "when post-exec came, so that Data Protector may not have saved it")
}

// loseUnsaved is lose for a session that was done: it gets the code that its VMs make now.
func (r *Report) loseUnsaved(lost map[int]string) {
	before := ExitCode(r, nil)
	if len(r.lose(lost)) > 0 && r.Result != "" && r.Code == before {
		r.Code = ExitCode(r, nil)
		r.Result = ResultLine(r, r.Code)
	}
}
