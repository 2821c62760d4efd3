// Package archive writes and reads the simulator's XVA streams. Writing goes
// through internal/xva's block writer; reading is this package's own, after what
// XAPI's importer does (xapi-project/xen-api, ocaml/xapi/import.ml and
// stream_vdi.ml), quirks included, so that a fault that dpxen's reader and writer
// shared would show.
package archive

import (
	"errors"
	"fmt"
	"strings"
)

// BlockSize is the length in bytes of a chunk but for the last one of a disk.
const BlockSize = 1 << 20

// Compression is how the whole tar stream is packed.
type Compression int

const (
	// None is a plain tar stream.
	None Compression = iota
	// Gzip is one gzip member.
	Gzip
	// Zstd is one zstd frame.
	Zstd
)

// String gives none, gzip or zstd.
func (c Compression) String() string {
	switch c {
	case Gzip:
		return "gzip"
	case Zstd:
		return "zstd"
	}
	return "none"
}

// Checksum is the kind of the entries that follow each chunk.
type Checksum int

const (
	// XXHash is XXH64, in entries named ".xxhash": XenServer since 8.1.
	XXHash Checksum = iota
	// SHA1 is SHA-1, in entries named ".checksum": all before.
	SHA1
)

// Codes of XAPI that a Failure carries.
const (
	CodePrematureEOF   = "IMPORT_ERROR_PREMATURE_EOF"
	CodeUnexpectedFile = "IMPORT_ERROR_UNEXPECTED_FILE"
	CodeImportError    = "IMPORT_ERROR"
	CodeChecksums      = "IMPORT_ERROR_SOME_CHECKSUMS_FAILED"
	CodeVDIIOError     = "VDI_IO_ERROR"
)

// Failure is an import's failure as XAPI would report it on the task.
type Failure struct {
	Code   string
	Params []string
	// Err is the cause, where there is one that XAPI would not tell.
	Err error
}

// Error gives code and parameters, and the cause.
func (f *Failure) Error() string {
	s := f.Code + "(" + strings.Join(f.Params, ", ") + ")"
	if f.Err != nil {
		s += ": " + f.Err.Error()
	}
	return s
}

// Plain gives the failure as it is told where nothing makes an IMPORT_ERROR of it:
// for a disk alone.
func (f *Failure) Plain() *Failure {
	const internal = "INTERNAL_ERROR"
	switch f.Code {
	case CodePrematureEOF:
		return &Failure{Code: internal, Params: []string{"End_of_file"}, Err: f.Err}
	case CodeImportError:
		text := strings.TrimSuffix(strings.TrimPrefix(strings.Join(f.Params, ""), internal+": [ "), " ]")
		return &Failure{Code: internal, Params: []string{text}, Err: f.Err}
	}
	return f
}

// Unwrap gives the cause.
func (f *Failure) Unwrap() error { return f.Err }

// internal is the generic failure: XAPI prints the exception as a string.
func internal(cause error, format string, args ...any) *Failure {
	return &Failure{
		Code:   CodeImportError,
		Params: []string{"INTERNAL_ERROR: [ " + fmt.Sprintf(format, args...) + " ]"},
		Err:    cause,
	}
}

// failure prints as OCaml prints an exception with a message.
func failure(exception, format string, args ...any) *Failure {
	return internal(nil, "%s(%q)", exception, fmt.Sprintf(format, args...))
}

// ErrLayout is returned by Export for disks that cannot be put into one archive.
var ErrLayout = errors.New("impossible archive layout")
