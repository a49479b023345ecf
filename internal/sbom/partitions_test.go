package sbom

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/testenv"
)

// tool runs a program that makes a part of a disk.
func tool(t *testing.T, program string, args ...string) {
	t.Helper()
	cmd := exec.Command(testenv.Tool(t, program), args...)
	cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1", "SOURCE_DATE_EPOCH=1700000000")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", program, args, err, out)
	}
}

// blank makes a file of zeros.
func blank(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "blank")
	file, err := os.Create(path)
	if err == nil {
		err = file.Truncate(size)
	}
	if err == nil {
		err = file.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// makeFilesystem makes a file system with these files, and a link from one directory
// of documents to another.
func makeFilesystem(t *testing.T, kind string, files map[string]string) []byte {
	t.Helper()
	tree := t.TempDir()
	for name, content := range files {
		path := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, link := strings.CutPrefix(content, "-> "); link {
			err = os.Symlink(target, path)
		} else {
			err = os.WriteFile(path, []byte(content), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	image := filepath.Join(t.TempDir(), "image")
	switch kind {
	case "erofs":
		tool(t, "mkfs.erofs", "-zlz4hc", image, tree)
	case "squashfs":
		tool(t, "mksquashfs", tree, image, "-quiet", "-no-progress")
	case "ext4":
		image = blank(t, 8<<20)
		tool(t, "mke2fs", "-q", "-F", "-d", tree, image)
	}
	content, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// makeDisk makes a disk with an EFI system partition and others.
func makeDisk(t *testing.T, partitions ...[]byte) *disk.Disk {
	t.Helper()
	return makeBootDisk(t, []byte("no program"), partitions...)
}

// makeBootDisk is makeDisk with a program for firmware to start.
func makeBootDisk(t *testing.T, program []byte, partitions ...[]byte) *disk.Disk {
	t.Helper()
	esp := blank(t, 4<<20)
	tool(t, "mkfs.vfat", esp)
	file := filepath.Join(t.TempDir(), "BOOTX64.EFI")
	if err := os.WriteFile(file, program, 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "mmd", "-i", esp, "::EFI", "::EFI/BOOT")
	tool(t, "mcopy", "-i", esp, file, "::EFI/BOOT/BOOTX64.EFI")
	content, err := os.ReadFile(esp)
	if err != nil {
		t.Fatal(err)
	}
	// sgdisk waits a second for each disk.
	le := binary.LittleEndian
	image, table := make([]byte, 2048*512), make([]byte, 128*128)
	for n, p := range append([][]byte{content}, partitions...) {
		entry := table[128*n:]
		copy(entry, "a Linux data GUID")
		if n == 0 {
			copy(entry, disk.ESPType[:])
		}
		entry[16] = byte(n + 1)
		le.PutUint64(entry[32:], uint64(len(image)/512))
		image = append(image, p...)
		image = append(image, make([]byte, -len(image)&4095)...)
		le.PutUint64(entry[40:], uint64(len(image)/512-1))
	}
	last := uint64(len(image)/512 - 1)
	image = append(image, make([]byte, 33*512)...)
	copy(image[446:], []byte{0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff})
	image[510], image[511] = 0x55, 0xaa
	copy(image[1024:], table)
	header := image[512 : 512+92]
	copy(header, "EFI PART\x00\x00\x01\x00")
	le.PutUint32(header[12:], 92)
	for at, value := range map[int]uint64{24: 1, 32: last + 33, 40: 34, 48: last, 72: 2} {
		le.PutUint64(header[at:], value)
	}
	le.PutUint32(header[80:], 128)
	le.PutUint32(header[84:], 128)
	le.PutUint32(header[88:], crc32.ChecksumIEEE(table))
	le.PutUint32(header[16:], crc32.ChecksumIEEE(header))
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := disk.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// TestPartitions finds the root file system among partitions, whatever its format.
func TestPartitions(t *testing.T) {
	root := map[string]string{
		"usr/lib/os-release": debian, "etc/os-release": "-> ../usr/lib/os-release", dpkgStatus: bash,
		"usr/share/doc/bash": "-> bash-common", "usr/share/doc/bash-common/copyright": format + "\nFiles: *\nLicense: GPL-3+\n",
	}
	var first string
	for _, kind := range []string{"erofs", "squashfs", "ext4"} {
		t.Run(kind, func(t *testing.T) {
			data := makeFilesystem(t, "ext4", map[string]string{"data": "x"})
			i, err := Read(context.Background(), makeDisk(t, bytes.Repeat([]byte("?"), 4096), data, makeFilesystem(t, kind, root)), func(int64) {})
			if err != nil {
				t.Fatal(err)
			}
			got := fmt.Sprintf("%+v %+v", i.Packages, i.OS)
			if len(i.Packages) != 1 || i.Packages[0].License.Expression != "GPL-3.0-or-later" || first != "" && first != got {
				t.Errorf("%s", got)
			}
			first = got
			b := i.BootFiles
			if len(b) != 1 || b[0].Path != "EFI/BOOT/BOOTX64.EFI" || b[0].UKI || b[0].Size != 10 ||
				b[0].SHA256 != "77c81fb66a43b886cf465ef2634a071856e9529e7509b908ab5c2e70f6e2ddd9" {
				t.Errorf("boot files %+v", b)
			}
		})
	}
	good := makeFilesystem(t, "ext4", root)
	damaged := bytes.Clone(good)
	for n := 1024 + 0x20; n < 1024+0x60; n++ { // the superblock, behind the counts
		if n < 1024+0x38 || n > 1024+0x39 { // not the magic number
			damaged[n] = 0xff
		}
	}
	for name, c := range map[string]struct {
		partitions [][]byte
		want       string
	}{
		"none":               {nil, "no partition has"},
		"no database":        {[][]byte{makeFilesystem(t, "ext4", map[string]string{"etc/os-release": debian})}, "no partition has"},
		"two":                {[][]byte{good, good}, "partitions 2 and 3 both have a package database"},
		"one is damaged":     {[][]byte{good, damaged}, "partition 3: open ext4 file system"},
		"another manager":    {[][]byte{makeFilesystem(t, "squashfs", map[string]string{"lib/apk/db/installed": "P:x\n", "etc/os-release": debian})}, "Alpine's apk"},
		"an unsound package": {[][]byte{makeFilesystem(t, "erofs", map[string]string{"etc/os-release": debian, dpkgStatus: "Package: x\n"})}, "partition 2: read dpkg's database /var/lib/dpkg/status"},
		"a link in a circle": {[][]byte{makeFilesystem(t, "erofs", map[string]string{"etc/os-release": debian, dpkgStatus: "-> status"})}, "partition 2"},
	} {
		t.Run(name, func(t *testing.T) {
			if i, err := Read(context.Background(), makeDisk(t, c.partitions...), func(int64) {}); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q (%+v)", err, c.want, i)
			}
		})
	}
	// It ends when it is told to.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Read(ctx, makeDisk(t, good), func(int64) {}); err == nil || !strings.Contains(err.Error(), "canceled") {
		t.Errorf("cancelled: %v", err)
	}
}
