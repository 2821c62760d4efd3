package controller

import (
	"context"
	"errors"
	"slices"

	"github.com/dpxen/dpxen/internal/staging"
)

// RestoreListing is what a restore for Data Protector finds in a folder.
type RestoreListing struct {
	Folder  string        `json:"folder"`
	Files   []ListedFile  `json:"files"`             // of this restore, by the VMs' names, each verified
	Skipped []SkippedFile `json:"skipped,omitempty"` // the others, by file name
	Done    int           `json:"done"`              // skipped files that the VM was restored from already
}

// ListedFile is a file that a restore would use, with what reading all of it came to.
type ListedFile struct {
	RestoreItem
	Verified VerifyResult `json:"verified"`
}

// OK tells whether the file would be restored.
func (f *ListedFile) OK() bool { return f.Refused == "" && f.Verified.OK }

// ListRestore verifies what Data Protector has brought into the folder that req means, of both kinds, and lists the rest. It
// never changes a VM and asks no agent. each, where given, is told of every file as it was verified. Of req count Spec, From,
// At, DPSession, Selection and Again. Errors are as RestoreFiles' and lockArrivals'.
func (c *Controller) ListRestore(ctx context.Context, req RestoreRequest, each func(ListedFile)) (*RestoreListing, error) {
	c.restoreFrom(&req)
	lock, err := c.lockArrivals(ctx, req.From, "", func(string) {})
	if err != nil {
		return nil, err
	}
	list, err := c.listRestore(req, lock)
	if err := errors.Join(err, lock.unlock()); err != nil {
		return nil, err
	}
	for i := range list.Files {
		f := &list.Files[i]
		f.Verified, _ = verifyEntry(ctx, f.entry)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if each != nil {
			each(*f)
		}
	}
	return list, nil
}

// listRestore finds the files of both kinds.
func (c *Controller) listRestore(req RestoreRequest, lock *arrivalsLock) (*RestoreListing, error) {
	list := &RestoreListing{Files: []ListedFile{}}
	var none error
	why := map[string]string{}
	for _, mode := range []Mode{AllOnline, AllOffline} {
		req.Mode = mode
		if !req.Selection.Empty() {
			req.Mode = Mode(mode.Kind())
		}
		set, err := c.restoreFiles(req, lock)
		if set == nil || err != nil && !is[*UsageError](err) {
			return nil, err
		}
		if none == nil {
			none = err
		}
		list.Folder = set.Folder
		list.Done += set.Done
		for _, it := range set.Items {
			list.Files = append(list.Files, ListedFile{RestoreItem: it})
		}
		for _, s := range set.Skipped {
			name, err := staging.ParseName(s.File)
			if _, told := why[s.File]; !told || err == nil && name.Kind == mode.Kind() {
				why[s.File] = s.Reason
			}
		}
	}
	for _, file := range sortedKeys(why) {
		if !slices.ContainsFunc(list.Files, func(f ListedFile) bool { return f.File == file }) {
			list.Skipped = append(list.Skipped, SkippedFile{File: file, Reason: why[file]})
		}
	}
	if len(list.Files) == 0 && list.Done == 0 {
		return nil, none
	}
	return list, nil
}
