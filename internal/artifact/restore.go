package artifact

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// RestoreDisk writes the disk to a file, with holes where it is zero, under a
// temporary name beside path until it is whole and right: its size in bytes and
// its SHA-256 in lower-case hex must be as given, which are those that the
// measurements document says. Never more than size bytes are written.
func (a *Artifact) RestoreDisk(ctx context.Context, path, diskSHA256 string, size int64) error {
	if err := a.restoreDisk(ctx, path, diskSHA256, size); err != nil {
		return fmt.Errorf("restore disk to %s: %w", path, err)
	}
	return nil
}

func (a *Artifact) restoreDisk(ctx context.Context, path, diskSHA256 string, size int64) error {
	if size <= 0 {
		return fmt.Errorf("the measurements give it a size of %d bytes", size)
	}
	r, err := a.Disk(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // which fails once it is renamed
	defer f.Close()
	if err := writeSparse(f, r, diskSHA256, size, a.options.progress); err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// page is the granularity of holes, in bytes: the block of usual file systems.
const page = 4096

// writeSparse copies a disk to an empty file and checks it.
func writeSparse(f *os.File, r io.Reader, diskSHA256 string, size int64, progress func(n int64)) error {
	hash := sha256.New()
	var written int64
	buffer := make([]byte, 1<<20)
	for {
		n, err := io.ReadFull(r, buffer)
		chunk := buffer[:n]
		if written+int64(n) > size {
			return fmt.Errorf("the disk is longer than the %d bytes of its measurements", size)
		}
		hash.Write(chunk)
		if err := writePages(f, chunk, written); err != nil {
			return err
		}
		written += int64(n)
		if progress != nil && n > 0 {
			progress(int64(n))
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if written != size {
		return fmt.Errorf("the disk has %d bytes, and its measurements say %d", written, size)
	}
	if got := hex.EncodeToString(hash.Sum(nil)); got != diskSHA256 {
		return fmt.Errorf("the disk does not match its measurements: its SHA-256 is %s, and they say %s", got, diskSHA256)
	}
	// A hole at the end has not been written.
	return f.Truncate(size)
}

var zeroPage [page]byte

// writePages writes the pages of chunk that are not zero, runs of them at once.
func writePages(f *os.File, chunk []byte, offset int64) error {
	for start := 0; start < len(chunk); {
		end, zero := pageAt(chunk, start)
		for end < len(chunk) {
			next, nextZero := pageAt(chunk, end)
			if nextZero != zero {
				break
			}
			end = next
		}
		if !zero {
			if _, err := f.WriteAt(chunk[start:end], offset+int64(start)); err != nil {
				return err
			}
		}
		start = end
	}
	return nil
}

// pageAt finds the end of the page at start, and whether it is zero.
func pageAt(chunk []byte, start int) (end int, zero bool) {
	end = min(start+page, len(chunk))
	return end, bytes.Equal(chunk[start:end], zeroPage[:end-start])
}
