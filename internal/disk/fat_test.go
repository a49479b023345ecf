package disk

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fatShapes are file systems that mkfs.vfat makes.
var fatShapes = []struct {
	name string
	kib  int
	bits int
	args []string
}{
	{"FAT12", 2 << 10, 12, []string{"-F", "12", "-s", "1"}},
	{"FAT12 of large clusters", 8 << 10, 12, []string{"-F", "12", "-s", "16"}},
	{"FAT16", 16 << 10, 16, []string{"-F", "16", "-s", "2"}},
	{"FAT32", 40 << 10, 32, []string{"-F", "32", "-s", "1"}},
	{"FAT32 with sectors of 4096", 320 << 10, 32, []string{"-F", "32", "-s", "1", "-S", "4096"}},
	{"FAT32 with one FAT", 40 << 10, 32, []string{"-F", "32", "-s", "1", "-f", "1"}},
}

// sourceTree writes files whose names and sizes are hard on a FAT reader.
func sourceTree(t testing.TB) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "tree")
	random := rand.New(rand.NewPCG(1, 2))
	write := func(name string, size int) {
		path := filepath.Join(root, name)
		content := make([]byte, size)
		for i := range content {
			content[i] = byte(random.Uint32())
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("EFI/BOOT/BOOTX64.EFI", 100_001)
	write("EFI/BOOT/BOOTX64.EFI.extra.d/a credential with a long name.cred", 513)
	write("empty", 0)
	write("one", 1)
	write("lower.txt", 512)        // kept as a short name with case bits
	write("UPPER.low", 511)        // likewise, the extension alone
	write("MiXed.CaS", 4096)       // needs a long name
	write("żółć и дерево.ünï", 77) // beyond ASCII
	write(strings.Repeat("long", 50)+".efi", 33)
	write("d1/d2/d3/d4/d5/d6/d7/d8/deep.bin", 9000)
	for i := range 150 { // a directory of several clusters
		write(fmt.Sprintf("many/a file that is number %03d of many", i), i%3)
	}
	return root
}

// readTree reads every file below a directory of the host.
func readTree(t testing.TB, root string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err == nil {
			files[name], err = os.ReadFile(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// readFAT reads every file of a FAT file system.
func readFAT(t testing.TB, f *FAT, dir string, files map[string][]byte) {
	t.Helper()
	entries, err := f.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		name := strings.TrimPrefix(dir+"/"+e.Name, "/")
		if e.IsDir {
			readFAT(t, f, name, files)
			continue
		}
		file, err := f.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if file.Size() != e.Size {
			t.Errorf("%s has %d bytes open and %d listed", name, file.Size(), e.Size)
		}
		if files[name], err = io.ReadAll(io.NewSectionReader(file, 0, file.Size())); err != nil {
			t.Fatal(err)
		}
	}
}

func sameFiles(t *testing.T, what string, got, want map[string][]byte) {
	t.Helper()
	for name, content := range want {
		if g, ok := got[name]; !ok {
			t.Errorf("%s lacks %q", what, name)
		} else if !bytes.Equal(g, content) {
			t.Errorf("%s has other content for %q: %d bytes, want %d", what, name, len(g), len(content))
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s has %q, which is not in the file system", what, name)
		}
	}
}

// makeFAT makes a file system of a shape with a tree of files, fragmented.
func makeFAT(t testing.TB, kib int, args []string, tree string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "fat.img")
	tool(t, "mkfs.vfat", append(append([]string{"-C", "-i", "12345678"}, args...), image, fmt.Sprint(kib))...)
	// Small files with gaps between them, then a file that has to fill the gaps.
	gaps := t.TempDir()
	copies, removes := []string{"-i", image}, []string{"-i", image}
	for i := range 40 {
		path := filepath.Join(gaps, fmt.Sprintf("GAP%d", i))
		if err := os.WriteFile(path, []byte{byte(i)}, 0o600); err != nil {
			t.Fatal(err)
		}
		copies = append(copies, path)
		if i%2 == 0 {
			removes = append(removes, fmt.Sprintf("::/GAP%d", i))
		}
	}
	tool(t, "mcopy", append(copies, "::/")...)
	tool(t, "mdel", removes...)
	children, err := filepath.Glob(filepath.Join(tree, "*"))
	if err != nil {
		t.Fatal(err)
	}
	tool(t, "mcopy", append(append([]string{"-s", "-i", image}, children...), "::/")...)
	return image
}

// TestFATAgainstMtools reads what mkfs.vfat and mcopy wrote as mcopy reads it,
// and as it was on the host.
func TestFATAgainstMtools(t *testing.T) {
	t.Setenv("LC_ALL", "C.UTF-8") // mtools reads names of the host by it
	tree := sourceTree(t)
	for _, shape := range fatShapes {
		t.Run(shape.name, func(t *testing.T) {
			image := makeFAT(t, shape.kib, shape.args, tree)
			d := open(t, image)
			f, err := OpenFAT(d, d.Size())
			if err != nil {
				t.Fatal(err)
			}
			if f.bits != shape.bits || f.VolumeSerial != 0x12345678 {
				t.Errorf("FAT%d with serial number %08x, want FAT%d and 12345678", f.bits, f.VolumeSerial, shape.bits)
			}
			ours := map[string][]byte{}
			readFAT(t, f, "", ours)
			out := filepath.Join(t.TempDir(), "out")
			if err := os.Mkdir(out, 0o755); err != nil {
				t.Fatal(err)
			}
			tool(t, "mcopy", "-s", "-n", "-i", image, "::*", out)
			sameFiles(t, "our reader", ours, readTree(t, out))
			host := readTree(t, tree)
			for i := 1; i < 40; i += 2 {
				host[fmt.Sprintf("GAP%d", i)] = []byte{byte(i)}
			}
			sameFiles(t, "our reader", ours, host)
		})
	}
}

// TestFATRandomAccess reads a file in many pieces at every kind of offset.
func TestFATRandomAccess(t *testing.T) {
	tree := sourceTree(t)
	want, err := os.ReadFile(filepath.Join(tree, "EFI/BOOT/BOOTX64.EFI"))
	if err != nil {
		t.Fatal(err)
	}
	d := open(t, makeFAT(t, 2<<10, []string{"-F", "12", "-s", "1"}, tree))
	f, err := OpenFAT(d, d.Size())
	if err != nil {
		t.Fatal(err)
	}
	file, err := f.Open(`efi/boot/bootx64.efi`) // as firmware may write it
	if err != nil {
		t.Fatal(err)
	}
	if len(file.runs) < 10 {
		t.Fatalf("the file is in %d pieces, so the test shows nothing", len(file.runs))
	}
	random := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		off := random.Int64N(file.Size() + 1000)
		p := make([]byte, random.IntN(3000))
		n, err := file.ReadAt(p, off)
		end := min(off+int64(len(p)), file.Size())
		if wantN := int(max(0, end-off)); n != wantN || wantN > 0 && !bytes.Equal(p[:n], want[off:end]) {
			t.Fatalf("%d bytes at %d: got %d, or other content", len(p), off, n)
		}
		if errors.Is(err, io.EOF) != (n < len(p)) || err != nil && !errors.Is(err, io.EOF) {
			t.Fatalf("%d bytes at %d: %d and %v", len(p), off, n, err)
		}
	}
	if _, err := file.ReadAt(make([]byte, 1), -1); err == nil {
		t.Error("a negative offset is no error")
	}
}

func TestFATPaths(t *testing.T) {
	d := open(t, makeFAT(t, 2<<10, []string{"-F", "12"}, sourceTree(t)))
	f, err := OpenFAT(d, d.Size())
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"lower.TXT", "/LOWER.txt", "MIXED.cas", "MiXed.CaS", "D1/d2//D3/d4/d5/d6/d7/d8/DEEP.BIN"} {
		if _, err := f.Open(path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, path := range []string{"none", "EFI/none/BOOTX64.EFI", "one/more", "EFI/BOOT/.", ".."} {
		if _, err := f.Open(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v, want one that is fs.ErrNotExist", path, err)
		}
	}
	_, err = f.Open("EFI/BOOT")
	wantError(t, err, "open EFI/BOOT: it is a directory")
	_, err = f.ReadDir("one")
	wantError(t, err, "list one: it is a file")
}

// smallFAT is a FAT12 file system of 64 KiB, made by hand so that its every
// byte is known: sectors and clusters of 512 bytes, the FAT at 512, the root
// directory at 1024, cluster 2 at 1536. It holds A.TXT of 1200 bytes in the
// clusters 2, 3 and 4, and the directory D at cluster 5 with B.TXT in cluster 6.
func smallFAT() []byte {
	le := binary.LittleEndian
	b := make([]byte, 64<<10)
	copy(b, "\xeb\x3c\x90mkfs.fat")
	le.PutUint16(b[11:], 512)
	b[13] = 1                 // sectors a cluster
	le.PutUint16(b[14:], 1)   // reserved sectors
	b[16] = 1                 // FATs
	le.PutUint16(b[17:], 16)  // root entries
	le.PutUint16(b[19:], 128) // sectors
	b[21] = 0xf8              // media
	le.PutUint16(b[22:], 1)   // sectors a FAT
	b[510], b[511] = 0x55, 0xaa
	for cluster, next := range map[int]int{0: 0xff8, 1: 0xfff, 2: 3, 3: 4, 4: 0xfff, 5: 0xfff, 6: 0xfff} {
		setFAT12(b, cluster, next)
	}
	putEntry(b[1024:], "A       TXT", 0x20, 2, 1200)
	putEntry(b[1056:], "D          ", 0x10, 5, 0)
	putEntry(b[3072:], ".          ", 0x10, 5, 0)
	putEntry(b[3104:], "..         ", 0x10, 0, 0)
	putEntry(b[3136:], "B       TXT", 0x20, 6, 3)
	copy(b[1536:], strings.Repeat("a", 1200))
	copy(b[3584:], "bbb")
	return b
}

func setFAT12(b []byte, cluster, next int) {
	at := b[512+cluster+cluster/2:]
	v := binary.LittleEndian.Uint16(at)
	if cluster%2 == 1 {
		v = v&0x000f | uint16(next)<<4
	} else {
		v = v&0xf000 | uint16(next)
	}
	binary.LittleEndian.PutUint16(at, v)
}

func putEntry(b []byte, name string, attributes byte, cluster, size int) {
	copy(b[:11], name)
	b[11] = attributes
	binary.LittleEndian.PutUint16(b[26:], uint16(cluster))
	binary.LittleEndian.PutUint32(b[28:], uint32(size))
}

func TestFATRefuses(t *testing.T) {
	le := binary.LittleEndian
	set16 := func(off int, v uint16) func([]byte) []byte {
		return func(b []byte) []byte { le.PutUint16(b[off:], v); return b }
	}
	set8 := func(off int, v byte) func([]byte) []byte {
		return func(b []byte) []byte { b[off] = v; return b }
	}
	for name, test := range map[string]struct {
		change func([]byte) []byte
		path   string // "" is D/B.TXT
		want   string // "" when it can be read
	}{
		"good":                     {},
		"cut-off boot sector":      {change: func(b []byte) []byte { return b[:300] }, want: "it is no FAT file system: 300 bytes have no room for a boot sector"},
		"cut off":                  {change: func(b []byte) []byte { return b[:3000] }, want: "128 sectors of 512 bytes are more than the partition's 3000 bytes"},
		"zeros":                    {change: func(b []byte) []byte { clear(b); return b }, want: "it is no FAT file system: its first byte is not a jump"},
		"sector size":              {change: set16(11, 513), want: "it is no FAT file system: sector size 513"},
		"cluster size zero":        {change: set8(13, 0), want: "0 sectors a cluster is not a power of two"},
		"cluster size odd":         {change: set8(13, 3), want: "3 sectors a cluster is not a power of two"},
		"no reserved sector":       {change: set16(14, 0), want: "0 reserved sectors, 1 FATs of 1 sectors"},
		"no FAT":                   {change: set8(16, 0), want: "1 reserved sectors, 0 FATs"},
		"many FATs":                {change: set8(16, 200), want: "200 FATs"},
		"tables too large":         {change: set16(22, 500), want: "the tables are larger than the file system"},
		"root directory too large": {change: set16(17, 0xffff), want: "the tables are larger than the file system"},
		"FAT32 of no FAT":          {change: set16(22, 0), want: "1 FATs of 0 sectors"},
		"FAT32 active FAT": {change: func(b []byte) []byte {
			le.PutUint16(b[22:], 0)
			le.PutUint32(b[36:], 1)
			le.PutUint16(b[40:], 0x85)
			return b
		}, want: "active FAT 5 of 1"},
		"FAT32 root outside": {change: func(b []byte) []byte {
			le.PutUint16(b[22:], 0)
			le.PutUint32(b[36:], 1)
			le.PutUint32(b[44:], 1<<27)
			return b
		}, want: "cluster 134217728 of the chain from 134217728 lies outside the file system"},
		"chain of one":       {change: func(b []byte) []byte { setFAT12(b, 2, 2); return b }, path: "A.TXT", want: "open A.TXT: the cluster chain from 2 runs in a circle"},
		"chain back":         {change: func(b []byte) []byte { setFAT12(b, 3, 2); return b }, path: "A.TXT", want: "open A.TXT: the cluster chain from 2 runs in a circle"},
		"chain outside":      {change: func(b []byte) []byte { setFAT12(b, 3, 0x500); return b }, path: "A.TXT", want: "open A.TXT: cluster 1280 of the chain from 2 lies outside"},
		"chain to free":      {change: func(b []byte) []byte { setFAT12(b, 3, 0); return b }, path: "A.TXT", want: "cluster 0 of the chain from 2 lies outside"},
		"chain to bad":       {change: func(b []byte) []byte { setFAT12(b, 3, 0xff7); return b }, path: "A.TXT", want: "cluster 4087 of the chain from 2 lies outside"},
		"chain too short":    {change: func(b []byte) []byte { setFAT12(b, 3, 0xfff); return b }, path: "A.TXT", want: "open A.TXT: the cluster chain from 2 ends after 1024 of 1200 bytes"},
		"first cluster zero": {change: set16(1024+26, 0), path: "A.TXT", want: "open A.TXT: cluster 0 of the chain from 0 lies outside"},
		"file too long":      {change: func(b []byte) []byte { le.PutUint32(b[1024+28:], 1<<32-1); return b }, path: "A.TXT", want: "ends after 1536 of 4294967295 bytes"},
		"directory circle":   {change: func(b []byte) []byte { setFAT12(b, 5, 5); return b }, want: "open D/B.TXT: the cluster chain from 5 runs in a circle"},
		"directory outside":  {change: set16(1056+26, 999), want: "open D/B.TXT: cluster 999 of the chain from 999 lies outside"},
		"same name twice": {change: func(b []byte) []byte { putEntry(b[1088:], "A       TXT", 0x20, 6, 3); return b }, path: "a.txt",
			want: "open a.txt: its directory has two entries named \"a.txt\", and which one firmware opens cannot be told"},
		"directory and label of a name": {change: func(b []byte) []byte { putEntry(b[1088:], "D          ", 0x08, 0, 0); return b }},
		"deleted of the same name":      {change: func(b []byte) []byte { putEntry(b[1088:], "\xe5          ", 0x10, 5, 0); return b }},
	} {
		t.Run(name, func(t *testing.T) {
			content := smallFAT()
			if test.change != nil {
				content = test.change(content)
			}
			path := test.path
			if path == "" {
				path = "D/B.TXT"
			}
			f, err := OpenFAT(bytes.NewReader(content), int64(len(content)))
			if err == nil {
				_, err = f.Open(path)
			}
			if test.want != "" {
				wantError(t, err, test.want)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

// TestFATTruncated reads a file system whose disk ends before it does.
func TestFATTruncated(t *testing.T) {
	content := smallFAT()
	f, err := OpenFAT(bytes.NewReader(content[:1700]), int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	file, err := f.Open("A.TXT")
	if err != nil {
		t.Fatal(err)
	}
	_, err = file.ReadAt(make([]byte, 1200), 0)
	wantError(t, err, "read A.TXT: EOF")
	_, err = f.Open("D/B.TXT")
	wantError(t, err, "open D/B.TXT: read 512 bytes of it at byte 3072: EOF")
}

// TestLongNames decodes long names that are not whole: firmware then goes by the
// short name.
func TestLongNames(t *testing.T) {
	long := func(sequence byte, text string) []byte {
		e := make([]byte, 32)
		e[0], e[11] = sequence, fatAttrLong
		var sum byte
		for _, c := range []byte("SHORT   EFI") {
			sum = sum>>1 | sum<<7
			sum += c
		}
		e[13] = sum
		units := append([]byte(text), make([]byte, 13-len(text))...)
		for i, off := range []int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30} {
			e[off] = units[i]
		}
		return e
	}
	with := func(entry []byte, at int, value byte) []byte {
		entry[at] = value
		return entry
	}
	wrongSum := long(0x41, "wrong.efi")
	wrongSum[13]++
	for name, test := range map[string]struct {
		entries [][]byte
		want    string
	}{
		"none":             {nil, "SHORT.EFI"},
		"one":              {[][]byte{long(0x41, "long.efi")}, "long.efi"},
		"two":              {[][]byte{long(0x42, "me.efi"), long(0x01, "a long name, ")[:32]}, "a long name, me.efi"},
		"first missing":    {[][]byte{long(0x42, "me.efi")}, "SHORT.EFI"},
		"last missing":     {[][]byte{long(0x01, "long.efi")}, "SHORT.EFI"},
		"in wrong order":   {[][]byte{long(0x01, "a long name, "), long(0x42, "me.efi")}, "SHORT.EFI"},
		"other's checksum": {[][]byte{wrongSum}, "SHORT.EFI"},
		"sequence zero":    {[][]byte{long(0x40, "long.efi")}, "SHORT.EFI"},
		"sequence of 21":   {[][]byte{long(0x55, "long.efi")}, "SHORT.EFI"},
		"reserved bit":     {[][]byte{long(0x61, "long.efi")}, "SHORT.EFI"},
		"begun twice":      {[][]byte{long(0x43, "x"), long(0x41, "long.efi")}, "long.efi"},
		"empty":            {[][]byte{long(0x41, "")}, ""},
		"other attributes": {[][]byte{with(long(0x41, "long.efi"), 11, 0x4f)}, "SHORT.EFI"},
		"with a cluster":   {[][]byte{with(long(0x41, "long.efi"), 26, 1)}, "SHORT.EFI"},
		"of another type":  {[][]byte{with(long(0x41, "long.efi"), 12, 1)}, "long.efi"},
		"deleted":          {[][]byte{with(long(0x41, "long.efi"), 0, 0xe5)}, "SHORT.EFI"},
		"label between":    {[][]byte{long(0x41, "long.efi"), with(make([]byte, 32), 11, 8)}, "SHORT.EFI"},
		"labels before":    {[][]byte{with(make([]byte, 32), 11, 8), with(make([]byte, 32), 11, 0x2f), long(0x41, "long.efi")}, "long.efi"},
	} {
		t.Run(name, func(t *testing.T) {
			content := smallFAT()
			at := content[1088:]
			for _, e := range test.entries {
				copy(at, e)
				at = at[32:]
			}
			putEntry(at, "SHORT   EFI", 0x20, 6, 3)
			f, err := OpenFAT(bytes.NewReader(content), int64(len(content)))
			if err != nil {
				t.Fatal(err)
			}
			entries, err := f.ReadDir("")
			if err != nil {
				t.Fatal(err)
			}
			if len(entries) != 3 || entries[2].Name != test.want {
				t.Errorf("directory %+v, want the third to be %q", entries, test.want)
			}
		})
	}
}

func FuzzFAT(f *testing.F) {
	f.Add(smallFAT()[:4096], "D/B.TXT")
	f.Add(smallFAT()[:4096], "A.TXT")
	fat32 := smallFAT()
	binary.LittleEndian.PutUint16(fat32[22:], 0)
	binary.LittleEndian.PutUint32(fat32[36:], 1)
	binary.LittleEndian.PutUint32(fat32[44:], 2)
	f.Add(fat32[:4096], "EFI/BOOT/BOOTX64.EFI")
	f.Fuzz(func(t *testing.T, head []byte, path string) {
		content := make([]byte, max(len(head), 64<<10))
		copy(content, head)
		fat, err := OpenFAT(bytes.NewReader(content), int64(len(content)))
		if err != nil {
			return
		}
		if entries, err := fat.ReadDir(""); err == nil {
			for _, e := range entries {
				if !e.IsDir && e.Size > 0 {
					readWhole(t, fat, e.Name, int64(len(content)))
				}
			}
		}
		readWhole(t, fat, path, int64(len(content)))
		if areas, err := fat.Areas(int64(len(content))); err == nil {
			wholeFAT(t, areas, int64(len(content)))
		}
	})
}

// readWhole reads a file that can be opened: what opens lies on the disk.
func readWhole(t *testing.T, f *FAT, path string, size int64) {
	file, err := f.Open(path)
	if err != nil {
		return
	}
	if file.Size() > size {
		t.Fatalf("%q of %d bytes in a file system of %d", path, file.Size(), size)
	}
	h := sha256.New()
	if n, err := io.Copy(h, io.NewSectionReader(file, 0, file.Size())); err != nil || n != file.Size() {
		t.Fatalf("%q: %d bytes of %d, and %v", path, n, file.Size(), err)
	}
}

func BenchmarkFATRead(b *testing.B) {
	d := open(b, makeFAT(b, 40<<10, []string{"-F", "32", "-s", "1"}, sourceTree(b)))
	buf := make([]byte, 128<<10)
	for b.Loop() {
		f, err := OpenFAT(d, d.Size())
		if err != nil {
			b.Fatal(err)
		}
		file, err := f.Open("EFI/BOOT/BOOTX64.EFI")
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(file.Size())
		if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, io.NewSectionReader(file, 0, file.Size()), buf); err != nil {
			b.Fatal(err)
		}
	}
}
