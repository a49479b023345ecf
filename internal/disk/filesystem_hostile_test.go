package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// setBytes overwrites bytes of an image.
func setBytes(offset int, content ...byte) func([]byte) []byte {
	return func(b []byte) []byte {
		copy(b[offset:], content)
		return b
	}
}

// swap replaces every occurrence of a text.
func swap(old, with string) func([]byte) []byte {
	return func(b []byte) []byte { return bytes.ReplaceAll(b, []byte(old), []byte(with)) }
}

// unchecked takes the checksums from an ext4 file system, which would show each
// change.
func unchecked(change func([]byte) []byte) func([]byte) []byte {
	return func(b []byte) []byte {
		b[1024+0x65] &^= ext4ROChecksums >> 8
		return change(b)
	}
}

func cutTo(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:n] } }

func TestFilesystemsRefuse(t *testing.T) {
	for _, c := range []struct {
		image, name string
		change      func([]byte) []byte
		want        string
	}{
		{"erofs-plain", "checksum", setBytes(1024+64, 'x'), "open erofs file system: superblock checksum is"},
		{"erofs-plain", "block size", setBytes(1024+12, 30), "open erofs file system: blocks of 2^30 bytes are not between 512 and 65,536 bytes"},
		{"erofs-plain", "48 bits", setBytes(1024+80, 0x80), "it has the 48-bit layout of erofs-utils 1.9, which this version does not read: make it without -E48bit"},
		{"erofs-plain", "metabox", setBytes(1024+81, 1), "its inodes are in a metabox (erofs-utils 1.9), which this version does not read: make it without -m"},
		{"erofs-plain", "features", setBytes(1024+82, 0x40), "it has the features 0x400000, which this version does not know"},
		{"erofs-plain", "devices", setBytes(1024+86, 2), "its data are on 2 other devices"},
		{"erofs-plain", "size", setBytes(1024+36, 0xff, 0xff), "bytes long by its superblock, where there are"},
		{"erofs-plain", "cut", cutTo(8192), "it is 69632 bytes long by its superblock, where there are 8192"},
		{"erofs-plain", "root", func(b []byte) []byte { return setBytes(1024+14, 0xff, 0xff)(setBytes(1024+8, 0)(b)) }, "read its root directory: inode 65535: it lies outside the file system"},
		{"squashfs-plain", "version", setBytes(28, 3), "open squashfs file system: version 3.0 is not 4.0"},
		{"squashfs-plain", "LZMA", setBytes(20, 2), "it is compressed with LZMA, which this version does not read: use zstd, xz, gzip or lz4"},
		{"squashfs-plain", "LZO", setBytes(20, 3), "it is compressed with LZO, which this version does not read: use zstd, xz, gzip or lz4"},
		{"squashfs-plain", "compressor", setBytes(20, 9), "compressor 9 is not known"},
		{"squashfs-plain", "block size", setBytes(12, 0, 0, 0, 0x7f), "are not a power of two from 4,096 to 1,048,576"},
		{"squashfs-plain", "cut", cutTo(9000), "bytes long by its superblock, where there are 9000"},
		{"squashfs-plain", "root", setBytes(32, 0xff, 0xff, 0xff, 0xff), "read its root directory: inode"},
		{"ext4-extents", "journal", setBytes(1024+0x60, 0x46), "open ext4 file system: its journal was not replayed, so that what lies on the disk is not what the kernel would show: unmount it cleanly or run e2fsck"},
		{"ext4-extents", "features", setBytes(1024+0x62, 0x02), "it has the features 0x20000, which this version does not know"},
		{"ext4-extents", "block size", setBytes(1024+0x18, 9), "blocks of 2^19 bytes are longer than 65,536"},
		{"ext4-extents", "cut", cutTo(20000), "it has 192 blocks of 1024 bytes, where there are 20000 bytes"},
		{"ext4-extents", "inode size", setBytes(1024+0x58, 7), "are not a power of two from 128 to a block"},
		{"ext4-extents", "groups", setBytes(1024+0x28, 0, 0, 0, 0), "its groups have no inodes"},
	} {
		t.Run(c.image+" "+c.name, func(t *testing.T) {
			b := c.change(bytes.Clone(seeds(t, c.image+".img")[c.image]))
			_, err := OpenFilesystem(bytes.NewReader(b), int64(len(b)))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %s", err, c.want)
			}
			if errors.Is(err, ErrNoFilesystem) {
				t.Error("a damaged file system passes for none")
			}
		})
	}
}

// TestHostileDirectories looks at directories that the kernel and a simple
// reader would see differently.
func TestHostileDirectories(t *testing.T) {
	clear := setBytes(1024+8, 0) // erofs: no checksum of the superblock
	for _, c := range []struct {
		image, dir string
		change     func([]byte) []byte
		want       string
	}{
		{"erofs-plain", ".", func(b []byte) []byte { return swap("absbinempty", "zbsbinempty")(clear(b)) }, `"zbs" is listed, and the kernel does not find it`},
		{"erofs-plain", ".", func(b []byte) []byte { return swap("absbinempty", "a/sbinempty")(clear(b)) }, `"a/s" is no file name`},
		{"erofs-plain", ".", func(b []byte) []byte { return swap("absbinempty", "binbinempty")(clear(b)) }, `"bin" is listed as inode 42, and the kernel finds inode 44`},
		{"squashfs-plain", ".", swap("abs", "zbs"), `"bin" is listed, and the kernel does not find it`},
		{"squashfs-plain", "many", swap("file-10", "file/10"), `"file/10" is no file name`},
		{"ext4-extents", "many", unchecked(swap("file-10", "file-11")), `there are two entries named "file-11", and which one the kernel opens cannot be told`},
		{"ext4-extents", "many", unchecked(swap("file-10", "file/10")), `"file/10" is no file name`},
		{"ext4-inline", ".", unchecked(swap("empty", "em/ty")), `"em/ty" is no file name`},
	} {
		b := c.change(bytes.Clone(seeds(t, c.image+".img")[c.image]))
		f, err := OpenFilesystem(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Errorf("%s: %v", c.image, err)
			continue
		}
		if _, err := f.ReadDir(c.dir); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", c.image, err, c.want)
		}
		failed := false
		_ = f.Walk(func(_ string, _ fs.FileInfo, err error) error {
			failed = failed || err != nil
			return nil
		})
		if !failed {
			t.Errorf("%s: the walk passes over it", c.image)
		}
	}
}

// TestDirectoryCircle makes a directory contain the root.
func TestDirectoryCircle(t *testing.T) {
	b := seeds(t, "erofs-plain.img")["erofs-plain"]
	b[1024+8] = 0
	f, err := OpenFilesystem(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	root, err := f.tree.inode(f.tree.root())
	if err != nil {
		t.Fatal(err)
	}
	own := root.private.(*erofsInode)
	if own.layout != erofsFlatInline {
		t.Fatalf("the root has layout %d", own.layout)
	}
	names := int(binary.LittleEndian.Uint16(b[own.tail+8:]))
	changed := false
	for at := int(own.tail); at < int(own.tail)+names; at += 12 {
		if id := binary.LittleEndian.Uint64(b[at:]); b[at+10] == 2 && id != f.tree.root() {
			binary.LittleEndian.PutUint64(b[at:], f.tree.root())
			changed = true
			break
		}
	}
	if !changed {
		t.Fatal("the root has no directory")
	}
	var got error
	if err := f.Walk(func(_ string, _ fs.FileInfo, err error) error {
		got = errors.Join(got, err)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("directory inode %d is in two places", f.tree.root()); got == nil || !strings.Contains(got.Error(), want) {
		t.Errorf("%v, want %s", got, want)
	}
}

// TestExt4HugeFile reads the end of a file that says to be longer than ext4
// allows.
func TestExt4HugeFile(t *testing.T) {
	for image, want := range map[string]string{
		"ext4-extents": "it lies behind what an extent tree can reach",
		"ext4-blocks":  "it lies behind what a block map can reach",
	} {
		b := seeds(t, image+".img")[image]
		f, err := OpenFilesystem(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		node, err := f.lookup("etc/numbers", true)
		if err != nil {
			t.Fatal(err)
		}
		node.size = 1 << 50
		content, err := f.tree.content(node)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := content.ReadAt(make([]byte, 10), node.size-10); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", image, err, want)
		}
		if n, err := content.ReadAt(make([]byte, 4096), 1<<30); n != 4096 || err != nil {
			t.Errorf("%s: a hole gives %d bytes, %v", image, n, err)
		}
	}
}

func TestLZ4(t *testing.T) {
	for _, c := range []struct {
		name, src, want string
		size            int
		ok              bool
	}{
		{"literals", "\x50hello", "hello", 5, true},
		{"match", "\x14a\x01\x00\x50bcdef", "aaaaaaaaabcdef", 14, true},
		{"full in a match", "\x1fa\x01\x00\xff\x00", "aaaaaaa", 7, true},
		{"full in literals", "\x50hello", "hel", 3, true},
		{"long", "\xf0\x01" + strings.Repeat("x", 16), strings.Repeat("x", 16), 16, true},
		{"no length", "\xf0\xff", "", 9, false},
		{"literals cut", "\x50he", "", 9, false},
		{"distance cut", "\x14a\x01", "a", 9, false},
		{"distance zero", "\x14a\x00\x00", "a", 9, false},
		{"distance too far", "\x14a\x02\x00", "a", 9, false},
		{"nothing", "", "", 9, true},
	} {
		dst := make([]byte, c.size)
		n, err := lz4Block(dst, []byte(c.src))
		if string(dst[:n]) != c.want || (err == nil) != c.ok {
			t.Errorf("%s: %q, %v", c.name, dst[:n], err)
		}
	}
}

// manyFiles makes a directory with count files, most of them links.
func manyFiles(t testing.TB, count int) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "tree")
	if err := os.MkdirAll(filepath.Join(root, "many"), 0o755); err != nil {
		t.Fatal(err)
	}
	first := ""
	for i := range count {
		name := filepath.Join(root, "many", fmt.Sprintf("file-%06d", i))
		var err error
		if i%10000 == 0 { // an inode of ext4 has at most 65,000 links
			first = name
			err = os.WriteFile(name, []byte("content"), 0o600)
		} else {
			err = os.Link(first, name)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// TestLargeDirectory reads directories that no single block holds: 100,000 files
// in erofs and squashfs, and in ext4, which mke2fs fills slowly, 4,000 with a
// hash index from e2fsck.
func TestLargeDirectory(t *testing.T) {
	if testing.Short() {
		t.Skip("making 100,000 files takes half a minute")
	}
	const large, small = 100_000, 4000
	root, some := manyFiles(t, large), manyFiles(t, small)
	ext4 := createFile(t, 16<<20)
	makeImage(t, some, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-d", "TREE", ext4)
	if out, err := exec.Command(testenv.Tool(t, "e2fsck"), "-f", "-D", "-y", ext4).CombinedOutput(); err != nil && !strings.Contains(string(out), "FILE SYSTEM WAS MODIFIED") {
		t.Fatalf("e2fsck: %v\n%s", err, out)
	}
	for _, c := range []struct {
		kind, image string
		count       int
	}{
		{"erofs", makeImage(t, root, "mkfs.erofs", "--quiet", "-zlz4hc,12", "IMAGE", "TREE"), large},
		{"squashfs", makeImage(t, root, "mksquashfs", "TREE", "IMAGE", "-quiet", "-no-progress"), large},
		{"ext4", ext4, small},
	} {
		f := openImage(t, c.image)
		entries, err := f.ReadDir("many")
		if err != nil || len(entries) != c.count || f.Kind != c.kind {
			t.Errorf("%s: %d entries, %v", c.kind, len(entries), err)
			continue
		}
		for i, e := range entries {
			if e.Name() != fmt.Sprintf("file-%06d", i) {
				t.Errorf("%s: entry %d is %s", c.kind, i, e.Name())
				break
			}
		}
		if b, err := fs.ReadFile(f, fmt.Sprintf("many/file-%06d", c.count-1)); err != nil || string(b) != "content" {
			t.Errorf("%s: %q, %v", c.kind, b, err)
		}
	}
}
