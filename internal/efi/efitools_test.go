package efi

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	efilib "github.com/canonical/go-efilib"

	"github.com/org/attestable-image-action/internal/testenv"
)

// efitool runs a program of efitools in a directory of its own and returns what
// it printed.
func efitool(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(testenv.Tool(t, name), args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func readAll(t *testing.T, dir, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// efitoolsCertificates are of several lengths, as each gets a list of its own.
func efitoolsCertificates(t *testing.T) []*x509.Certificate {
	t.Helper()
	key, other := testKeys()
	root := testCertificate(t, "A root", key.Public(), nil, key)
	return []*x509.Certificate{
		root, testCertificate(t, "A leaf of it", other.Public(), root, key), testCertificate(t, strings.Repeat("long ", 12), other.Public(), nil, other),
	}
}

// TestEfitoolsReadOurLists has sig-list-to-certs take apart what we write.
func TestEfitoolsReadOurLists(t *testing.T) {
	certificates := efitoolsCertificates(t)
	dir := t.TempDir()
	digest := bytes.Repeat([]byte{7}, 32)
	lists := slices.Concat(CertificateLists(certificates...), testenv.SignatureList(CertSHA256, digest, digest))
	if err := os.WriteFile(filepath.Join(dir, "db.esl"), lists, 0o600); err != nil {
		t.Fatal(err)
	}
	out := efitool(t, dir, "sig-list-to-certs", "db.esl", "out")
	for i, c := range certificates {
		if der := readAll(t, dir, fmt.Sprintf("out-%d.der", i)); !bytes.Equal(der, c.Raw) {
			t.Errorf("certificate %d comes back with %d bytes of %d", i, len(der), len(c.Raw))
		}
		// It prints the owner in the registry form, in either case.
		if owner := CertificateOwner(c).String(); !strings.Contains(strings.ToLower(out), owner) {
			t.Errorf("it prints no owner %s:\n%s", owner, out)
		}
	}
	for i := range 2 {
		if hash := readAll(t, dir, fmt.Sprintf("out-%d.hash", len(certificates)+i)); !bytes.Equal(hash, digest) {
			t.Errorf("digest %d comes back as %x", i, hash)
		}
	}
}

// TestOurReaderReadsEfitools reads lists of cert-to-efi-sig-list and
// hash-to-efi-sig-list, one behind the other, whose digests are Authenticode's.
func TestOurReaderReadsEfitools(t *testing.T) {
	certificates := efitoolsCertificates(t)
	dir := t.TempDir()
	var all []byte
	for i, c := range certificates {
		name := fmt.Sprintf("%d.esl", i)
		efitool(t, dir, "cert-to-efi-sig-list", "-g", CertificateOwner(c).String(), writeCertificate(t, c), name)
		all = append(all, readAll(t, dir, name)...)
	}
	if ours := CertificateLists(certificates...); !bytes.Equal(ours, all) {
		t.Errorf("we make\n%x\nefitools make\n%x", ours, all)
	}
	var programs []string
	var digests [][]byte
	for name, content := range map[string][]byte{
		"golden": goldenUKI(t, "stub257"), "signed": goldenUKI(t, "sbA252"), "uki": testenv.UKI(0x8664, "257"), "aarch64": testenv.UKI(0xaa64, "257"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name+".efi"), content, 0o600); err != nil {
			t.Fatal(err)
		}
		programs = append(programs, name+".efi")
		by, err := authenticode(content, crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, by[0])
	}
	efitool(t, dir, "hash-to-efi-sig-list", append(slices.Clone(programs), "hashes.esl")...)
	lists, err := ParseSignatureLists(slices.Concat(all, readAll(t, dir, "hashes.esl")))
	if err != nil {
		t.Fatal(err)
	}
	var got [][]byte
	for i, l := range lists {
		if i < len(certificates) {
			if l.Type != CertX509 || len(l.Signatures) != 1 || !bytes.Equal(l.Signatures[0].Data, certificates[i].Raw) || l.Signatures[0].Owner != CertificateOwner(certificates[i]) {
				t.Errorf("list %d is %+v", i, l)
			}
			continue
		}
		if l.Type != CertSHA256 {
			t.Errorf("list %d is of type %s", i, l.Type)
		}
		for _, s := range l.Signatures {
			got = append(got, s.Data)
		}
	}
	if !slices.EqualFunc(got, digests, bytes.Equal) {
		t.Errorf("efitools take the digests %x of %v, we take %x", got, programs, digests)
	}
}

// TestSignedListsOfEfitools has sign-efi-sig-list make a signed update
// (EFI_VARIABLE_AUTHENTICATION_2) of what we write: what is behind the signature
// is our list, byte for byte. The update as a whole is no list, and refused.
func TestSignedListsOfEfitools(t *testing.T) {
	key, _ := testKeys()
	c := testCertificate(t, "PK", key.Public(), nil, key)
	dir := t.TempDir()
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	lists := CertificateLists(efitoolsCertificates(t)...)
	for name, content := range map[string][]byte{
		"pk.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), "db.esl": lists,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	efitool(t, dir, "sign-efi-sig-list", "-t", "2026-01-02 03:04:05", "-c", writeCertificate(t, c), "-k", "pk.key", "db", "db.esl", "db.auth")
	update := readAll(t, dir, "db.auth")
	r := bytes.NewReader(update)
	if _, err := efilib.ReadTimeBasedVariableAuthentication(r); err != nil {
		t.Fatalf("go-efilib reads the update: %v", err)
	}
	// EFI_TIME has 16 bytes; the length of WIN_CERTIFICATE_UEFI_GUID follows.
	header := 16 + int(binary.LittleEndian.Uint32(update[16:]))
	if header != len(update)-r.Len() || !bytes.Equal(update[header:], lists) {
		t.Errorf("behind the signature are %d bytes, want our %d", len(update)-header, len(lists))
	}
	if got, err := ParseSignatureLists(update[header:]); err != nil || len(got) != 3 {
		t.Errorf("%d lists, %v", len(got), err)
	}
	if _, err := ParseSignatureLists(update); err == nil || !strings.Contains(err.Error(), "signed update of a variable (.auth)") {
		t.Errorf("the signed update: %v", err)
	}
}
