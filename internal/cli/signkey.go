package cli

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/org/attestable-image-action/internal/awskms"
)

// maxPEM bounds the file of a key or of certificates, in bytes.
const maxPEM = 1 << 20

// openSignKey opens the key that --key names: a file, "fd:N" for an open file
// descriptor, or "awskms:KEY_ID". No part of a key gets into an error.
func openSignKey(ctx context.Context, name string) (crypto.Signer, error) {
	if strings.Contains(name, "-----BEGIN") || strings.ContainsAny(name, "\r\n") {
		return nil, usagef("--key holds a key itself, which every program on this machine can see there: make a new key, and give it in a file or as fd:N")
	}
	if id, ok := strings.CutPrefix(name, "awskms:"); ok {
		if id == "" {
			return nil, usagef("--key: awskms: needs the key's identifier, ARN or alias")
		}
		return awskms.Open(ctx, id)
	}
	content, err := readFileOrDescriptor(name)
	if err != nil {
		return nil, fmt.Errorf("read the key for Secure Boot: %w", err)
	}
	defer clear(content)
	key, err := parseKey(content)
	if err != nil {
		return nil, fmt.Errorf("read the key for Secure Boot from %s: %w", name, err)
	}
	return key, nil
}

// readFileOrDescriptor reads a file, or all that an open file descriptor gives,
// which is closed then.
func readFileOrDescriptor(name string) ([]byte, error) {
	number, ok := strings.CutPrefix(name, "fd:")
	if !ok {
		return readBounded(name, maxPEM)
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 1 || n == 2 {
		return nil, usagef("%s names no file descriptor to read from: give fd:0, or fd:3 and above", name)
	}
	f := os.NewFile(uintptr(n), name)
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxPEM+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: open it for this program, as in %s<FILE", err, number)
	case len(content) == 0:
		return nil, fmt.Errorf("%s gave nothing; on a pull request from a fork, secrets are empty", name)
	case len(content) > maxPEM:
		return nil, fmt.Errorf("%s gave more than the %d bytes that are read", name, maxPEM)
	}
	return content, nil
}

func parseKey(content []byte) (crypto.Signer, error) {
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		var key any
		var err error
		switch {
		case block.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED"):
			return nil, errors.New("it is encrypted, and no pass phrase is asked for: decrypt it into a file descriptor, as in --key fd:3 3< <(openssl pkey -in KEY.pem)")
		case block.Type == "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case block.Type == "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case block.Type == "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		default:
			continue
		}
		if err != nil {
			return nil, errors.New("its PEM block holds no private key that can be read") // the cause could quote it
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, errors.New("it is a key that cannot sign: use an RSA key of 2048 to 4096 bits")
		}
		return signer, nil
	}
	return nil, errors.New("it has no private key in PEM (\"-----BEGIN PRIVATE KEY-----\")")
}

// readCertificates reads certificates in PEM, or one in DER.
func readCertificates(name string) ([]*x509.Certificate, error) {
	content, err := readFileOrDescriptor(name)
	if err != nil {
		return nil, fmt.Errorf("read the certificate for Secure Boot: %w", err)
	}
	var certificates []*x509.Certificate
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("read the certificate for Secure Boot from %s: %w", name, err)
		}
		certificates = append(certificates, c)
	}
	if len(certificates) == 0 {
		c, err := x509.ParseCertificate(content)
		if err != nil {
			return nil, fmt.Errorf("read the certificate for Secure Boot from %s: it has no certificate, neither in PEM (\"-----BEGIN CERTIFICATE-----\") nor in DER", name)
		}
		certificates = append(certificates, c)
	}
	return certificates, nil
}
