package xapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"
)

// Config says how XAPI is reached.
type Config struct {
	// URL is https://host[:port], http://host[:port] or unix:///path. Over the socket, in dom0, XAPI asks for no
	// password. On a member of a pool the socket serves /export and /import, and calls go to the master over TLS, for
	// which trust (below) is needed and, where the session of the socket does not do, the password.
	URL string
	// Username and PasswordFile are for session.login_with_password. The file has mode 0600 or stricter, is read at
	// every login, and a newline at its end is not part of the password. With unix:// it may be absent.
	Username, PasswordFile string
	// Exactly one of Fingerprints ("sha256:" and hex digits, with or without colons, of a host certificate's DER; the
	// list serves all hosts of the pool, names are not checked), CAFile (names are checked) and Insecure is needed
	// for https, is needed for unix:// on a member, and may be given for http, where redirects may lead to https.
	Fingerprints []string
	CAFile       string
	Insecure     bool
	// Originator names this client in XAPI's sessions, for example "dpxen-agent/xs1".
	Originator string
	// Timeouts may be zero, whole or in part: the defaults are meant for real hosts.
	Timeouts Timeouts
	// Changed is told of every call that changes something, after it was made, whatever came of it. It is called on the
	// caller's goroutine and context, from several at once, and must not block. It may be nil.
	Changed func(context.Context, Change)
	// Admit is asked before every such call, and before it is made again after a new login, by its method without "Async."; its error is returned in place of the call. It
	// may make calls that only read. It may be nil.
	Admit func(ctx context.Context, method string) error
}

// Timeouts bound every wait. A zero field has its default.
type Timeouts struct {
	Connect       time.Duration // TCP and TLS: 20 s
	Call          time.Duration // without a byte of a call's reply, login included: 2 min
	ExportHeaders time.Duration // for the head of /export's answer: 3 min; XAPI waits 2 min for a busy VM
	StreamIdle    time.Duration // without a byte of a stream, or without progress of its task: 30 min
	TaskPollMin   time.Duration // first pause between two looks at a task: 50 ms
	TaskPollMax   time.Duration // last pause: 1 s
	Outage        time.Duration // how long XAPI may be unreachable while a task is waited for: 3 min
	Cancel        time.Duration // for a task to end after it was cancelled: 30 s
	InUse         time.Duration // how long VDI_IN_USE is tried again: 2 min
	InUsePause    time.Duration // between two tries: 1 s
}

func (t Timeouts) withDefaults() Timeouts {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&t.Connect, 20*time.Second)
	def(&t.Call, 2*time.Minute)
	def(&t.ExportHeaders, 3*time.Minute)
	def(&t.StreamIdle, 30*time.Minute)
	def(&t.TaskPollMin, 50*time.Millisecond)
	def(&t.TaskPollMax, time.Second)
	def(&t.Outage, 3*time.Minute)
	def(&t.Cancel, 30*time.Second)
	def(&t.InUse, 2*time.Minute)
	def(&t.InUsePause, time.Second)
	return t
}

// validate checks what can be checked without a connection, and gives the address and the TLS settings (nil: none).
func (cfg Config) validate() (endpoint, *tls.Config, error) {
	var errs []error
	base, err := parseURL(cfg.URL)
	if err != nil {
		errs = append(errs, fmt.Errorf("url: %w", err))
	}
	trust, err := cfg.tlsConfig()
	if err != nil {
		errs = append(errs, err)
	}
	if base.scheme == schemeHTTPS && err == nil && trust == nil {
		errs = append(errs, errors.New("https needs one of fingerprints, ca and insecure"))
	}
	switch {
	case cfg.PasswordFile != "":
		if _, err := readPassword(cfg.PasswordFile); err != nil {
			errs = append(errs, err)
		}
	case base.scheme != schemeUnix && base.scheme != "":
		errs = append(errs, errors.New("password_file is needed for "+base.scheme))
	}
	if cfg.Username == "" && base.scheme != schemeUnix {
		errs = append(errs, errors.New("username is empty"))
	}
	if len(errs) > 0 {
		return endpoint{}, nil, fmt.Errorf("%w: %w", ErrConfig, errors.Join(errs...))
	}
	return base, trust, nil
}

// maxPassword bounds the password file in bytes.
const maxPassword = 4096

// readPassword reads a password from a regular file that nobody but its owner can read.
func readPassword(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("password file: %w: %w", ErrConfig, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("password file: %w: %w", ErrConfig, err)
	}
	if !st.Mode().IsRegular() {
		return "", fmt.Errorf("password file %s is no regular file: %w", path, ErrConfig)
	}
	if runtime.GOOS != "windows" && st.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("password file %s has mode %#o, others may read it: set 0600: %w", path, st.Mode().Perm(), ErrConfig)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxPassword+1))
	if err != nil {
		return "", fmt.Errorf("password file: %w: %w", ErrConfig, err)
	}
	if len(b) > maxPassword {
		return "", fmt.Errorf("password file %s is longer than %d bytes: %w", path, maxPassword, ErrConfig)
	}
	b = bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
	return string(b), nil
}
