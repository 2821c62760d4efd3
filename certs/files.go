package certs

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
)

const (
	pemCertificate = "CERTIFICATE"
	pemKey         = "PRIVATE KEY" // PKCS#8
	pemCRL         = "X509 CRL"

	// modeFile is the mode of everything here: whoever else has to read a certificate can be given it.
	modeFile = 0o600

	// maxFile bounds what is read of any file here, in bytes; a revocation list entry takes about 40.
	maxFile = 16 << 20
)

// WritePair writes a certificate and its private key, both with mode 0600, durably, each replaced as a whole. The key
// goes first; a Source that looks between the two finds that they do not match and keeps what it has.
func WritePair(certPath, keyPath string, certPEM, keyPEM []byte) error {
	if err := writeFile(keyPath, keyPEM); err != nil {
		return err
	}
	return writeFile(certPath, certPEM)
}

// writeFile replaces path with data: temporary file beside it, fsync, rename, fsync of the folder.
func writeFile(path string, data []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".dpxen-*") // created with mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(data)
	if err == nil && runtime.GOOS != "windows" {
		err = f.Chmod(modeFile)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
	}
	if err := syncDir(dir); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// syncDir makes the entries of a folder durable. Windows has no such call; its file systems journal the names.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("more than %d bytes", maxFile)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return data, nil
}

// blocks returns the contents of the PEM blocks of the given type; at least one, or an error.
func blocks(path string, data []byte, kind string) ([][]byte, error) {
	var all [][]byte
	for {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil {
			break
		}
		if b.Type == kind {
			all = append(all, b.Bytes)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("read %s: no PEM block %q in it", path, kind)
	}
	return all, nil
}

func readCertificates(path string) ([]*x509.Certificate, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	ders, err := blocks(path, data, pemCertificate)
	if err != nil {
		return nil, err
	}
	all := make([]*x509.Certificate, len(ders))
	for i, der := range ders {
		if all[i], err = x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
	}
	return all, nil
}

func readCRLs(path string) ([]*x509.RevocationList, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	ders, err := blocks(path, data, pemCRL)
	if err != nil {
		return nil, err
	}
	all := make([]*x509.RevocationList, len(ders))
	for i, der := range ders {
		if all[i], err = x509.ParseRevocationList(der); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
	}
	return all, nil
}

// readKey reads a PKCS#8 private key. A key that everyone on the machine can read is refused; a group may be let in.
func readKey(path string) (crypto.Signer, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); runtime.GOOS != "windows" && mode&0o007 != 0 {
		return nil, fmt.Errorf("read %s: %w (mode %04o): chmod 600 it", path, ErrKeyReadable, mode)
	}
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	ders, err := blocks(path, data, pemKey)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(ders[0])
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("read %s: a key of type %T cannot sign", path, key)
	}
	return signer, nil
}

// belongs tells whether the private key is the one of the certificate.
func belongs(cert *x509.Certificate, key crypto.Signer) bool {
	pub, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	return ok && pub.Equal(key.Public())
}
