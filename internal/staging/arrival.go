package staging

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Arrival is a backup as it was put where it lies. Whoever writes it there again, also with the same bytes and the same time
// of modification as restores do, makes another one of it. So does whatever changes the attributes of its files.
type Arrival struct {
	Time time.Time // of the last change to export or manifest, by the clock of the file system; zero where unknown
	ID   string    // of this arrival: equal as long as neither file was touched
}

// Arrival returns the entry's arrival as it is now.
func (e Entry) Arrival() (Arrival, error) {
	var a Arrival
	for _, name := range []string{e.Base(), e.Name.Manifest()} {
		path := filepath.Join(filepath.Dir(e.Path), name)
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			a.ID += "-;"
			continue
		}
		var at time.Time
		var file uint64
		if err == nil {
			at, file, err = changed(path, info)
		}
		if err != nil {
			return Arrival{}, fmt.Errorf("look at %s: %w", name, err)
		}
		if at.After(a.Time) {
			a.Time = at
		}
		a.ID += fmt.Sprintf("%x.%d.%d.%d;", file, info.Size(), info.ModTime().UnixNano(), at.UnixNano())
	}
	return a, nil
}
