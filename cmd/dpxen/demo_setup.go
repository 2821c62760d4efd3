package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dpxen/dpxen/controller"
)

// poolInfo is the line that xensim prints.
type poolInfo struct {
	Hosts []struct {
		Name        string `json:"name"`
		HTTPS       string `json:"https"`
		Fingerprint string `json:"fingerprint"`
	} `json:"hosts"`
	Username string `json:"username"`
	Password string `json:"password"`
	Control  string `json:"control"`
}

// setUp starts pool and agents, and configures all of it with the commands that an administrator uses.
func (d *demo) setUp(ctx context.Context) (err error) {
	if d.self, err = os.Executable(); err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	line, err := d.startPool(ctx)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(line), &d.pool); err != nil || len(d.pool.Hosts) < 2 || d.pool.Control == "" {
		return fmt.Errorf("xensim printed no usable description of its pool: %w", err)
	}
	etc := d.path("etc")
	d.config = filepath.Join(etc, "controller.yaml")
	if err := d.run(ctx, controller.CodeOK, "init", "--staging", d.path("staging"), "--state", d.path("state"), "--restore", d.path("staging")); err != nil {
		return err
	}
	var agents []string
	for i := range d.pool.Hosts {
		name := fmt.Sprintf("xs%d", i+1)
		addr, err := d.startAgent(ctx, name, i)
		if err != nil {
			return err
		}
		agents = append(agents, fmt.Sprintf("  - {name: %s, address: %q}", name, addr))
	}
	if err := replaceLine(d.config, "agents: []", "agents:\n"+strings.Join(agents, "\n")); err != nil {
		return err
	}
	if err := d.run(ctx, controller.CodeOK, "hosts"); err != nil {
		return err
	}
	err = d.run(ctx, controller.CodeOK, "vms")
	d.commands = nil // what was set up stays in the folder, and is not repeated
	return err
}

// startPool starts the simulated pool. Its addresses and password are fixed, so that it can be started again by hand.
func (d *demo) startPool(ctx context.Context) (line string, err error) {
	var listen []string
	for range 2 {
		addr, err := freePort(ctx)
		if err != nil {
			return "", err
		}
		listen = append(listen, addr)
	}
	password := d.path("xensim.password")
	if err := os.WriteFile(password, []byte(rand.Text()+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("write the pool's password: %w", err)
	}
	return d.start(ctx, "xensim", "xensim.log", true, "--scenario", "demo", "--speedup", "50", "--listen", strings.Join(listen, ","),
		"--password-file", password, "--control", "127.0.0.1:0", "--data", d.path("xensim"))
}

// startAgent issues an agent's bundle, fills in its host, and starts it.
func (d *demo) startAgent(ctx context.Context, name string, host int) (addr string, err error) {
	bundle := filepath.Join(d.path("etc"), name)
	if err := d.run(ctx, controller.CodeOK, "certs", "agent", name, "--out", bundle); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(bundle, "xapi.password"), []byte(d.pool.Password+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("write the password file: %w", err)
	}
	if addr, err = freePort(ctx); err != nil {
		return "", err
	}
	var pins []string
	for _, h := range d.pool.Hosts {
		pins = append(pins, fmt.Sprintf("%q", h.Fingerprint))
	}
	config := filepath.Join(bundle, "agent.yaml")
	for _, edit := range [][2]string{
		{"listen: 0.0.0.0:7443", "listen: " + addr},
		{"  url: https://127.0.0.1", "  url: " + d.pool.Hosts[host].HTTPS},
		{"  username: root", "  username: " + d.pool.Username},
		{"  fingerprints: []", "  fingerprints: [" + strings.Join(pins, ", ") + "]"},
	} {
		if err := replaceLine(config, edit[0], edit[1]); err != nil {
			return "", err
		}
	}
	if _, err := d.start(ctx, "dpxen-agent", name+".log", false, "--config", config); err != nil {
		return "", err
	}
	limited, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := ready(limited, addr); err != nil {
		return "", fmt.Errorf("agent %s did not start; see %s: %w", name, d.path(name+".log"), err)
	}
	return addr, nil
}

func (d *demo) path(name string) string { return filepath.Join(d.dir, name) }

// replaceLine replaces a whole line of a file.
func replaceLine(path, from, to string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("edit %s: %w", path, err)
	}
	text := "\n" + string(data)
	if strings.Count(text, "\n"+from+"\n") != 1 {
		return fmt.Errorf("edit %s: it has no single line %q", path, from)
	}
	text = strings.Replace(text, "\n"+from+"\n", "\n"+to+"\n", 1)
	if err := os.WriteFile(path, []byte(text[1:]), 0o600); err != nil {
		return fmt.Errorf("edit %s: %w", path, err)
	}
	return nil
}
