package main

import (
	_ "embed"
	"fmt"
	"path"
	"strings"
	"text/template"

	"github.com/dpxen/dpxen/controller"
	"github.com/dpxen/dpxen/internal/staging"
)

//go:embed templates/datalist.tmpl
var datalistTemplate string

// files makes the files of one specification.
func (f *specFlags) files(cfg *controller.Config, spec string) ([]specFile, error) {
	if err := plainText("specification", spec); err != nil {
		return nil, err
	}
	stem, ext, bin := "dpxen-"+strings.ToLower(staging.Slug(spec)), ".sh", f.dpHome+"/lbin"
	if f.goos == goosWindows {
		ext, bin = ".cmd", f.dpHome+`\bin`
	}
	pre, post := stem+"-pre"+ext, stem+"-post"+ext
	inField := func(name string) string { // without a path at session level; object-level commands need one
		if f.object {
			return bin + string(map[bool]byte{true: '\\', false: '/'}[f.goos == goosWindows]) + name
		}
		return name
	}
	data := map[string]any{"Spec": spec, "Object": f.object, "Pre": inField(pre), "Post": inField(post), "Client": f.client,
		"Weeks": f.weeks, "Device": f.device, "Pool": f.pool, "Keyword": "FILESYSTEM", "Label": f.label, "Mount": f.mount,
		"Tree": cfg.Staging, "Exclude": path.Join(cfg.Staging, staging.MetaDir)}
	if f.goos == goosWindows {
		mount, tree := windowsMount(f.mount, cfg.Staging)
		data["Keyword"], data["Mount"], data["Tree"], data["Exclude"] = "WINFS", mount, tree, path.Join(tree, staging.MetaDir)
	}
	tmpl, err := template.New("datalist").Parse(datalistTemplate)
	if err != nil {
		return nil, fmt.Errorf("template of the datalist: %w", err)
	}
	var text strings.Builder
	if err := tmpl.Execute(&text, data); err != nil {
		return nil, fmt.Errorf("fill in the datalist: %w", err)
	}
	place := "on the client, in " + bin
	ending := []string{"post-exec", "--spec", spec}
	if f.object {
		ending = append(ending, "--dp-object")
	}
	restore := []string{"restore", "--spec", spec}
	if f.mode != "" {
		restore = append(restore, "--mode", f.mode)
	}
	return []specFile{
		{Name: strings.ToLower(staging.Slug(spec)) + ".datalist", Place: "to compare; on the Cell Manager, as datalists/" + spec, Text: text.String(), mode: 0o644},
		{Name: pre, Place: place, Text: f.script("pre-exec", "pre-exec", "--spec", spec), mode: 0o755},
		{Name: post, Place: place, Text: f.script("post-exec", ending...), mode: 0o755},
		{Name: stem + "-restore" + ext, Place: place, Text: f.script("post-exec of a restore", restore...), mode: 0o755},
	}, nil
}

// windowsMount writes a drive and a folder on it as Data Protector does: /D and /D/dpxen/staging or, where the folder is
// no Windows path, as they are.
func windowsMount(mount, folder string) (string, string) {
	convert := func(p string) string {
		if len(p) >= 2 && p[1] == ':' {
			p = "/" + strings.ToUpper(p[:1]) + p[2:]
		}
		return strings.TrimRight(strings.ReplaceAll(p, `\`, "/"), "/")
	}
	return convert(mount), convert(folder)
}

// script makes a script that runs dpxen and ends with its exit code. Standard error goes where Data Protector reads.
func (f *specFlags) script(what string, args ...string) string {
	if f.goos == goosWindows {
		quoted := ""
		for _, arg := range args {
			quoted += " " + cmdQuote(arg)
		}
		return strings.ReplaceAll("@echo off\n"+
			"rem Data Protector's "+what+", made by dpxen dp-spec. Failures are negative: at session level others do not count.\n"+
			cmdQuote(f.program)+" -c "+cmdQuote(f.config)+quoted+" <nul 2>&1\n"+
			"if %ERRORLEVEL% NEQ 0 exit /b -1\n"+
			"exit /b 0\n", "\n", "\r\n")
	}
	quoted := ""
	for _, arg := range args {
		quoted += " " + shQuote(arg)
	}
	return "#!/bin/sh\n" +
		"# Data Protector's " + what + ", made by dpxen dp-spec. It drops standard error, so that all goes to standard output.\n" +
		"umask 077\n" +
		"exec " + shQuote(f.program) + " -c " + shQuote(f.config) + quoted + " </dev/null 2>&1\n"
}

func shQuote(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !strings.ContainsRune(plainRunes, r) }) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// plainRunes need no quotes in a shell.
const plainRunes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./+:@"

// cmdQuote quotes for a batch file. Double quotes were refused before; a backslash before the closing one is doubled.
func cmdQuote(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !strings.ContainsRune(plainRunes+`\`, r) }) {
		return s
	}
	s = strings.ReplaceAll(s, "%", "%%")
	if strings.HasSuffix(s, `\`) {
		s += `\`
	}
	return `"` + s + `"`
}
