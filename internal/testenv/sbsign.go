package testenv

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Signer is a key for Secure Boot, and its certificate.
type Signer struct {
	Certificate *x509.Certificate
	key         *rsa.PrivateKey
	certFile    string // PEM
	keyFile     string // PEM
}

var serials int64

// NewSigner makes a key and a certificate for it, issued by another signer, or
// by itself when issuer is nil. Each can issue others.
func NewSigner(t testing.TB, name string, issuer *Signer) *Signer {
	t.Helper()
	serials++
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serials),
		Subject:      pkix.Name{CommonName: name},
		// Firmware has no clock that it trusts: a certificate that ran out counts.
		NotBefore:             time.Now().Add(-48 * time.Hour),
		NotAfter:              time.Now().Add(-24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	parent, parentKey := template, key
	if issuer != nil {
		parent, parentKey = issuer.Certificate, issuer.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		t.Fatal(err)
	}
	s := &Signer{key: key}
	if s.Certificate, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s.certFile, s.keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{
		s.certFile: {Type: "CERTIFICATE", Bytes: der},
		s.keyFile:  {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// Sign signs a PE image with sbsign and embeds the signer's certificate, and
// those of others.
func (s *Signer) Sign(t testing.TB, image []byte, others ...*Signer) []byte {
	t.Helper()
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in.efi"), filepath.Join(dir, "out.efi")
	if err := os.WriteFile(in, image, 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"--key", s.keyFile, "--cert", s.certFile, "--output", out}
	if len(others) > 0 {
		var chain bytes.Buffer
		for _, o := range others {
			if err := pem.Encode(&chain, &pem.Block{Type: "CERTIFICATE", Bytes: o.Certificate.Raw}); err != nil {
				t.Fatal(err)
			}
		}
		path := filepath.Join(dir, "others.pem")
		if err := os.WriteFile(path, chain.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--addcert", path)
	}
	if printed, err := exec.Command(Tool(t, "sbsign"), append(args, in)...).CombinedOutput(); err != nil {
		t.Fatalf("sbsign: %v\n%s", err, printed)
	}
	signed, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// Verify says whether sbverify accepts the signature of a PE image by this
// signer's certificate.
func (s *Signer) Verify(t testing.TB, image []byte) bool {
	t.Helper()
	path := filepath.Join(t.TempDir(), "signed.efi")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	return exec.Command(Tool(t, "sbverify"), "--cert", s.certFile, path).Run() == nil
}

// SignatureList encodes an EFI_SIGNATURE_LIST (UEFI 2.10, section 32.4.1) of a
// type, a GUID as it lies in memory. The entries have one size and the owner
// that TestOwner is.
func SignatureList(signatureType [16]byte, entries ...[]byte) []byte {
	le := binary.LittleEndian
	size := 16
	if len(entries) > 0 {
		size += len(entries[0])
	}
	list := append([]byte{}, signatureType[:]...)
	list = le.AppendUint32(list, uint32(28+size*len(entries)))
	list = le.AppendUint32(list, 0)
	list = le.AppendUint32(list, uint32(size))
	for _, e := range entries {
		list = append(append(list, TestOwner[:]...), e...)
	}
	return list
}

// TestOwner owns the entries of SignatureList.
var TestOwner = [16]byte([]byte("owner of a test."))
