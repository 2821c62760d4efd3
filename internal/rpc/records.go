package rpc

import (
	"bufio"
	"net"
	"sync"
)

// recordBuffer is how much TLS reads from the network and writes to it at once, in bytes: what gRPC hands over in one write,
// and the records' headers.
const recordBuffer = bufferSize + 8<<10

// records is the network below TLS. crypto/tls reads and writes one record of 16 KiB at a time, each by a system call; in
// records they are read ahead, and those of one write above TLS are joined.
type records struct {
	net.Conn
	in *bufio.Reader // nil during the handshake: who has not proven who he is gets no memory

	mu      sync.Mutex
	joining bool // out takes what is written
	out     []byte
}

// joinRecords does a handshake over conn and returns the TLS connection that it made, over records.
func joinRecords[A any](conn net.Conn, handshake func(net.Conn) (net.Conn, A, error)) (net.Conn, A, error) {
	below := &records{Conn: conn}
	over, info, err := handshake(below)
	if err != nil {
		return nil, info, err
	}
	below.in = bufio.NewReaderSize(conn, recordBuffer)
	return &joinedConn{Conn: over, below: below}, info, nil
}

// Read reads from the network, ahead where there is more.
func (r *records) Read(p []byte) (int, error) {
	if r.in == nil {
		return r.Conn.Read(p)
	}
	return r.in.Read(p)
}

// Write writes p at once, or keeps it for flush.
func (r *records) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.joining {
		return r.Conn.Write(p)
	}
	if len(r.out)+len(p) > recordBuffer {
		if err := r.send(); err != nil {
			return 0, err
		}
	}
	r.out = append(r.out, p...)
	return len(p), nil
}

// join begins to keep what is written.
func (r *records) join() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.joining = true
	if r.out == nil {
		r.out = make([]byte, 0, recordBuffer)
	}
}

// flush writes what was kept, in its order, and keeps no more.
func (r *records) flush() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.joining = false
	return r.send()
}

// send writes what was kept. r.mu is held.
func (r *records) send() error {
	if len(r.out) == 0 {
		return nil
	}
	_, err := r.Conn.Write(r.out)
	r.out = r.out[:0]
	return err
}

// joinedConn is a TLS connection whose writes go to the network as a whole.
type joinedConn struct {
	net.Conn // TLS over below
	below    *records
	writing  sync.Mutex
}

// Write encrypts p and writes all records of it at once. After an error nothing is known of what the peer got, as with any
// connection.
func (c *joinedConn) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if len(p) <= minJoin {
		return c.Conn.Write(p)
	}
	c.below.join()
	n, err := c.Conn.Write(p)
	if failed := c.below.flush(); err == nil && failed != nil {
		return 0, failed
	}
	return n, err
}

// minJoin is the most that is one record in any case: nothing is to be joined then.
const minJoin = 1 << 10
