package nitrotpm_test

import (
	"bytes"
	"encoding/pem"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/org/attestable-image-action/nitrotpm"
)

func TestParse(t *testing.T) {
	i := newIssuer(t)
	d := i.newDocument()
	d.payload["user_data"], d.payload["public_key"] = []byte{}, bytes.Repeat([]byte{4}, 1024)
	parsed, err := nitrotpm.Parse(d.bytes(t))
	if err != nil {
		t.Fatal(err)
	}
	if parsed.ModuleID != moduleID || parsed.Digest != "SHA384" || !parsed.Timestamp.Equal(now) {
		t.Errorf("parsed %s, %s, %s", parsed.ModuleID, parsed.Digest, parsed.Timestamp)
	}
	if len(parsed.PCRs) != 24 || !bytes.Equal(parsed.PCRs[23], pcrs()[23]) {
		t.Errorf("parsed PCRs %x", parsed.PCRs)
	}
	if parsed.UserData == nil || len(parsed.UserData) != 0 || len(parsed.PublicKey) != 1024 || !bytes.Equal(parsed.Nonce, nonce) {
		t.Errorf("parsed user_data %x, public_key %x, nonce %x", parsed.UserData, parsed.PublicKey, parsed.Nonce)
	}
	if len(parsed.CABundle) != 4 || !parsed.CABundle[0].Equal(i.chain[0].certificate) || !parsed.Certificate.Equal(d.leaf.certificate) {
		t.Error("other certificates were read")
	}
	d = i.newDocument()
	if parsed, err = nitrotpm.Parse(d.bytes(t)); err != nil || parsed.UserData != nil || parsed.PublicKey != nil {
		t.Errorf("null read as %v, %v, %v", parsed.UserData, parsed.PublicKey, err)
	}
}

// TestParseRefuses has what is not a document, though it is signed where it can be.
func TestParseRefuses(t *testing.T) {
	i := newIssuer(t)
	set := func(name string, value any) func(*document) {
		return func(d *document) { d.payload[name] = value }
	}
	for _, tc := range []struct {
		name   string
		change func(*document)
		bytes  func([]byte) []byte
		err    string
	}{
		// COSE_Sign1.
		{"empty", nil, func([]byte) []byte { return nil }, "it is empty"},
		{"a tag alone", nil, func([]byte) []byte { return []byte{0xd2} }, "not a COSE_Sign1"},
		{"JSON", nil, func([]byte) []byte { return []byte(`{"document": 1}`) }, "not a COSE_Sign1"},
		{"cut off", nil, func(b []byte) []byte { return b[:len(b)-1] }, "unexpected EOF"},
		{"cut in half", nil, func(b []byte) []byte { return b[:len(b)/2] }, "unexpected EOF"},
		{"padded", nil, func(b []byte) []byte { return append(b, 0) }, "1 bytes of extraneous data"},
		{"too large", nil, func(b []byte) []byte { return append(b, make([]byte, nitrotpm.MaxDocument)...) }, "more than 16384"},
		{"tag 17", nil, func(b []byte) []byte { return append([]byte{0xd1}, b...) }, "not a COSE_Sign1"},
		{"tagged twice", nil, func(b []byte) []byte { return append([]byte{0xd2, 0xd2}, b...) }, "not a COSE_Sign1"},
		{"array of indefinite length", nil, func(b []byte) []byte { return append(append([]byte{0x9f}, b[1:]...), 0xff) }, "four elements"},
		{"array of five", nil, func(b []byte) []byte { b[0] = 0x85; return append(b, 0xf6) }, "four elements"},
		{"a length of eight exabytes", nil, func([]byte) []byte { return []byte{0x84, 0x5b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff} }, "unexpected EOF"},
		{"nested deeply", nil, func([]byte) []byte { return append([]byte{0x84}, bytes.Repeat([]byte{0x81}, 8000)...) }, "exceeded max nested level"},
		{"payload in chunks", nil, func([]byte) []byte {
			return []byte{0x84, 0x44, 0xa1, 0x01, 0x38, 0x22, 0xa0, 0x5f, 0x41, 0xa0, 0xff, 0x40}
		}, "indefinite-length byte string isn't allowed"},
		{"payload detached", nil, func([]byte) []byte { return []byte{0x84, 0x44, 0xa1, 0x01, 0x38, 0x22, 0xa0, 0xf6, 0x40} }, "payload is not a byte string"},
		{"unprotected header", func(d *document) { d.unprot = []byte{0xa1, 0x04, 0x41, 0x01} }, nil, "unprotected header is not empty"},
		{"ES256", func(d *document) { d.protected = []byte{0xa1, 0x01, 0x26} }, nil, "the algorithm is -7"},
		{"no algorithm", func(d *document) { d.protected = []byte{0xa0} }, nil, "names no algorithm"},
		{"empty protected header", func(d *document) { d.protected = []byte{} }, nil, "protected header: EOF"},
		{"two algorithms", func(d *document) { d.protected = []byte{0xa2, 0x01, 0x38, 0x22, 0x01, 0x26} }, nil, "duplicate map key"},
		{"a critical header", func(d *document) { d.protected = []byte{0xa2, 0x01, 0x38, 0x22, 0x02, 0x81, 0x05} }, nil, "more than the algorithm"},
		{"signature in DER", func(d *document) { d.after = func(s []byte) []byte { return append(s, 0, 0, 0, 0, 0, 0, 0, 0) } }, nil, "signature has 104 bytes"},
		{"no signature", func(d *document) { d.after = func([]byte) []byte { return nil } }, nil, "signature is not a byte string"},

		// The payload.
		{"duplicate nonce", func(d *document) { d.rawPairs = []byte{0x65, 'n', 'o', 'n', 'c', 'e', 0x41, 0x01} }, nil, "duplicate map key \"nonce\""},
		{"key that is no text", func(d *document) { d.rawPairs = []byte{0x01, 0x01} }, nil, "cannot unmarshal positive integer into Go value of type string"},
		{"text that is not UTF-8", func(d *document) { d.rawPairs = []byte{0x61, 0xff, 0x01} }, nil, "invalid UTF-8"},
		{"bytes behind the map", func(d *document) { d.trailing = []byte{0x00} }, nil, "extraneous data"},
		{"nested deeply in a member", func(d *document) {
			d.rawPairs = append([]byte{0x61, 'x'}, append(bytes.Repeat([]byte{0x81}, 1000), 0x00)...)
		}, nil, "exceeded max nested level"},
		{"a tag inside", func(d *document) { d.rawPairs = []byte{0x61, 'x', 0xc0, 0x60} }, nil, "CBOR tag isn't allowed"},
		{"nonce in chunks", func(d *document) {
			d.order = slices.DeleteFunc(d.order, func(n string) bool { return n == "nonce" })
			d.rawPairs = []byte{0x65, 'n', 'o', 'n', 'c', 'e', 0x5f, 0x41, 0x01, 0xff}
		}, nil, "nonce: cbor: indefinite-length"},
		{"PCRs of indefinite length", func(d *document) {
			d.order = slices.DeleteFunc(d.order, func(n string) bool { return n == "nitrotpm_pcrs" })
			d.rawPairs = append([]byte{0x6d}, "nitrotpm_pcrs\xbf\xff"...)
		}, nil, "nitrotpm_pcrs: cbor: indefinite-length"},
		{"of an enclave", func(d *document) {
			d.order = append(slices.DeleteFunc(d.order, func(n string) bool { return n == "nitrotpm_pcrs" }), "pcrs")
			d.payload["pcrs"] = pcrs()
		}, nil, "Nitro Enclave"},
		{"no PCRs", func(d *document) {
			d.order = slices.DeleteFunc(d.order, func(n string) bool { return n == "nitrotpm_pcrs" })
		}, nil, "nitrotpm_pcrs is missing"},
		{"empty PCRs", set("nitrotpm_pcrs", map[int][]byte{}), nil, "nitrotpm_pcrs is empty"},
		{"PCRs by name", set("nitrotpm_pcrs", map[string][]byte{"4": pcrs()[4]}), nil, "nitrotpm_pcrs: cbor"},
		{"PCR 24", set("nitrotpm_pcrs", map[int][]byte{24: pcrs()[4]}), nil, "PCR 24"},
		{"PCR -1", set("nitrotpm_pcrs", map[int][]byte{-1: pcrs()[4]}), nil, "nitrotpm_pcrs: cbor"},
		{"PCR of 32 bytes", set("nitrotpm_pcrs", map[int][]byte{4: make([]byte, 32)}), nil, "PCR 4 has 32 bytes"},
		{"PCR of 49 bytes", set("nitrotpm_pcrs", map[int][]byte{4: make([]byte, 49)}), nil, "PCR 4 has 49 bytes"},
		{"PCR in hex", set("nitrotpm_pcrs", map[int]string{4: strings.Repeat("00", 48)}), nil, "PCR 4 is not a byte string"},
		{"PCR twice", func(d *document) {
			d.order = slices.DeleteFunc(d.order, func(n string) bool { return n == "nitrotpm_pcrs" })
			value := append([]byte{0x58, 48}, make([]byte, 48)...)
			d.rawPairs = slices.Concat([]byte{0x6d}, []byte("nitrotpm_pcrs"), []byte{0xa2, 0x04}, value, []byte{0x04}, value)
		}, nil, "duplicate map key"},
		{"PCR twice in two encodings", func(d *document) {
			d.order = slices.DeleteFunc(d.order, func(n string) bool { return n == "nitrotpm_pcrs" })
			value := append([]byte{0x58, 48}, make([]byte, 48)...)
			d.rawPairs = slices.Concat([]byte{0x6d}, []byte("nitrotpm_pcrs"), []byte{0xa2, 0x04}, value, []byte{0x18, 0x04}, value)
		}, nil, "duplicate map key"},
		{"digest SHA256", set("digest", "SHA256"), nil, "digest is \"SHA256\""},
		{"digest null", set("digest", nil), nil, "digest is null"},
		{"module_id empty", set("module_id", ""), nil, "module_id"},
		{"module_id with a control character", set("module_id", "i-\x1b[2J"), nil, "module_id"},
		{"module_id too long", set("module_id", strings.Repeat("a", 257)), nil, "module_id"},
		{"timestamp negative", set("timestamp", -1), nil, "timestamp: cbor"},
		{"timestamp as text", set("timestamp", "now"), nil, "timestamp: cbor"},
		{"timestamp of the far future", set("timestamp", uint64(1)<<63), nil, "beyond the year 9999"},
		{"certificate in PEM", func(d *document) {
			d.payload["certificate"] = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: d.leaf.certificate.Raw})
		}, nil, "certificate: x509"},
		{"certificate with bytes behind it", func(d *document) {
			d.payload["certificate"] = append(slices.Clone(d.leaf.certificate.Raw), 0)
		}, nil, "trailing data"},
		{"certificate too large", set("certificate", make([]byte, 1025)), nil, "1025 bytes"},
		{"certificate as an array of numbers", set("certificate", []int{48, 0}), nil, "certificate: it is not a byte string"},
		{"no cabundle", set("cabundle", [][]byte{}), nil, "cabundle has 0 certificates"},
		{"cabundle of nine", set("cabundle", slices.Repeat([][]byte{i.chain[0].certificate.Raw}, 9)), nil, "cabundle has 9 certificates"},
		{"cabundle with what is no certificate", set("cabundle", [][]byte{i.chain[0].certificate.Raw, {0x30, 0}}), nil, "certificate 1 of cabundle"},
		{"nonce of 1025 bytes", set("nonce", make([]byte, 1025)), nil, "nonce has 1025 bytes"},
		{"nonce as text", set("nonce", "text"), nil, "nonce is not a byte string"},
		{"user_data of 1025 bytes", set("user_data", make([]byte, 1025)), nil, "user_data has 1025 bytes"},
		{"public_key as an array", set("public_key", []int{1}), nil, "public_key is not a byte string"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := i.newDocument()
			if tc.change != nil {
				tc.change(d)
			}
			b := d.bytes(t)
			if tc.bytes != nil {
				b = tc.bytes(b)
			}
			parsed, err := nitrotpm.Parse(b)
			if err == nil || parsed != nil {
				t.Fatal("read")
			}
			if !strings.HasPrefix(err.Error(), "read attestation document: ") || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("error %q, want %q", err, tc.err)
			}
		})
	}
}

func TestParseRoot(t *testing.T) {
	c := newIssuer(t).chain[0].certificate
	inPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	want := nitrotpm.Fingerprint(c)
	withColons := strings.ToUpper(strings.Join(slices.Collect(func(yield func(string) bool) {
		for n := 0; n < 64; n += 2 {
			yield(want.String()[n : n+2])
		}
	}), ":"))
	for _, good := range []string{string(inPEM), want.String(), withColons, want.String() + "\n"} {
		if got, err := nitrotpm.ParseRoot([]byte(good)); err != nil || got != want {
			t.Errorf("%q is %s, %v", good, got, err)
		}
	}
	for _, bad := range []string{"", "aws", want.String()[2:], string(inPEM) + string(inPEM), strings.ReplaceAll(string(inPEM), "CERTIFICATE", "PUBLIC KEY"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1}}))} {
		if got, err := nitrotpm.ParseRoot([]byte(bad)); err == nil {
			t.Errorf("%q is %s", bad, got)
		}
	}
}

// FuzzParse holds that whatever is read is within its bounds, and that nothing
// which was found by chance is believed. The seeds are in testdata; -update writes
// them anew.
func FuzzParse(f *testing.F) {
	seeds, err := filepath.Glob("testdata/*.cbor")
	if err != nil || len(seeds) == 0 {
		f.Fatal("there are no seeds", err)
	}
	for _, seed := range seeds {
		b, err := os.ReadFile(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	policy := nitrotpm.Policy{AnyNonce: true, AnyPCRs: true, At: now.Add(time.Second)}
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := nitrotpm.Parse(b)
		if err != nil {
			return
		}
		if len(b) > nitrotpm.MaxDocument || d.Certificate == nil || len(d.CABundle) == 0 || d.Digest != "SHA384" {
			t.Errorf("read %d bytes as %+v", len(b), d)
		}
		for n, value := range d.PCRs {
			if n < 0 || n >= nitrotpm.PCRCount || len(value) != nitrotpm.PCRSize {
				t.Errorf("PCR %d has %d bytes", n, len(value))
			}
		}
		for _, value := range [][]byte{d.Nonce, d.UserData, d.PublicKey, d.Certificate.Raw} {
			if len(value) > nitrotpm.MaxField {
				t.Errorf("a field has %d bytes", len(value))
			}
		}
		var refused *nitrotpm.RefusedError
		if _, err := policy.Verify(d); !errors.As(err, &refused) {
			t.Errorf("verified against AWS's root: %v", err)
		}
	})
}

var update = flag.Bool("update", false, "write the seeds of FuzzParse anew")

// TestSeeds keeps the seeds of FuzzParse readable, which the examples read, too:
// they are documents of a throw-away chain.
func TestSeeds(t *testing.T) {
	if *update {
		i := newIssuer(t)
		root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.chain[0].certificate.Raw})
		if err := os.WriteFile("testdata/root.pem", root, 0o644); err != nil {
			t.Fatal(err)
		}
		for name, change := range map[string]func(*document){
			"plain": func(*document) {}, "tagged": func(d *document) { d.tag, d.definite = true, true },
			"full": func(d *document) { d.payload["user_data"], d.payload["public_key"] = []byte("data"), []byte{4, 1, 2} },
		} {
			d := i.newDocument()
			change(d)
			if err := os.WriteFile(filepath.Join("testdata", name+".cbor"), d.bytes(t), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	content, err := os.ReadFile("testdata/root.pem")
	if err != nil {
		t.Fatal(err)
	}
	root, err := nitrotpm.ParseRoot(content)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"plain", "tagged", "full"} {
		b, err := os.ReadFile(filepath.Join("testdata", name+".cbor"))
		if err != nil {
			t.Fatal(err)
		}
		d, err := nitrotpm.Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		p := nitrotpm.Policy{Roots: []nitrotpm.Root{root}, At: now, Nonce: nonce, Accept: []nitrotpm.Reference{reference()}}
		if _, err := p.Verify(d); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
