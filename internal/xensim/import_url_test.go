package xensim

import (
	"bytes"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/dpxen/dpxen/internal/xensim/xmlrpc"
)

func TestImportByURL(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	vm := c.halt("installer")
	file := c.body(c.export("ref", vm))
	packed := c.body(c.export("ref", vm, "use_compression", "zstd"))
	mux := http.NewServeMux()
	serve := func(b []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(b)))
			_, _ = w.Write(b) // the importer may have enough before the end
		}
	}
	mux.HandleFunc("/vm.xva", serve(file))
	mux.HandleFunc("/vm.xva.zst", serve(packed))
	mux.HandleFunc("/half.xva", serve(file[:len(file)/2]))
	mux.HandleFunc("/no.xva", serve(bytes.Repeat([]byte("x"), 4096)))
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	mux.HandleFunc("/again/{n}", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.PathValue("n"))
		to := srv.URL + "/vm.xva"
		if n > 1 {
			to = fmt.Sprintf("%s/again/%d", srv.URL, n-1)
		}
		http.Redirect(w, r, to, http.StatusFound)
	})
	mux.HandleFunc("/nowhere", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusMovedPermanently) })
	mux.HandleFunc("/relative", func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Location"] = []string{"/vm.xva"}
		w.WriteHeader(http.StatusFound)
	})

	local := c.list("SR.get_by_name_label", "Local storage on xen2")[0]
	want := p.state(t).vm(t, c.str("VM.get_uuid", vm)).digests()
	check := func(refs []string) {
		t.Helper()
		if len(refs) != 1 {
			t.Fatalf("imported %v", refs)
		}
		if got := p.state(t).vm(t, c.str("VM.get_uuid", refs[0])).digests(); !maps.Equal(got, want) {
			t.Errorf("disks %v, want %v", got, want)
		}
		for _, vdi := range c.disks(refs[0]) {
			if c.str("VDI.get_SR", vdi) != local {
				t.Error("a disk is on another SR")
			}
		}
	}
	for _, path := range []string{"/vm.xva", "/vm.xva.zst", "/again/5"} {
		check(c.list("VM.import", srv.URL+path, local, false, false))
	}
	task := c.task(c.str("Async.VM.import", srv.URL+"/vm.xva", local, false, false))
	v, err := xmlrpc.DecodeValue([]byte(task["result"].(string)))
	if err != nil || task["status"] != "success" {
		t.Fatalf("%v, %v", task, err)
	}
	check([]string{v.([]any)[0].(string)})

	counts := c.counts()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	for _, v := range []struct{ url, sr, want string }{
		{srv.URL + "/again/6", local, "IMPORT_ERROR [Maximum redirect limit reached]"},
		{srv.URL + "/nowhere", local, "IMPORT_ERROR [Redirect with no new location]"},
		{srv.URL + "/relative", local, `INTERNAL_ERROR [Failure("Failed to parse URI: /vm.xva")]`},
		{srv.URL + "/missing", local, "IMPORT_ERROR [404 Not Found]"},
		{srv.URL + "/half.xva", local, "INTERNAL_ERROR [End_of_file]"},
		{srv.URL + "/no.xva", local, "INTERNAL_ERROR [End_of_file]"},
		{"ftp://127.0.0.1/x", local, `INTERNAL_ERROR [Failure("Unsupported URI scheme: ftp")]`},
		{"https://127.0.0.1/x", local, "SSL_VERIFY_ERROR [certificate verify failed]"},
		{"http://" + closed.Addr().String() + "/x", local, `INTERNAL_ERROR [Unix.Unix_error(Unix.ECONNREFUSED, "connect", "")]`},
		{"http://192.0.2.1/x", local, `INTERNAL_ERROR [Unix.Unix_error(Unix.ENETUNREACH, "connect", "")]`},
		{"vm.xva", local, `INTERNAL_ERROR [Failure("Failed to parse URI: vm.xva")]`},
		{srv.URL + "/vm.xva", "OpaqueRef:none", "HANDLE_INVALID [SR OpaqueRef:none]"},
	} {
		code, _, _ := strings.Cut(v.want, " ")
		if got := c.fails(code, "VM.import", v.url, v.sr, false, false); fmt.Sprint(code, " ", got) != v.want {
			t.Errorf("%s: %v, want %s", v.url, got, v.want)
		}
	}
	if got := c.counts(); !maps.Equal(got, counts) {
		t.Errorf("failures left something: %v, before %v", got, counts)
	}
	// A restore keeps uuid and MACs.
	uuid, macs := c.str("VM.get_uuid", vm), p.state(t).vm(t, c.str("VM.get_uuid", vm)).VIFs
	refs := c.list("VM.import", srv.URL+"/vm.xva", local, true, true)
	if got := p.state(t).vm(t, uuid); got.Ref != refs[0] || !slices.Equal(got.VIFs, macs) {
		t.Errorf("restored %+v", got)
	}
}

// A server that ends, or that sends headers without end, is told of.
func TestImportByURLBadServer(t *testing.T) {
	p := startPool(t, demo)
	c := p.login(t)
	sr := c.sharedSR()
	for answer, want := range map[string]string{
		"": "IMPORT_ERROR_PREMATURE_EOF", "no http\r\n\r\n": "IMPORT_ERROR",
		"HTTP/1.1 200 OK\r\n" + strings.Repeat("X-Long: "+strings.Repeat("y", 1000)+"\r\n", 100): "IMPORT_ERROR_PREMATURE_EOF",
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			conn, err := l.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 4096)
			_, _ = conn.Read(buf) // the request
			_, _ = conn.Write([]byte(answer))
			_ = conn.Close()
		}()
		c.fails(want, "VM.import", "http://"+l.Addr().String()+"/x", sr, false, false)
		<-done
		_ = l.Close()
	}
}
