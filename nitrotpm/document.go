package nitrotpm

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// PCRCount is the number of PCRs of a TPM for a PC client.
const PCRCount = 24

// PCRSize is the size of a PCR of the SHA-384 bank, in bytes.
const PCRSize = 48

// Document is an attestation document as it was received. Nothing in it is
// believed before [Policy.Verify] says so. The fields are what the signed payload
// says; who changes one changes what is compared, and not what is signed.
type Document struct {
	// ModuleID names the TPM: "i-…-tpm0000000000000000".
	ModuleID string
	// Digest is the bank's hash algorithm: "SHA384".
	Digest string
	// Timestamp is when the document was made, to the millisecond.
	Timestamp time.Time
	// PCRs are values of 48 bytes by number, 0 to 23. A genuine document has all.
	PCRs map[int][]byte
	// Certificate holds the key that signed, and CABundle the chain above it as
	// it was sent: the root first.
	Certificate *x509.Certificate
	CABundle    []*x509.Certificate
	// PublicKey, UserData and Nonce are what the caller in the instance gave; nil
	// where it gave none. Each has at most 1024 bytes.
	PublicKey []byte
	UserData  []byte
	Nonce     []byte

	protected []byte // the protected header as received
	payload   []byte // the payload as received, which is what is signed
	signature []byte // r and s, big-endian, 48 bytes each
}

// COSE_Sign1 and its header (RFC 9052, sections 2, 3.1 and 4.2; RFC 9053, section
// 2.1).
const (
	tagSign1       = 0xd2 // CBOR tag 18 in front of an item
	headerAlg      = 1
	algES384       = -35
	signatureSize  = 96
	arrayOfFour    = 0x84
	emptyMap       = 0xa0
	mapIndefinite  = 0xbf
	majorTypeArray = 4
)

// sign1 is COSE_Sign1: four elements of an array.
type sign1 struct {
	_           struct{} `cbor:",toarray"`
	Protected   cbor.RawMessage
	Unprotected cbor.RawMessage
	Payload     cbor.RawMessage
	Signature   cbor.RawMessage
}

// Parse reads a document: COSE_Sign1, with or without tag 18. An error says what
// is malformed; a document without an error is merely well formed.
func Parse(data []byte) (*Document, error) {
	d, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("read attestation document: %w", err)
	}
	return d, nil
}

func parse(data []byte) (*Document, error) {
	switch {
	case len(data) == 0:
		return nil, errors.New("it is empty")
	case len(data) > MaxDocument:
		return nil, fmt.Errorf("it has %d bytes, more than %d", len(data), MaxDocument)
	}
	if data[0] == tagSign1 {
		data = data[1:]
	}
	if len(data) == 0 || data[0]>>5 != majorTypeArray {
		return nil, errors.New("it is not a COSE_Sign1 object: it does not begin with an array")
	}
	if data[0] != arrayOfFour {
		return nil, errors.New("it is not a COSE_Sign1 object: its array is not one of four elements")
	}
	var outer sign1
	if err := strict.Unmarshal(data, &outer); err != nil {
		return nil, fmt.Errorf("COSE_Sign1: %w", err)
	}
	d := new(Document)
	for _, part := range []struct {
		name string
		raw  cbor.RawMessage
		into *[]byte
	}{
		{"protected header", outer.Protected, &d.protected},
		{"payload", outer.Payload, &d.payload},
		{"signature", outer.Signature, &d.signature},
	} {
		if !isByteString(part.raw) {
			return nil, fmt.Errorf("COSE_Sign1: the %s is not a byte string", part.name)
		}
		if err := strict.Unmarshal(part.raw, part.into); err != nil {
			return nil, fmt.Errorf("COSE_Sign1: %s: %w", part.name, err)
		}
	}
	if !bytes.Equal(outer.Unprotected, []byte{emptyMap}) {
		return nil, errors.New("COSE_Sign1: the unprotected header is not empty, and nobody signed it")
	}
	if err := checkHeader(d.protected); err != nil {
		return nil, fmt.Errorf("COSE_Sign1: protected header: %w", err)
	}
	if len(d.signature) != signatureSize {
		return nil, fmt.Errorf("COSE_Sign1: the signature has %d bytes; ES384 makes %d", len(d.signature), signatureSize)
	}
	if err := d.readPayload(); err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	return d, nil
}

// checkHeader demands ES384 and nothing else: a header that a reader does not know
// could change what the signature means.
func checkHeader(protected []byte) error {
	var header map[int64]cbor.RawMessage
	if err := strict.Unmarshal(protected, &header); err != nil {
		return err
	}
	raw, ok := header[headerAlg]
	if !ok {
		return errors.New("it names no algorithm")
	}
	if len(header) != 1 {
		return errors.New("it has more than the algorithm")
	}
	var alg int64
	if err := strict.Unmarshal(raw, &alg); err != nil {
		return fmt.Errorf("algorithm: %w", err)
	}
	if alg != algES384 {
		return fmt.Errorf("the algorithm is %d and not ES384 (%d)", alg, algES384)
	}
	return nil
}

// readPayload reads the map that is signed. Members that it does not know are
// passed over: AWS may add some, and signs them.
func (d *Document) readPayload() error {
	if len(d.payload) == 0 || d.payload[0]>>5 != 5 {
		return errors.New("it is not a map")
	}
	mode := strict
	if d.payload[0] == mapIndefinite {
		mode = lenient
	}
	var members map[string]cbor.RawMessage
	if err := mode.Unmarshal(d.payload, &members); err != nil {
		return err
	}
	if _, enclave := members["pcrs"]; enclave {
		if _, tpm := members["nitrotpm_pcrs"]; !tpm {
			return errors.New("it is that of a Nitro Enclave (pcrs), not that of a NitroTPM (nitrotpm_pcrs): the same root signs both")
		}
	}
	var milliseconds uint64
	var pcrs map[uint64]cbor.RawMessage
	var certificate cbor.RawMessage
	var bundle []cbor.RawMessage
	for name, into := range map[string]any{
		"module_id": &d.ModuleID, "digest": &d.Digest, "timestamp": &milliseconds,
		"nitrotpm_pcrs": &pcrs, "certificate": &certificate, "cabundle": &bundle,
	} {
		if err := member(members, name, into); err != nil {
			return err
		}
		if isNull(members[name]) {
			return fmt.Errorf("%s is null", name)
		}
	}
	if d.ModuleID == "" || len(d.ModuleID) > maxModuleID || strings.ContainsFunc(d.ModuleID, notInModuleID) {
		return errors.New("module_id is not the name of a module: letters, digits and hyphens")
	}
	// As far as RFC 3339 can write it.
	if milliseconds > 253402300799999 {
		return fmt.Errorf("timestamp %d is beyond the year 9999", milliseconds)
	}
	d.Timestamp = time.UnixMilli(int64(milliseconds)).UTC()
	if d.Digest != "SHA384" {
		return fmt.Errorf("digest is %q and not SHA384", d.Digest)
	}
	if err := d.readPCRs(pcrs); err != nil {
		return err
	}
	var err error
	if d.Certificate, err = readCertificate(certificate); err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	if len(bundle) == 0 || len(bundle) > maxBundle {
		return fmt.Errorf("cabundle has %d certificates; between 1 and %d are possible", len(bundle), maxBundle)
	}
	for i, raw := range bundle {
		c, err := readCertificate(raw)
		if err != nil {
			return fmt.Errorf("certificate %d of cabundle: %w", i, err)
		}
		d.CABundle = append(d.CABundle, c)
	}
	for _, f := range []struct {
		name string
		into *[]byte
	}{{"public_key", &d.PublicKey}, {"user_data", &d.UserData}, {"nonce", &d.Nonce}} {
		if *f.into, err = field(members, f.name); err != nil {
			return err
		}
	}
	return nil
}

func notInModuleID(r rune) bool {
	return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && r != '-'
}

func (d *Document) readPCRs(pcrs map[uint64]cbor.RawMessage) error {
	if len(pcrs) == 0 {
		return errors.New("nitrotpm_pcrs is empty")
	}
	d.PCRs = make(map[int][]byte, len(pcrs))
	for n, raw := range pcrs {
		if n >= PCRCount {
			return fmt.Errorf("nitrotpm_pcrs has a PCR %d; a TPM has %d", n, PCRCount)
		}
		var value []byte
		if !isByteString(raw) {
			return fmt.Errorf("PCR %d is not a byte string", n)
		}
		if err := strict.Unmarshal(raw, &value); err != nil {
			return fmt.Errorf("PCR %d: %w", n, err)
		}
		if len(value) != PCRSize {
			return fmt.Errorf("PCR %d has %d bytes and not %d", n, len(value), PCRSize)
		}
		d.PCRs[int(n)] = value
	}
	return nil
}

func readCertificate(raw cbor.RawMessage) (*x509.Certificate, error) {
	if !isByteString(raw) {
		return nil, errors.New("it is not a byte string")
	}
	var der []byte
	if err := strict.Unmarshal(raw, &der); err != nil {
		return nil, err
	}
	if len(der) > MaxField {
		return nil, fmt.Errorf("it has %d bytes, more than %d", len(der), MaxField)
	}
	return x509.ParseCertificate(der)
}
