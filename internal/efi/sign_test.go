package efi

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// testKeys are made once: RSA keys take time.
var testKeys = sync.OnceValues(func() (a, b *rsa.PrivateKey) {
	a, errA := rsa.GenerateKey(rand.Reader, 2048)
	b, errB := rsa.GenerateKey(rand.Reader, 4096)
	if errA != nil || errB != nil {
		panic("cannot make RSA keys")
	}
	return a, b
})

func testCertificate(t testing.TB, name string, public crypto.PublicKey, issuer *x509.Certificate, key crypto.Signer) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(int64(len(name))), Subject: pkix.Name{CommonName: name},
		IsCA: issuer == nil, BasicConstraintsValid: true,
	}
	if issuer == nil {
		issuer = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, public, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func testSigner(t testing.TB, name string, key *rsa.PrivateKey) *Signer {
	t.Helper()
	s, err := NewSigner(key, testCertificate(t, name, key.Public(), nil, key))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustParse(t testing.TB, b []byte) *Image {
	t.Helper()
	image, err := ParseImage(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func signBytes(t testing.TB, s *Signer, b []byte) []byte {
	t.Helper()
	signed, err := s.Sign(mustParse(t, b))
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(io.NewSectionReader(signed, 0, signed.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// digests are the Authenticode digests of an image, and of each of its
// signatures.
func digests(t testing.TB, b []byte) (own []byte, signed [][]byte) {
	t.Helper()
	image := mustParse(t, b)
	h := crypto.SHA256.New()
	if err := image.Authenticode(h); err != nil {
		t.Fatal(err)
	}
	ders, err := image.Signatures()
	if err != nil {
		t.Fatal(err)
	}
	for _, der := range ders {
		s, err := ParseAuthenticode(der)
		if err != nil {
			t.Fatal(err)
		}
		signed = append(signed, s.Digest)
	}
	return h.Sum(nil), signed
}

func writeCertificate(t testing.TB, c *x509.Certificate) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "certificate.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// peChecksumOf is the checksum by the format's own description, byte by byte.
func peChecksumOf(b []byte, field int64) uint32 {
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		word := uint32(b[i])
		if i+1 < len(b) {
			word |= uint32(b[i+1]) << 8
		}
		if int64(i) == field || int64(i) == field+2 {
			word = 0
		}
		sum += word
		sum = sum&0xffff + sum>>16
	}
	return sum + uint32(len(b))
}

// TestSign signs images of awkward lengths once and twice; our own reader
// and sbverify agree that the signatures hold.
func TestSign(t *testing.T) {
	keyA, keyB := testKeys()
	a, b := testSigner(t, "Signer A", keyA), testSigner(t, "Signer B of 4096 bits", keyB)
	uki := testenv.UKI(uint16(MachineX64), "257.13-1")
	for _, tc := range []struct {
		name  string
		image []byte
	}{
		{"aligned", uki},
		{"one byte over", append(bytes.Clone(uki), 'x')},
		{"seven bytes over", append(bytes.Clone(uki), "trailer"...)},
		{"aarch64", testenv.UKI(uint16(MachineAArch64), "257.13-1")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			once := signBytes(t, a, tc.image)
			if again := signBytes(t, a, tc.image); !bytes.Equal(once, again) {
				t.Error("the same image signed again gives other bytes")
			}
			twice := signBytes(t, b, once)
			for n, signed := range [][]byte{once, twice} {
				own, inside := digests(t, signed)
				if len(inside) != n+1 {
					t.Fatalf("%d signatures, want %d", len(inside), n+1)
				}
				for _, d := range inside {
					if !bytes.Equal(d, own) {
						t.Errorf("a signature is over %x, the image's digest is %x", d, own)
					}
				}
				image := mustParse(t, signed)
				if got, want := binary.LittleEndian.Uint32(signed[image.checksum:]), peChecksumOf(signed, image.checksum); got != want {
					t.Errorf("CheckSum is %#x, want %#x", got, want)
				}
				if image.certOffset%8 != 0 || int(image.certOffset+image.certSize) != len(signed) {
					t.Errorf("certificate table at %d of %d bytes in a file of %d", image.certOffset, image.certSize, len(signed))
				}
			}
			path := filepath.Join(t.TempDir(), "signed.efi")
			if err := os.WriteFile(path, twice, 0o600); err != nil {
				t.Fatal(err)
			}
			for _, s := range []*Signer{a, b} {
				if ok, err := mustParse(t, twice).SignedBy(s.Certificate()); err != nil || !ok {
					t.Errorf("not signed by %s: %v", s.Certificate().Subject, err)
				}
				out, err := exec.Command(testenv.Tool(t, "sbverify"), "--cert", writeCertificate(t, s.Certificate()), path).CombinedOutput()
				if err != nil || !strings.Contains(string(out), "Signature verification OK") {
					t.Errorf("sbverify with %s: %v\n%s", s.Certificate().Subject, err, out)
				}
			}
			stranger := testCertificate(t, "stranger", keyA.Public(), nil, keyA)
			if ok, err := mustParse(t, twice).SignedBy(stranger); err != nil || ok {
				t.Errorf("signed by a stranger: %t, %v", ok, err)
			}
		})
	}
}

// TestSignLikeSbsign holds that the digest that we sign is the one that sbsign
// signs.
func TestSignLikeSbsign(t *testing.T) {
	key, _ := testKeys()
	s := testSigner(t, "Signer", key)
	dir := t.TempDir()
	keyFile, image := filepath.Join(dir, "key.pem"), filepath.Join(dir, "image.efi")
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}), 0o600); err != nil {
		t.Fatal(err)
	}
	content := append(testenv.UKI(uint16(MachineX64), "257.13-1"), "odd"...)
	if err := os.WriteFile(image, content, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(testenv.Tool(t, "sbsign"), "--key", keyFile, "--cert", writeCertificate(t, s.Certificate()), "--output", image+".signed", image).CombinedOutput()
	if err != nil {
		t.Fatalf("sbsign: %v\n%s", err, out)
	}
	theirs, err := os.ReadFile(image + ".signed")
	if err != nil {
		t.Fatal(err)
	}
	ours := signBytes(t, s, content)
	ownDigest, _ := digests(t, ours)
	theirDigest, _ := digests(t, theirs)
	if !bytes.Equal(ownDigest, theirDigest) {
		t.Errorf("our signed image has the digest %x, sbsign's %x", ownDigest, theirDigest)
	}
	if ok, err := mustParse(t, theirs).SignedBy(s.Certificate()); err != nil || !ok {
		t.Errorf("sbsign's signature is not recognised: %v", err)
	}
	// One of ours on top of sbsign's, of which both hold.
	other := testSigner(t, "other", key)
	if _, inside := digests(t, signBytes(t, other, theirs)); len(inside) != 2 || !bytes.Equal(inside[0], inside[1]) {
		t.Errorf("digests of the signatures: %x", inside)
	}
}

// TestSignedImageReads reads a signed image in pieces of every kind.
func TestSignedImageReads(t *testing.T) {
	key, _ := testKeys()
	image := append(testenv.PE(uint16(MachineX64), testenv.PESection{Name: ".text", Data: []byte{0xc3}}), 1, 2, 3)
	signed, err := testSigner(t, "Signer", key).Sign(mustParse(t, image))
	if err != nil {
		t.Fatal(err)
	}
	whole := make([]byte, signed.Size())
	if n, err := signed.ReadAt(whole, 0); n != len(whole) || err != nil {
		t.Fatalf("read %d of %d bytes: %v", n, len(whole), err)
	}
	for _, size := range []int{1, 3, 7, 64} {
		for off := 0; off <= len(whole); off++ {
			p := make([]byte, size)
			n, err := signed.ReadAt(p, int64(off))
			want := whole[off:min(off+size, len(whole))]
			if !bytes.Equal(p[:n], want) || (n < size) != errors.Is(err, io.EOF) {
				t.Fatalf("%d bytes at %d: got %x and %v, want %x", size, off, p[:n], err, want)
			}
		}
	}
	if n, err := signed.ReadAt(make([]byte, 1), -1); n != 0 || err == nil {
		t.Errorf("read %d bytes at -1: %v", n, err)
	}
}

// wrongKey says that it is another key than the one that it signs with.
type wrongKey struct {
	crypto.Signer
	public crypto.PublicKey
}

func (k wrongKey) Public() crypto.PublicKey { return k.public }

func TestSignRefuses(t *testing.T) {
	key, other := testKeys()
	certificate := testCertificate(t, "Signer", key.Public(), nil, key)
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	small := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 1023), E: 65537}}
	for _, tc := range []struct {
		name         string
		key          crypto.Signer
		certificates []*x509.Certificate
		want         string
	}{
		{"no certificate", key, nil, "there is no certificate"},
		{"ECDSA", curve, []*x509.Certificate{certificate}, "the key is ECDSA, and firmware verifies RSA only"},
		{"1024 bits", small, []*x509.Certificate{certificate}, "the RSA key has 1024 bits"},
		{"another key's certificate", other, []*x509.Certificate{certificate}, `the certificate of "CN=Signer" is for another key`},
		{"too many certificates", key, make([]*x509.Certificate, 33), "33 certificates are more than"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := NewSigner(tc.key, tc.certificates...); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}

	uki := testenv.UKI(uint16(MachineX64), "257.13-1")
	s := testSigner(t, "Signer", key)
	signed := signBytes(t, s, uki)
	liar := &Signer{wrongKey{other, key.Public()}, []*x509.Certificate{certificate}}
	misaligned := bytes.Clone(signed)
	table := mustParse(t, signed)
	misaligned = append(misaligned[:table.certOffset], append([]byte{0, 0, 0, 0}, misaligned[table.certOffset:]...)...)
	binary.LittleEndian.PutUint32(misaligned[table.certEntry:], table.certOffset+4)
	for _, tc := range []struct {
		name   string
		signer *Signer
		image  []byte
		want   string
	}{
		{"key is another one", liar, uki, "the signature that the key made does not verify"},
		{"data after the signatures", s, append(bytes.Clone(signed), "12345678"...), "remove what follows the signatures"},
		{"misaligned table", s, misaligned, "is not aligned to 8 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := tc.signer.Sign(mustParse(t, tc.image)); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}

	noDirectory := mustParse(t, uki)
	noDirectory.certEntry = 0
	if _, err := s.Sign(noDirectory); err == nil || !strings.Contains(err.Error(), "its headers have no room for a certificate table") {
		t.Errorf("without a certificate directory: %v", err)
	}

	// A changed image keeps its signature, which then no longer counts.
	changed := bytes.Clone(signed)
	changed[1024] ^= 1
	if ok, err := mustParse(t, changed).SignedBy(s.Certificate()); err != nil || ok {
		t.Errorf("a changed image counts as signed: %t, %v", ok, err)
	}
}

// TestSignEmbedsIssuers signs with a certificate whose issuer is embedded, too.
func TestSignEmbedsIssuers(t *testing.T) {
	key, caKey := testKeys()
	root := testCertificate(t, "Root", caKey.Public(), nil, caKey)
	leaf := testCertificate(t, "Leaf", key.Public(), root, caKey)
	s, err := NewSigner(key, leaf, root)
	if err != nil {
		t.Fatal(err)
	}
	ders, err := mustParse(t, signBytes(t, s, testenv.UKI(uint16(MachineX64), "257.13-1"))).Signatures()
	if err != nil || len(ders) != 1 {
		t.Fatalf("%d signatures, %v", len(ders), err)
	}
	signature, err := ParseAuthenticode(ders[0])
	if err != nil {
		t.Fatal(err)
	}
	if len(signature.Certificates) != 2 || !signature.Signer.Equal(leaf) || !signature.AnchoredBy(root) {
		t.Errorf("%d certificates, signer %s, anchored by the root: %t", len(signature.Certificates), signature.Signer.Subject, signature.AnchoredBy(root))
	}
}
