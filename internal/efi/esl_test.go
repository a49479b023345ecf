package efi

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	efilib "github.com/canonical/go-efilib"

	"github.com/org/attestable-image-action/internal/testenv"
)

func goldenVariable(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(testenv.Root(t), "testdata/golden", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// variables are contents of Secure Boot variables.
func variables(t testing.TB) map[string][]byte {
	digest := func(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }
	digests := testenv.SignatureList(CertSHA256, digest(1), digest(2), digest(3))
	withHeader := testenv.SignatureList(CertSHA256, digest(4))
	withHeader = slices.Insert(withHeader, signatureListHeader, []byte("header")...)
	binary.LittleEndian.PutUint32(withHeader[16:], uint32(len(withHeader)))
	binary.LittleEndian.PutUint32(withHeader[20:], 6)
	return map[string][]byte{
		"empty":       nil,
		"golden PK":   goldenVariable(t, "sbA252.PK.esl"),
		"golden KEK":  goldenVariable(t, "sbA252.KEK.esl"),
		"golden db":   goldenVariable(t, "sbA252.db.esl"),
		"golden dbx":  goldenVariable(t, "sbA252.dbx.esl"),
		"several":     slices.Concat(goldenVariable(t, "sbA252.db.esl"), digests, goldenVariable(t, "sbA252.PK.esl")),
		"empty list":  slices.Concat(testenv.SignatureList(CertX509), digests),
		"with header": slices.Concat(withHeader, digests),
	}
}

// TestSignatureListsAgainstOthers decodes signature lists as go-efilib does.
func TestSignatureListsAgainstOthers(t *testing.T) {
	for name, b := range variables(t) {
		t.Run(name, func(t *testing.T) {
			ours, err := ParseSignatureLists(b)
			if err != nil {
				t.Fatal(err)
			}
			theirs, err := efilib.ReadSignatureDatabase(bytes.NewReader(b))
			if err != nil {
				t.Fatal(err)
			}
			compareLists(t, ours, theirs)
		})
	}
}

func compareLists(t *testing.T, ours []SignatureList, theirs efilib.SignatureDatabase) {
	t.Helper()
	if len(ours) != len(theirs) {
		t.Fatalf("%d lists, go-efilib reads %d", len(ours), len(theirs))
	}
	for i, o := range ours {
		if GUID(theirs[i].Type) != o.Type || !bytes.Equal(theirs[i].Header, o.Header) || len(theirs[i].Signatures) != len(o.Signatures) {
			t.Fatalf("list %d is %s with %d entries, go-efilib reads %s with %d", i, o.Type, len(o.Signatures), theirs[i].Type, len(theirs[i].Signatures))
		}
		for n, s := range o.Signatures {
			if theirs := theirs[i].Signatures[n]; GUID(theirs.Owner) != s.Owner || !bytes.Equal(theirs.Data, s.Data) {
				t.Errorf("entry %d of list %d differs from what go-efilib reads", n, i)
			}
			if !bytes.Equal(s.Bytes(), slices.Concat(s.Owner[:], s.Data)) {
				t.Errorf("entry %d of list %d is encoded as %x", n, i, s.Bytes())
			}
		}
	}
}

func TestSignatureListsRefuse(t *testing.T) {
	put := func(off int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { binary.LittleEndian.PutUint32(b[off:], v); return b }
	}
	for name, test := range map[string]struct {
		change func([]byte) []byte
		want   string
	}{
		"cut off in header":    {func(b []byte) []byte { return b[:27] }, "read EFI signature list at byte 0 of 27: 27 bytes are left, but its header alone has 28: the file is cut off, or is no EFI signature list"},
		"cut off in entry":     {func(b []byte) []byte { return b[:100] }, "at byte 0 of 100: its size is 124 bytes, but 100 are left: the file is cut off"},
		"second list cut off":  {func(b []byte) []byte { return append(b, b[:50]...) }, "at byte 124 of 174: its size is 124 bytes, but 50 are left"},
		"trailing byte":        {func(b []byte) []byte { return append(b, 0) }, "at byte 124 of 125: 1 bytes are left"},
		"certificate file":     {func([]byte) []byte { return []byte("-----BEGIN CERTIFICATE-----\nMIIDYTCCAkmgAwIBAgIU") }, "is no EFI signature list"},
		"size zero":            {put(16, 0), "its size of 0 bytes has no room for headers of 28"},
		"size too small":       {put(16, 27), "its size of 27 bytes has no room for headers of 28"},
		"size too large":       {put(16, 0xffffffff), "its size is 4294967295 bytes, but 124 are left"},
		"header too large":     {put(20, 0xffffffff), "its size of 124 bytes has no room for headers of 4294967323"},
		"entry size zero":      {put(24, 0), "a signature of 0 bytes has no room for its owner's GUID"},
		"entry size too small": {put(24, 15), "a signature of 15 bytes has no room"},
		"entry size too large": {put(24, 0xffffffff), "96 bytes of signatures are not a multiple of their size of 4294967295"},
		"entry size odd":       {put(24, 47), "96 bytes of signatures are not a multiple of their size of 47"},
		"too many entries": {func([]byte) []byte {
			b := testenv.SignatureList(CertSHA256, make([][]byte, 1<<16+1)...)
			return b
		}, "it has more than 65,536 signatures"},
	} {
		t.Run(name, func(t *testing.T) {
			digest := make([]byte, 32)
			_, err := ParseSignatureLists(test.change(testenv.SignatureList(CertSHA256, digest, digest)))
			wantError(t, err, test.want)
		})
	}
}

// TestVariableData encodes the variables of a boot; the log of it in
// internal/measure's golden test has the whole set.
func TestVariableData(t *testing.T) {
	got := VariableData(ImageSecurityDatabase, "db", []byte{1, 2, 3})
	want := "\xcb\xb2\x19\xd7\x3a\x3d\x96\x45\xa3\xbc\xda\xd0\x0e\x67\x65\x6f" + // GUID
		"\x02\x00\x00\x00\x00\x00\x00\x00" + "\x03\x00\x00\x00\x00\x00\x00\x00" + "d\x00b\x00" + "\x01\x02\x03"
	if string(got) != want {
		t.Errorf("%x, want %x", got, want)
	}
	if ImageSecurityDatabase.String() != "d719b2cb-3d3a-4596-a3bc-dad00e67656f" {
		t.Error(ImageSecurityDatabase)
	}
}

func FuzzSignatureLists(f *testing.F) {
	for _, b := range variables(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		ours, err := ParseSignatureLists(b)
		if err != nil {
			return
		}
		size := 0
		for _, l := range ours {
			size += signatureListHeader + len(l.Header)
			for _, s := range l.Signatures {
				size += len(s.Bytes())
			}
		}
		if size != len(b) {
			t.Fatalf("lists of %d bytes in a file of %d", size, len(b))
		}
		if theirs, err := efilib.ReadSignatureDatabase(bytes.NewReader(b)); err == nil {
			compareLists(t, ours, theirs)
		}
	})
}

// TestParseVariableData reads what VariableData writes, and refuses what is cut off or
// longer than it says.
func TestParseVariableData(t *testing.T) {
	content := VariableData(ImageSecurityDatabase, "db", []byte{1, 2, 3})
	vendor, name, data, err := ParseVariableData(content)
	if err != nil || vendor != ImageSecurityDatabase || name != "db" || !bytes.Equal(data, []byte{1, 2, 3}) {
		t.Errorf("%s %q %x: %v", vendor, name, data, err)
	}
	long := bytes.Clone(content)
	long[23] = 0xff // of the length of the name
	for _, wrong := range [][]byte{nil, content[:31], content[:len(content)-1], append(bytes.Clone(content), 0), long} {
		if _, _, _, err := ParseVariableData(wrong); err == nil {
			t.Errorf("%x was read", wrong)
		}
	}
}

func FuzzParseVariableData(f *testing.F) {
	f.Add(VariableData(GlobalVariable, "PK", []byte("key")))
	f.Add(VariableData(ImageSecurityDatabase, "", nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		vendor, name, data, err := ParseVariableData(b)
		if err != nil {
			return
		}
		// A name that is no UTF-16 is not written again as it was.
		if again := VariableData(vendor, name, data); !strings.ContainsRune(name, '\ufffd') && !bytes.Equal(again, b) {
			t.Errorf("%x is read and written as %x", b, again)
		}
	})
}
