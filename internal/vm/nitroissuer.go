package vm

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// Names of what the emulator makes: nobody should take it for AWS's.
const (
	emulatedModule = "i-emulated00000000-tpm0000000000000000"
	emulatedDomain = ".emulated.invalid"
	emulatedUnit   = "EMULATED NitroTPM, not AWS"
)

// issuer signs documents as AWS's does, with a chain of the same shape that is
// thrown away with it: root, regional, zonal and instance certificate, and a leaf
// for each document.
type issuer struct {
	now   func() time.Time
	chain []issuing // the root first
}

type issuing struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// authorities below which the leaf stands: name, lifetime, path length. AWS's root
// is valid for thirty years, this one for as long as the emulator could be needed.
var authorities = []struct {
	name     string
	lifetime time.Duration
	path     int
}{
	{"root", 20 * 24 * time.Hour, -1},
	{"regional", 20 * 24 * time.Hour, 2},
	{"zonal", 6 * 24 * time.Hour, 1},
	{"instance", 24 * time.Hour, 0},
}

// leafLifetime is that of the certificate that signs a document.
const leafLifetime = 3 * time.Hour

func newIssuer(now func() time.Time) (*issuer, error) {
	i := &issuer{now: now}
	return i, i.extend()
}

// extend makes the certificates that are missing from the chain.
func (i *issuer) extend() error {
	for _, a := range authorities[len(i.chain):] {
		template := &x509.Certificate{
			Subject: pkix.Name{CommonName: a.name + emulatedDomain}, NotAfter: i.now().Add(a.lifetime),
			IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
			MaxPathLen: a.path, MaxPathLenZero: a.path == 0,
		}
		c, err := i.certify(template)
		if err != nil {
			return err
		}
		i.chain = append(i.chain, *c)
	}
	return nil
}

// certify makes a certificate below the last of the chain, or the root.
func (i *issuer) certify(template *x509.Certificate) (*issuing, error) {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.Subject.OrganizationalUnit = []string{emulatedUnit}
	template.NotBefore = i.now().Add(-time.Minute)
	template.BasicConstraintsValid = true
	parent := &issuing{template, key}
	if len(i.chain) > 0 {
		parent = &i.chain[len(i.chain)-1]
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent.certificate, key.Public(), parent.key)
	if err != nil {
		return nil, fmt.Errorf("make the emulated certificate %q: %w", template.Subject.CommonName, err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &issuing{c, key}, nil
}

// nsmRequest is what an instance asks to have in a document; nil is CBOR null.
type nsmRequest struct {
	UserData  []byte `cbor:"user_data"`
	Nonce     []byte `cbor:"nonce"`
	PublicKey []byte `cbor:"public_key"`
}

// document signs a document about the PCRs of the SHA-384 bank.
func (i *issuer) document(request nsmRequest, pcrs [pcrCount][]byte) ([]byte, error) {
	if i.now().After(i.chain[len(i.chain)-1].certificate.NotAfter.Add(-leafLifetime)) {
		i.chain = i.chain[:1]
		if err := i.extend(); err != nil {
			return nil, err
		}
	}
	leaf, err := i.certify(&x509.Certificate{
		Subject: pkix.Name{CommonName: emulatedModule + emulatedDomain}, NotAfter: i.now().Add(leafLifetime),
		// As in a genuine document, keyUsage is not critical: digitalSignature and
		// nonRepudiation (RFC 5280, section 4.2.1.3).
		ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 15}, Value: []byte{0x03, 0x02, 0x06, 0xc0}}},
	})
	if err != nil {
		return nil, err
	}
	bundle := make([][]byte, len(i.chain))
	for n, c := range i.chain {
		bundle[n] = c.certificate.Raw
	}
	values := make(map[int][]byte, len(pcrs))
	for n, value := range pcrs {
		values[n] = value
	}
	payload := []byte{0xbf} // a map of indefinite length, as in a genuine document
	for _, member := range []struct {
		name  string
		value any
	}{
		{"module_id", emulatedModule}, {"digest", "SHA384"}, {"timestamp", uint64(i.now().UnixMilli())},
		{"nitrotpm_pcrs", values}, {"certificate", leaf.certificate.Raw}, {"cabundle", bundle},
		{"public_key", request.PublicKey}, {"user_data", request.UserData}, {"nonce", request.Nonce},
	} {
		for _, part := range []any{member.name, member.value} {
			encoded, err := cbor.Marshal(part)
			if err != nil {
				return nil, fmt.Errorf("write the emulated document: %w", err)
			}
			payload = append(payload, encoded...)
		}
	}
	payload = append(payload, 0xff)

	// COSE_Sign1 (RFC 9052, section 4.2) with ES384 in the protected header.
	protected := []byte{0xa1, 0x01, 0x38, 0x22}
	signed, err := cbor.Marshal([]any{"Signature1", protected, []byte{}, payload})
	if err != nil {
		return nil, err
	}
	digest := sha512.Sum384(signed)
	r, s, err := ecdsa.Sign(rand.Reader, leaf.key, digest[:])
	if err != nil {
		return nil, err
	}
	signature := append(r.FillBytes(make([]byte, 48)), s.FillBytes(make([]byte, 48))...)
	return cbor.Marshal([]any{protected, map[int]int{}, payload, signature})
}
