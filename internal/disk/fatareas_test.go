package disk

import (
	"bytes"
	"encoding/binary"
	"os"
	"strings"
	"testing"
)

// wholeFAT demands that areas are all of a file system: ascending, without a
// gap.
func wholeFAT(t *testing.T, areas []FATArea, size int64) {
	t.Helper()
	at := int64(0)
	for _, a := range areas {
		if a.Offset != at || a.Length <= 0 {
			t.Fatalf("area %+v, want one at %d", a, at)
		}
		at += a.Length
	}
	if at != size {
		t.Fatalf("the areas end at %d of %d", at, size)
	}
}

// TestFATAreas divides file systems that mkfs.vfat and mtools made, and changes
// what it says nothing reads: every file stays as it was.
func TestFATAreas(t *testing.T) {
	for _, shape := range fatShapes {
		t.Run(shape.name, func(t *testing.T) {
			tree := sourceTree(t)
			path := makeFAT(t, shape.kib, shape.args, tree)
			content, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			// A partition that is longer than the file system in it.
			content = append(content, make([]byte, 1000)...)
			fat, err := OpenFAT(bytes.NewReader(content), int64(len(content)))
			if err != nil {
				t.Fatal(err)
			}
			areas, err := fat.Areas(int64(len(content)))
			if err != nil {
				t.Fatal(err)
			}
			wholeFAT(t, areas, int64(len(content)))
			want := readTree(t, tree)
			kinds := map[FATKind]int64{}
			files := map[string][]byte{}
			for _, a := range areas {
				kinds[a.Kind] += a.Length
				part := content[a.Offset : a.Offset+a.Length]
				switch a.Kind {
				case FATFile:
					if strings.HasPrefix(a.Path, "GAP") { // what makeFAT leaves between the others
						continue
					}
					if want := want[a.Path][a.From:]; !bytes.HasPrefix(want, part) {
						t.Errorf("%s has other content at %d", a.Path, a.From)
					}
					files[a.Path] = append(files[a.Path], part...)
				case FATReserved, FATTableCopy, FATDirectoryUnused, FATFileSlack, FATFree, FATBehind:
					for i := range part {
						part[i] ^= 0xff
					}
				}
			}
			for name, b := range want {
				if len(files[name]) != len(b) {
					t.Errorf("%s has %d bytes in areas, want %d", name, len(files[name]), len(b))
				}
			}
			if kinds[FATBehind] < 1000 || kinds[FATFree] == 0 || kinds[FATFileSlack] == 0 || kinds[FATDirectory] == 0 {
				t.Errorf("bytes by kind: %v", kinds)
			}
			if copies := shape.name == "FAT32 with one FAT"; (kinds[FATTableCopy] == 0) != copies || kinds[FATTable] == 0 {
				t.Errorf("bytes by kind: %v", kinds)
			}
			after, err := OpenFAT(bytes.NewReader(content), int64(len(content)))
			if err != nil {
				t.Fatal(err)
			}
			seen := 0
			err = after.Walk(func(name string, file *File) error {
				if strings.HasPrefix(name, "GAP") {
					return nil
				}
				seen++
				got := make([]byte, file.Size())
				if n, err := file.ReadAt(got, 0); n < len(got) {
					t.Errorf("%s: %v", name, err)
				}
				if !bytes.Equal(got, want[name]) {
					t.Errorf("%s has other content", name)
				}
				return nil
			})
			if err != nil || seen != len(want) {
				t.Errorf("%d files of %d, %v", seen, len(want), err)
			}
		})
	}
}

// TestFATWalkRefuses makes walks that would not end.
func TestFATWalkRefuses(t *testing.T) {
	entry := func(name string, attributes byte, cluster uint16, size uint32) []byte {
		b := make([]byte, 32)
		copy(b, name)
		b[11] = attributes
		binary.LittleEndian.PutUint16(b[26:], cluster)
		binary.LittleEndian.PutUint32(b[28:], size)
		return b
	}
	for name, test := range map[string]struct {
		entries [][]byte
		want    string
	}{
		"a directory in itself":    {[][]byte{entry("D          ", fatAttrDir, 3, 0)}, "share clusters"},
		"many names for one":       {[][]byte{entry("E          ", fatAttrDir, 4, 0), entry("F          ", fatAttrDir, 4, 0), entry("G          ", fatAttrDir, 4, 0), entry("H          ", fatAttrDir, 4, 0)}, "share clusters"},
		"a directory that is root": {[][]byte{entry("R          ", fatAttrDir, 0, 0)}, "has no cluster"},
		"a broken chain":           {[][]byte{entry("A       TXT", 0, 9999, 5)}, "lies outside the file system"},
	} {
		t.Run(name, func(t *testing.T) {
			b := smallFAT()
			fat, err := OpenFAT(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			clear(b[fat.rootOffset : fat.rootOffset+(fat.rootEntries*fatEntrySize)])
			clear(b[fat.dataOffset:])
			at := fat.rootOffset
			if strings.HasPrefix(name, "a directory in") {
				// The directory at cluster 3 has itself as its only entry.
				copy(b[fat.dataOffset+fat.clusterSize:], entry("D          ", fatAttrDir, 3, 0))
				copy(b[at:], entry("D          ", fatAttrDir, 3, 0))
			} else {
				copy(b[at:], bytes.Join(test.entries, nil))
			}
			for cluster := 2; cluster < 6; cluster++ { // each ends its chain
				setFAT12(b, cluster, 0xfff)
			}
			err = fat.Walk(func(string, *File) error { return nil })
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("walk: %v, want %q", err, test.want)
			}
			if _, err := fat.Areas(int64(len(b))); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("areas: %v, want %q", err, test.want)
			}
		})
	}
}
