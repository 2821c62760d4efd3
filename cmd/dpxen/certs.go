package main

import (
	"crypto/x509"
	_ "embed"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/dpxen/dpxen/certs"
)

//go:embed templates/agent.yaml
var agentTemplate string

//go:embed templates/dpxen-agent.service
var unitTemplate string

// agentSettings fill the templates of an agent's bundle.
type agentSettings struct {
	Name       string
	Controller string
}

func (a *app) certsCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "certs",
		Short: "Issue, list, renew and revoke certificates",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.PersistentFlags().StringVar(&dir, "dir", "", "folder `D` of the certificate authority (default: the configuration's folder)")
	open := func() (*certs.CA, error) {
		where := dir
		if where == "" {
			where = a.configDir()
		}
		ca, err := certs.OpenCA(where)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, usagef("no certificate authority in %s: create one with `dpxen init --dir %s`", where, where)
		}
		return ca, err
	}
	cmd.AddCommand(a.certsAgent(open), a.certsController(open), a.certsList(open), a.certsRenew(open), a.certsRevoke(open))
	return cmd
}

// openCA opens the authority that the flags name.
type openCA func() (*certs.CA, error)

func (a *app) certsAgent(open openCA) *cobra.Command {
	var out string
	var validity time.Duration
	cmd := &cobra.Command{
		Use:   "agent NAME",
		Short: "Issue an agent's certificate, as a bundle to copy to its host",
		Long: "agent issues a certificate for the agent NAME and writes a bundle to copy to /etc/dpxen on its host:\n" +
			"ca.pem, crl.pem, agent.pem, agent.key, a commented agent.yaml and a systemd unit.",
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			ca, err := open()
			if err != nil {
				return err
			}
			return a.issueAgent(ca, args[0], out, validity)
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "folder `D` for the bundle (default: NAME in the current folder)")
	cmd.Flags().DurationVar(&validity, "validity", certs.DefaultValidity, "how long the certificate is good for")
	return cmd
}

func (a *app) issueAgent(ca *certs.CA, name, out string, validity time.Duration) error {
	id := certs.Identity{Role: certs.Agent, Name: name}
	if err := id.Validate(); err != nil {
		return usagef("%w", err)
	}
	if out == "" {
		out = name
	}
	if _, err := os.Lstat(filepath.Join(out, "agent.key")); !errors.Is(err, fs.ErrNotExist) {
		return usagef("%s holds an agent's key already: choose another folder with --out", out)
	}
	if err := os.MkdirAll(out, 0o700); err != nil {
		return fmt.Errorf("create the bundle's folder: %w", err)
	}
	cert, key, err := ca.Issue(id, validity)
	if err != nil {
		return fmt.Errorf("issue the certificate of agent %s: %w", name, err)
	}
	if err := certs.WritePair(filepath.Join(out, "agent.pem"), filepath.Join(out, "agent.key"), cert, key); err != nil {
		return fmt.Errorf("store the certificate of agent %s: %w", name, err)
	}
	crl, err := ca.CRLPEM()
	if err != nil {
		return fmt.Errorf("read the revocation list: %w", err)
	}
	for file, data := range map[string][]byte{certs.CAFile: ca.CertPEM(), certs.CRLFile: crl} {
		if err := os.WriteFile(filepath.Join(out, file), data, 0o600); err != nil {
			return fmt.Errorf("write the bundle: %w", err)
		}
	}
	s := agentSettings{Name: name}
	if err := writeTemplate(filepath.Join(out, "agent.yaml"), agentTemplate, s, 0o600); err != nil {
		return err
	}
	if err := writeTemplate(filepath.Join(out, "dpxen-agent.service"), unitTemplate, s, 0o644); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "Bundle of agent %q in %s, certificate good until %s.\n\nNext:\n"+
		"  1. copy it to /etc/dpxen on the host (agent.key stays readable by root alone), and dpxen-agent to /usr/local/bin\n"+
		"  2. there: put the XAPI password into /etc/dpxen/xapi.password (mode 0600), look through agent.yaml, then\n"+
		"     dpxen-agent --config /etc/dpxen/agent.yaml --check\n"+
		"  3. here: add to agents in controller.yaml:  - {name: %s, address: HOST:7443}\n", name, out, expiry(cert), name)
	return nil
}

func (a *app) certsController(open openCA) *cobra.Command {
	var out string
	var validity time.Duration
	cmd := &cobra.Command{
		Use:   "controller NAME",
		Short: "Issue the certificate of a further controller",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			ca, err := open()
			if err != nil {
				return err
			}
			id := certs.Identity{Role: certs.Controller, Name: args[0]}
			if err := id.Validate(); err != nil {
				return usagef("%w", err)
			}
			if out == "" {
				out = args[0]
			}
			return a.writeIdentity(ca, id, ca.Issue, out, validity)
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "folder `D` for the files (default: NAME in the current folder)")
	cmd.Flags().DurationVar(&validity, "validity", certs.DefaultValidity, "how long the certificate is good for")
	return cmd
}

// issueFunc is CA.Issue or CA.Renew.
type issueFunc func(certs.Identity, time.Duration) (cert, key []byte, err error)

// writeIdentity issues a certificate and stores it as ROLE.pem and ROLE.key beside the authority's public files.
func (a *app) writeIdentity(ca *certs.CA, id certs.Identity, issue issueFunc, out string, validity time.Duration) error {
	if err := os.MkdirAll(out, 0o700); err != nil {
		return fmt.Errorf("create the folder for the certificate: %w", err)
	}
	cert, key, err := issue(id, validity)
	if err != nil {
		return fmt.Errorf("issue the certificate of %s: %w", id, err)
	}
	certFile := filepath.Join(out, string(id.Role)+".pem")
	if err := certs.WritePair(certFile, filepath.Join(out, string(id.Role)+".key"), cert, key); err != nil {
		return fmt.Errorf("store the certificate of %s: %w", id, err)
	}
	crl, err := ca.CRLPEM()
	if err != nil {
		return fmt.Errorf("read the revocation list: %w", err)
	}
	for file, data := range map[string][]byte{certs.CAFile: ca.CertPEM(), certs.CRLFile: crl} {
		target := filepath.Join(out, file)
		if old, err := os.ReadFile(target); err == nil && string(old) == string(data) {
			continue
		}
		if err := os.WriteFile(target, data, 0o600); err != nil {
			return fmt.Errorf("write %s: %w", target, err)
		}
	}
	fmt.Fprintf(a.out, "Certificate of %s in %s, good until %s.\n", id, certFile, expiry(cert))
	return nil
}

// certificateLine is one certificate in `certs list --json`.
type certificateLine struct {
	Serial    string    `json:"serial"`
	Role      string    `json:"role"`
	Name      string    `json:"name"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	State     string    `json:"state"`
}

func (a *app) certsList(open openCA) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List every certificate that was issued",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			ca, err := open()
			if err != nil {
				return err
			}
			issued, err := ca.List()
			if err != nil {
				return fmt.Errorf("list the certificates: %w", err)
			}
			lines := make([]certificateLine, 0, len(issued))
			for _, c := range issued {
				lines = append(lines, certificateLine{Serial: c.Serial, Role: string(c.Identity.Role), Name: c.Identity.Name,
					NotBefore: c.NotBefore, NotAfter: c.NotAfter, State: certificateState(c, time.Now())})
			}
			if a.json {
				return json.NewEncoder(a.out).Encode(lines)
			}
			w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "ROLE\tNAME\tSTATE\tGOOD UNTIL\tSERIAL")
			for _, l := range lines {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", l.Role, l.Name, l.State, l.NotAfter.Format(time.DateOnly), l.Serial)
			}
			return w.Flush()
		},
	}
}

func certificateState(c certs.Issued, now time.Time) string {
	switch {
	case c.Revoked:
		return "revoked"
	case now.After(c.NotAfter):
		return "expired"
	default:
		return "good"
	}
}

func (a *app) certsRenew(open openCA) *cobra.Command {
	var out string
	var validity time.Duration
	cmd := &cobra.Command{
		Use:   "renew agent/NAME|controller/NAME",
		Short: "Issue another certificate, with a new key, for a name that has one",
		Long: "renew writes ROLE.pem and ROLE.key into --out; copy them over the former ones. Agents notice without a\n" +
			"restart. The former certificate stays good until it expires or is revoked.",
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			ca, err := open()
			if err != nil {
				return err
			}
			found, err := ca.Find(args[0])
			if err != nil {
				return usagef("%w", err)
			}
			id := found[0].Identity
			for _, c := range found {
				if c.Identity != id {
					return usagef("%s names several certificates: write agent/NAME or controller/NAME", args[0])
				}
			}
			if err := renewable(ca, id); err != nil {
				return err
			}
			if out == "" {
				out = "renewed-" + id.Name
			}
			return a.writeIdentity(ca, id, ca.Renew, out, validity)
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "folder `D` for the files (default: renewed-NAME in the current folder)")
	cmd.Flags().DurationVar(&validity, "validity", certs.DefaultValidity, "how long the certificate is good for")
	return cmd
}

// renewable says what to do about a name that has no certificate to be renewed: renewing is no way around a revocation.
func renewable(ca *certs.CA, id certs.Identity) error {
	all, err := ca.Find(string(id.Role) + "/" + id.Name)
	if err != nil {
		return fmt.Errorf("renew %s: %w", id, err)
	}
	if slices.ContainsFunc(all, func(c certs.Issued) bool { return !c.Revoked }) {
		return nil
	}
	return usagef("renew %s: %w: where it is to be let in again, issue a new one with `dpxen certs %s %s --out FOLDER`", id,
		certs.ErrRevoked, id.Role, id.Name)
}

func (a *app) certsRevoke(open openCA) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke SERIAL|agent/NAME|controller/NAME",
		Short: "Put certificates on the revocation list",
		Long: "revoke puts the certificate with that serial number, or all of a name, on the revocation list crl.pem.\n" +
			"Copy crl.pem to every host: agents notice without a restart.",
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			ca, err := open()
			if err != nil {
				return err
			}
			found, err := ca.Find(args[0])
			if err != nil {
				return usagef("%w", err)
			}
			serials := make([]string, 0, len(found))
			for _, c := range found {
				serials = append(serials, c.Serial)
			}
			if err := ca.Revoke(serials...); err != nil {
				return fmt.Errorf("revoke %s: %w", args[0], err)
			}
			for _, c := range found {
				fmt.Fprintf(a.out, "Revoked: %s, serial %s\n", c.Identity, c.Serial)
			}
			fmt.Fprintf(a.out, "Now copy %s to every host.\n", certs.CRLFile)
			return nil
		},
	}
}

// expiry tells the day on which a certificate just issued ends.
func expiry(certPEM []byte) string {
	if block, _ := pem.Decode(certPEM); block != nil {
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			return cert.NotAfter.UTC().Format(time.DateOnly)
		}
	}
	return "an unknown day"
}
