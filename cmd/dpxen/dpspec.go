package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dpxen/dpxen/controller"
	"github.com/dpxen/dpxen/internal/staging"
)

const goosWindows = "windows"

// specFlags say what is not in the configuration.
type specFlags struct {
	spec, goos, client, device, pool, mount, label string
	program, config, dpHome                        string
	object                                         bool
	weeks                                          int
	mode                                           string // of the restore's script
	out                                            string
}

func (a *app) dpSpecCommand() *cobra.Command {
	var f specFlags
	cmd := &cobra.Command{
		Use:   "dp-spec [--spec NAME] [--out DIR]",
		Short: "Make a skeleton of a Data Protector backup specification, and the scripts that it starts",
		Long: "dp-spec prints, for the specifications in the configuration, a skeleton of Data Protector's own file (datalist),\n" +
			"the scripts for pre-exec, post-exec and the post-exec of a restore, and what must be compared with a\n" +
			"specification that your own Data Protector has saved: its format is not documented, and differs by version.\n" +
			"With --out it writes them to a folder; nothing is overwritten.\n\n" +
			"Session-level commands lie in /opt/omni/lbin (Windows: DP_home\\bin) and are named without a path. The restore's\n" +
			"script verifies and lists; with --restore-mode it restores VMs.",
		Example: "  dpxen dp-spec --spec XEN_NIGHTLY --device LTO_1\n" +
			"  dpxen dp-spec --out dp --level-object\n" +
			"  dpxen dp-spec --spec XEN_NIGHTLY --os windows --client dpwin.example.com --out dp",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return a.dpSpec(&f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.spec, specFlag, "", "backup specification `NAME` (default: each in the configuration)")
	flags.StringVar(&f.goos, "os", runtime.GOOS, "the client's `SYSTEM`: linux or windows")
	flags.StringVar(&f.client, "client", "", "`HOST` in Data Protector's cell (default: this machine's name)")
	flags.StringVar(&f.device, "device", "DEVICE", "Data Protector's `NAME` of the device")
	flags.StringVar(&f.pool, "media-pool", "Default File", "Data Protector's `NAME` of the media pool")
	flags.StringVar(&f.mount, "mount", "", "mount point `DIR` of the staging folder (default: looked up)")
	flags.StringVar(&f.label, "label", "/dpxen", "the object's `LABEL`")
	flags.IntVar(&f.weeks, "weeks", 4, "protect for `N` weeks")
	flags.BoolVar(&f.object, "level-object", false, "commands at object level; default is session level")
	flags.StringVar(&f.mode, "restore-mode", "", "the restore's script restores in `MODE` instead of listing")
	flags.StringVar(&f.program, "program", "", "`FILE` of dpxen on the client (default: this one)")
	flags.StringVar(&f.config, "client-config", "", "`FILE` of the configuration on the client (default: this one)")
	flags.StringVar(&f.dpHome, "dp-home", "", "folder `DIR` of Data Protector on the client")
	flags.StringVar(&f.out, "out", "", "write the files to the folder `DIR`")
	return cmd
}

// specFile is a file that dp-spec makes.
type specFile struct {
	Name  string `json:"name"`
	Place string `json:"place"` // where it goes
	Text  string `json:"text"`

	mode os.FileMode
}

// specDocument is what `dp-spec --json` prints.
type specDocument struct {
	Files   []specFile `json:"files"`
	Compare []string   `json:"compare"`
}

func (a *app) dpSpec(f *specFlags) error {
	cfg, err := a.load()
	if err != nil {
		return err
	}
	if err := f.complete(a, cfg); err != nil {
		return err
	}
	names := []string{f.spec}
	if f.spec == "" {
		if names = slices.Sorted(maps.Keys(cfg.Specs)); len(names) == 0 {
			return usagef("the configuration has no specs: name one with --spec")
		}
	}
	doc := specDocument{Compare: f.compare(cfg)}
	for _, name := range names {
		files, err := f.files(cfg, name)
		if err != nil {
			return err
		}
		doc.Files = append(doc.Files, files...)
	}
	if err := twice(doc.Files); err != nil {
		return err
	}
	switch {
	case f.out != "":
		return a.writeSpec(f.out, doc)
	case a.json:
		return a.encode(doc)
	}
	for _, file := range doc.Files {
		fmt.Fprintf(a.out, "==> %s: %s <==\n%s\n", file.Name, file.Place, strings.ReplaceAll(file.Text, "\r", ""))
	}
	fmt.Fprintf(a.out, "==> compare with a specification that your own Data Protector has saved <==\n%s", numbered(doc.Compare))
	return nil
}

// complete fills in what was not given.
func (f *specFlags) complete(a *app, cfg *controller.Config) error {
	if f.goos != "linux" && f.goos != goosWindows {
		return usagef("--os %q: use linux or windows", f.goos)
	}
	here := f.goos == runtime.GOOS
	if f.mode != "" {
		mode, err := controller.ParseMode(f.mode)
		if err != nil {
			return err
		}
		f.mode = string(mode)
	}
	if f.client == "" {
		name, err := os.Hostname()
		if err != nil {
			return usagef("this machine's name is not known: give --client (%w)", err)
		}
		f.client = name
	}
	if f.program == "" {
		f.program = map[bool]string{true: `C:\Program Files\dpxen\dpxen.exe`, false: "/usr/local/bin/dpxen"}[f.goos == goosWindows]
		if exe, err := os.Executable(); here && err == nil {
			f.program = exe
		}
	}
	if f.config == "" {
		f.config = map[bool]string{true: `C:\ProgramData\dpxen\controller.yaml`, false: "/etc/dpxen/controller.yaml"}[f.goos == goosWindows]
		if here {
			f.config = absolute(a.configPath)
		}
	}
	if f.dpHome == "" {
		f.dpHome = map[bool]string{true: `C:\Program Files\OmniBack`, false: "/opt/omni"}[f.goos == goosWindows]
	}
	if f.mount == "" {
		f.mount = mountPoint(cfg.Staging)
	}
	for flag, value := range map[string]string{"client": f.client, "device": f.device, "media-pool": f.pool, "mount": f.mount,
		"label": f.label, "program": f.program, "client-config": f.config, "dp-home": f.dpHome, "staging": cfg.Staging} {
		if err := plainText("--"+flag, value); err != nil {
			return err
		}
	}
	return nil
}

// plainText refuses what cannot stand in quotes, in Data Protector's files or in scripts.
func plainText(what, value string) error {
	if value == "" || strings.ContainsAny(value, "\"\r\n\x00") || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return usagef("%s %.80q cannot stand in a specification", what, value)
	}
	return nil
}

// mountPoint is the highest folder above a path that is on the same file system; the path itself may not be there yet.
func mountPoint(folder string) string {
	for !exists(folder) && filepath.Dir(folder) != folder {
		folder = filepath.Dir(folder)
	}
	for {
		up := filepath.Dir(folder)
		if same, known := staging.SameFileSystem(folder, up); up == folder || known && !same {
			return folder
		}
		folder = up
	}
}

// compare lists what is not certain.
func (f *specFlags) compare(cfg *controller.Config) []string {
	list := []string{
		"Save a specification of your own by the GUI, with a filesystem object and both commands, and compare its file line by line with the skeleton. Or build the specification in the GUI, and use the skeleton as a list of what to enter.",
		"DEVICE, -pool, GROUP, -protect: as in your cell.",
		fmt.Sprintf("%s:%q must be the mount point that holds %s, as the GUI shows it. A file system of its own for the staging folder is best.", f.client, f.mount, cfg.Staging),
		"-exclude: the folder .dpxen holds lock and unfinished files, and need not be saved.",
	}
	if f.object {
		list = append(list, "-pre_exec and -post_exec in the object: this spelling was never seen in a real file. In the GUI: the object's options.",
			"Object-level commands of a UNIX client run in previews too; dpxen then prints the plan only.",
			"Give the commands to the staging folder's object alone, not to all objects.")
	} else {
		list = append(list, "PREEXEC: only POSTEXEC was seen in a real file; its sibling is inferred. In the GUI: the options of the specification, with \"on host\".",
			"The commands are named without a path, and must lie in the client's "+map[bool]string{true: `DP_home\bin`, false: "/opt/omni/lbin"}[f.goos == goosWindows]+".")
		if f.goos != goosWindows {
			list = append(list, "They run as the session's owner: with the right \"Back up as root\", or as a user who may read the configuration and write the staging and state folders.")
		}
	}
	if f.goos == goosWindows {
		list = append(list, "WINFS and the mount point's form /D: never seen in a real file.", "The commands run as the account of the Data Protector Inet service; let it read the configuration and write the folders.")
	}
	return append(list, "dpxen doctor, on the client and as that user, looks for switches that forbid commands.")
}

func numbered(list []string) string {
	var b strings.Builder
	for i, text := range list {
		fmt.Fprintf(&b, "%d. %s\n", i+1, text)
	}
	return b.String()
}

func twice(files []specFile) error {
	seen := map[string]bool{}
	for _, file := range files {
		if seen[file.Name] {
			return usagef("two specifications would have the file %s: make them one by one with --spec, in folders of their own", file.Name)
		}
		seen[file.Name] = true
	}
	return nil
}

// writeSpec writes the files to a folder; one that is there already is an error, and nothing is written then.
func (a *app) writeSpec(dir string, doc specDocument) error {
	doc.Files = append(doc.Files, specFile{Name: "COMPARE.txt", Place: "read it first", Text: numbered(doc.Compare), mode: 0o644})
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("create %s: %w", dir, err)
	}
	for _, file := range doc.Files {
		if path := filepath.Join(dir, file.Name); exists(path) {
			return usagef("%s exists already: dp-spec overwrites nothing", path)
		}
	}
	for _, file := range doc.Files {
		path := filepath.Join(dir, file.Name)
		out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, file.mode)
		if err != nil {
			return fmt.Errorf("create %s: %w", path, err)
		}
		_, err = out.WriteString(file.Text)
		if err = errors.Join(err, out.Close()); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
	}
	if a.json {
		return a.encode(doc)
	}
	for _, file := range doc.Files {
		a.text().line("%s: %s", filepath.Join(dir, file.Name), file.Place)
	}
	return nil
}
