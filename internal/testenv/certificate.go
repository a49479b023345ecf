package testenv

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"slices"
	"time"
)

// The extensions of RFC 6962: the list of signed certificate timestamps in a
// certificate (section 3.3), and what marks a precertificate (section 3.1).
var (
	oidSCTs   = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2}
	oidPoison = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 3}
)

// Reissue has Fulcio's authority issue leaf, one of Fulcio's certificates, once
// more with another time of validity, and returns the new one in DER. Where the
// stack has a certificate transparency log, it is in the log. Fulcio itself
// issues for ten minutes, always.
func (s *Stack) Reissue(leaf *x509.Certificate, notBefore, notAfter time.Time) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	extensions := slices.DeleteFunc(slices.Clone(leaf.Extensions), func(e pkix.Extension) bool { return e.Id.Equal(oidSCTs) })
	issue := func(more ...pkix.Extension) ([]byte, error) {
		return x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: serial, NotBefore: notBefore, NotAfter: notAfter, ExtraExtensions: slices.Concat(extensions, more),
		}, s.authority.cert, leaf.PublicKey, s.authority.key)
	}
	if s.ctLog == nil {
		return issue()
	}
	precertificate, err := issue(pkix.Extension{Id: oidPoison, Critical: true, Value: asn1.NullBytes})
	if err != nil {
		return nil, err
	}
	sct, err := s.addPrecertificate(precertificate)
	if err != nil {
		return nil, fmt.Errorf("add a precertificate to the CT log: %w", err)
	}
	list, err := sctList(sct)
	if err != nil {
		return nil, err
	}
	return issue(pkix.Extension{Id: oidSCTs, Value: list})
}

// sctList is the value of the extension with one signed certificate timestamp.
func sctList(sct []byte) ([]byte, error) {
	one := append(binary.BigEndian.AppendUint16(nil, uint16(len(sct))), sct...)               //nolint:gosec // some 120 bytes
	return asn1.Marshal(append(binary.BigEndian.AppendUint16(nil, uint16(len(one))), one...)) //nolint:gosec // likewise
}

// addPrecertificate returns the log's signed certificate timestamp as RFC 6962,
// section 3.2 encodes it.
func (s *Stack) addPrecertificate(der []byte) ([]byte, error) {
	body, err := json.Marshal(map[string][][]byte{"chain": {der, s.authority.cert.Raw}})
	if err != nil {
		return nil, err
	}
	response, err := http.Post(s.ctLog.BaseURL+"/ct/v1/add-pre-chain", "application/json", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(response.Body, logTail))
		return nil, fmt.Errorf("%s: %s", response.Status, said)
	}
	var answer struct {
		Version    byte   `json:"sct_version"`
		ID         []byte `json:"id"`
		Timestamp  uint64 `json:"timestamp"` // ms since 1970
		Extensions []byte `json:"extensions"`
		Signature  []byte `json:"signature"`
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return nil, err
	}
	return encodeSCT(answer.Version, answer.ID, answer.Timestamp, answer.Extensions, answer.Signature), nil
}

func encodeSCT(version byte, id []byte, timestamp uint64, extensions, signature []byte) []byte {
	sct := binary.BigEndian.AppendUint64(append([]byte{version}, id...), timestamp)
	sct = binary.BigEndian.AppendUint16(sct, uint16(len(extensions))) //nolint:gosec // none
	return slices.Concat(sct, extensions, signature)
}

// ForgeSCT has Fulcio's authority issue leaf once more with a signed certificate
// timestamp that names the log, and that the log did not sign.
func (s *Stack) ForgeSCT(leaf *x509.Certificate) ([]byte, error) {
	if s.ctLog == nil {
		return nil, errors.New("there is no CT log")
	}
	forger, _, err := logKey()
	if err != nil {
		return nil, err
	}
	digest := make([]byte, crypto.SHA256.Size()) // of anything
	raw, err := forger.Sign(rand.Reader, digest, crypto.SHA256)
	if err != nil {
		return nil, err
	}
	// DigitallySigned of RFC 5246, section 4.7: SHA-256 and ECDSA.
	signature := append(binary.BigEndian.AppendUint16([]byte{4, 3}, uint16(len(raw))), raw...)     //nolint:gosec // 72 bytes
	list, err := sctList(encodeSCT(0, s.ctLog.ID, uint64(time.Now().UnixMilli()), nil, signature)) //nolint:gosec // positive
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	extensions := slices.DeleteFunc(slices.Clone(leaf.Extensions), func(e pkix.Extension) bool { return e.Id.Equal(oidSCTs) })
	return x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter,
		ExtraExtensions: append(extensions, pkix.Extension{Id: oidSCTs, Value: list}),
	}, s.authority.cert, leaf.PublicKey, s.authority.key)
}
