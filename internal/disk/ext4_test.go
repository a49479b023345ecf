package disk

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestExt4(t *testing.T) {
	if testing.Short() {
		t.Skip("making ext4 file systems with every option takes half a minute")
	}
	sparse := oddTree(t)
	for _, options := range []string{
		"-t ext4", "-t ext4 -b 1024", "-t ext4 -b 4096 -O inline_data -I 256", "-t ext4 -b 1024 -O inline_data -I 1024",
		"-t ext4 -O ^64bit,^metadata_csum", "-t ext4 -O ^extent,^64bit", "-t ext4 -O ^has_journal,^flex_bg",
		"-t ext4 -O bigalloc -C 16384", "-t ext4 -O metadata_csum_seed", "-t ext3", "-t ext2 -b 1024", "-t ext2 -O ^filetype -I 128",
	} {
		t.Run(options, func(t *testing.T) {
			root := sparse
			if strings.Contains(options, "inline_data") {
				// mke2fs gets the size of sparse files wrong with this option.
				root = oddTree(t)
				if err := os.WriteFile(filepath.Join(root, "sparse"), bytes.Repeat([]byte("no hole "), 30000), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			image := createFile(t, 64<<20)
			args := append([]string{"-q", "-F", "-U", "00112233-4455-6677-8899-aabbccddeeff", "-L", "a root", "-d", "TREE"}, strings.Fields(options)...)
			makeImage(t, root, "mke2fs", append(args, image)...)
			f := openImage(t, image)
			if f.Kind != "ext4" || f.UUID != "00112233-4455-6677-8899-aabbccddeeff" || f.Label != "a root" {
				t.Errorf("it is %s %s %q", f.Kind, f.UUID, f.Label)
			}
			if n := compareTree(t, root, f, true); n < 800 {
				t.Errorf("%d files were compared", n)
			}
			checkLinks(t, f)
			checkRandomReads(t, root, f)
		})
	}
}

// createFile makes a sparse file of size bytes.
func createFile(t testing.TB, size int64) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "image")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}
