package measure

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/efi"
	"github.com/org/attestable-image-action/internal/testenv"
)

// wantError checks that an error is one sentence that holds what is wanted.
func wantError(t *testing.T, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", want)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error is %q, want one with %q", err, w)
		}
	}
	if strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' }) {
		t.Errorf("error %q is more than a line", err)
	}
}

// predictFile predicts the boot of one unified kernel image.
func predictFile(t testing.TB, image []byte, o Options) (*Prediction, error) {
	t.Helper()
	return Files(t.Context(), []EFIFile{{Path: "uki.efi", R: bytes.NewReader(image), Size: int64(len(image))}}, o)
}

// digestOf is the Authenticode digest of an image.
func digestOf(t testing.TB, image []byte, hash crypto.Hash) []byte {
	t.Helper()
	parsed, err := efi.ParseImage(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	h := hash.New()
	if err := parsed.Authenticode(h); err != nil {
		t.Fatal(err)
	}
	return h.Sum(nil)
}

// TestAuthority finds the db entry that lets an image run, with keys and
// signatures made for the test.
func TestAuthority(t *testing.T) {
	root := testenv.NewSigner(t, "root", nil)
	ca := testenv.NewSigner(t, "ca", root)
	leaf := testenv.NewSigner(t, "leaf", ca)
	first, second := testenv.NewSigner(t, "first", nil), testenv.NewSigner(t, "second", nil)
	platform := testenv.NewSigner(t, "platform", nil)

	der := func(s *testenv.Signer) []byte { return s.Certificate.Raw }
	certs := func(signers ...*testenv.Signer) []byte { // one list each: certificates differ in size
		var lists []byte
		for _, s := range signers {
			lists = append(lists, testenv.SignatureList(efi.CertX509, der(s))...)
		}
		return lists
	}
	sum256 := func(b []byte) []byte { s := sha256.Sum256(b); return s[:] }
	tbs := func(c *x509.Certificate) []byte { return append(sum256(c.RawTBSCertificate), make([]byte, 16)...) }
	hashes := func(digests ...[]byte) []byte { return testenv.SignatureList(efi.CertSHA256, digests...) }

	unsigned := testenv.UKI(0x8664, "257.13-1")
	byFirst := first.Sign(t, unsigned)
	byLeaf := leaf.Sign(t, unsigned)
	chain := leaf.Sign(t, unsigned, ca)
	byBoth := second.Sign(t, byFirst)
	changed := bytes.Clone(byFirst)
	changed[1024] ^= 1 // the first byte of .text
	other := bytes.Repeat([]byte{7}, 32)
	hash := func(image []byte) []byte { return digestOf(t, image, crypto.SHA256) }
	tbs384 := sha512.Sum384(first.Certificate.RawTBSCertificate)
	badTable := bytes.Clone(byFirst)
	badTable = append(badTable[:len(badTable)-8], make([]byte, 8)...)

	for name, test := range map[string]struct {
		image   []byte
		db, dbx []byte
		want    []byte // entry of db
		err     string
	}{
		"own certificate":                {image: byFirst, db: certs(first), want: der(first)},
		"own certificate behind others":  {image: byFirst, db: slices.Concat(hashes(other), certs(second, root, first)), want: der(first)},
		"issuing CA only":                {image: byLeaf, db: certs(ca), want: der(ca)},
		"root over an embedded CA":       {image: chain, db: certs(root), want: der(root)},
		"root, but no CA between":        {image: byLeaf, db: certs(root), err: "no entry of db has the signer of uki.efi, an issuer of it, or the digest of it"},
		"leaf before its CA":             {image: byLeaf, db: certs(leaf, ca), want: der(leaf)},
		"CA before its leaf":             {image: byLeaf, db: certs(ca, leaf), want: der(ca)},
		"two signatures, first in db":    {image: byBoth, db: certs(first), want: der(first)},
		"two signatures, second in db":   {image: byBoth, db: certs(second), want: der(second)},
		"two signatures, both in db":     {image: byBoth, db: certs(first, second), want: der(first)},
		"two signatures, db turned":      {image: byBoth, db: certs(second, first), want: der(first)},
		"unsigned, its digest in db":     {image: unsigned, db: hashes(other, hash(unsigned)), want: hash(unsigned)},
		"signed, its digest in db":       {image: byFirst, db: slices.Concat(certs(second), hashes(hash(byFirst))), want: hash(byFirst)},
		"signed, both in db":             {image: byFirst, db: slices.Concat(hashes(hash(byFirst)), certs(first)), want: der(first)},
		"changed, its digest in db":      {image: changed, db: slices.Concat(certs(first), hashes(hash(changed))), want: hash(changed)},
		"a certificate that is none":     {image: byFirst, db: slices.Concat(testenv.SignatureList(efi.CertX509, []byte("no DER")), certs(first)), want: der(first)},
		"others in dbx":                  {image: byFirst, db: certs(first), dbx: slices.Concat(hashes(other), certs(second), testenv.SignatureList(efi.CertX509SHA256, tbs(second.Certificate))), want: der(first)},
		"dbx of another CA of the chain": {image: byLeaf, db: certs(ca), dbx: testenv.SignatureList(efi.CertX509SHA256, tbs(root.Certificate)), want: der(ca)},
		"CA in dbx by digest, image's digest in db": {image: byLeaf, db: slices.Concat(certs(ca), hashes(hash(byLeaf))),
			dbx: testenv.SignatureList(efi.CertX509SHA256, tbs(ca.Certificate)), want: hash(byLeaf)},

		"no db":                      {image: byFirst, err: "no entry of db has the signer of uki.efi"},
		"another certificate":        {image: byFirst, db: certs(second), err: "no entry of db has the signer of uki.efi"},
		"unsigned":                   {image: unsigned, db: certs(first), err: "uki.efi is not signed, and its SHA-256 Authenticode digest"},
		"unsigned, SHA-384 in db":    {image: unsigned, db: testenv.SignatureList(efi.CertSHA384, digestOf(t, unsigned, crypto.SHA384)), err: "db has its SHA-384 digest only, which some firmware does not look at"},
		"unsigned, digest of signed": {image: unsigned, db: hashes(hash(byFirst)[:31]), err: "uki.efi is not signed"},
		"changed after signing":      {image: changed, db: certs(first), err: "uki.efi was changed after it was signed"},
		"digest in dbx":              {image: byFirst, db: certs(first), dbx: hashes(other, hash(byFirst)), err: "the digest of uki.efi ("},
		"unsigned digest in dbx":     {image: unsigned, db: hashes(hash(unsigned)), dbx: hashes(hash(unsigned)), err: "is in dbx"},
		"certificate in dbx":         {image: byFirst, db: certs(first), dbx: certs(first), err: "the signature of uki.efi leads to certificate CN=first, which is in dbx"},
		"CA in dbx":                  {image: byLeaf, db: certs(leaf), dbx: certs(ca), err: "the signature of uki.efi leads to certificate CN=ca, which is in dbx"},
		"root in dbx over the chain": {image: chain, db: certs(ca), dbx: certs(root), err: "leads to certificate CN=root, which is in dbx"},
		"leaf in dbx by digest":      {image: byLeaf, db: certs(ca), dbx: testenv.SignatureList(efi.CertX509SHA256, tbs(leaf.Certificate)), err: "the certificate CN=leaf in the signature of uki.efi is in dbx by its digest"},
		"in dbx by SHA-384":          {image: byFirst, db: certs(first), dbx: testenv.SignatureList(efi.CertX509SHA384, append(tbs384[:], 1, 2, 3, 4)), err: "is in dbx by its digest"},
		"CA in dbx by digest": {image: byLeaf, db: certs(ca), dbx: testenv.SignatureList(efi.CertX509SHA256, tbs(ca.Certificate)),
			err: "the signature of uki.efi leads to certificate CN=ca, which db has, but dbx forbids by its digest"},
		"first signature in dbx":  {image: byBoth, db: certs(second), dbx: certs(first), err: "leads to certificate CN=first, which is in dbx"},
		"second signature in dbx": {image: byBoth, db: certs(first), dbx: certs(second), err: "leads to certificate CN=second, which is in dbx"},
		"db cut off":              {image: byFirst, db: certs(first)[:100], err: "read Secure Boot variable db: read EFI signature list at byte 0 of 100"},
		"dbx cut off":             {image: byFirst, db: certs(first), dbx: hashes(other)[:40], err: "read Secure Boot variable dbx: "},
		"no signature in it":      {image: badTable, db: certs(first), err: "signature 1 of uki.efi: read Authenticode signature: "},
	} {
		t.Run(name, func(t *testing.T) {
			s := SecureBoot{PK: certs(platform), KEK: certs(platform), DB: test.db, DBX: test.dbx}
			p, err := predictFile(t, test.image, Options{SecureBoot: s})
			if test.err != "" {
				wantError(t, err, "measure uki.efi: ", test.err)
				_, isDenied := errors.AsType[deniedError](err)
				if variable := strings.Contains(test.err, "variable"); isDenied == (variable || name == "unsigned, SHA-384 in db" || name == "no signature in it") {
					t.Errorf("error %q says whether firmware denies: %t", err, isDenied)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(p.Authorities) != 1 || !bytes.Equal(p.Authorities[0].Data, test.want) || p.Authorities[0].Owner != testenv.TestOwner {
				t.Fatalf("authority is %v, want the entry %x", p.Authorities, test.want[:8])
			}
			data := efi.VariableData(efi.ImageSecurityDatabase, "db", append(testenv.TestOwner[:], test.want...))
			last := slices.IndexFunc(p.Events, func(e Event) bool { return e.Type == EVEFIVariableAuthority })
			if last < 0 || p.Events[last].PCR != 7 || !bytes.Equal(p.Events[last].Data, data) {
				t.Error("the events have no EV_EFI_VARIABLE_AUTHORITY of it")
			}
		})
	}
}

// TestAuthorityWithoutSecureBoot shows that signatures count for nothing when
// there is no platform key.
func TestAuthorityWithoutSecureBoot(t *testing.T) {
	signer := testenv.NewSigner(t, "signer", nil)
	image := signer.Sign(t, testenv.UKI(0x8664, "257"))
	image[1024] ^= 1
	p, err := predictFile(t, image, Options{SecureBoot: SecureBoot{DBX: testenv.SignatureList(efi.CertX509, signer.Certificate.Raw)}})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Authorities) != 0 || len(p.Images) != 2 {
		t.Errorf("authorities %v, %d images; want none and 2", p.Authorities, len(p.Images))
	}
}

// TestAuthorityOnce measures an entry that lets two images run once, as
// firmware does, and two entries twice.
func TestAuthorityOnce(t *testing.T) {
	a, b := testenv.NewSigner(t, "a", nil), testenv.NewSigner(t, "b", nil)
	loader := testenv.PE(0x8664, testenv.PESection{Name: ".sdmagic", Data: []byte("#### LoaderInfo: systemd-boot 257.13-1 ####\x00")})
	uki := testenv.UKI(0x8664, "257")
	db := slices.Concat(testenv.SignatureList(efi.CertX509, a.Certificate.Raw), testenv.SignatureList(efi.CertX509, b.Certificate.Raw))
	s := SecureBoot{PK: testenv.SignatureList(efi.CertX509, a.Certificate.Raw), DB: db}
	for name, test := range map[string]struct {
		signers [2]*testenv.Signer
		want    int
	}{"the same": {[2]*testenv.Signer{a, a}, 1}, "two": {[2]*testenv.Signer{a, b}, 2}} {
		t.Run(name, func(t *testing.T) {
			var files []EFIFile
			for i, image := range [][]byte{loader, uki} {
				signed := test.signers[i].Sign(t, image)
				files = append(files, EFIFile{Path: []string{"systemd-boot.efi", "uki.efi"}[i], R: bytes.NewReader(signed), Size: int64(len(signed))})
			}
			p, err := Files(t.Context(), files, Options{SecureBoot: s})
			if err != nil {
				t.Fatal(err)
			}
			events := 0
			for _, e := range p.Events {
				if e.Type == EVEFIVariableAuthority {
					events++
				}
			}
			if events != test.want || len(p.Authorities) != test.want || len(p.Images) != 2 {
				t.Errorf("%d events, %d authorities, %d images; want %d, %d, 2", events, len(p.Authorities), len(p.Images), test.want, test.want)
			}
		})
	}
}
