package main

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"text/template"

	"github.com/spf13/cobra"

	"github.com/dpxen/dpxen/certs"
)

//go:embed templates/controller.yaml
var controllerTemplate string

// controllerSettings fill the template of controller.yaml.
type controllerSettings struct {
	Staging, Restore, State string
}

func (a *app) initCommand() *cobra.Command {
	var dir string
	var s controllerSettings
	name := "dp1"
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Create the certificate authority, the controller's certificate and a commented controller.yaml",
		Long: "init creates, in one folder, the certificate authority (ca.pem, ca.key, crl.pem), the controller's own\n" +
			"certificate (controller.pem, controller.key) and a commented controller.yaml, and prints the next steps.\n" +
			"It overwrites nothing. Keep ca.key safe: whoever has it can read and replace your VMs.",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.initialise(dir, name, s)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "folder `D` to create them in (default: the configuration's folder)")
	cmd.Flags().StringVar(&name, "name", name, "the controller's `NAME` in its certificate")
	cmd.Flags().StringVar(&s.Restore, "restore", defaultRestore, "folder `DIR` that Data Protector restores into")
	return cmd
}

// initialise does what `dpxen init` promises.
func (a *app) initialise(dir, name string, s controllerSettings) error {
	if dir == "" {
		dir = a.configDir()
	}
	s.Staging, s.State = a.staging, a.state
	if s.Staging == "" {
		s.Staging = defaultStaging
	}
	if s.State == "" {
		s.State = defaultState
	}
	config := filepath.Join(dir, "controller.yaml")
	certFile, keyFile := filepath.Join(dir, "controller.pem"), filepath.Join(dir, "controller.key")
	id := certs.Identity{Role: certs.Controller, Name: name}
	if err := id.Validate(); err != nil {
		return usagef("--name: %w", err)
	}
	for _, file := range []string{config, certFile, keyFile} {
		if _, err := os.Lstat(file); !errors.Is(err, os.ErrNotExist) {
			return usagef("%s exists already: init overwrites nothing", file)
		}
	}
	ca, err := certs.CreateCA(dir, certs.Options{})
	if errors.Is(err, certs.ErrExists) {
		return usagef("%w: init overwrites nothing", err)
	}
	if err != nil {
		return fmt.Errorf("create the certificate authority: %w", err)
	}
	cert, key, err := ca.Issue(id, 0)
	if err != nil {
		return fmt.Errorf("issue the controller's certificate: %w", err)
	}
	if err := certs.WritePair(certFile, keyFile, cert, key); err != nil {
		return fmt.Errorf("store the controller's certificate: %w", err)
	}
	if err := writeTemplate(config, controllerTemplate, s, 0o600); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "Created in %s:\n"+
		"  ca.pem, ca.key, crl.pem         the certificate authority; keep ca.key safe, and a copy of it off this machine\n"+
		"  controller.pem, controller.key  the certificate of controller %q, good until %s\n"+
		"  controller.yaml                 the configuration, with comments\n\n"+
		"Next:\n"+
		"  1. dpxen -c %s certs agent xs1 --out DIR   for each host: a bundle to copy there\n"+
		"  2. add each agent's name and address to controller.yaml\n"+
		"  3. dpxen -c %s hosts                       to see that they answer\n",
		dir, name, expiry(cert), config, config)
	return nil
}

// writeTemplate fills a template into a new file; an existing one is an error.
func writeTemplate(path, text string, data any, mode os.FileMode) (err error) {
	tmpl, err := template.New(filepath.Base(path)).Parse(text)
	if err != nil {
		return fmt.Errorf("template of %s: %w", path, err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("write %s: %w", path, cerr)
		}
	}()
	if err := tmpl.Execute(f, data); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
