package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"
)

// fatEntry makes a directory entry; name has its eleven bytes.
func fatEntry(name string, attributes byte, cluster, size int) []byte {
	b := make([]byte, fatEntrySize)
	putEntry(b, name, attributes, cluster, size)
	return b
}

// fatLong makes the entries of a long name in front of an entry.
func fatLong(name string, entry []byte) []byte {
	units := utf16.Encode([]rune(name))
	if len(units)%fatLongUnits != 0 || len(units) == 0 {
		units = append(units, 0)
	}
	var sum byte
	for _, c := range entry[:fatShortName] {
		sum = sum>>1 | sum<<7
		sum += c
	}
	count := (len(units) + fatLongUnits - 1) / fatLongUnits
	for len(units) < count*fatLongUnits {
		units = append(units, 0xffff)
	}
	var all []byte
	for n := count; n > 0; n-- {
		raw := make([]byte, fatEntrySize)
		raw[0], raw[11], raw[13] = byte(n), fatAttrLong, sum
		if n == count {
			raw[0] |= 0x40
		}
		for i, at := range []int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30} {
			binary.LittleEndian.PutUint16(raw[at:], units[(n-1)*fatLongUnits+i])
		}
		all = append(all, raw...)
	}
	return append(all, entry...)
}

// rootOf makes the small file system with other entries in its root.
func rootOf(t testing.TB, entries ...[]byte) *FAT {
	t.Helper()
	b := smallFAT()
	clear(b[1024:1536])
	if copy(b[1024:1536], bytes.Join(entries, nil)) < len(bytes.Join(entries, nil)) {
		t.Fatal("the entries are too many")
	}
	f, err := OpenFAT(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestFATDirectoryAsFirmware lists directories and opens names as EDK II does;
// TestHiddenEntries in internal/e2e has firmware itself do so.
func TestFATDirectoryAsFirmware(t *testing.T) {
	file := func(name string) []byte { return fatEntry(name, 0x20, 6, 3) }
	hole := make([]byte, fatEntrySize)
	label := func(first byte, attributes byte) []byte {
		e := fatEntry("\x00ABEL      ", attributes, 0, 0)
		e[0] = first
		return e
	}
	lower := file("X       RAW")
	lower[12] = 0x18
	for name, test := range map[string]struct {
		entries [][]byte
		list    []string          // as firmware lists them
		open    map[string]string // what a name leads to, or an error
	}{
		"a label that begins as an end":     {[][]byte{label(0, 0x08), fatLong("x.cred", file("X~1     CRE"))}, []string{"x.cred"}, map[string]string{"X.CRED": "x.cred", "x~1.cre": "x.cred", "x.cre": "file does not exist"}},
		"a long name that begins as an end": {[][]byte{label(0, 0x0f), file("A       RAW")}, []string{"A.RAW"}, nil},
		"an end with other attributes":      {[][]byte{label(0, 0x20), file("A       RAW")}, nil, map[string]string{"A.RAW": "file does not exist"}},
		"an end that is a directory":        {[][]byte{label(0, 0x10), file("A       RAW")}, nil, nil},
		"a deleted label":                   {[][]byte{label(0xe5, 0x08), hole, file("A       RAW")}, nil, nil},
		"a label that is a directory":       {[][]byte{label('L', 0x18), file("A       RAW")}, []string{"A.RAW"}, map[string]string{"LABEL": "file does not exist"}},
		"case bits":                         {[][]byte{lower}, []string{"x.raw"}, map[string]string{"X.RAW": "x.raw"}},
		"NUL in a short name":               {[][]byte{file("AB\x00D    RAW")}, []string{"AB.RAW"}, map[string]string{"ab.raw": "AB.RAW"}},
		"0x05 is no other letter":           {[][]byte{file("\x05X      RAW")}, []string{"\x05X.RAW"}, map[string]string{"\x05X.RAW": "opens no file of the name", "\u00e5X.RAW": "file does not exist"}},
		"space behind a name":               {[][]byte{fatLong("x.cred ", file("X~1     CRE"))}, []string{"x.cred "}, map[string]string{"x~1.cre": "x.cred ", "/x.cred\x20": "firmware lists a file"}},
		"space in front of what is asked":   {[][]byte{file("A       RAW")}, []string{"A.RAW"}, map[string]string{"  a.raw. .": "A.RAW"}},
		"a character that no name has":      {[][]byte{fatLong("a:b.cred", file("A~1     CRE"))}, []string{"a:b.cred"}, map[string]string{"a:b.cred": "opens no file of the name"}},
		"one name twice":                    {[][]byte{file("A       RAW"), file("B       RAW"), file("A       RAW")}, []string{"A.RAW", "B.RAW", "A.RAW"}, map[string]string{"a.raw": "two entries", "b.raw": "B.RAW"}},
		"a long name that is another's short": {
			[][]byte{fatLong("hello.cred", file("ABC~1   CRE")), fatLong("abc~1.cre", file("Q       Q  "))}, []string{"hello.cred", "abc~1.cre"},
			map[string]string{"ABC~1.CRE": "two entries", "hello.cred": "hello.cred", "q.q": "abc~1.cre"},
		},
		"an empty long name":    {[][]byte{fatLong("", file("BOOTX64 EFI"))}, []string{""}, map[string]string{"bootx64.efi": "BOOTX64.EFI"}},
		"dots with a long name": {[][]byte{fatLong("x.cred", file(".          ")), fatLong("y.cred", file("..         "))}, []string{"x.cred", "y.cred"}, map[string]string{"x.cred": "x.cred"}},
		"dots by a long name":   {[][]byte{fatLong("..", fatEntry("DOTS       ", 0x10, 5, 0)), fatLong(".", file("DOT        "))}, []string{"."}, nil},
		"Kelvin's sign":         {[][]byte{fatLong("\u212a.cred", file("K~1     CRE"))}, []string{"\u212a.cred"}, map[string]string{"k.cred": "file does not exist"}},
		"Latin-1":               {[][]byte{fatLong("\u00e9.cred", file("E~1     CRE"))}, []string{"\u00e9.cred"}, map[string]string{"\u00c9.cred": "\u00e9.cred"}},
		"half of a cluster number": {[][]byte{func() []byte { // FAT12 has no upper half
			e := file("A       RAW")
			e[20] = 1
			return e
		}()}, []string{"A.RAW"}, map[string]string{"A.RAW": "A.RAW"}},
		"a directory without a cluster": {[][]byte{fatEntry("D          ", 0x10, 0, 0), file("A       RAW")}, []string{"D", "A.RAW"}, map[string]string{"D/A.RAW": "it has no cluster"}},
		"a long path":                   {[][]byte{file("A       RAW")}, []string{"A.RAW"}, map[string]string{strings.Repeat("x", 254) + "/AB": "no path that is longer", strings.Repeat("x", 254) + "/A": "not exist", strings.Repeat("x", 256): "opens no file of the name"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := rootOf(t, test.entries...)
			entries, err := f.ReadDir("")
			if err != nil {
				t.Fatal(err)
			}
			var list []string
			for _, e := range entries {
				list = append(list, e.Name)
			}
			if !slices.Equal(list, test.list) {
				t.Errorf("the root has %q, want %q", list, test.list)
			}
			for path, want := range test.open {
				file, err := f.Open(path)
				switch {
				case err != nil && (!strings.Contains(err.Error(), want) || errors.Is(err, fs.ErrNotExist) != strings.Contains(want, "not exist")):
					t.Errorf("open %q: %v, want %s", path, err, want)
				case err == nil && file.Path() != want:
					t.Errorf("open %q: %s, want %s", path, file.Path(), want)
				}
			}
		})
	}
}

// TestFATWalkTwice has a walk say that a name leads to two entries, after it has
// come to all of them, and a change of such a disk refused.
func TestFATWalkTwice(t *testing.T) {
	a, b := fatEntry("A       RAW", 0x20, 6, 3), fatLong("a.raw", fatEntry("B       RAW", 0x20, 2, 3))
	f := rootOf(t, a, b)
	seen := 0
	err := f.Walk(func(string, *File) error { seen++; return nil })
	if seen != 2 || err == nil || !strings.Contains(err.Error(), "two entries named \"a.raw\"") {
		t.Errorf("%d files, %v", seen, err)
	}
	content := smallFAT()
	clear(content[1024:1536])
	copy(content[1024:], slices.Concat(a, b, fatEntry("C       RAW", 0x20, 5, 3)))
	err = replaceFile(&memoryVolume{content: content}, int64(len(content)), "C.RAW", strings.NewReader("x"), 1)
	if err == nil || !strings.Contains(err.Error(), "two entries named \"a.raw\"") {
		t.Errorf("replace: %v", err)
	}
}

// TestFATAreasBehindLabel has the entries behind a label that begins as an end
// count as entries, and the attributes of the end as read.
func TestFATAreasBehindLabel(t *testing.T) {
	f := rootOf(t, fatEntry("\x00          ", 0x08, 0, 0), fatEntry("A       RAW", 0x20, 6, 3))
	areas, err := f.Areas(64 << 10)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range areas {
		if a.Kind == FATDirectory && (a.Offset != 1024 || a.Length != 2*fatEntrySize+fatEndRead) {
			t.Errorf("the root's entries are %+v", a)
		}
	}
}

// TestFATRootOfOddSize has a root whose entries end in the middle of a sector.
func TestFATRootOfOddSize(t *testing.T) {
	b := smallFAT()
	binary.LittleEndian.PutUint16(b[17:], 15)
	copy(b[1088:], bytes.Repeat(fatEntry("D       RAW", 0xe5, 0, 0), 13))
	for at := 1088; at < 1536; at += fatEntrySize {
		b[at] = 0xe5
	}
	putEntry(b[1504:], "LAST    RAW", 0x20, 6, 3)
	f, err := OpenFAT(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	entries, err := f.ReadDir("")
	if err != nil || len(entries) != 2 {
		t.Errorf("%d entries, %v: the sixteenth is none", len(entries), err)
	}
	areas, err := f.Areas(64 << 10)
	if err != nil {
		t.Fatal(err)
	}
	wholeFAT(t, areas, 64<<10)
}
