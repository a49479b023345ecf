package efi

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	_ "crypto/sha256" // for crypto.Hash
	_ "crypto/sha512" // for crypto.Hash
	"crypto/subtle"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
)

// AuthenticodeSignature is a PKCS#7 SignedData of a PE image, whose own
// signature was checked: its signer did sign Digest. Whether anybody trusts the
// signer is another question, which AnchoredBy answers.
type AuthenticodeSignature struct {
	Hash         crypto.Hash
	Digest       []byte // of the image, as the signer says
	Signer       *x509.Certificate
	Certificates []*x509.Certificate // all that are embedded, the signer's among them
}

var (
	oidSignedData      = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidMessageDigest   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
	oidSpcIndirectData = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 4}
	oidRSA             = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
)

// digestAlgorithms are those that firmware accepts and whose collisions are not
// for sale: SHA-1 is left out.
var digestAlgorithms = []struct {
	oid     asn1.ObjectIdentifier
	withRSA asn1.ObjectIdentifier
	hash    crypto.Hash
	rsa     x509.SignatureAlgorithm
}{
	{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, crypto.SHA256, x509.SHA256WithRSA},
	{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 12}, crypto.SHA384, x509.SHA384WithRSA},
	{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 3}, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 13}, crypto.SHA512, x509.SHA512WithRSA},
}

// The structures of PKCS#7 (RFC 2315, section 7 and 9) and of Authenticode.
type (
	contentInfo struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue `asn1:"explicit,tag:0"`
	}
	signedData struct {
		Version          int
		DigestAlgorithms []pkix.AlgorithmIdentifier `asn1:"set"`
		Content          contentInfo
		Certificates     asn1.RawValue `asn1:"optional,tag:0"`
		CRLs             asn1.RawValue `asn1:"optional,tag:1"`
		SignerInfos      []signerInfo  `asn1:"set"`
	}
	signerInfo struct {
		Version         int
		IssuerAndSerial struct {
			Issuer asn1.RawValue
			Serial *big.Int
		}
		DigestAlgorithm         pkix.AlgorithmIdentifier
		AuthenticatedAttributes asn1.RawValue `asn1:"optional,tag:0"`
		SignatureAlgorithm      pkix.AlgorithmIdentifier
		Signature               []byte
		Unauthenticated         asn1.RawValue `asn1:"optional,tag:1"`
	}
	attribute struct {
		Type   asn1.ObjectIdentifier
		Values asn1.RawValue `asn1:"set"`
	}
	spcIndirectData struct {
		Data   asn1.RawValue
		Digest struct {
			Algorithm pkix.AlgorithmIdentifier
			Digest    []byte
		}
	}
)

const (
	// Real signatures embed a handful of certificates.
	maxCertificates = 32
	// OpenSSL, and so EDK II, takes no longer key; without a bound, checking one
	// would take minutes.
	maxKeyBits = 16384
)

// ParseAuthenticode reads a signature of a PE image (DER, possibly padded), and
// checks that its signer did make it. It supports what firmware does: one
// signer, RSA, SHA-256 or longer.
func ParseAuthenticode(der []byte) (*AuthenticodeSignature, error) {
	s, err := parseAuthenticode(der)
	if err != nil {
		return nil, fmt.Errorf("read Authenticode signature: %w", err)
	}
	return s, nil
}

func parseAuthenticode(der []byte) (*AuthenticodeSignature, error) {
	var outer contentInfo
	if _, err := asn1.Unmarshal(der, &outer); err != nil {
		return nil, fmt.Errorf("PKCS#7 ContentInfo: %w", err)
	}
	if !outer.Type.Equal(oidSignedData) {
		return nil, fmt.Errorf("its content is %s, not PKCS#7 SignedData", outer.Type)
	}
	var signed signedData
	if _, err := asn1.Unmarshal(outer.Content.Bytes, &signed); err != nil {
		return nil, fmt.Errorf("PKCS#7 SignedData: %w", err)
	}
	if !signed.Content.Type.Equal(oidSpcIndirectData) {
		return nil, fmt.Errorf("what was signed is %s, not an Authenticode digest", signed.Content.Type)
	}
	if n := len(signed.SignerInfos); n != 1 {
		return nil, fmt.Errorf("it has %d signers, not one", n)
	}
	var indirect spcIndirectData
	if _, err := asn1.Unmarshal(signed.Content.Content.Bytes, &indirect); err != nil {
		return nil, fmt.Errorf("SpcIndirectDataContent: %w", err)
	}
	var body asn1.RawValue // what the attribute messageDigest covers: the content without tag and length
	if _, err := asn1.Unmarshal(signed.Content.Content.Bytes, &body); err != nil {
		return nil, fmt.Errorf("SpcIndirectDataContent: %w", err)
	}
	certificates, err := x509.ParseCertificates(signed.Certificates.Bytes)
	if err != nil {
		return nil, fmt.Errorf("embedded certificates: %w", err)
	}
	if len(certificates) > maxCertificates {
		return nil, fmt.Errorf("%d embedded certificates are more than the %d that are read", len(certificates), maxCertificates)
	}
	for _, c := range certificates {
		if key, ok := c.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() > maxKeyBits {
			return nil, fmt.Errorf("embedded certificate %q has an RSA key of %d bits, more than firmware takes", c.Subject, key.N.BitLen())
		}
	}
	info := &signed.SignerInfos[0]
	s := &AuthenticodeSignature{Digest: indirect.Digest.Digest, Certificates: certificates}
	for _, c := range certificates {
		if bytes.Equal(c.RawIssuer, info.IssuerAndSerial.Issuer.FullBytes) && c.SerialNumber.Cmp(info.IssuerAndSerial.Serial) == 0 {
			s.Signer = c
			break
		}
	}
	if s.Signer == nil {
		return nil, errors.New("the signer's certificate is not embedded: firmware could not check it")
	}
	for _, a := range digestAlgorithms {
		if !a.oid.Equal(indirect.Digest.Algorithm.Algorithm) {
			continue
		}
		if len(s.Digest) != a.hash.Size() {
			return nil, fmt.Errorf("a digest of %d bytes is none of %s", len(s.Digest), a.hash)
		}
		if !info.DigestAlgorithm.Algorithm.Equal(a.oid) {
			return nil, fmt.Errorf("the signer used the digest %s, the image another one", info.DigestAlgorithm.Algorithm)
		}
		if alg := info.SignatureAlgorithm.Algorithm; !alg.Equal(oidRSA) && !alg.Equal(a.withRSA) {
			return nil, fmt.Errorf("signature algorithm %s is not RSA", alg)
		}
		s.Hash = a.hash
		return s, info.check(s.Signer, a.hash, a.rsa, body.Bytes)
	}
	return nil, fmt.Errorf("digest algorithm %s is not SHA-256, SHA-384 or SHA-512", indirect.Digest.Algorithm.Algorithm)
}

// check verifies the signature over the authenticated attributes, one of which
// is the digest of the content (RFC 2315, section 9.3).
func (i *signerInfo) check(signer *x509.Certificate, hash crypto.Hash, algorithm x509.SignatureAlgorithm, content []byte) error {
	if len(i.AuthenticatedAttributes.Bytes) == 0 {
		return errors.New("it has no authenticated attributes")
	}
	// The attributes are signed as the SET that they are, not as [0] IMPLICIT.
	set := bytes.Clone(i.AuthenticatedAttributes.FullBytes)
	set[0] = 0x31
	h := hash.New()
	h.Write(content)
	found := false
	for rest := i.AuthenticatedAttributes.Bytes; len(rest) > 0; {
		var a attribute
		var err error
		if rest, err = asn1.Unmarshal(rest, &a); err != nil {
			return fmt.Errorf("authenticated attributes: %w", err)
		}
		if !a.Type.Equal(oidMessageDigest) {
			continue
		}
		var digest []byte
		if _, err := asn1.Unmarshal(a.Values.Bytes, &digest); err != nil {
			return fmt.Errorf("attribute messageDigest: %w", err)
		}
		if subtle.ConstantTimeCompare(digest, h.Sum(nil)) != 1 {
			return errors.New("the attribute messageDigest is not the digest of what was signed")
		}
		found = true
	}
	if !found {
		return errors.New("it has no attribute messageDigest")
	}
	if err := signer.CheckSignature(algorithm, set, i.Signature); err != nil {
		return fmt.Errorf("check signature by %q: %w", signer.Subject, err)
	}
	return nil
}

// AnchoredBy reports whether a certificate of a signature database makes
// firmware trust the signature: it is the signer's own, or it issued the
// signer's or, over embedded certificates, one above it. Validity in time does
// not count, as firmware has no trusted clock (UEFI 2.10, section 32.5.3.3).
func (s *AuthenticodeSignature) AnchoredBy(anchor *x509.Certificate) bool {
	visited := make([]bool, len(s.Certificates))
	for chain := []*x509.Certificate{s.Signer}; len(chain) > 0; chain = chain[1:] {
		if chain[0].Equal(anchor) || issued(anchor, chain[0]) {
			return true
		}
		for i, issuer := range s.Certificates {
			if !visited[i] && issued(issuer, chain[0]) {
				visited[i] = true
				chain = append(chain, issuer)
			}
		}
	}
	return false
}

func issued(issuer, c *x509.Certificate) bool {
	return bytes.Equal(issuer.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(issuer) == nil
}
