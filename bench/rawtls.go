package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// rawSource serves n bytes to the first peer over TLS 1.3, in writes of 1 MiB, and prints its address first. It is the
// limit of what two programs in Go can reach with nothing between them.
func rawSource(n int64) error {
	cert, err := selfSigned()
	if err != nil {
		return err
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	c, err := l.Accept()
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	if _, err := rand.Read(buf); err != nil {
		return err
	}
	for n > 0 {
		m, err := c.Write(buf[:min(n, int64(len(buf)))])
		if err != nil {
			return err
		}
		n -= int64(m)
	}
	return c.Close()
}

// rawSink reads all of it and keeps nothing.
func rawSink(address string) error {
	c, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}) //nolint:gosec // the speed is what counts
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 1<<20))
	return err
}

func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// rawTLS moves n bytes between two processes.
func rawTLS(n int64) contender {
	var source *program
	return contender{name: "raw TLS", self: "raw TLS", size: func(*scene) (int64, error) { return n, nil }, run: func(*scene) ([]*program, error) {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		var line string
		source, line, err = launchTelling(self, "raw-source", strconv.FormatInt(n, 10))
		if err != nil {
			return nil, err
		}
		host, port, err := net.SplitHostPort(line[:len(line)-1])
		if err != nil {
			return nil, err
		}
		sink, err := launch(filepath.Clean(self), "raw-sink", net.JoinHostPort(host, port))
		return []*program{source, sink}, err
	}}
}
