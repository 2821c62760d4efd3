package certs

import "errors"

// Why a peer was refused. They are found with errors.Is in what a handshake returned, after [Explain]; the error's text
// names the certificate and the reason.
var (
	// ErrNoCertificate: the peer showed no certificate.
	ErrNoCertificate = errors.New("no certificate shown")
	// ErrExpired: the certificate's time is over, or has not begun.
	ErrExpired = errors.New("certificate not valid at this time")
	// ErrUnknownCA: no authority in the CA file issued the certificate.
	ErrUnknownCA = errors.New("certificate of another certificate authority")
	// ErrBadCertificate: the certificate breaks another rule, such as having no single identity.
	ErrBadCertificate = errors.New("certificate not acceptable")
	// ErrWrongRole: an agent where a controller is wanted, or the reverse.
	ErrWrongRole = errors.New("certificate of the wrong role")
	// ErrWrongName: the right role, but not the peer that was asked for.
	ErrWrongName = errors.New("certificate of another name")
	// ErrNotAllowed: a good certificate whose name is not on the allow list.
	ErrNotAllowed = errors.New("name not on the allow list")
	// ErrRevoked: the authority has revoked the certificate.
	ErrRevoked = errors.New("certificate revoked")
	// ErrRevocationUnknown: a revocation list is configured, but it has expired or is not of the certificate's
	// authority. Such a peer is refused: a list that cannot be relied on revokes nothing.
	ErrRevocationUnknown = errors.New("revocation list not usable")
	// ErrVersion: the peer does not speak TLS 1.3.
	ErrVersion = errors.New("peer without TLS 1.3")
	// ErrRefusedByPeer: the other side refused us; its log has the reason, the alert tells only the kind.
	ErrRefusedByPeer = errors.New("refused by the other side")
)

// What is wrong with files or with what was asked of the authority.
var (
	// ErrExists: CreateCA would have overwritten an authority.
	ErrExists = errors.New("certificate authority exists already")
	// ErrMismatch: certificate and private key, or certificate and authority, do not belong together.
	ErrMismatch = errors.New("files do not belong together")
	// ErrKeyReadable: the private key can be read by every user of the machine.
	ErrKeyReadable = errors.New("private key readable by everyone")
	// ErrNotIssued: the authority has no such certificate.
	ErrNotIssued = errors.New("no such certificate issued")
	// ErrName: not a name that a controller or agent can have.
	ErrName = errors.New("not a valid name")
)
