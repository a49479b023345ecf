package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// indexed makes file systems with a directory that is long enough for an index:
// squashfs by mksquashfs, ext4 by mke2fs and e2fsck.
func indexed(t *testing.T, kind string) []byte {
	t.Helper()
	tree := manyFiles(t, 700)
	var image string
	if kind == "squashfs" {
		image = makeImage(t, tree, "mksquashfs", "TREE", "IMAGE", "-quiet", "-no-progress", "-noI")
	} else {
		image = createFile(t, 4<<20)
		makeImage(t, tree, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-O", "^metadata_csum", "-d", "TREE", image)
		if out, err := exec.Command(testenv.Tool(t, "e2fsck"), "-f", "-D", "-y", image).CombinedOutput(); err != nil && !strings.Contains(string(out), "FILE SYSTEM WAS MODIFIED") {
			t.Fatalf("e2fsck: %v\n%s", err, out)
		}
	}
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func filesystemOf(t *testing.T, b []byte) *Filesystem {
	t.Helper()
	f, err := OpenFilesystem(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestSquashfsIndex changes the index of a directory, through which the kernel looks
// names up and which no listing reads.
func TestSquashfsIndex(t *testing.T) {
	sound := indexed(t, "squashfs")
	f := filesystemOf(t, sound)
	if entries, err := f.ReadDir("many"); err != nil || len(entries) != 700 {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	node, err := f.lookup("many", true)
	if err != nil {
		t.Fatal(err)
	}
	d, err := f.directory(node)
	if err != nil {
		t.Fatal(err)
	}
	index := d.(*squashfsDirectory).index
	if len(index) == 0 {
		t.Fatal("the directory has no index")
	}
	// The index stands in the inode: byte of the entries, block, length, name.
	at := bytes.Index(sound, append([]byte{byte(len(index[0].name) - 1), 0, 0, 0}, index[0].name...)) - 8
	if at < 0 {
		t.Fatal("the index is not in the image as it is")
	}
	// Names from here on are looked for behind the end of the directory.
	b := bytes.Clone(sound)
	binary.LittleEndian.PutUint32(b[at:], uint32(node.size))
	f = filesystemOf(t, b)
	if _, err := f.Open("many/" + index[0].name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what the kernel does not find opens: %v", err)
	}
	entries, err := f.ReadDir("many")
	if _, ok := errors.AsType[*NamesError](err); !ok || !strings.Contains(err.Error(), "is listed, and the kernel does not find it") {
		t.Errorf("%v", err)
	}
	if len(entries) == 0 || len(entries) >= 700 || slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == index[0].name }) {
		t.Errorf("%d entries are listed", len(entries))
	}
	// In front of the first name the index is not used.
	if _, err := f.Open("many/file-000000"); err != nil {
		t.Error(err)
	}
	// A negative byte begins in front of the directory.
	binary.LittleEndian.PutUint32(b[at:], 0xffff0000)
	if _, err := filesystemOf(t, b).ReadDir("many"); err == nil || !strings.Contains(err.Error(), "is said to be at byte -65536") {
		t.Errorf("%v", err)
	}
	// One name of the index later than the first one of its block.
	b = bytes.Clone(sound)
	b[at+12] = 'a'
	if _, err := filesystemOf(t, b).ReadDir("many"); err == nil || !strings.Contains(err.Error(), "the kernel's lookup by name and a listing disagree") {
		t.Errorf("%v", err)
	}
}

// TestSquashfsNumbers gives two files one inode number: the kernel keeps inodes by
// it.
func TestSquashfsNumbers(t *testing.T) {
	tree := t.TempDir()
	for _, name := range []string{"first", "other"} {
		if err := os.WriteFile(filepath.Join(tree, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(makeImage(t, tree, "mksquashfs", "TREE", "IMAGE", "-quiet", "-no-progress", "-noI"))
	if err != nil {
		t.Fatal(err)
	}
	other := bytes.LastIndex(b, []byte("other"))
	first := bytes.LastIndex(b, []byte("first"))
	copy(b[other-6:other-4], b[first-6:first-4]) // the difference to the header's number
	var got error
	if err := filesystemOf(t, b).Walk(func(_ string, _ fs.FileInfo, err error) error {
		got = errors.Join(got, err)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if _, ok := errors.AsType[*NamesError](got); !ok || !strings.Contains(got.Error(), "inode number") {
		t.Errorf("%v", got)
	}
}

// TestExt4HashIndex changes the hash index of a directory.
func TestExt4HashIndex(t *testing.T) {
	sound := indexed(t, "ext4")
	f := filesystemOf(t, sound)
	node, err := f.lookup("many", true)
	if err != nil {
		t.Fatal(err)
	}
	d, err := f.directory(node)
	if err != nil {
		t.Fatal(err)
	}
	many := d.(*ext4Directory)
	if !many.hashed {
		t.Fatal("the directory has no hash index")
	}
	if entries, err := f.ReadDir("many"); err != nil || len(entries) != 700 {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	root, err := many.block(0)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(sound, root)
	change := func(offset int, value ...byte) *Filesystem {
		b := bytes.Clone(sound)
		copy(b[at+offset:], value)
		return filesystemOf(t, b)
	}
	// The second pair names the leaf of the first: what is in its own is not found.
	f = change(32+8+4, root[32+4:32+8]...)
	entries, err := f.ReadDir("many")
	if _, ok := errors.AsType[*NamesError](err); !ok || len(entries) == 0 || len(entries) == 700 {
		t.Errorf("%d entries, %v", len(entries), err)
	}
	for _, e := range entries {
		if _, err := f.Open("many/" + e.Name()); err != nil {
			t.Errorf("%s is listed: %v", e.Name(), err)
		}
	}
	for name, c := range map[string]struct {
		offset int
		value  byte
		want   string
	}{
		"hash version":  {28, 9, "its hash version 9 is not known"},
		"another hash":  {28, 2, "is listed, and the kernel does not find it"},
		"header":        {24, 1, "its root has the header"},
		"levels":        {30, 7, "its root has the header"},
		"limit":         {32, 1, "where there is room for"},
		"block":         {36, 0xff, "lies behind the end of the directory"},
		"parent's name": {20, 'x', "its root does not begin with the entries"},
	} {
		if _, err := change(c.offset, c.value).ReadDir("many"); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
}

// TestExt4Links reads symbolic links whose flags and sizes speak against the blocks
// that they take, by which the kernel goes.
func TestExt4Links(t *testing.T) {
	tree := t.TempDir()
	if err := os.Symlink("/dev/null", filepath.Join(tree, "mask")); err != nil {
		t.Fatal(err)
	}
	image := createFile(t, 1<<20)
	makeImage(t, tree, "mke2fs", "-q", "-F", "-t", "ext4", "-O", "^metadata_csum", "-d", "TREE", image)
	sound, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	inode := bytes.Index(sound, []byte("/dev/null\x00")) - 0x28
	for name, c := range map[string]struct {
		at    int
		value byte
		want  string
	}{
		"sound": {0x23, sound[inode+0x23], ""}, "extents": {0x22, sound[inode+0x22] | 8, ""}, "inline without its xattr": {0x23, sound[inode+0x23] | 0x10, ""},
		"blocks": {0x1c, 2, "blocks at block"}, "size": {4, 5, "a symbolic link of 5 bytes has a target of 9"}, "upper half of the size": {0x6c, 1, ""},
		"no links": {0x1a, 0, "it was deleted"},
	} {
		b := bytes.Clone(sound)
		b[inode+c.at] = c.value
		target, err := filesystemOf(t, b).ReadLink("mask")
		if c.want == "" && (err != nil || target != "/dev/null") || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %q, %v, want %s", name, target, err, c.want)
		}
	}
}

// TestHashes compares hashes of names with those of debugfs's dx_hash.
func TestHashes(t *testing.T) {
	debugfs := testenv.Tool(t, "debugfs")
	for version, name := range []string{"legacy", "half_md4", "tea"} {
		for _, word := range []string{"a", "shadow", "a-name-of-more-than-thirty-two-bytes-for-two-rounds", strings.Repeat("x", 255)} {
			out, err := exec.Command(debugfs, "-R", "dx_hash -h "+name+" "+word).Output()
			if err != nil {
				t.Fatal(err)
			}
			hash, err := new(ext4).hashOf(word, byte(version))
			if err != nil {
				t.Fatal(err)
			}
			if want := "0x" + strings.TrimLeft(strings.ToLower(hexOf(hash)), "0"); !strings.Contains(string(out), want) {
				t.Errorf("%s of %.20s: %s, debugfs says %s", name, word, want, out)
			}
		}
	}
}

func hexOf(n uint32) string {
	const digits = "0123456789abcdef"
	text := make([]byte, 8)
	for i := range text {
		text[i] = digits[n>>(28-4*i)&15]
	}
	return string(text)
}

// TestKinds looks for several file systems in the same bytes.
func TestKinds(t *testing.T) {
	erofs := seeds(t, "erofs-plain.img")["erofs-plain"]
	both := bytes.Clone(erofs)
	copy(both, "hsqs")
	size := int64(len(both))
	_, err := OpenFilesystem(bytes.NewReader(both), size)
	if e, ok := errors.AsType[*AmbiguousError](err); !ok || !slices.Equal(e.Kinds, []string{"erofs", "squashfs"}) {
		t.Errorf("%v", err)
	}
	if _, err := OpenFilesystem(bytes.NewReader(both), size, "ext4"); err == nil {
		t.Error("ext4 is told, and something else opened")
	}
	if _, err := OpenFilesystem(bytes.NewReader(both), size, "erofs", "squashfs"); err == nil {
		t.Error("two are told, and one opened")
	}
	f, err := OpenFilesystem(bytes.NewReader(both), size, "erofs")
	if err != nil || f.Kind != "erofs" || !f.MountedAs("erofs") || f.MountedAs("ext4") {
		t.Errorf("%v, %v", f, err)
	}
	for kind, magic := range map[string]struct {
		at   int
		text string
	}{"XFS": {0, "XFSB"}, "btrfs": {65600, "_BHRfS_M"}, "ISO 9660": {32769, "CD001"}} {
		b := bytes.Clone(append(bytes.Clone(erofs), make([]byte, 128<<10)...))
		copy(b[magic.at:], magic.text)
		if kinds, err := Kinds(bytes.NewReader(b), int64(len(b))); err != nil || !slices.Equal(kinds, []string{"erofs", kind}) {
			t.Errorf("%s: %q, %v", kind, kinds, err)
		}
	}
}
