package nitrotpm

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// Root is the SHA-256 fingerprint of a root certificate, over its DER.
type Root [sha256.Size]byte

// AWSRoot is the root of AWS for documents of NitroTPM and of Nitro Enclaves,
// "AWS Nitro Enclaves Root-G1", CN=aws.nitro-enclaves, valid until 2049. AWS
// publishes the fingerprint beside the certificate; a document carries the
// certificate itself. It is a function so that no other package can set it.
func AWSRoot() Root {
	return Root{
		0x64, 0x1a, 0x03, 0x21, 0xa3, 0xe2, 0x44, 0xef, 0xe4, 0x56, 0x46, 0x31, 0x95, 0xd6, 0x06, 0x31,
		0x7e, 0xd7, 0xcd, 0xcc, 0x3c, 0x17, 0x56, 0xe0, 0x98, 0x93, 0xf3, 0xc6, 0x8f, 0x79, 0xbb, 0x5b,
	}
}

// Fingerprint is the Root of a certificate.
func Fingerprint(c *x509.Certificate) Root { return sha256.Sum256(c.Raw) }

// String is the fingerprint in lower-case hex.
func (r Root) String() string { return hex.EncodeToString(r[:]) }

// ParseRoot reads a root: a fingerprint in hex, with or without colons, or a
// certificate in PEM.
func ParseRoot(b []byte) (Root, error) {
	if block, rest := pem.Decode(b); block != nil {
		if block.Type != "CERTIFICATE" || len(strings.TrimSpace(string(rest))) > 0 {
			return Root{}, errors.New("read root: one certificate in PEM is needed, and nothing else")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return Root{}, fmt.Errorf("read root: %w", err)
		}
		return Fingerprint(c), nil
	}
	text := strings.ReplaceAll(strings.TrimSpace(string(b)), ":", "")
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) != sha256.Size {
		return Root{}, errors.New("read root: it is neither a certificate in PEM nor a SHA-256 fingerprint in hex")
	}
	return Root(raw), nil
}
