package disk

import (
	"strings"
	"testing"
)

func TestSquashfs(t *testing.T) {
	if testing.Short() {
		t.Skip("making squashfs file systems with every compressor takes half a minute")
	}
	root := oddTree(t)
	for _, options := range []string{
		"-comp gzip", "-comp xz", "-comp xz -Xbcj x86", "-comp zstd", "-comp lz4", "-comp lz4 -Xhc",
		"-comp zstd -b 1M", "-comp gzip -b 4K", "-comp zstd -no-fragments", "-comp gzip -always-use-fragments",
		"-comp gzip -no-compression", "-comp gzip -noI -noX", "-comp gzip -noD -noF", "-comp zstd -no-sparse", "-comp gzip -no-duplicates",
	} {
		t.Run(options, func(t *testing.T) {
			image := makeImage(t, root, "mksquashfs", append([]string{"TREE", "IMAGE", "-quiet", "-no-progress", "-xattrs"}, strings.Fields(options)...)...)
			f := openImage(t, image)
			if f.Kind != "squashfs" {
				t.Errorf("it is %s", f.Kind)
			}
			if n := compareTree(t, root, f, true); n < 800 {
				t.Errorf("%d files were compared", n)
			}
			checkLinks(t, f)
			checkRandomReads(t, root, f)
		})
	}
}
