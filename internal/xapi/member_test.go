package xapi

import (
	"errors"
	"path/filepath"
	"reflect"
	"testing"
)

// member makes a host that sends its callers to the master.
func member(t *testing.T, master *fakeHost) *fakeHost {
	h := newFakeHost(t, "127.0.0.1:0", master.cert != nil)
	h.on("session.login_with_password", func([]any) (any, error) { return nil, fail("HOST_IS_SLAVE", master.address()) })
	return h
}

func TestMemberSendsToMaster(t *testing.T) {
	master := newFakeHost(t, "127.0.0.1:0", true)
	slave := member(t, master)
	master.hosts(master, slave)
	c := connect(t, slave, nil, master)
	if _, err := c.Hosts(t.Context()); err != nil {
		t.Fatal(err)
	}
	if slave.called("pool.get_all_records") != 0 || master.called("host.get_all_records") != 1 {
		t.Error("calls went to the wrong host")
	}

	untrusting := connect(t, slave, nil)
	if _, err := untrusting.Hosts(t.Context()); !errors.Is(err, ErrCertificate) {
		t.Errorf("a master with an unknown certificate: %v", err)
	}
}

func TestMasterMoves(t *testing.T) {
	master, next := newFakeHost(t, "127.0.0.1:0", true), newFakeHost(t, "127.0.0.1:0", true)
	stranger := newFakeHost(t, "127.0.0.1:0", true)
	slave := member(t, master)
	for _, h := range []*fakeHost{master, next, slave} {
		h.hosts(master, next, slave)
	}
	c := connect(t, slave, nil, master, next, stranger)
	if _, err := c.Hosts(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The old master is a member now: it says so on a session, not at login only.
	moved := func([]any) (any, error) { return nil, fail("HOST_IS_SLAVE", next.address()) }
	master.on("pool.get_all_records", moved)
	slave.on("session.login_with_password", moved)
	if _, err := c.Pool(t.Context()); err != nil || next.called("pool.get_all_records") != 1 {
		t.Fatalf("after the move: %v", err)
	}
	// The configured host dies, and the master with it: another of the pool is found.
	slave.stop()
	next.stop()
	master.on("pool.get_all_records", func([]any) (any, error) { return map[string]any{"OpaqueRef:p": map[string]any{}}, nil })
	if _, err := c.Pool(t.Context()); err != nil {
		t.Fatalf("after the death of two: %v", err)
	}
	// A host that is not of the pool is not followed to.
	master.on("pool.get_all_records", func([]any) (any, error) { return nil, fail("HOST_IS_SLAVE", stranger.address()) })
	if _, err := c.Pool(t.Context()); !errors.Is(err, ErrProtocol) || stranger.called("session.login_with_password") != 0 {
		t.Errorf("a stranger as master: %v", err)
	}
	for _, address := range []string{"", "a b", "h\r\nx"} {
		master.on("pool.get_all_records", func([]any) (any, error) { return nil, fail("HOST_IS_SLAVE", address) })
		if _, err := c.Pool(t.Context()); !errors.Is(err, ErrProtocol) {
			t.Errorf("master at %q: %v", address, err)
		}
	}
}

func TestMembersInACircle(t *testing.T) {
	a := newFakeHost(t, "127.0.0.1:0", false)
	b := member(t, a)
	a.on("session.login_with_password", func([]any) (any, error) { return nil, fail("HOST_IS_SLAVE", b.address()) })
	c := connect(t, a, nil)
	if _, err := c.Pool(t.Context()); !errors.Is(err, ErrProtocol) {
		t.Errorf("got %v", err)
	}
}

func TestSocketOfAMember(t *testing.T) {
	master := newFakeHost(t, "127.0.0.1:0", true)
	sock := newFakeHost(t, filepath.Join(t.TempDir(), "xapi"), false)
	sock.on("session.login_with_password", func([]any) (any, error) { return "OpaqueRef:session-socket", nil })
	sock.on("pool.get_all_records", func([]any) (any, error) { return nil, fail("HOST_IS_SLAVE", master.address()) })
	var used []string
	standard := master.calls["pool.get_all_records"]
	master.on("pool.get_all_records", func(args []any) (any, error) { used = append(used, args[0].(string)); return standard(args) })

	// With a password the master gets a login of its own, without one the session of the socket.
	for _, password := range []bool{true, false} {
		c := connect(t, sock, func(cfg *Config) {
			if !password {
				cfg.PasswordFile = ""
			}
		}, master)
		for range 2 {
			if _, err := c.Pool(t.Context()); err != nil {
				t.Fatalf("password %v: %v", password, err)
			}
		}
	}
	want := []string{"OpaqueRef:session-1", "OpaqueRef:session-1", "OpaqueRef:session-socket", "OpaqueRef:session-socket"}
	if !reflect.DeepEqual(used, want) {
		t.Errorf("sessions at the master: %v", used)
	}
	if n := sock.called("pool.get_all_records"); n != 2 {
		t.Errorf("the socket was asked %d times", n)
	}
	c := connect(t, sock, nil)
	if _, err := c.Pool(t.Context()); !errors.Is(err, ErrConfig) {
		t.Errorf("no trust for the master: %v", err)
	}
}
