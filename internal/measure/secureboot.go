package measure

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"slices"

	"github.com/org/attestable-image-action/internal/efi"
)

// SecureBoot holds the contents of the variables of Secure Boot: each a
// sequence of EFI_SIGNATURE_LISTs. A variable without content does not exist.
// Secure Boot is on when PK exists (UEFI 2.10, section 32.3).
type SecureBoot struct {
	PK, KEK, DB, DBX []byte
}

// Enabled reports whether firmware with these variables enforces Secure Boot.
func (s SecureBoot) Enabled() bool { return len(s.PK) > 0 }

// variable is one of the variables that PCR 7 records, in its order.
type variable struct {
	vendor efi.GUID
	name   string
	data   []byte
}

func (s SecureBoot) variables() []variable {
	enabled := []byte{0}
	if s.Enabled() {
		enabled[0] = 1
	}
	return []variable{
		{efi.GlobalVariable, "SecureBoot", enabled},
		{efi.GlobalVariable, "PK", s.PK},
		{efi.GlobalVariable, "KEK", s.KEK},
		{efi.ImageSecurityDatabase, "db", s.DB},
		{efi.ImageSecurityDatabase, "dbx", s.DBX},
	}
}

// databases are the parsed variables that decide about images.
type databases struct {
	db, dbx []efi.SignatureList
}

// parse checks all four variables, also those that decide nothing: firmware
// would not have taken one that is malformed.
func (s SecureBoot) parse() (*databases, error) {
	var d databases
	for _, v := range []struct {
		name string
		data []byte
		into *[]efi.SignatureList
	}{{"PK", s.PK, nil}, {"KEK", s.KEK, nil}, {"db", s.DB, &d.db}, {"dbx", s.DBX, &d.dbx}} {
		lists, err := efi.ParseSignatureLists(v.data)
		if err != nil {
			return nil, fmt.Errorf("read Secure Boot variable %s: %w", v.name, err)
		}
		if v.into != nil {
			*v.into = lists
		}
	}
	return &d, nil
}

// Authority is the db entry that lets an image run, and that PCR 7 records.
type Authority struct {
	Owner   efi.GUID
	Type    efi.GUID // efi.CertX509 or efi.CertSHA256 and its kin
	Data    []byte   // the entry without its owner
	Subject string   // of a certificate

	certificate *x509.Certificate
}

func (a Authority) bytes() []byte { return append(bytes.Clone(a.Owner[:]), a.Data...) }

// String names the entry for people.
func (a Authority) String() string {
	if a.Type == efi.CertX509 {
		return "certificate " + plain(a.Subject)
	}
	return fmt.Sprintf("digest %x", a.Data)
}

// deniedError is the reason why Secure Boot does not let an image run.
type deniedError string

func (e deniedError) Error() string {
	return "with these Secure Boot variables the disk will not boot: " + string(e)
}

func denied(format string, args ...any) error {
	return deniedError(fmt.Sprintf(format, args...))
}

// authorize finds the db entry that makes firmware run an image, in the order
// in which EDK II looks (DxeImageVerificationLib): signature by signature, for
// each first dbx and then db by certificate, then dbx and db by the image's
// digest; an image without signatures by its digest alone. digests are the
// image's Authenticode digests.
func (d *databases) authorize(path string, image *efi.Image, digests map[crypto.Hash][]byte) (*Authority, error) {
	ders, err := image.Signatures()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(ders) == 0 {
		return d.authorizeUnsigned(path, digests)
	}
	var found *Authority
	for i, der := range ders {
		signature, err := efi.ParseAuthenticode(der)
		if err != nil {
			return nil, fmt.Errorf("signature %d of %s: %w", i+1, path, err)
		}
		digest, known := digests[signature.Hash]
		if !known {
			return nil, fmt.Errorf("signature %d of %s is over a %s digest, which firmware need not support: sign with SHA-256", i+1, path, signature.Hash)
		}
		intact := bytes.Equal(signature.Digest, digest)
		if intact {
			if hit := anchor(d.dbx, signature); hit != nil {
				return nil, denied("the signature of %s leads to %s, which is in dbx", path, hit)
			}
		}
		for _, c := range signature.Certificates {
			if d.revoked(c) {
				return nil, denied("the certificate %s in the signature of %s is in dbx by its digest", plain(c.Subject.String()), path)
			}
		}
		var revoked *Authority
		if intact && found == nil {
			// The first entry that vouches decides: when dbx has its digest, firmware
			// looks for no other one.
			if found = anchor(d.db, signature); found != nil && d.revoked(found.certificate) {
				found, revoked = nil, found
			}
		}
		if hit := findDigest(d.dbx, signature.Hash, digest); hit != nil {
			return nil, denied("the digest of %s (%x) is in dbx", path, digest)
		}
		if found == nil {
			found = findDigest(d.db, signature.Hash, digest)
		}
		if revoked != nil && found == nil && i == len(ders)-1 {
			return nil, denied("the signature of %s leads to %s, which db has, but dbx forbids by its digest", path, revoked)
		}
		if !intact && found == nil && i == len(ders)-1 {
			return nil, denied("%s was changed after it was signed: its digest is %x, the signature is over %x", path, digest, signature.Digest)
		}
	}
	if found == nil {
		return nil, denied("no entry of db has the signer of %s, an issuer of it, or the digest of it", path)
	}
	return found, nil
}

func (d *databases) authorizeUnsigned(path string, digests map[crypto.Hash][]byte) (*Authority, error) {
	for _, hash := range []crypto.Hash{crypto.SHA256, crypto.SHA384} {
		if findDigest(d.dbx, hash, digests[hash]) != nil {
			return nil, denied("the digest of %s (%x) is in dbx", path, digests[hash])
		}
	}
	if found := findDigest(d.db, crypto.SHA256, digests[crypto.SHA256]); found != nil {
		return found, nil
	}
	if findDigest(d.db, crypto.SHA384, digests[crypto.SHA384]) != nil {
		return nil, fmt.Errorf("%s is unsigned, and db has its %s digest only, which some firmware does not look at: enter its SHA-256 digest %x", path, crypto.SHA384, digests[crypto.SHA256])
	}
	return nil, denied("%s is not signed, and its SHA-256 Authenticode digest %x is not in db", path, digests[crypto.SHA256])
}

// revoked says whether dbx has the digest of a certificate. An entry with a time
// of revocation counts as well: that would need a dbt to be passed over.
func (d *databases) revoked(c *x509.Certificate) bool {
	for _, list := range d.dbx {
		hash, ok := map[efi.GUID]crypto.Hash{
			efi.CertX509SHA256: crypto.SHA256, efi.CertX509SHA384: crypto.SHA384, efi.CertX509SHA512: crypto.SHA512,
		}[list.Type]
		if !ok {
			continue
		}
		h := hash.New()
		h.Write(c.RawTBSCertificate)
		for _, entry := range list.Signatures {
			// The digest of a TBSCertificate, then an EFI_TIME of 16 bytes.
			if bytes.HasPrefix(entry.Data, h.Sum(nil)) {
				return true
			}
		}
	}
	return false
}

// anchor returns the first certificate of a database that vouches for a
// signature. A certificate that cannot be read vouches for nothing.
func anchor(lists []efi.SignatureList, s *efi.AuthenticodeSignature) *Authority {
	for _, list := range lists {
		if list.Type != efi.CertX509 {
			continue
		}
		for _, entry := range list.Signatures {
			certificate, err := x509.ParseCertificate(entry.Data)
			if err == nil && s.AnchoredBy(certificate) {
				return &Authority{Owner: entry.Owner, Type: list.Type, Data: slices.Clone(entry.Data), Subject: certificate.Subject.String(), certificate: certificate}
			}
		}
	}
	return nil
}

// findDigest returns the entry of a database that is an image's digest.
func findDigest(lists []efi.SignatureList, hash crypto.Hash, digest []byte) *Authority {
	t, ok := map[crypto.Hash]efi.GUID{
		crypto.SHA256: efi.CertSHA256, crypto.SHA384: efi.CertSHA384, crypto.SHA512: efi.CertSHA512,
	}[hash]
	if !ok {
		return nil
	}
	for _, list := range lists {
		if list.Type != t {
			continue
		}
		for _, entry := range list.Signatures {
			if bytes.Equal(entry.Data, digest) {
				return &Authority{Owner: entry.Owner, Type: list.Type, Data: slices.Clone(entry.Data)}
			}
		}
	}
	return nil
}

// describe makes the document's account of the variables.
func (s SecureBoot) describe(authorities []Authority) SecureBootInfo {
	info := SecureBootInfo{Enabled: s.Enabled()}
	for _, v := range s.variables()[1:] {
		if len(v.data) > 0 {
			sum := sha256.Sum256(v.data)
			info.Variables = append(info.Variables, VariableInfo{Name: v.name, Size: len(v.data), SHA256: hexDigest(sum[:])})
		}
	}
	for _, a := range authorities {
		sum := sha256.Sum256(a.Data)
		info.Authorities = append(info.Authorities, AuthorityInfo{Owner: a.Owner.String(), Type: authorityType(a.Type), Subject: a.Subject, SHA256: hexDigest(sum[:])})
	}
	return info
}

func authorityType(t efi.GUID) string {
	switch t {
	case efi.CertX509:
		return "EFI_CERT_X509"
	case efi.CertSHA256:
		return "EFI_CERT_SHA256"
	case efi.CertSHA384:
		return "EFI_CERT_SHA384"
	}
	return "EFI_CERT_SHA512"
}
