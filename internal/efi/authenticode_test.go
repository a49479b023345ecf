package efi

import (
	"bytes"
	"crypto"
	"encoding/asn1"
	"encoding/binary"
	"slices"
	"testing"

	efilib "github.com/canonical/go-efilib"

	"github.com/org/attestable-image-action/internal/testenv"
)

// signatures are the certificate table of an image.
func signatures(t testing.TB, b []byte) [][]byte {
	t.Helper()
	image, err := ParseImage(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	ders, err := image.Signatures()
	if err != nil {
		t.Fatal(err)
	}
	return ders
}

// TestParseAuthenticode reads real signatures, and asks which certificate of a
// database would vouch for them.
func TestParseAuthenticode(t *testing.T) {
	root := testenv.NewSigner(t, "root", nil)
	intermediate := testenv.NewSigner(t, "intermediate", root)
	leaf := testenv.NewSigner(t, "leaf", intermediate)
	direct := testenv.NewSigner(t, "direct", root)
	other := testenv.NewSigner(t, "other", nil)
	namesake := testenv.NewSigner(t, "root", nil) // the name alone is no proof
	uki := testenv.UKI(0x8664, "257")
	for name, test := range map[string]struct {
		image    []byte
		signer   string
		embedded int
		anchors  []*testenv.Signer
		others   []*testenv.Signer
	}{
		"self-signed":       {root.Sign(t, uki), "root", 1, []*testenv.Signer{root}, []*testenv.Signer{other, leaf, namesake}},
		"leaf of a CA":      {direct.Sign(t, uki), "direct", 1, []*testenv.Signer{direct, root}, []*testenv.Signer{other, leaf, intermediate, namesake}},
		"leaf of two":       {leaf.Sign(t, uki), "leaf", 1, []*testenv.Signer{leaf, intermediate}, []*testenv.Signer{root, other}},
		"whole chain":       {leaf.Sign(t, uki, intermediate, root), "leaf", 3, []*testenv.Signer{leaf, intermediate, root}, []*testenv.Signer{other, direct, namesake}},
		"chain but root":    {leaf.Sign(t, uki, intermediate), "leaf", 2, []*testenv.Signer{leaf, intermediate, root}, []*testenv.Signer{other, namesake}},
		"unrelated one too": {direct.Sign(t, uki, other), "direct", 2, []*testenv.Signer{direct, root}, []*testenv.Signer{other, namesake}},
	} {
		t.Run(name, func(t *testing.T) {
			ders := signatures(t, test.image)
			if len(ders) != 1 {
				t.Fatalf("%d signatures, want 1", len(ders))
			}
			s, err := ParseAuthenticode(ders[0])
			if err != nil {
				t.Fatal(err)
			}
			digest, err := authenticode(test.image, crypto.SHA256)
			if err != nil {
				t.Fatal(err)
			}
			if s.Hash != crypto.SHA256 || !bytes.Equal(s.Digest, digest[0]) || s.Signer.Subject.CommonName != test.signer || len(s.Certificates) != test.embedded {
				t.Errorf("signature over %x by %s with %d certificates", s.Digest, s.Signer.Subject, len(s.Certificates))
			}
			for _, a := range test.anchors {
				if !s.AnchoredBy(a.Certificate) {
					t.Errorf("%s does not vouch for it", a.Certificate.Subject)
				}
			}
			for _, o := range test.others {
				if s.AnchoredBy(o.Certificate) {
					t.Errorf("%s vouches for it", o.Certificate.Subject)
				}
			}
			// go-efilib reads the same from the entry, with its WIN_CERTIFICATE header.
			at := binary.LittleEndian.Uint32(test.image[atCertDirectory:])
			entry, err := efilib.ReadWinCertificate(bytes.NewReader(test.image[at:]))
			if err != nil {
				t.Fatal(err)
			}
			theirs := entry.(*efilib.WinCertificateAuthenticode)
			if !bytes.Equal(theirs.Digest(), s.Digest) || theirs.DigestAlgorithm() != s.Hash || !theirs.GetSigner().Equal(s.Signer) {
				t.Errorf("go-efilib reads a %s digest %x by %s", theirs.DigestAlgorithm(), theirs.Digest(), theirs.GetSigner().Subject)
			}
			for _, a := range test.anchors {
				if !theirs.CertWithIDLikelyTrustAnchor(efilib.NewX509CertIDFromCertificate(a.Certificate)) {
					t.Errorf("go-efilib says that %s does not vouch for it", a.Certificate.Subject)
				}
			}
		})
	}
}

func TestSeveralSignatures(t *testing.T) {
	first, second := testenv.NewSigner(t, "first", nil), testenv.NewSigner(t, "second", nil)
	image := second.Sign(t, first.Sign(t, testenv.UKI(0x8664, "257")))
	ders := signatures(t, image)
	if len(ders) != 2 {
		t.Fatalf("%d signatures, want 2", len(ders))
	}
	for i, want := range []string{"first", "second"} {
		s, err := ParseAuthenticode(ders[i])
		if err != nil {
			t.Fatal(err)
		}
		if s.Signer.Subject.CommonName != want {
			t.Errorf("signature %d is by %s, want %s", i, s.Signer.Subject, want)
		}
	}
	if !first.Verify(t, image) || !second.Verify(t, image) {
		t.Error("sbverify refuses one of them")
	}
}

// TestAuthenticodeTampered changes every byte of a signature: none may give
// another digest, signer or set of certificates without an error.
func TestAuthenticodeTampered(t *testing.T) {
	signer := testenv.NewSigner(t, "signer", nil)
	der := signatures(t, signer.Sign(t, testenv.UKI(0x8664, "257")))[0]
	good, err := ParseAuthenticode(der)
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for i := range der {
		b := bytes.Clone(der)
		b[i] ^= 0x21
		s, err := ParseAuthenticode(b)
		switch {
		case err != nil:
			refused++
			if s != nil {
				t.Fatalf("byte %d: a signature in spite of %v", i, err)
			}
		case !bytes.Equal(s.Digest, good.Digest) || s.Hash != good.Hash || !bytes.Equal(s.Signer.RawSubjectPublicKeyInfo, good.Signer.RawSubjectPublicKeyInfo):
			t.Fatalf("byte %d was changed, and the signature is over %x by %s", i, s.Digest, s.Signer.Subject)
		case !s.Signer.Equal(good.Signer) && s.AnchoredBy(good.Signer):
			t.Fatalf("byte %d of the certificate was changed, and the certificate still vouches for it", i)
		}
	}
	// What may change is what nothing signs: the certificate's own signature,
	// padding, version numbers.
	if refused < len(der)/2 {
		t.Errorf("%d of %d changes were refused", refused, len(der))
	}
	for i := range der {
		if _, err := ParseAuthenticode(der[:i]); err == nil && i < len(der)-8 {
			t.Fatalf("the first %d of %d bytes are a signature", i, len(der))
		}
	}
}

func TestAuthenticodeSignatureRefuses(t *testing.T) {
	signer := testenv.NewSigner(t, "signer", nil)
	der := signatures(t, signer.Sign(t, testenv.UKI(0x8664, "257")))[0]
	oid := func(id asn1.ObjectIdentifier) []byte {
		b, err := asn1.Marshal(id)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	replace := func(b []byte, old, with asn1.ObjectIdentifier, n int) []byte {
		if len(oid(old)) != len(oid(with)) || !bytes.Contains(b, oid(old)) {
			t.Fatalf("%s cannot become %s", old, with)
		}
		return bytes.Replace(b, oid(old), oid(with), n)
	}
	sha256 := digestAlgorithms[0].oid
	for name, test := range map[string]struct {
		der  []byte
		want string
	}{
		"empty":          {nil, "read Authenticode signature: PKCS#7 ContentInfo: "},
		"zeros":          {make([]byte, 100), "read Authenticode signature: PKCS#7 ContentInfo: "},
		"no SignedData":  {replace(der, oidSignedData, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}, 1), "its content is 1.2.840.113549.1.7.1, not PKCS#7 SignedData"},
		"other content":  {replace(der, oidSpcIndirectData, asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 5}, 1), "what was signed is 1.3.6.1.4.1.311.2.1.5, not an Authenticode digest"},
		"other digest":   {replace(der, sha256, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 4}, -1), "digest algorithm 2.16.840.1.101.3.4.2.4 is not SHA-256, SHA-384 or SHA-512"},
		"longer digest":  {replace(der, sha256, digestAlgorithms[1].oid, -1), "a digest of 32 bytes is none of SHA-384"},
		"no digest attr": {replace(der, oidMessageDigest, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 9}, 1), "it has no attribute messageDigest"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := ParseAuthenticode(test.der)
			wantError(t, err, test.want)
			if s != nil {
				t.Error("a signature in spite of the error")
			}
		})
	}
}

func TestCertificateTableRefuses(t *testing.T) {
	le := binary.LittleEndian
	entry := func(length uint32, kind uint16, content int) []byte {
		b := le.AppendUint32(nil, length)
		b = le.AppendUint16(b, 0x200)
		b = le.AppendUint16(b, kind)
		return append(b, make([]byte, content)...)
	}
	for name, test := range map[string]struct {
		table []byte
		want  string // "" when there is one signature
	}{
		"good":            {entry(24, 2, 16), ""},
		"padded":          {entry(21, 2, 16), ""},
		"length zero":     {entry(0, 2, 16), "entry of 0 bytes in the 24 that are left: firmware would not trust it"},
		"no content":      {entry(8, 2, 0), "entry of 0 bytes in the 8 that are left"},
		"length too long": {entry(25, 2, 16), "entry of 25 bytes in the 24 that are left"},
		"length wild":     {entry(0xffffffff, 2, 16), "entry of 4294967295 bytes in the 24 that are left"},
		"X.509":           {entry(24, 1, 16), "entry of type 0x0001 is no PKCS#7 signature (0x0002)"},
		"EFI GUID":        {entry(24, 0x0ef1, 16), "entry of type 0x0ef1 is no PKCS#7 signature (0x0002)"},
		"trailing bytes":  {slices.Concat(entry(24, 2, 16), []byte{0, 0, 0, 0}), "entry of 0 bytes in the 4 that are left"},
		"too large":       {entry(peMaxCerts+8, 2, peMaxCerts), "1048584 bytes are more than the 1048576 expected"},
	} {
		t.Run(name, func(t *testing.T) {
			b := testenv.UKI(0x8664, "257")
			le.PutUint32(b[atCertDirectory:], uint32(len(b)))
			le.PutUint32(b[atCertDirectory+4:], uint32(len(test.table)))
			b = append(b, test.table...)
			image, err := ParseImage(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			ders, err := image.Signatures()
			if test.want != "" {
				wantError(t, err, "read certificate table: "+test.want)
			} else if err != nil || len(ders) != 1 {
				t.Errorf("%d signatures, and %v; want one", len(ders), err)
			}
		})
	}
}

func FuzzAuthenticode(f *testing.F) {
	f.Add(signatures(f, goldenUKI(f, "sbA252"))[0])
	root := testenv.NewSigner(f, "root", nil)
	leaf := testenv.NewSigner(f, "leaf", root)
	f.Add(signatures(f, leaf.Sign(f, testenv.UKI(0x8664, "257"), root))[0])
	f.Fuzz(func(t *testing.T, der []byte) {
		s, err := ParseAuthenticode(der)
		if (s == nil) == (err == nil) {
			t.Fatalf("%v and %v", s, err)
		}
		if err != nil {
			return
		}
		if len(s.Digest) != s.Hash.Size() || s.Signer == nil || !s.AnchoredBy(s.Signer) {
			t.Fatalf("signature over %x by %v", s.Digest, s.Signer)
		}
		s.AnchoredBy(root.Certificate)
	})
}
