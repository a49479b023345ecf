package disk

import (
	"os"
	"path/filepath"
	"testing"
)

// FuzzVerity reads superblocks that nobody made, at any place of a partition: a
// tree that is taken lies within it, and what is said of the superblock's bytes
// reaches to the tree.
func FuzzVerity(f *testing.F) {
	path, _ := verityDisk(f, 64<<10)
	content, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	superblock := content[64<<10 : 64<<10+veritySuperblock]
	f.Add(superblock, int64(64<<10), int64(0))
	f.Add(superblock, int64(512), int64(512*35))
	small, _ := verityDisk(f, 8192, "--data-block-size", "512", "--hash-block-size", "512", "--salt", "-", "--hash", "sha512")
	other, err := os.ReadFile(small)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(other[8192:8192+veritySuperblock], int64(8192), int64(0))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, superblock []byte, offset, start int64) {
		const size = 256 << 10
		if start < 0 || start > size || offset < 0 || offset > size-start || len(superblock) > 1024 {
			return
		}
		disk := make([]byte, size)
		copy(disk[start+offset:], superblock)
		path := filepath.Join(dir, "disk")
		if err := os.WriteFile(path, disk, 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		v, err := d.Verity(Extent{start, size - start}, offset)
		if err != nil {
			return
		}
		tree := v.Tree()
		if tree.Offset < start+offset+veritySuperblock || tree.Offset+tree.Length > size {
			t.Fatalf("a tree at %+v in a partition of %d bytes at %d", tree, size-start, start)
		}
		at := start + offset
		for _, a := range v.Superblock() {
			if a.Offset != at || a.Length <= 0 {
				t.Fatalf("area %+v, want one at %d", a, at)
			}
			at += a.Length
		}
		if at != tree.Offset {
			t.Fatalf("the areas end at %d, the tree begins at %d", at, tree.Offset)
		}
		if data := v.Data(0); data.Length <= size {
			if _, err := v.Verify(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
		}
	})
}
