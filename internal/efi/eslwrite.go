package efi

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
)

// CertificateLists encodes certificates as the content of PK, KEK or db: one
// EFI_SIGNATURE_LIST for each, since the entries of a list are equally long.
// The owner of each is CertificateOwner.
func CertificateLists(certificates ...*x509.Certificate) []byte {
	var b []byte
	for _, c := range certificates {
		owner := CertificateOwner(c)
		b = append(b, CertX509[:]...)
		b = binary.LittleEndian.AppendUint32(b, uint32(signatureListHeader+len(owner)+len(c.Raw)))
		b = binary.LittleEndian.AppendUint32(b, 0) // SignatureHeaderSize
		b = binary.LittleEndian.AppendUint32(b, uint32(len(owner)+len(c.Raw)))
		b = append(b, owner[:]...)
		b = append(b, c.Raw...)
	}
	return b
}

// CertificateOwner is the SignatureOwner that CertificateLists gives a
// certificate: the beginning of its SHA-256 digest in the form of a UUID of
// version 8 (RFC 9562, section 5.8). PCR 7 records the owner, so it must be the
// same at every build, and depend on nothing that a build could lose.
func CertificateOwner(c *x509.Certificate) GUID {
	sum := sha256.Sum256(c.Raw)
	owner := GUID(sum[:16])
	owner[7] = owner[7]&0x0f | 0x80 // the version stands in the high bits of a little-endian field
	owner[8] = owner[8]&0x3f | 0x80
	return owner
}
