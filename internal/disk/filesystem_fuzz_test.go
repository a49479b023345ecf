package disk

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// seeds are the small file systems of testdata/filesystems, all made of the same
// tree: erofs by mkfs.erofs 1.8.6, squashfs by mksquashfs 4.6.1, ext4 by mke2fs
// 1.47.0. SHA256SUMS has the digests of what the files hold.
func seeds(t testing.TB, pattern string) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join("testdata/filesystems", pattern))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no %s: %v", pattern, err)
	}
	found := map[string][]byte{}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		found[strings.TrimSuffix(filepath.Base(path), ".img")] = b
	}
	return found
}

func TestSeedFilesystems(t *testing.T) {
	sums, err := os.Open("testdata/filesystems/SHA256SUMS")
	if err != nil {
		t.Fatal(err)
	}
	defer sums.Close()
	want := map[string]string{}
	for lines := bufio.NewScanner(sums); lines.Scan(); {
		sum, name, _ := strings.Cut(lines.Text(), "  ./")
		want[name] = sum
	}
	if len(want) < 40 {
		t.Fatalf("%d files are expected", len(want))
	}
	for image, b := range seeds(t, "*.img") {
		t.Run(image, func(t *testing.T) {
			f, err := OpenFilesystem(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			if kind, _, _ := strings.Cut(image, "-"); f.Kind != kind {
				t.Errorf("it is %s", f.Kind)
			}
			if image == "erofs-lzma" {
				_, err := fs.ReadFile(f, "etc/numbers")
				if err == nil || !strings.Contains(err.Error(), "compressed with LZMA, which this version does not read: use lz4hc, deflate or zstd") {
					t.Errorf("LZMA: %v", err)
				}
				return
			}
			files := 0
			err = f.Walk(func(name string, info fs.FileInfo, err error) error {
				if err != nil || !info.Mode().IsRegular() {
					return err
				}
				files++
				content, err := fs.ReadFile(f, name)
				if sum := sha256.Sum256(content); err == nil && hex.EncodeToString(sum[:]) != want[name] {
					err = fmt.Errorf("%s: its content differs", name)
				}
				return err
			})
			if err != nil || files != len(want) {
				t.Errorf("%d files of %d: %v", files, len(want), err)
			}
			info, err := f.Lstat("bin/noise")
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode() != 0o755|fs.ModeSetuid || len(info.Sys().(*Stat).Xattrs["security.capability"]) != 20 {
				t.Errorf("bin/noise: %v %q", info.Mode(), info.Sys().(*Stat).Xattrs)
			}
			if info, err = f.Stat("abs/numbers"); err != nil || string(info.Sys().(*Stat).Xattrs["user.a.long.name"]) != "2" || info.Sys().(*Stat).Nlink != 2 {
				t.Errorf("abs/numbers: %v, %v", info, err)
			}
			if info, err = f.Stat("bin/null"); err != nil || info.Mode().Type() != fs.ModeDevice|fs.ModeCharDevice || info.Sys().(*Stat).Rdev != 0x103 {
				t.Errorf("bin/null: %v, %v", info, err)
			}
		})
	}
}

// errEnough ends a walk.
var errEnough = errors.New("enough")

// attack reads as much of a hostile file system as a caller would.
func attack(b []byte) {
	f, err := OpenFilesystem(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return
	}
	count := 0
	_ = f.Walk(func(name string, info fs.FileInfo, err error) error {
		if count++; count > 500 {
			return errEnough
		}
		if err != nil || info == nil {
			return nil
		}
		switch info.Mode().Type() {
		case 0:
			file, err := f.Open(name)
			if err != nil {
				return nil
			}
			defer file.Close()
			_, _ = io.CopyN(io.Discard, file, 64<<10)
			_, _ = file.(io.ReaderAt).ReadAt(make([]byte, 10), info.Size()-5)
		case fs.ModeSymlink:
			_, _ = f.ReadLink(name)
			_, _ = f.Stat(name)
		}
		return nil
	})
}

func FuzzErofs(f *testing.F) {
	for _, b := range seeds(f, "erofs-*.img") {
		f.Add(b)
	}
	f.Fuzz(func(_ *testing.T, b []byte) {
		// Without the superblock's checksum the fuzzer gets further.
		if b = bytes.Clone(b); len(b) > 1024+12 {
			b[1024+8] &^= erofsCompatChecksum
		}
		attack(b)
	})
}

func FuzzSquashfs(f *testing.F) {
	for _, b := range seeds(f, "squashfs-*.img") {
		f.Add(b)
	}
	f.Fuzz(func(_ *testing.T, b []byte) { attack(b) })
}

func FuzzExt4(f *testing.F) {
	for _, b := range seeds(f, "ext4-*.img") {
		f.Add(b)
	}
	f.Fuzz(func(_ *testing.T, b []byte) {
		// Without checksums the fuzzer gets further.
		if b = bytes.Clone(b); len(b) > 1024+0x66 {
			b[1024+0x65] &^= ext4ROChecksums >> 8
		}
		attack(b)
	})
}
