// Package certs holds dpxen's mutual-TLS material: the certificate authority, the certificates it issues, renews and
// revokes, and the TLS configurations that both ends of a connection use.
//
// A certificate carries exactly one URI subject alternative name, which is its identity:
// dpxen://controller/NAME or dpxen://agent/NAME. An agent's certificate also has NAME as its DNS name, so that a
// controller that dials with ServerName = NAME proves by the usual host name check that it talks to that very agent.
//
// The authority ([CA]) is a folder:
//
//	ca.pem             its certificate; copied to every host
//	ca.key             its private key, mode 0600; stays where it was made
//	crl.pem            the revocation list, always present, signed by the authority; copied to every host
//	issued/SERIAL.pem  every certificate ever issued, by serial number in hexadecimal
//	lock               serialises changes by several processes
//
// A [Source] is one end's own certificate with what it trusts. It re-reads its files when they change, so that a renewed
// certificate, another bundle or a new revocation list take effect at the next handshake without a restart.
//
// TLS is 1.3 only. A chain is the authority and the certificate, nothing between. Every refusal is one of the Err
// values; [Explain] turns what crypto/tls reports into them, and what the other side's alert means into words.
package certs
