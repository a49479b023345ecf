package cms

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/org/attestable-image-action/internal/testenv"
)

func newKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sealed(t testing.TB, plaintext []byte, key *rsa.PrivateKey) []byte {
	t.Helper()
	message, err := Seal(plaintext, &key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return message
}

// TestOpen opens messages of every length up to two blocks, and of the longest that
// KMS makes.
func TestOpen(t *testing.T) {
	key := newKey(t)
	for n := range 34 {
		if n == 33 {
			n = 4096
		}
		want := bytes.Repeat([]byte{byte(n)}, n)
		got, err := Open(sealed(t, want, key), key)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: %x, %v", n, got, err)
		}
	}
	if _, err := Seal(make([]byte, MaxMessage), &key.PublicKey); err == nil {
		t.Error("sealed what nobody opens")
	}
}

// TestOpenRefuses changes one thing of a message at a time. CBC proves nothing of
// the content: what is changed there goes unnoticed, or makes the padding wrong.
func TestOpenRefuses(t *testing.T) {
	key := newKey(t)
	good := sealed(t, []byte("a secret of some length"), key)
	replace := func(old, new []byte) func([]byte) []byte {
		return func(b []byte) []byte {
			if !bytes.Contains(b, old) {
				t.Fatalf("%x is not in the message", old)
			}
			return bytes.Replace(b, old, new, 1)
		}
	}
	last := func(oid []byte) []byte { // another object of the same length
		other := slices.Clone(oid)
		other[len(other)-1] ^= 0x40
		return other
	}
	sha256Identifier := encode(tagSequence, encode(tagOID, oidSHA256), encode(tagNull))
	for _, tc := range []struct {
		name   string
		change func([]byte) []byte
		err    string
	}{
		{"empty", func([]byte) []byte { return nil }, "ends before"},
		{"too long", func(b []byte) []byte { return append(b, make([]byte, MaxMessage)...) }, "more than 16384"},
		{"something follows", func(b []byte) []byte { return append(b, 0) }, "1 bytes follow it"},
		{"PEM", func([]byte) []byte { return []byte("-----BEGIN CMS-----\n") }, "the element 0x2d"},
		{"no end of contents", func(b []byte) []byte { return b[:len(b)-2] }, "ends before"},
		{"another type of content", replace(oidEnvelopedData, last(oidEnvelopedData)), "not EnvelopedData"},
		{"version 0", replace([]byte{2, 1, 2, 0x31}, []byte{2, 1, 0, 0x31}), "not of version 2"},
		{"version 2 in two bytes", replace([]byte{2, 1, 2, 0x31}, []byte{2, 2, 0, 2, 0x31}), "not of version 2"},
		{"recipient of version 0", replace([]byte{2, 1, 2, 0x80, 32}, []byte{2, 1, 0, 0x80, 32}), "KeyTransRecipientInfo is not of version 2"},
		{"recipient named otherwise", replace([]byte{2, 1, 2, 0x80, 32}, []byte{2, 1, 2, 0x04, 32}), "KeyTransRecipientInfo: element 1"},
		{"RSAES-PKCS1-v1_5", replace(oidRSAESOAEP, append(slices.Clone(oidRSAESOAEP[:8]), 1)), "not encrypted with RSAES-OAEP"},
		{"OAEP with another hash", replace(encode(tagContext0, sha256Identifier), encode(tagContext0, encode(tagSequence, encode(tagOID, last(oidSHA256)), encode(tagNull)))), "not with SHA-256"},
		{"OAEP with another mask", replace(oidMGF1, last(oidMGF1)), "not with MGF1"},
		{"hash with parameters", replace(encode(tagContext0, sha256Identifier), encode(tagContext0, encode(tagSequence, encode(tagOID, oidSHA256), []byte{4, 0}))), "not with SHA-256"},
		{"content of another type", replace(oidData, oidEnvelopedData), "not of the type data"},
		{"AES-128", replace(oidAES256CBC, append(slices.Clone(oidAES256CBC[:8]), 2)), "not encrypted with AES-256"},
		{"a part that is a SEQUENCE", replace([]byte{0xa0, 0x80, 0x04, 32}, []byte{0xa0, 0x80, 0x10, 32}), "no OCTET STRING"},
		{"content of another tag", replace([]byte{0xa0, 0x80, 0x04, 32}, []byte{0xa1, 0x80, 0x04, 32}), "0xa1 and not [0]"},
		{"a primitive element without end", replace([]byte{0xa0, 0x80, 0x04, 32}, []byte{0xa0, 0x80, 0x04, 0x80}), "indefinite length"},
		{"content that is no block", func(b []byte) []byte {
			return slices.Concat(b[:len(b)-11], b[len(b)-10:])
		}, "" /* the lengths no longer fit */},
		{"another encrypted key", func(b []byte) []byte { b[200] ^= 1; return b }, "not encrypted for this key"},
		{"the last block exchanged for noise", func(b []byte) []byte { b[len(b)-30] ^= 0x80; return b }, "not encrypted for this key"},
		{"a tag of two bytes", func([]byte) []byte { return []byte{0x3f, 0x81, 0x00} }, "several bytes"},
		{"a length of five bytes", func([]byte) []byte { return []byte{0x30, 0x85, 0, 0, 0, 0, 0} }, "5 bytes, more than 4"},
		{"a length of 4 GiB", func([]byte) []byte { return []byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff} }, "more than 16384"},
		{"a length that is cut off", func([]byte) []byte { return []byte{0x30, 0x82, 1} }, "before a length does"},
		{"nested deeply", func([]byte) []byte { return bytes.Repeat([]byte{0x30, 0x80}, 8000) }, "nested deeper than 16"},
		{"ten thousand elements", func([]byte) []byte {
			return append([]byte{0x30, 0x80}, bytes.Repeat([]byte{5, 0}, 8000)...)
		}, "more than 64 others"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if plaintext, err := Open(tc.change(slices.Clone(good)), key); err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%q, error %v, want %q", plaintext, err, tc.err)
			}
		})
	}
	if _, err := Open(good, newKey(t)); err == nil || !strings.Contains(err.Error(), "not encrypted for this key") {
		t.Errorf("another key: %v", err)
	}
	for n := range good {
		if _, err := Open(good[:n], key); err == nil {
			t.Errorf("opened the first %d bytes of %d", n, len(good))
		}
	}
}

// TestOpenSSL opens what openssl encrypts, in DER and in BER with the content in
// parts, and has openssl open what Seal makes.
func TestOpenSSL(t *testing.T) {
	openssl := testenv.Tool(t, "openssl")
	dir := t.TempDir()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "recipient"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), SubjectKeyId: []byte("identifier"),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	certificate := file("certificate.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	keyFile := file("key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
	run := func(args ...string) []byte {
		out, err := exec.Command(openssl, args...).Output()
		if err != nil {
			t.Fatalf("openssl %s: %v", strings.Join(args, " "), err)
		}
		return out
	}
	secret := bytes.Repeat([]byte("0123456789abcdef-"), 600)
	plain := file("plain", secret)
	for name, streamed := range map[string]bool{"DER": false, "BER in parts": true} {
		args := []string{"cms", "-encrypt", "-binary", "-aes-256-cbc", "-outform", "DER", "-in", plain, "-keyid", "-recip", certificate,
			"-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_md:sha256", "-keyopt", "rsa_mgf1_md:sha256"}
		if streamed {
			args = append(args, "-stream")
		}
		message := run(args...)
		if indefinite := message[1] == 0x80; indefinite != streamed {
			t.Errorf("%s begins with %x", name, message[:2])
		}
		if got, err := Open(message, key); err != nil || !bytes.Equal(got, secret) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	// What is not SHA-256 is refused, and says so.
	message := run("cms", "-encrypt", "-binary", "-aes-256-cbc", "-outform", "DER", "-in", plain, "-keyid", "-recip", certificate,
		"-keyopt", "rsa_padding_mode:oaep")
	if _, err := Open(message, key); err == nil {
		t.Error("OAEP with SHA-1 was opened")
	}
	for _, n := range []int{0, 1, 16, 4096} {
		message := file("message", sealed(t, secret[:n], key))
		if got := run("cms", "-decrypt", "-binary", "-inform", "DER", "-in", message, "-inkey", keyFile); !bytes.Equal(got, secret[:n]) {
			t.Errorf("openssl opens %d bytes as %q", n, got)
		}
	}
}

// FuzzOpen holds that whatever is read fits what is opened, and that nothing
// panics. That something else than a message opens is a matter of chance that no
// fuzzer has.
func FuzzOpen(f *testing.F) {
	key := newKey(f)
	message := sealed(f, []byte("a secret"), key)
	f.Add(message)
	// The content as a primitive element, as KMS writes it, too.
	primitive := bytes.Replace(message, []byte{0xa0, 0x80, 0x04}, []byte{0x80}, 1)
	f.Add(primitive[:len(primitive)-2])
	f.Add([]byte{0x30, 0x80, 0, 0})
	f.Add([]byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := parse(b)
		if err != nil {
			return
		}
		if len(e.iv) != 16 || len(e.content) == 0 || len(e.content)%16 != 0 || len(e.content) > len(b) || len(e.encryptedKey) > len(b) {
			t.Errorf("read %d bytes as %+v", len(b), e)
		}
		if plaintext, err := e.open(key); err == nil && len(plaintext) >= len(e.content) {
			t.Errorf("%d bytes of content are %d bytes", len(e.content), len(plaintext))
		}
	})
}

// TestOpenPrimitive opens content that is one element, which KMS writes, too.
func TestOpenPrimitive(t *testing.T) {
	key := newKey(t)
	message := bytes.Replace(sealed(t, []byte("a secret"), key), []byte{0xa0, 0x80, 0x04}, []byte{0x80}, 1)
	if got, err := Open(message[:len(message)-2], key); err != nil || string(got) != "a secret" {
		t.Errorf("%q, %v", got, err)
	}
}
