package efi

import (
	"bytes"
	"compress/flate"
	"encoding/base64"
	"encoding/binary"
	"hash/adler32"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// goldenVariables are the Secure Boot variables of a disk that was booted with
// them.
func goldenVariables(t testing.TB) []Variable {
	t.Helper()
	var variables []Variable
	for _, v := range []struct {
		name   string
		vendor GUID
	}{{"PK", GlobalVariable}, {"KEK", GlobalVariable}, {"db", ImageSecurityDatabase}, {"dbx", ImageSecurityDatabase}} {
		data, err := os.ReadFile(filepath.Join(testenv.Root(t), "testdata/golden/sbA252."+v.name+".esl"))
		if err != nil {
			t.Fatal(err)
		}
		variables = append(variables, Variable{
			Name: v.name, Vendor: v.vendor, Attributes: SecureBootAttributes, Data: data, Digest: make([]byte, 32),
		})
	}
	return variables
}

func encodeAWS(t testing.TB, variables []Variable) []byte {
	t.Helper()
	store, err := EncodeAWSVariables(variables)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func TestAWSVariables(t *testing.T) {
	golden := goldenVariables(t)
	plain := Variable{Name: "Żółw", Vendor: GlobalVariable, Attributes: NonVolatile | BootServiceAccess, Data: []byte{}}
	timed := golden[0]
	timed.Time, timed.Digest = [16]byte{0xea, 0x07, 11, 23}, []byte{}
	for _, tc := range []struct {
		name      string
		variables []Variable
	}{
		{"none", []Variable{}},
		{"Secure Boot", golden},
		{"with and without time", []Variable{plain, timed}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			store := encodeAWS(t, tc.variables)
			if again := encodeAWS(t, tc.variables); !bytes.Equal(store, again) {
				t.Error("the same variables give other characters")
			}
			if bytes.ContainsAny(store, "\n ") {
				t.Error("the store has white space")
			}
			for _, b := range [][]byte{store, append(bytes.Clone(store), '\n')} {
				got, err := DecodeAWSVariables(b, nil)
				if err != nil {
					t.Fatal(err)
				}
				if !reflect.DeepEqual(got, tc.variables) {
					t.Errorf("got %+v, want %+v", got, tc.variables)
				}
			}
		})
	}
}

// awsDictionaryBytes are the bytes of AWS's dictionary, from virt-fw-vars.
func awsDictionaryBytes(t testing.TB) []byte {
	t.Helper()
	script, err := filepath.EvalSymlinks(testenv.Tool(t, "virt-fw-vars"))
	if err != nil {
		t.Fatal(err)
	}
	// The interpreter that virt-fw-vars itself runs under has its package.
	content, err := os.ReadFile(script)
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(content), "\n")
	out, err := exec.Command(strings.TrimPrefix(line, "#!"), "-c",
		"import sys; from virt.firmware.varstore.aws import zdict_v0; sys.stdout.buffer.write(zdict_v0())").Output()
	if err != nil {
		t.Fatalf("get the dictionary from virt-fw-vars: %v", err)
	}
	if adler32.Checksum(out) != awsDictionary {
		t.Fatalf("the dictionary of virt-fw-vars has the Adler-32 %08x, want %08x", adler32.Checksum(out), awsDictionary)
	}
	return out
}

// TestAWSVariablesAgainstVirtFwVars has virt-fw-vars read what we write, write
// it anew with AWS's dictionary, and reads that.
func TestAWSVariablesAgainstVirtFwVars(t *testing.T) {
	tool := testenv.Tool(t, "virt-fw-vars")
	dictionary := awsDictionaryBytes(t)
	want := goldenVariables(t)
	dir := t.TempDir()
	ours, theirs := filepath.Join(dir, "ours.aws"), filepath.Join(dir, "theirs.aws")
	if err := os.WriteFile(ours, encodeAWS(t, want), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(tool, "--input", ours, "--print", "--verbose", "--output-aws", theirs).CombinedOutput()
	if err != nil {
		t.Fatalf("virt-fw-vars: %v\n%s", err, out)
	}
	for _, v := range want {
		if !strings.Contains(string(out), v.Name) {
			t.Errorf("virt-fw-vars prints no %s:\n%s", v.Name, out)
		}
	}
	store, err := os.ReadFile(theirs)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeAWSVariables(store, nil); err == nil || !strings.Contains(err.Error(), "was made with AWS's dictionary, which is not part of this program") {
		t.Errorf("without the dictionary: %v", err)
	}
	got, err := DecodeAWSVariables(store, dictionary)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Fatalf("%d variables, want %d", len(got), len(want))
	}
	for _, w := range want {
		found := false
		for _, g := range got {
			if g.Name == w.Name {
				found = true
				if g.Vendor != w.Vendor || g.Attributes != w.Attributes || !bytes.Equal(g.Data, w.Data) {
					t.Errorf("%s comes back as %+v", w.Name, g)
				}
			}
		}
		if !found {
			t.Errorf("%s is lost", w.Name)
		}
	}
	// Our store reads alike with the dictionary: it never refers to it.
	if got, err := DecodeAWSVariables(encodeAWS(t, want), dictionary); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("our own store with the dictionary: %v", err)
	}
}

// awsStore makes a store whose checksums are right around any content.
func awsStore(content, trailer []byte) []byte {
	var b bytes.Buffer
	b.Write([]byte("\x00\x00\x00\x00\x78\xf9\x6b\xb7\xd9\xf7"))
	w, err := flate.NewWriter(&b, flate.BestCompression)
	if err == nil {
		_, err = w.Write(content)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic(err) // memory takes every write
	}
	b.Write(trailer)
	rest := binary.BigEndian.AppendUint32(b.Bytes(), adler32.Checksum(content))
	return wrapAWS(rest)
}

// wrapAWS puts magic and CRC in front of version and stream.
func wrapAWS(rest []byte) []byte {
	raw := binary.LittleEndian.AppendUint32([]byte(awsMagic), crc32.Checksum(rest, castagnoli))
	return []byte(base64.StdEncoding.EncodeToString(append(raw, rest...)))
}

func TestDecodeAWSVariablesRefuses(t *testing.T) {
	le := binary.LittleEndian
	count := func(n uint64) []byte { return le.AppendUint64(nil, n) }
	raw, err := base64.StdEncoding.DecodeString(string(encodeAWS(t, goldenVariables(t))))
	if err != nil {
		t.Fatal(err)
	}
	changed := func(change func(b []byte)) []byte {
		b := bytes.Clone(raw[12:])
		change(b)
		return wrapAWS(b)
	}
	flipped := bytes.Clone(raw)
	flipped[100] ^= 1
	badName := appendAWSVariable(count(1), Variable{Name: "\xff"})
	for _, tc := range []struct {
		name  string
		store []byte
		want  string
	}{
		{"empty", nil, `it does not begin with "AMZNUEFI"`},
		{"not base64", []byte("not base64!"), "it is not base64"},
		{"another file", []byte(base64.StdEncoding.EncodeToString(make([]byte, 64))), `it does not begin with "AMZNUEFI"`},
		{"too long", bytes.Repeat([]byte("A"), AWSMaxStore+1), "it has 64001 characters, more than the 64000 that EC2 takes"},
		{"damaged", []byte(base64.StdEncoding.EncodeToString(flipped)), "it is damaged"},
		{"cut off", []byte(base64.StdEncoding.EncodeToString(raw[:20])), "it is none, or cut off"},
		{"a later version", changed(func(b []byte) { b[0] = 1 }), "it is of version 1, and only 0 is known"},
		{"another dictionary", changed(func(b []byte) { b[6] ^= 1 }), "not with a zlib header that names AWS's dictionary"},
		{"wrong Adler-32", changed(func(b []byte) { b[len(b)-1] ^= 1 }), "the Adler-32 of its content is"},
		{"bad stream", changed(func(b []byte) { b[10] = 0xff }), "its stream is damaged"},
		{"unpacks to a lot", awsStore(make([]byte, 20<<20), nil), "it unpacks to more than 1048576 bytes"},
		{"something behind the stream", awsStore(count(0), []byte("more")), "4 bytes follow its stream"},
		{"no count", awsStore([]byte{1}, nil), "a field of 8 bytes in the 1 that are left"},
		{"very many", awsStore(count(1<<60), nil), "variables are more than the 4096 that are read"},
		{"missing", awsStore(count(2), nil), "variable 1 of 2: a field of 8 bytes in the 0 that are left"},
		{"long name", awsStore(append(count(1), count(1<<63)...), nil), "a field of 9223372036854775808 bytes in the 0 that are left"},
		{"name not UTF-8", awsStore(badName, nil), "its name is not UTF-8"},
		{"something behind the variables", awsStore(append(count(0), 1, 2), nil), "2 bytes follow the last of 0 variables"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := DecodeAWSVariables(tc.store, nil); err == nil || !strings.Contains(err.Error(), tc.want) || !strings.HasPrefix(err.Error(), "read AWS variable store: ") {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
	if _, err := DecodeAWSVariables(encodeAWS(t, nil), []byte("another dictionary")); err == nil || !strings.Contains(err.Error(), "the dictionary given is not AWS's") {
		t.Errorf("with a wrong dictionary: %v", err)
	}
}

func TestEncodeAWSVariablesRefuses(t *testing.T) {
	incompressible := make([]byte, 60_000)
	for i, x := 0, uint32(1); i < len(incompressible); i++ {
		x = x*1664525 + 1013904223
		incompressible[i] = byte(x >> 24)
	}
	for _, tc := range []struct {
		name     string
		variable Variable
		want     string
	}{
		{"no name", Variable{}, `"" is no name of a variable`},
		{"name not UTF-8", Variable{Name: "\xff"}, "is no name of a variable"},
		{"digest without authentication", Variable{Name: "Boot0000", Digest: make([]byte, 32)}, "Boot0000 is not authenticated"},
		{"time without authentication", Variable{Name: "Boot0000", Time: [16]byte{1}}, "Boot0000 is not authenticated"},
		{"too long for EC2", Variable{Name: "dbx", Data: incompressible}, "and EC2 takes 64000: leave out certificates or old dbx entries"},
		{"too long to unpack", Variable{Name: "dbx", Data: make([]byte, 2<<20)}, "more than the 1048576 that are possible"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := EncodeAWSVariables([]Variable{tc.variable}); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

// FuzzDecodeAWSVariables reads stores that nobody made, around whose content
// the checksums are right; what can be read can be written and read again.
func FuzzDecodeAWSVariables(f *testing.F) {
	for _, variables := range [][]Variable{nil, goldenVariables(f), {{Name: "x", Data: []byte("y")}}} {
		raw, err := base64.StdEncoding.DecodeString(string(encodeAWS(f, variables)))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw[12:], true)
		content := binary.LittleEndian.AppendUint64(nil, uint64(len(variables)))
		for _, v := range variables {
			content = appendAWSVariable(content, v)
		}
		f.Add(content, false)
	}
	f.Fuzz(func(t *testing.T, b []byte, stream bool) {
		store := awsStore(b, nil)
		if stream {
			store = wrapAWS(b)
		}
		variables, err := DecodeAWSVariables(store, nil)
		if err != nil {
			return
		}
		again, err := EncodeAWSVariables(variables)
		if err != nil {
			return // an empty name, or nothing that EC2 would take
		}
		if got, err := DecodeAWSVariables(again, nil); err != nil || !reflect.DeepEqual(got, variables) {
			t.Errorf("written and read again: %v", err)
		}
	})
}

// TestCertificateLists reads the lists back, and holds that owners follow from
// certificates.
func TestCertificateLists(t *testing.T) {
	key, other := testKeys()
	a, b := testCertificate(t, "A", key.Public(), nil, key), testCertificate(t, "Another", other.Public(), nil, other)
	lists, err := ParseSignatureLists(CertificateLists(a, b))
	if err != nil {
		t.Fatal(err)
	}
	if len(lists) != 2 {
		t.Fatalf("%d lists, want 2", len(lists))
	}
	for i, c := range [][]byte{a.Raw, b.Raw} {
		if lists[i].Type != CertX509 || len(lists[i].Signatures) != 1 || !bytes.Equal(lists[i].Signatures[0].Data, c) {
			t.Errorf("list %d is %+v", i, lists[i])
		}
	}
	owner := CertificateOwner(a)
	if owner != lists[0].Signatures[0].Owner || owner == CertificateOwner(b) || owner != CertificateOwner(a) {
		t.Errorf("owners %s and %s", owner, lists[1].Signatures[0].Owner)
	}
	// RFC 9562: version and variant.
	if s := owner.String(); s[14] != '8' || !strings.ContainsRune("89ab", rune(s[19])) {
		t.Errorf("%s is no UUID of version 8", s)
	}
}

// TestCertificateListsAgainstEfitools compares with what efitools makes of the
// same certificate and owner.
func TestCertificateListsAgainstEfitools(t *testing.T) {
	key, _ := testKeys()
	c := testCertificate(t, "Signer", key.Public(), nil, key)
	out := filepath.Join(t.TempDir(), "db.esl")
	printed, err := exec.Command(testenv.Tool(t, "cert-to-efi-sig-list"), "-g", CertificateOwner(c).String(), writeCertificate(t, c), out).CombinedOutput()
	if err != nil {
		t.Fatalf("cert-to-efi-sig-list: %v\n%s", err, printed)
	}
	theirs, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if ours := CertificateLists(c); !bytes.Equal(ours, theirs) {
		t.Errorf("we make\n%x\nefitools make\n%x", ours, theirs)
	}
}
