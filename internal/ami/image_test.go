package ami

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"math/big"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/org/attestable-image-action/internal/artifact"
	"github.com/org/attestable-image-action/internal/efi"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/testenv"
)

// secureBootList is a signature list of a certificate.
func secureBootList(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "db"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return efi.CertificateLists(certificate)
}

func variable(name string, data []byte) efi.Variable {
	vendor := efi.GlobalVariable
	if strings.HasPrefix(name, "db") {
		vendor = efi.ImageSecurityDatabase
	}
	return efi.Variable{Name: name, Vendor: vendor, Attributes: efi.SecureBootAttributes, Data: data, Digest: make([]byte, 32)}
}

func encode(t *testing.T, variables ...efi.Variable) []byte {
	t.Helper()
	store, err := efi.EncodeAWSVariables(variables)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// secureBootOf is what measurements say of variables.
func secureBootOf(list []byte, names ...string) measure.SecureBootInfo {
	info := measure.SecureBootInfo{Enabled: true}
	sum := sha256.Sum256(list)
	for _, name := range names {
		info.Variables = append(info.Variables, measure.VariableInfo{Name: name, Size: len(list), SHA256: hex.EncodeToString(sum[:])})
	}
	return info
}

// TestUEFIData holds a variable store against what is attested.
func TestUEFIData(t *testing.T) {
	list, other := secureBootList(t), secureBootList(t)
	on := secureBootOf(list, "PK", "KEK", "db")
	pk, kek, db := variable("PK", list), variable("KEK", list), variable("db", list)
	boot := variable("Boot0001", []byte("x"))
	boot.Attributes = efi.NonVolatile | efi.BootServiceAccess | efi.RuntimeAccess
	boot.Digest = nil
	wrongVendor := pk
	wrongVendor.Vendor = efi.ImageSecurityDatabase
	open := pk
	open.Attributes, open.Digest = efi.NonVolatile, nil
	for name, tc := range map[string]struct {
		store    []byte
		attested measure.SecureBootInfo
		want     string // "" when it will do
	}{
		"as attested":          {encode(t, pk, kek, db), on, ""},
		"with a line end":      {append(encode(t, pk, kek, db), '\n'), on, ""},
		"none, and off":        {nil, measure.SecureBootInfo{}, ""},
		"empty, and off":       {encode(t), measure.SecureBootInfo{}, ""},
		"none, and on":         {nil, on, "it carries no UEFI variable store"},
		"empty, and on":        {encode(t), on, "turns Secure Boot off, and its attested measurements are for Secure Boot on"},
		"keys, and off":        {encode(t, pk, kek, db), measure.SecureBootInfo{}, "turns Secure Boot on, and its attested measurements are for Secure Boot off"},
		"another db":           {encode(t, pk, kek, variable("db", other)), on, "has another db than the attested measurements"},
		"a dbx more":           {encode(t, pk, kek, db, variable("dbx", list)), on, "has another dbx than the attested measurements"},
		"no KEK":               {encode(t, pk, db), secureBootOf(list, "PK", "db"), "and has no KEK"},
		"no db":                {encode(t, pk, kek), secureBootOf(list, "PK", "KEK"), "and has no db"},
		"db twice":             {encode(t, pk, kek, db, db), on, "has db twice"},
		"a boot entry":         {encode(t, pk, kek, db, boot), on, `has a variable "Boot0001"`},
		"a boot entry, off":    {encode(t, boot), measure.SecureBootInfo{}, `has a variable "Boot0001"`},
		"PK of another vendor": {encode(t, wrongVendor, kek, db), on, `has a variable "PK" of vendor d719b2cb`},
		"unprotected PK":       {encode(t, open, kek, db), on, "has PK with attributes 0x1"},
		"no lists":             {encode(t, variable("PK", []byte("x")), kek, db), on, "PK: read EFI signature list"},
		"too long":             {append(encode(t, pk, kek, db), make([]byte, efi.AWSMaxStore)...), on, "characters, and EC2 takes 64000"},
		"malformed":            {[]byte("QU1aTlVFRkk="), on, "read AWS variable store"},
		"no base64":            {[]byte("!"), on, "it is not base64"},
	} {
		t.Run(name, func(t *testing.T) {
			e := testenv.SharedEC2(t)
			p := push(t, "oci:"+filepath.Join(t.TempDir(), "layout"), make([]byte, 4096), tc.store)
			p.document.SecureBoot = tc.attested
			a, err := artifact.Open(t.Context(), p.reference)
			if err != nil {
				t.Fatal(err)
			}
			i, err := NewImage(t.Context(), a, p.document, testOrigin)
			if tc.want != "" {
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("%v\nwant: %s", err, tc.want)
				}
				if calls := e.Requests(); len(calls) > 0 {
					t.Errorf("%s was asked for", calls[0].Operation)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if name != "as attested" {
				return
			}
			c, _ := cloud(t)
			if _, err := register(t.Context(), c, i, Spec{}); err != nil {
				t.Fatal(err)
			}
			if got := e.Requests("RegisterImage")[0].Form.Get("UefiData"); got != string(tc.store) {
				t.Errorf("UefiData is %q, want %q", got, tc.store)
			}
		})
	}
}

// TestDefaultName holds that EC2 takes a name of any artifact.
func TestDefaultName(t *testing.T) {
	p := layout(t, make([]byte, 4096))
	for name, want := range map[string]string{
		"test-1.0":               "test-1.0-",
		"a":                      "a-1.0-",
		"a+b":                    "a-b-1.0-",
		strings.Repeat("x", 128): strings.Repeat("x", 115) + "-",
	} {
		i := p.image(t)
		i.artifact.Name = name
		got := i.DefaultName()
		if got != want+p.reference.Digest.Hex[:12] || CheckName(got) != nil {
			t.Errorf("%q is called %q, want %q", name, got, want)
		}
		if family := i.DefaultFamily(); family == "" || family != tagValue(family) {
			t.Errorf("%q is of the family %q", name, family)
		}
	}
}

func TestCheckSpec(t *testing.T) {
	i := layout(t, make([]byte, 4096)).image(t)
	key := "arn:aws:kms:eu-central-1:123456789012:key/0123"
	multi := "arn:aws:kms:eu-central-1:123456789012:key/mrk-0123"
	many := map[string]string{}
	for n := range 40 {
		many[strings.Repeat("k", n+1)] = ""
	}
	others := []Principal{{Account: "123456789012"}}
	for name, tc := range map[string]struct {
		spec Spec
		want string
	}{
		"defaults":              {Spec{}, ""},
		"short name":            {Spec{Name: "ab"}, `"ab" is no name of an AMI`},
		"long name":             {Spec{Name: strings.Repeat("a", 129)}, "is no name of an AMI"},
		"hostile name":          {Spec{Name: "a\nb+c"}, "is no name of an AMI"},
		"every character":       {Spec{Name: "aA0()[] ./-'@_z"}, ""},
		"long description":      {Spec{Description: strings.Repeat("ü", 256)}, "the description has 256 characters"},
		"hostile family":        {Spec{Family: "a*"}, "the family"},
		"no region":             {Spec{CopyTo: []string{"mars"}}, `"mars" is no AWS region`},
		"key by alias":          {Spec{Encrypt: true, KMSKey: "alias/x"}, "is no ARN of a KMS key"},
		"key elsewhere":         {Spec{Encrypt: true, KMSKey: strings.Replace(key, "central", "west", 1)}, "is not in the region eu-central-1"},
		"default key, shared":   {Spec{Encrypt: true, ShareWith: others}, "cannot be shared"},
		"own key, shared":       {Spec{Encrypt: true, KMSKey: key, ShareWith: others}, ""},
		"own key, copied":       {Spec{Encrypt: true, KMSKey: key, ShareWith: others, CopyTo: []string{there}}, "give a multi-Region key"},
		"multi-Region, copied":  {Spec{Encrypt: true, KMSKey: multi, ShareWith: others, CopyTo: []string{there}}, ""},
		"encrypted and omitted": {Spec{Encrypt: true, Zeros: OmitZeros}, "breaks dm-verity"},
		"many tags":             {Spec{Tags: many}, "tags, and AWS allows 50"},
		"negative":              {Spec{Keep: -1}, "-1 AMIs cannot be kept"},
	} {
		t.Run(name, func(t *testing.T) {
			tc.spec.Region = home
			spec, err := i.CheckSpec(tc.spec)
			switch {
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("%v\nwant: %s", err, tc.want)
			case tc.want == "" && err != nil:
				t.Error(err)
			case tc.want == "" && (CheckName(spec.Name) != nil || utf8.RuneCountInString(spec.Description) > maxDescription || spec.Family == ""):
				t.Errorf("%+v", spec)
			}
		})
	}
	spec, err := i.CheckSpec(Spec{Region: home, CopyTo: []string{"us-east-1", home, there, there}})
	if err != nil || strings.Join(spec.CopyTo, " ") != "eu-west-1 us-east-1" {
		t.Errorf("%q, %v", spec.CopyTo, err)
	}
}

// FuzzParse holds that what is read of a command line is what AWS takes.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"123456789012", "arn:aws:organizations::123456789012:organization/o-0123456789", "team=a b", "a=", "=", "aws:x=y",
		"arn:aws:organizations::123456789012:ou/o-0123456789/ou-0123-01234567", "attestable-image:digest=x", "ü=ü", "omit", "eu-central-1",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := ParsePrincipal(s); err == nil && p.String() != s {
			t.Errorf("%q became %q", s, p)
		}
		if key, value, err := ParseTag(s); err == nil {
			if key+"="+value != s || value != tagValue(value) || strings.HasPrefix(key, tagPrefix) || utf8.RuneCountInString(key) > maxTagKey {
				t.Errorf("%q became %q, %q", s, key, value)
			}
		}
		if v := tagValue(s); utf8.RuneCountInString(v) > maxTagValue || !utf8.ValidString(v) || tagForbidden().MatchString(v) {
			t.Errorf("tagValue(%q) is %q", s, v)
		}
		if z, err := ParseZeroBlocks(s); err == nil && z.String() != s {
			t.Errorf("%q became %q", s, z)
		}
	})
}
