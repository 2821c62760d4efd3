package archive

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// input is the tar stream behind whatever compression there is.
type input struct {
	r           io.Reader
	pax         bool
	compression Compression
	first       header // that of ova.xml
	close       func()
	packed      bool // compressed
	extended    bool // an extended header was met
	block       [tarBlock]byte
}

// open finds out the compression as XAPI does: a first block that is a tar header
// named ova.xml is a plain archive; anything else is taken for zstd by its magic,
// or else for gzip, whose failure then looks like an early end.
func open(r io.Reader, pax bool) (*input, error) {
	in := &input{r: r, pax: pax, close: func() {}}
	n, err := io.ReadFull(r, in.block[:])
	if err != nil && !isEOF(err) {
		return nil, readFailure(err)
	}
	head := bytes.Clone(in.block[:n])
	if n == tarBlock {
		in.first, err = in.header(head)
		if err == nil && in.first.name == ovaName {
			return in, nil
		}
		if in.extended { // more than the first block was read: no way back
			return nil, in.unexpected(err)
		}
	}
	if err := in.unpack(head, io.MultiReader(bytes.NewReader(head), r)); err != nil {
		return nil, err
	}
	if in.first, err = in.next(); err != nil || in.first.name != ovaName {
		in.close()
		return nil, in.unexpected(err)
	}
	return in, nil
}

// unexpected is err, or that the first entry has another name.
func (in *input) unexpected(err error) error {
	if err != nil {
		return err
	}
	return &Failure{Code: CodeUnexpectedFile, Params: []string{ovaName, in.first.name}}
}

func (in *input) unpack(head []byte, r io.Reader) error {
	in.packed = true
	if bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd")) {
		// One thread, so that none is left reading when Import returns. The zstd
		// command refuses windows above 128 MiB, too.
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20),
			zstd.WithDecoderLowmem(true))
		if err != nil {
			return readFailure(fmt.Errorf("reading zstd: %w", err))
		}
		in.r, in.compression, in.close = d, Zstd, d.Close
		return nil
	}
	z, err := gzip.NewReader(r)
	if err != nil {
		return &Failure{Code: CodePrematureEOF, Err: fmt.Errorf("reading gzip: %w", err)}
	}
	in.r, in.compression, in.close = z, Gzip, func() { _ = z.Close() } // it only repeats what Read said
	return nil
}

// read fills p.
func (in *input) read(p []byte) error {
	_, err := io.ReadFull(in.r, p)
	switch {
	case err == nil:
		return nil
	case isEOF(err), in.packed:
		// Of a decompressor that fails XAPI only sees that its pipe ends.
		return &Failure{Code: CodePrematureEOF, Err: err}
	}
	return readFailure(err)
}

// content reads n bytes into memory of their own, which grows as they come: the
// header's word alone buys none.
func (in *input) content(n int64) ([]byte, error) {
	var buf bytes.Buffer
	if _, err := io.CopyN(&buf, in.r, n); err != nil {
		if isEOF(err) || in.packed {
			return nil, &Failure{Code: CodePrematureEOF, Err: err}
		}
		return nil, readFailure(err)
	}
	return buf.Bytes(), nil
}

func (in *input) skip(n int) error { return in.read(in.block[:n]) }

func isEOF(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

func readFailure(err error) *Failure {
	return internal(err, `Unix.Unix_error(Unix.ECONNRESET, "read", "")`)
}
