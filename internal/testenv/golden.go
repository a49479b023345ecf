package testenv

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// Root returns the module's root directory.
func Root(t testing.TB) string {
	t.Helper()
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		t.Fatal("this test binary does not know where its source is")
	}
	return filepath.Join(filepath.Dir(file), "../..")
}

// GoldenDisk unpacks a disk of testdata/golden, "stub257" or "sbA252", for the
// time of the test, and returns its path. It is sparse.
func GoldenDisk(t testing.TB, name string) string {
	t.Helper()
	path, err := unpackGolden(filepath.Join(Root(t), "testdata/golden/disks.tar.zst"), name+".raw", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func unpackGolden(archive, name, dir string) (path string, err error) {
	f, err := os.Open(archive)
	if err != nil {
		return "", err
	}
	defer f.Close()
	z, err := zstd.NewReader(f)
	if err != nil {
		return "", err
	}
	defer z.Close()
	for archive := tar.NewReader(z); ; {
		header, err := archive.Next()
		if err != nil {
			return "", fmt.Errorf("find %s in the golden disks: %w", name, err)
		}
		if header.Name != name {
			continue
		}
		out, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			return "", err
		}
		defer func() { err = errors.Join(err, out.Close()) }()
		return out.Name(), writeSparse(out, archive, header.Size)
	}
}

// writeSparse copies r to f and leaves holes where it is zero.
func writeSparse(f *os.File, r io.Reader, size int64) error {
	if err := f.Truncate(size); err != nil {
		return err
	}
	block := make([]byte, 64<<10)
	for off := int64(0); ; {
		n, err := io.ReadFull(r, block)
		for _, b := range block[:n] {
			if b != 0 {
				if _, err := f.WriteAt(block[:n], off); err != nil {
					return err
				}
				break
			}
		}
		off += int64(n)
		if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
