package artifact

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"os/exec"
	"runtime"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/testenv"
)

// compressAll compresses a disk with a number of workers and returns the
// result and its compressor.
func compressAll(t testing.TB, r io.Reader, workers int) ([]byte, *compressor) {
	t.Helper()
	c, err := startCompressor(io.NopCloser(r), nil, workers)
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	return out, c
}

// TestCompressDeterministic checks that only the disk decides the result.
func TestCompressDeterministic(t *testing.T) {
	data := bytes.Join([][]byte{
		text(9<<20 + 3), make([]byte, 13<<20), noise(5 << 20), make([]byte, frameSize), text(frameSize),
	}, nil)
	want, c := compressAll(t, bytes.NewReader(data), 1)
	sum := sha256.Sum256(data)
	if got, size := c.diskSums(); got != hex.EncodeToString(sum[:]) || size != int64(len(data)) {
		t.Errorf("disk of %d bytes %s; want %d bytes %x", size, got, len(data), sum)
	}
	if got := c.layer(); got.Digest != digestOf(want) || got.Size != int64(len(want)) {
		t.Errorf("layer %v; want %s, %d bytes", got, digestOf(want), len(want))
	}
	for name, c := range map[string]struct {
		r       io.Reader
		workers int
	}{
		"2 workers":                  {bytes.NewReader(data), 2},
		"8 workers":                  {bytes.NewReader(data), 8},
		"3 workers, reads of halves": {iotest.HalfReader(bytes.NewReader(data)), 3},
		"error with the last bytes":  {iotest.DataErrReader(bytes.NewReader(data)), 2},
	} {
		t.Run(name, func(t *testing.T) {
			if got, _ := compressAll(t, c.r, c.workers); !bytes.Equal(got, want) {
				t.Errorf("%d bytes that are not the same as %d", len(got), len(want))
			}
		})
	}
	t.Run("decoded", func(t *testing.T) {
		// Plain zstd allows a window of 8 MiB and no more with this option.
		cmd := exec.Command(testenv.Tool(t, "zstd"), "-q", "-d", "-c", "--memory=8MB")
		cmd.Stdin = bytes.NewReader(want)
		if got, err := cmd.Output(); err != nil || !bytes.Equal(got, data) {
			t.Errorf("zstd decoded %d bytes: %v", len(got), err)
		}
	})
}

// TestEncoderKeepsNothing checks that a frame does not depend on what its
// encoder did before, even after the 2 GiB at which it moves its tables.
func TestEncoderKeepsNothing(t *testing.T) {
	used, err := newEncoder(1)
	if err != nil {
		t.Fatal(err)
	}
	data := text(300 << 10)
	filler := noise(200 << 10)
	var want []byte
	r := rand.New(rand.NewPCG(3, 4))
	for i := range 700 { // each takes at least a window of 4 MiB
		got := used.EncodeAll(data, nil)
		if want == nil {
			want = got
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("frame %d differs", i)
		}
		used.EncodeAll(filler[:r.IntN(len(filler))], nil)
	}
}

// TestCompressStops closes a compressor in the middle, and lets its disk fail.
func TestCompressStops(t *testing.T) {
	before := runtime.NumGoroutine()
	disk := &closeRecorder{Reader: io.LimitReader(rand.NewChaCha8([32]byte{}), 1<<40)}
	c, err := startCompressor(disk, nil, 2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 10<<20)); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil || !disk.closed {
		t.Errorf("close: %v, disk closed: %t", err, disk.closed)
	}
	if after := runtime.NumGoroutine(); after > before {
		t.Errorf("%d goroutines are left of %d", after, before)
	}

	broken := errors.New("bad sector")
	c, err = startCompressor(io.NopCloser(io.MultiReader(bytes.NewReader(text(6<<20)), iotest.ErrReader(broken))), nil, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, broken) {
		t.Errorf("a disk that fails gave %v", err)
	}
	if c.ended.Load() {
		t.Error("a disk that fails counts as whole")
	}
}

type closeRecorder struct {
	io.Reader
	closed bool
}

func (c *closeRecorder) Close() error {
	c.closed = true
	return nil
}

// TestDiskFails pushes a disk that cannot be read to its end.
func TestDiskFails(t *testing.T) {
	t.Parallel()
	broken := errors.New("bad sector")
	places(t, func(t *testing.T, place string, _ ...string) {
		content := contentOf(t, sparseDisk(t))
		content.OpenDisk = func() (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(text(6<<20)), iotest.ErrReader(broken))), nil
		}
		if _, err := Push(t.Context(), parse(t, place+":v1"), content); !errors.Is(err, broken) {
			t.Errorf("push: %v", err)
		}
		content.OpenDisk = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(text(100))), nil }
		want := "let nobody write to it"
		if _, err := Push(t.Context(), parse(t, place+":v1"), content); err == nil || !bytes.Contains([]byte(err.Error()), []byte(want)) {
			t.Errorf("push of a disk that shrank: %v", err)
		}
		if found, err := Open(t.Context(), parse(t, place+":v1")); err == nil {
			t.Errorf("v1 is %s", found.Reference)
		}
	})
}

// BenchmarkCompress compresses and hashes a disk as push does. Bytes are those
// of the disk, holes included.
func BenchmarkCompress(b *testing.B) {
	for _, c := range []struct {
		name string
		data []byte
	}{
		{"text", bytes.Repeat(text(8<<20), 8)},
		{"noise", noise(64 << 20)},
		{"zeros", make([]byte, 256<<20)},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(c.data)))
			b.ReportAllocs()
			var size int64
			for b.Loop() {
				c, err := newCompressor(io.NopCloser(bytes.NewReader(c.data)), nil)
				if err != nil {
					b.Fatal(err)
				}
				if size, err = io.Copy(io.Discard, c); err != nil {
					b.Fatal(err)
				}
				c.Close()
			}
			b.ReportMetric(float64(len(c.data))/float64(size), "ratio")
		})
	}
}

// BenchmarkDecompress restores what BenchmarkCompress makes, without writing.
func BenchmarkDecompress(b *testing.B) {
	data := append(bytes.Repeat(text(8<<20), 4), make([]byte, 32<<20)...)
	compressed, _ := compressAll(b, bytes.NewReader(data), 2)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		r, err := zstd.NewReader(bytes.NewReader(compressed), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			b.Fatal(err)
		}
		r.Close()
	}
}

// TestHolesAreNotRead counts what a push reads from a sparse disk.
func TestHolesAreNotRead(t *testing.T) {
	d, err := disk.Open(sparseDisk(t))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	content := contentOf(t, d.Name())
	content.OpenDisk = func() (io.ReadCloser, error) { return io.NopCloser(d.Stream()), nil }
	if _, err := Push(t.Context(), parse(t, "oci:"+t.TempDir()), content); err != nil {
		t.Fatal(err)
	}
	if read, stored := d.BytesRead(), allocated(t, d.Name()); read > stored || read == 0 {
		t.Errorf("read %d bytes of a disk of %d, of which %d are stored", read, d.Size(), stored)
	}
}
