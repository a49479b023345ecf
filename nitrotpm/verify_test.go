package nitrotpm_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/org/attestable-image-action/nitrotpm"
)

func TestVerify(t *testing.T) {
	i := newIssuer(t)
	for _, tc := range []struct {
		name   string
		change func(*document, *nitrotpm.Policy)
	}{
		{"as a NitroTPM makes it", func(*document, *nitrotpm.Policy) {}},
		{"with tag 18", func(d *document, _ *nitrotpm.Policy) { d.tag = true }},
		{"payload of definite length", func(d *document, _ *nitrotpm.Policy) { d.definite = true }},
		{"a member that is not known yet", func(d *document, _ *nitrotpm.Policy) {
			d.payload["region"], d.order = "eu-central-1", append(d.order, "region")
		}},
		{"user_data and public_key", func(d *document, p *nitrotpm.Policy) {
			d.payload["user_data"], d.payload["public_key"] = []byte("data"), []byte{4, 5, 6}
			p.UserData, p.PublicKey = []byte("data"), []byte{4, 5, 6}
		}},
		{"no member where nothing was given", func(d *document, p *nitrotpm.Policy) {
			d.order = slices.DeleteFunc(d.order, func(n string) bool { return n == "user_data" || n == "public_key" })
		}},
		{"the second of two generations", func(_ *document, p *nitrotpm.Policy) {
			other := nitrotpm.Reference{Name: "image:v0", PCRs: map[int][]byte{4: bytes.Repeat([]byte{9}, 48), 12: pcrs()[12]}}
			p.Accept = []nitrotpm.Reference{other, reference()}
		}},
		{"Secure Boot: PCR 7 and 12", func(_ *document, p *nitrotpm.Policy) {
			p.Accept = []nitrotpm.Reference{{Name: "image:v1", SecureBoot: true, PCRs: map[int][]byte{7: pcrs()[7], 12: pcrs()[12]}}}
		}},
		{"Secure Boot and a driver, which is told", func(d *document, p *nitrotpm.Policy) {
			d.payload["nitrotpm_pcrs"] = withPCR(2, driverLoaded)
			p.Accept = []nitrotpm.Reference{{Name: "image:v1", SecureBoot: true, PCRs: map[int][]byte{7: pcrs()[7], 12: pcrs()[12]}}}
		}},
		{"a driver, and PCR 2 left out", func(d *document, p *nitrotpm.Policy) {
			d.payload["nitrotpm_pcrs"], p.WithoutPCRs = withPCR(2, driverLoaded), []int{2}
		}},
		{"a driver that the reference expects", func(d *document, p *nitrotpm.Policy) {
			d.payload["nitrotpm_pcrs"], p.Accept[0].PCRs[2] = withPCR(2, driverLoaded), driverLoaded
		}},
		{"an extension, and PCR 13 left out", func(d *document, p *nitrotpm.Policy) {
			d.payload["nitrotpm_pcrs"], p.WithoutPCRs = withPCR(13, driverLoaded), []int{13, 2}
		}},
		{"any nonce, any PCRs", func(_ *document, p *nitrotpm.Policy) {
			p.Nonce, p.AnyNonce, p.Accept, p.AnyPCRs = nil, true, nil, true
		}},
		{"the last second of the leaf", func(d *document, p *nitrotpm.Policy) { p.At = d.leaf.certificate.NotAfter }},
		{"from a clock that is half a minute ahead", func(_ *document, p *nitrotpm.Policy) { p.At = now.Add(-30 * time.Second) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, p := i.newDocument(), i.policy()
			tc.change(d, &p)
			parsed, err := nitrotpm.Parse(d.bytes(t))
			if err != nil {
				t.Fatal(err)
			}
			verdict, err := p.Verify(parsed)
			if err != nil {
				t.Fatal(err)
			}
			if len(p.Accept) > 0 && verdict.Generation != "image:v1" {
				t.Errorf("generation %q", verdict.Generation)
			}
		})
	}
}

// TestVerifyRefuses has a document for each thing that can be wrong with it. All
// are signed, by whom the case says, so that the signature refuses those only
// that are about it.
func TestVerifyRefuses(t *testing.T) {
	i := newIssuer(t)
	root, regional, zonal, instance := i.chain[0], i.chain[1], i.chain[2], i.chain[3]
	forged := newIssuer(t)
	bundle := func(d *document, authorities ...authority) {
		raw := make([][]byte, len(authorities))
		for n, a := range authorities {
			raw[n] = a.certificate.Raw
		}
		d.payload["cabundle"] = raw
	}
	below := func(d *document, parent authority, change func(*x509.Certificate)) {
		template := i.leafTemplate()
		if change != nil {
			change(template)
		}
		d.leaf = i.certify(&parent, template, elliptic.P384())
		d.payload["certificate"] = d.leaf.certificate.Raw
	}
	set := func(name string, value any) func(*document, *nitrotpm.Policy) {
		return func(d *document, _ *nitrotpm.Policy) { d.payload[name] = value }
	}
	for _, tc := range []struct {
		name   string
		change func(*document, *nitrotpm.Policy)
		check  string // the first check that fails
		found  string // a part of what it found
	}{
		// What public clients got wrong.
		{"forged chain with the real root in front", func(d *document, _ *nitrotpm.Policy) {
			*d = *forged.newDocument()
			bundle(d, append([]authority{root}, forged.chain...)...)
		}, "chain", "unknown authority"},
		{"forged chain without its own root, the real one in front", func(d *document, _ *nitrotpm.Policy) {
			*d = *forged.newDocument()
			bundle(d, root, forged.chain[1], forged.chain[2], forged.chain[3])
		}, "chain", "unknown authority"},
		{"signed years ago, certificates valid", func(d *document, _ *nitrotpm.Policy) {
			below(d, instance, func(c *x509.Certificate) { c.NotBefore = now.AddDate(-1, 0, 0) })
			d.payload["timestamp"] = uint64(now.AddDate(-1, 0, 0).Add(-time.Hour).UnixMilli())
		}, "timestamp", "2025-03-01"},
		{"other PCR 12", func(d *document, _ *nitrotpm.Policy) {
			values := pcrs()
			values[12][0] = 1
			d.payload["nitrotpm_pcrs"] = values
		}, "PCR 12", "01000000"},
		{"signature by another key", func(d *document, _ *nitrotpm.Policy) {
			d.sign = func(digest []byte) (r, s *big.Int) {
				r, s, _ = ecdsa.Sign(rand.Reader, instance.key.(*ecdsa.PrivateKey), digest)
				return r, s
			}
		}, "signature", "not by the leaf"},

		// Root and chain.
		{"another root", func(d *document, _ *nitrotpm.Policy) { *d = *forged.newDocument() }, "root", "aws.nitro-enclaves"},
		{"AWS's root is needed", func(_ *document, p *nitrotpm.Policy) { p.Roots = nil }, "root", "aws.nitro-enclaves"},
		{"no root in the bundle", func(d *document, _ *nitrotpm.Policy) { bundle(d, regional, zonal, instance) }, "root", "eu-central-1"},
		{"an intermediate is missing", func(d *document, _ *nitrotpm.Policy) { bundle(d, root, regional, instance) }, "chain", "unknown authority"},
		{"leaf expired", func(d *document, p *nitrotpm.Policy) { p.At = d.leaf.certificate.NotAfter.Add(time.Second) }, "certificates", moduleID},
		{"leaf not valid yet", func(d *document, p *nitrotpm.Policy) {
			p.At = d.leaf.certificate.NotBefore.Add(-time.Second)
			d.payload["timestamp"] = uint64(p.At.UnixMilli())
		}, "certificates", moduleID},
		{"instance certificate expired", func(d *document, p *nitrotpm.Policy) {
			a := i.authority(&zonal, "old", func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) })
			below(d, a, nil)
			bundle(d, root, regional, zonal, a)
		}, "certificates", "\"old\""},
		{"issuer is no authority", func(d *document, _ *nitrotpm.Policy) {
			a := i.authority(&zonal, "no authority", func(c *x509.Certificate) { c.IsCA, c.MaxPathLen = false, 0 })
			below(d, a, nil)
			bundle(d, root, regional, zonal, a)
		}, "chain", "parent certificate cannot sign"},
		{"issuer has no basic constraints", func(d *document, _ *nitrotpm.Policy) {
			a := i.authority(&zonal, "bare", func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid, c.MaxPathLen = false, false, 0 })
			below(d, a, nil)
			bundle(d, root, regional, zonal, a)
		}, "chain", "parent certificate cannot sign"},
		{"path longer than it may be", func(d *document, _ *nitrotpm.Policy) {
			a := i.authority(&instance, "below the instance", nil)
			below(d, a, nil)
			bundle(d, root, regional, zonal, instance, a)
		}, "chain", "too many intermediates"},
		{"issuer may not sign certificates", func(d *document, _ *nitrotpm.Policy) {
			a := i.authority(&zonal, "signs lists only", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign })
			below(d, a, nil)
			bundle(d, root, regional, zonal, a)
		}, "chain", "parent certificate cannot sign"},
		{"issuer has no keyUsage", func(d *document, _ *nitrotpm.Policy) {
			a := i.authority(&zonal, "without keyUsage", func(c *x509.Certificate) { c.KeyUsage = 0 })
			below(d, a, nil)
			bundle(d, root, regional, zonal, a)
		}, "chain", "keyUsage"},
		{"leaf signed by the key of another with the issuer's name", func(d *document, _ *nitrotpm.Policy) {
			a := forged.chain[3]
			below(d, a, nil)
		}, "chain", "unknown authority"},
		{"leaf has an extension that is not known and critical", func(d *document, _ *nitrotpm.Policy) {
			below(d, instance, func(c *x509.Certificate) {
				c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: []int{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}})
			})
		}, "chain", "unhandled critical extension"},

		// The leaf.
		{"leaf on P-256", func(d *document, _ *nitrotpm.Policy) {
			d.leaf = i.certify(&instance, i.leafTemplate(), elliptic.P256())
			d.payload["certificate"] = d.leaf.certificate.Raw
		}, "leaf key", "P-256"},
		{"leaf is an authority", func(d *document, _ *nitrotpm.Policy) {
			a := i.authority(&zonal, moduleID+".eu-central-1.aws", func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageDigitalSignature })
			d.leaf = a
			d.payload["certificate"] = a.certificate.Raw
		}, "leaf usage", "authority"},
		{"leaf may not sign", func(d *document, _ *nitrotpm.Policy) {
			below(d, instance, func(c *x509.Certificate) { c.ExtraExtensions, c.KeyUsage = nil, x509.KeyUsageKeyAgreement })
		}, "leaf usage", "digitalSignature"},
		{"leaf has no keyUsage", func(d *document, _ *nitrotpm.Policy) {
			below(d, instance, func(c *x509.Certificate) { c.ExtraExtensions = nil })
		}, "leaf usage", "digitalSignature"},
		{"leaf of another module", set("module_id", "i-0fedcba9876543210-tpm0000000000000000"), "module", moduleID},
		{"module whose name begins alike", set("module_id", moduleID[:len(moduleID)-1]), "module", moduleID},

		// The signature.
		{"another payload was signed", func(d *document, _ *nitrotpm.Policy) {
			d.sign = func([]byte) (r, s *big.Int) {
				r, s, _ = ecdsa.Sign(rand.Reader, d.leaf.key.(*ecdsa.PrivateKey), make([]byte, 48))
				return r, s
			}
		}, "signature", "not by the leaf"},
		{"a bit of the signature", func(d *document, _ *nitrotpm.Policy) {
			d.after = func(s []byte) []byte { s[95] ^= 1; return s }
		}, "signature", "not by the leaf"},
		{"signature of zeros", func(d *document, _ *nitrotpm.Policy) {
			d.after = func([]byte) []byte { return make([]byte, 96) }
		}, "signature", "not by the leaf"},
		{"r and s exchanged", func(d *document, _ *nitrotpm.Policy) {
			d.after = func(s []byte) []byte { return slices.Concat(s[48:], s[:48]) }
		}, "signature", "not by the leaf"},

		// Freshness.
		{"from the future", func(d *document, _ *nitrotpm.Policy) {
			d.payload["timestamp"] = uint64(now.Add(2 * time.Minute).UnixMilli())
		}, "timestamp", "12:02:00"},
		{"older than it may be", func(_ *document, p *nitrotpm.Policy) { p.At, p.MaxAge = now.Add(6*time.Minute), 5*time.Minute }, "timestamp", "12:00:00"},
		{"timestamp in seconds", set("timestamp", uint64(now.Unix())), "timestamp", "1970-"},
		{"another nonce", set("nonce", []byte("another")), "nonce", "another"},
		{"a longer nonce that begins alike", set("nonce", append(slices.Clone(nonce), 0)), "nonce", "00"},
		{"nonce absent", set("nonce", nil), "nonce", "nothing"},
		{"nonce empty", set("nonce", []byte{}), "nonce", "empty"},

		// PCRs.
		{"other PCR 4", func(_ *document, p *nitrotpm.Policy) { p.Accept[0].PCRs[4] = bytes.Repeat([]byte{7}, 48) }, "PCR 4", "05000000"},
		{"PCR 12 missing", func(d *document, _ *nitrotpm.Policy) {
			values := pcrs()
			delete(values, 12)
			d.payload["nitrotpm_pcrs"] = values
		}, "PCR 12", "nothing"},
		{"PCR 4 of one generation and PCR 12 of the other", func(_ *document, p *nitrotpm.Policy) {
			other := bytes.Repeat([]byte{9}, 48)
			p.Accept = []nitrotpm.Reference{
				{Name: "v1", PCRs: map[int][]byte{4: pcrs()[4], 12: other}}, {Name: "v2", PCRs: map[int][]byte{4: other, 12: pcrs()[12]}},
			}
		}, "PCR 12", "00000000"},
		{"a driver that firmware loaded", func(d *document, _ *nitrotpm.Policy) {
			d.payload["nitrotpm_pcrs"] = withPCR(2, driverLoaded)
		}, "PCR 2", "aaaaaa: the firmware loaded a driver that is not part of the image, or this instance type has an option ROM"},
		{"PCR 2 missing", func(d *document, _ *nitrotpm.Policy) {
			values := pcrs()
			delete(values, 2)
			d.payload["nitrotpm_pcrs"] = values
		}, "PCR 2", "nothing"},
		{"an extension beside the kernel image", func(d *document, _ *nitrotpm.Policy) {
			d.payload["nitrotpm_pcrs"] = withPCR(13, driverLoaded)
		}, "PCR 13", "aaaaaa: an extension image lies beside"},
		{"an extension with Secure Boot", func(d *document, p *nitrotpm.Policy) {
			d.payload["nitrotpm_pcrs"] = withPCR(13, driverLoaded)
			p.Accept = []nitrotpm.Reference{{Name: "v1", SecureBoot: true, PCRs: map[int][]byte{7: pcrs()[7], 12: pcrs()[12]}}}
		}, "PCR 13", "aaaaaa"},
		{"a driver, and PCR 13 left out", func(d *document, p *nitrotpm.Policy) {
			d.payload["nitrotpm_pcrs"], p.WithoutPCRs = withPCR(2, driverLoaded), []int{13}
		}, "PCR 2", "aaaaaa"},
		{"a driver, Secure Boot claimed, and no PCR 7", func(d *document, p *nitrotpm.Policy) {
			d.payload["nitrotpm_pcrs"], p.Accept[0].SecureBoot = withPCR(2, driverLoaded), true
		}, "PCR 2", "aaaaaa"},
		{"other PCR 7 with Secure Boot", func(_ *document, p *nitrotpm.Policy) {
			p.Accept = []nitrotpm.Reference{{Name: "v1", SecureBoot: true, PCRs: map[int][]byte{7: bytes.Repeat([]byte{9}, 48), 12: pcrs()[12]}}}
		}, "PCR 7", "08000000"},

		// What the instance says.
		{"other user_data", func(d *document, p *nitrotpm.Policy) {
			d.payload["user_data"], p.UserData = []byte("a"), []byte("b")
		}, "user_data", "a"},
		{"no user_data", func(_ *document, p *nitrotpm.Policy) { p.UserData = []byte("b") }, "user_data", "nothing"},
		{"another public_key", func(d *document, p *nitrotpm.Policy) {
			d.payload["public_key"], p.PublicKey = []byte{1}, []byte{2}
		}, "public_key", "01"},
		{"no public_key", func(_ *document, p *nitrotpm.Policy) { p.PublicKey = []byte{} }, "public_key", "nothing"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, p := i.newDocument(), i.policy()
			tc.change(d, &p)
			parsed, err := nitrotpm.Parse(d.bytes(t))
			if err != nil {
				t.Fatal(err)
			}
			verdict, err := p.Verify(parsed)
			var refused *nitrotpm.RefusedError
			if !errors.As(err, &refused) || verdict == nil {
				t.Fatalf("verdict %v, error %v", verdict, err)
			}
			if !slices.Contains(verdict.Checks, refused.Check) || refused.Check.OK {
				t.Errorf("%+v is not what fails in %+v", refused.Check, verdict.Checks)
			}
			c := refused.Check
			if c.Name != tc.check || !strings.Contains(c.Found, tc.found) {
				t.Errorf("failed at %s (expected %s, found %s), want %s with %q", c.Name, c.Expected, c.Found, tc.check, tc.found)
			}
		})
	}
}

var driverLoaded = bytes.Repeat([]byte{0xaa}, 48)

func withPCR(n int, value []byte) map[int][]byte {
	values := pcrs()
	values[n] = value
	return values
}

// TestVerdictSaysWhatWasLeftOut: a verdict without PCR 2 or 13 cannot be taken for one
// with them.
func TestVerdictSaysWhatWasLeftOut(t *testing.T) {
	i := newIssuer(t)
	d, p := i.newDocument(), i.policy()
	d.payload["nitrotpm_pcrs"] = withPCR(2, driverLoaded)
	parsed, err := nitrotpm.Parse(d.bytes(t))
	if err != nil {
		t.Fatal(err)
	}
	p.WithoutPCRs = []int{2}
	verdict, err := p.Verify(parsed)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]string{}
	for _, c := range verdict.Checks {
		names[c.Name] = c.Expected
	}
	if names["PCR 2"] != "any: the policy leaves it out" || names["PCR 13"] != strings.Repeat("0", 96) || len(verdict.Notes) != 0 {
		t.Errorf("checks %+v, notes %q", verdict.Checks, verdict.Notes)
	}
	p.WithoutPCRs, p.Accept = nil, []nitrotpm.Reference{{Name: "v1", SecureBoot: true, PCRs: map[int][]byte{7: pcrs()[7], 12: pcrs()[12]}}}
	if verdict, err = p.Verify(parsed); err != nil || len(verdict.Notes) != 1 || !strings.Contains(verdict.Notes[0], "a driver that Secure Boot let run") {
		t.Errorf("verdict %+v, %v", verdict, err)
	}
}

// TestVerifyNotParsed: what Parse did not read is no document, and no panic either.
func TestVerifyNotParsed(t *testing.T) {
	p := newIssuer(t).policy()
	for name, d := range map[string]*nitrotpm.Document{"none": nil, "made by hand": {ModuleID: moduleID, PCRs: pcrs(), Nonce: nonce}} {
		if verdict, err := p.Verify(d); err == nil || verdict != nil || !strings.Contains(err.Error(), "not read by Parse") {
			t.Errorf("%s: verdict %v, error %v", name, verdict, err)
		}
	}
}

// extended is a PCR after events with these data.
func extended(events ...[]byte) []byte {
	value := make([]byte, 48)
	for _, data := range events {
		digest := sha512.Sum384(data)
		next := sha512.Sum384(append(value, digest[:]...))
		value = next[:]
	}
	return value
}

func TestPolicyValidate(t *testing.T) {
	good := func() nitrotpm.Policy { return newIssuer(t).policy() }
	for _, tc := range []struct {
		name   string
		change func(*nitrotpm.Policy)
		err    string
	}{
		{"nothing of the nonce", func(p *nitrotpm.Policy) { p.Nonce = nil }, "nothing of the nonce"},
		{"a nonce, and any", func(p *nitrotpm.Policy) { p.AnyNonce = true }, "says that any will do"},
		{"an empty nonce", func(p *nitrotpm.Policy) { p.Nonce = []byte{} }, "0 bytes"},
		{"a nonce that no document can carry", func(p *nitrotpm.Policy) { p.Nonce = make([]byte, 1025) }, "1025 bytes"},
		{"nothing of the PCRs", func(p *nitrotpm.Policy) { p.Accept = nil }, "nothing of the PCRs"},
		{"PCRs, and any", func(p *nitrotpm.Policy) { p.AnyPCRs = true }, "says that any will do"},
		{"negative age", func(p *nitrotpm.Policy) { p.MaxAge = -1 }, "negative"},
		{"without PCR 12", func(p *nitrotpm.Policy) { delete(p.Accept[0].PCRs, 12) }, "lacks PCR 12"},
		{"without PCR 4", func(p *nitrotpm.Policy) { delete(p.Accept[0].PCRs, 4) }, "lacks PCR 4"},
		{"Secure Boot without PCR 7", func(p *nitrotpm.Policy) {
			p.Accept[0].SecureBoot = true
			delete(p.Accept[0].PCRs, 4)
		}, "lacks PCR 7"},
		{"PCR 7 of an instance without Secure Boot", func(p *nitrotpm.Policy) {
			off := mustHex("98441c7f7625d10058c47683aec486ce311c633235eb555593a7ee791121e3578ae72d04ecef661f272d59058b77af35")
			p.Accept[0] = nitrotpm.Reference{Name: "v1", SecureBoot: true, PCRs: map[int][]byte{7: off, 12: make([]byte, 48)}}
		}, "every instance with Secure Boot off"},
		{"no PCR 4 to leave out", func(p *nitrotpm.Policy) { p.WithoutPCRs = []int{4} }, "only PCR 2 and 13 can be left out"},
		{"no PCR 12 to leave out", func(p *nitrotpm.Policy) { p.WithoutPCRs = []int{2, 12} }, "the policy leaves out PCR 12"},
		{"zero in PCR 4", func(p *nitrotpm.Policy) { p.Accept[0].PCRs[4] = make([]byte, 48) }, "PCR 4 is zero"},
		{"ones in PCR 4", func(p *nitrotpm.Policy) { p.Accept[0].PCRs[4] = bytes.Repeat([]byte{0xff}, 48) }, "PCR 4 is all ones"},
		{"zero in PCR 2", func(p *nitrotpm.Policy) { p.Accept[0].PCRs[2] = make([]byte, 48) }, "PCR 2 is zero"},
		{"ones in PCR 13", func(p *nitrotpm.Policy) { p.Accept[0].PCRs[13] = bytes.Repeat([]byte{0xff}, 48) }, "PCR 13 is all ones"},
		{"the separator in PCR 4", func(p *nitrotpm.Policy) { p.Accept[0].PCRs[4] = separatorOnly }, "PCR 4 is that of every machine on which firmware has started nothing"},
		{"a boot attempt in PCR 4", func(p *nitrotpm.Policy) {
			p.Accept[0].PCRs[4] = extended([]byte("Calling EFI Application from Boot Option"), make([]byte, 4))
		}, "PCR 4 is that of every machine on which firmware has started nothing"},
		{"the separator in PCR 7", func(p *nitrotpm.Policy) {
			p.Accept[0] = nitrotpm.Reference{Name: "v1", SecureBoot: true, PCRs: map[int][]byte{7: separatorOnly, 12: make([]byte, 48)}}
		}, "PCR 7 is that of firmware that records no variable"},
		{"PCR 4, and PCR 7 of an instance without Secure Boot, which is said to be on", func(p *nitrotpm.Policy) {
			p.Accept[0].SecureBoot, p.Accept[0].PCRs[7] = true, mustHex("98441c7f7625d10058c47683aec486ce311c633235eb555593a7ee791121e3578ae72d04ecef661f272d59058b77af35")
		}, "every instance with Secure Boot off"},
		{"PCR 24", func(p *nitrotpm.Policy) { p.Accept[0].PCRs[24] = make([]byte, 48) }, "PCR 24"},
		{"PCR of SHA-256", func(p *nitrotpm.Policy) { p.Accept[0].PCRs[7] = make([]byte, 32) }, "32 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := good()
			tc.change(&p)
			if err := p.Validate(); err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("error %v, want %q", err, tc.err)
			}
			if verdict, err := p.Verify(new(nitrotpm.Document)); err == nil || verdict != nil {
				t.Errorf("verdict %v, error %v", verdict, err)
			}
		})
	}
}
