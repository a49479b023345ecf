package nitrotpm_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"math/big"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/org/attestable-image-action/nitrotpm"
)

// issuer signs documents as AWS does, each part of which a test may change first.
type issuer struct {
	t     testing.TB
	now   time.Time
	chain []authority // root, regional, zonal, instance
}

// authority is a certificate with its key.
type authority struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

const (
	instanceID = "i-0123456789abcdef0"
	moduleID   = instanceID + "-tpm0000000000000000"
)

// now is the time at which the test's documents are made and checked.
var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func newIssuer(t testing.TB) *issuer {
	t.Helper()
	i := &issuer{t: t, now: now}
	for n, a := range []struct {
		name     string
		lifetime time.Duration
		path     int
	}{
		{"aws.nitro-enclaves", 30 * 365 * 24 * time.Hour, -1},
		{"280d.eu-central-1.aws.nitro-enclaves", 20 * 24 * time.Hour, 2},
		{"5291.zonal.eu-central-1.aws.nitro-enclaves", 6 * 24 * time.Hour, 1},
		{instanceID + ".eu-central-1.aws.nitro-enclaves", 24 * time.Hour, 0},
	} {
		var parent *authority
		if n > 0 {
			parent = &i.chain[n-1]
		}
		i.chain = append(i.chain, i.authority(parent, a.name, func(c *x509.Certificate) {
			c.NotAfter = c.NotBefore.Add(a.lifetime)
			c.MaxPathLen, c.MaxPathLenZero = a.path, a.path == 0
		}))
	}
	return i
}

// authority makes a certificate authority below parent, or a root.
func (i *issuer) authority(parent *authority, name string, change func(*x509.Certificate)) authority {
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: i.now.Add(-time.Hour), NotAfter: i.now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, MaxPathLen: -1,
	}
	if change != nil {
		change(template)
	}
	return i.certify(parent, template, elliptic.P384())
}

func (i *issuer) certify(parent *authority, template *x509.Certificate, curve elliptic.Curve) authority {
	i.t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		i.t.Fatal(err)
	}
	template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		i.t.Fatal(err)
	}
	if parent == nil {
		parent = &authority{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent.certificate, key.Public(), parent.key)
	if err != nil {
		i.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		i.t.Fatal(err)
	}
	return authority{c, key}
}

// leafTemplate is what a leaf looks like. keyUsage is not critical in a genuine
// one, which crypto/x509 writes only where it is told the bytes.
func (i *issuer) leafTemplate() *x509.Certificate {
	return &x509.Certificate{
		Subject:   pkix.Name{CommonName: moduleID + ".eu-central-1.aws"},
		NotBefore: i.now.Add(-time.Minute), NotAfter: i.now.Add(3 * time.Hour),
		BasicConstraintsValid: true,
		// BIT STRING with digitalSignature and nonRepudiation (RFC 5280, section 4.2.1.3).
		ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 15}, Value: []byte{0x03, 0x02, 0x06, 0xc0}}},
	}
}

// document is what is signed, before it is.
type document struct {
	leaf      authority
	protected []byte
	unprot    []byte
	tag       bool
	definite  bool // the payload map's length
	payload   map[string]any
	order     []string
	rawPairs  []byte // appended to the payload's members as they are
	trailing  []byte // behind the payload's map, inside what is signed
	sign      func(digest []byte) (r, s *big.Int)
	after     func(signature []byte) []byte
}

// newDocument is a document to which nobody could object.
func (i *issuer) newDocument() *document {
	leaf := i.certify(&i.chain[3], i.leafTemplate(), elliptic.P384())
	bundle := make([][]byte, len(i.chain))
	for n, a := range i.chain {
		bundle[n] = a.certificate.Raw
	}
	return &document{
		leaf: leaf, protected: []byte{0xa1, 0x01, 0x38, 0x22}, unprot: []byte{0xa0},
		payload: map[string]any{
			"module_id": moduleID, "digest": "SHA384", "timestamp": uint64(i.now.UnixMilli()),
			"nitrotpm_pcrs": pcrs(), "certificate": leaf.certificate.Raw, "cabundle": bundle,
			"public_key": nil, "user_data": nil, "nonce": nonce,
		},
		order: []string{"module_id", "digest", "timestamp", "nitrotpm_pcrs", "certificate", "cabundle", "public_key", "user_data", "nonce"},
	}
}

var nonce = []byte("0123456789abcdef0123456789abcdef")

// separatorOnly is PCR 2 of a genuine document, and of boots under OVMF.
var separatorOnly = mustHex("518923b0f955d08da077c96aaba522b9decede61c599cea6c41889cfbea4ae4d50529d96fe4d1afdafb65e7f95bf23c4")

func mustHex(digits string) []byte {
	b, err := hex.DecodeString(digits)
	if err != nil {
		panic(err)
	}
	return b
}

func pcrs() map[int][]byte {
	values := make(map[int][]byte)
	for n := range nitrotpm.PCRCount {
		values[n] = make([]byte, nitrotpm.PCRSize)
		if n != 12 && n != 13 {
			values[n][0] = byte(n + 1)
		}
	}
	copy(values[2], separatorOnly)
	return values
}

func reference() nitrotpm.Reference {
	return nitrotpm.Reference{Name: "image:v1", PCRs: map[int][]byte{4: pcrs()[4], 12: pcrs()[12]}}
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	b, err := cbor.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// bytes encodes and signs the document.
func (d *document) bytes(t testing.TB) []byte {
	t.Helper()
	payload := []byte{0xbf}
	if d.definite {
		payload = []byte{0xa0 | byte(len(d.order))}
	}
	for _, name := range d.order {
		payload = append(append(payload, encode(t, name)...), encode(t, d.payload[name])...)
	}
	payload = append(payload, d.rawPairs...)
	if !d.definite {
		payload = append(payload, 0xff)
	}
	payload = append(payload, d.trailing...)
	return d.around(t, payload)
}

// around signs a payload and puts the COSE_Sign1 around it.
func (d *document) around(t testing.TB, payload []byte) []byte {
	t.Helper()
	digest := sha512.Sum384(encode(t, []any{"Signature1", d.protected, []byte{}, payload}))
	sign := d.sign
	if sign == nil {
		sign = func(digest []byte) (r, s *big.Int) {
			r, s, err := ecdsa.Sign(rand.Reader, d.leaf.key.(*ecdsa.PrivateKey), digest)
			if err != nil {
				t.Fatal(err)
			}
			return r, s
		}
	}
	r, s := sign(digest[:])
	signature := append(r.FillBytes(make([]byte, 48)), s.FillBytes(make([]byte, 48))...)
	if d.after != nil {
		signature = d.after(signature)
	}
	var out []byte
	if d.tag {
		out = append(out, 0xd2)
	}
	out = append(append(append(out, 0x84), encode(t, d.protected)...), d.unprot...)
	return append(append(out, encode(t, payload)...), encode(t, signature)...)
}

// policy believes the issuer's root.
func (i *issuer) policy() nitrotpm.Policy {
	return nitrotpm.Policy{
		Roots: []nitrotpm.Root{nitrotpm.Fingerprint(i.chain[0].certificate)}, At: i.now.Add(10 * time.Second),
		Nonce: nonce, Accept: []nitrotpm.Reference{reference()},
	}
}
