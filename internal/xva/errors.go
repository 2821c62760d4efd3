package xva

import (
	"errors"
	"fmt"
	"strings"
)

// The kinds of fault that a file can have. Each is wrapped by a *FormatError,
// which says where; test for them with errors.Is.
var (
	// ErrFormat says that the bytes are not what the format asks for.
	ErrFormat = errors.New("not a well-formed XVA file")
	// ErrTruncated says that the file ends before its end mark.
	ErrTruncated = errors.New("file is cut short")
	// ErrChecksum says that a chunk differs from its own checksum, or a
	// compressed stream from its own.
	ErrChecksum = errors.New("checksum mismatch")
	// ErrTrailing says that something follows the end of the archive.
	ErrTrailing = errors.New("data after the end of the archive")
	// ErrUnsupported says that the file is of a kind this package refuses by
	// name, such as the appliance format of the first XenServer releases.
	ErrUnsupported = errors.New("unsupported kind of file")
	// ErrMissingData says that a disk of ova.xml is not wholly in the archive.
	ErrMissingData = errors.New("disk data is missing")
)

// FormatError is a fault of the file, not of the reading. It wraps one of the
// sentinels of this package.
type FormatError struct {
	// Entry is the tar entry concerned, or empty.
	Entry string
	// Offset is the byte of the (decompressed) archive near which the fault
	// was found, or -1 where it has no place.
	Offset int64
	// Disk is the directory name of the disk concerned, or empty.
	Disk string
	// Msg says what is wrong.
	Msg string
	// Err is the kind: one of the sentinels of this package.
	Err error
}

// Error says the kind, the details and the place.
func (e *FormatError) Error() string {
	var b strings.Builder
	b.WriteString("xva: ")
	b.WriteString(e.Err.Error())
	if e.Msg != "" {
		b.WriteString(": ")
		b.WriteString(e.Msg)
	}
	var place []string
	if e.Entry != "" {
		place = append(place, fmt.Sprintf("entry %.100q", e.Entry))
	} else if e.Disk != "" {
		place = append(place, fmt.Sprintf("disk %.100q", e.Disk))
	}
	if e.Offset >= 0 {
		place = append(place, fmt.Sprintf("byte %d", e.Offset))
	}
	if len(place) > 0 {
		b.WriteString(" (" + strings.Join(place, ", ") + ")")
	}
	return b.String()
}

// Unwrap gives the kind.
func (e *FormatError) Unwrap() error { return e.Err }

// IsBad tells whether err says that the file itself is at fault, as against a
// failure to read or write it.
func IsBad(err error) bool {
	var fe *FormatError
	return errors.As(err, &fe)
}

// bad makes a fault without a place.
func bad(kind error, format string, args ...any) *FormatError {
	return &FormatError{Offset: -1, Msg: fmt.Sprintf(format, args...), Err: kind}
}
