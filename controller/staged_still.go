package controller

import (
	"fmt"
	"path/filepath"

	"github.com/dpxen/dpxen/internal/staging"
)

// A file is proven as it is staged, and a session may go on for hours after that: who clears a full disk in the meantime, or
// unmounts it, takes away what the session calls good. So its end, and the one that says that Data Protector has saved the
// files, look once more whether they are there. What is in them nobody reads again.

// stillStaged fails the good VMs whose files are not in the folder any more as the session ends.
func (b *backup) stillStaged() {
	var gone []string
	b.s.note(func(r *Report) { gone = r.loseGone("when the session ended") })
	for _, text := range gone {
		b.emit(Event{Type: EventWarning, Message: text})
	}
}

// loseGone makes failed VMs of the good ones whose files are not whole in the folder any more, and says of each why; when is now.
func (r *Report) loseGone(when string) (why []string) {
	for i := range r.VMs {
		vm := &r.VMs[i]
		if vm.Status != StatusGood {
			continue
		}
		e := staging.Inspect(filepath.Join(r.Folder, vm.File))
		if e.State == staging.Complete && e.Manifest.Session == r.ID {
			continue
		}
		text := fmt.Sprintf("its file %s was staged and proven, and was gone from the staging folder %s (%s)", vm.File, when, e.State)
		vm.Status, vm.Reason, vm.Error, vm.Advice = StatusFailed, ReasonStaging, text, adviceFor(ReasonStaging)
		vm.File, vm.Bytes, vm.Digest, vm.DigestAlgorithm = "", 0, "", ""
		why = append(why, vm.Pool+"/"+vm.Name+": "+text)
	}
	return why
}

// unsaved fails the good VMs whose files had gone before Data Protector said that it had saved them: nobody knows whether it
// has. A session that was done gets the code that its VMs make now. Of a folder that is not there nothing is known.
func (r *Report) unsaved() {
	if _, err := staging.Open(r.Folder, staging.Options{ReadOnly: true, RequireMarker: true}); err != nil {
		return // whoever deletes the files says it
	}
	before := ExitCode(r, nil)
	why := r.loseGone("when post-exec came, so that Data Protector may not have saved it")
	if len(why) > 0 && r.Result != "" && r.Code == before {
		r.Code = ExitCode(r, nil)
		r.Result = ResultLine(r, r.Code)
	}
}
