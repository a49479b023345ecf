package disk

import (
	"bytes"
	"crypto/sha256"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// tool runs a program and returns what it printed.
func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(testenv.Tool(t, name), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// open opens a disk for the time of the test.
func open(t testing.TB, path string) *Disk {
	t.Helper()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// openBytes writes content to a file and opens it as a disk.
func openBytes(t testing.TB, content []byte) *Disk {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return open(t, path)
}

// wantError checks that an error is one sentence that holds what is wanted.
func wantError(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", want)
	}
	if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
		t.Errorf("error is %q, want one line with %q", err, want)
	}
}

// sparse makes a file of size bytes with data where extents say.
func sparse(t testing.TB, size int64, extents ...Extent) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sparse.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for i, e := range extents {
		if _, err := f.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, int(e.Length)), e.Offset); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func TestStreamSkipsHoles(t *testing.T) {
	const mib = 1 << 20
	for name, test := range map[string]struct {
		size    int64
		extents []Extent
	}{
		"empty file":       {size: 0},
		"all hole":         {size: 8 * mib},
		"all data":         {size: mib, extents: []Extent{{0, mib}}},
		"hole at the ends": {size: 16 * mib, extents: []Extent{{4 * mib, mib}}},
		"data at the ends": {size: 16*mib + 123, extents: []Extent{{0, 4096}, {8 * mib, 3 * mib}, {16 * mib, 123}}},
	} {
		t.Run(name, func(t *testing.T) {
			path := sparse(t, test.size, test.extents...)
			d := open(t, path)
			// The writer's own list is what the file system stores.
			extents, err := d.Extents()
			if err != nil {
				t.Fatal(err)
			}
			var stored int64
			for i, e := range extents {
				if e.Length <= 0 || e.Offset < 0 || e.Offset+e.Length > test.size || i > 0 && e.Offset <= extents[i-1].Offset+extents[i-1].Length {
					t.Fatalf("extents %v are not ascending, apart and inside %d bytes", extents, test.size)
				}
				stored += e.Length
			}
			h := sha256.New()
			if n, err := io.Copy(h, d.Stream()); err != nil || n != test.size {
				t.Fatalf("stream gave %d bytes of %d, and %v", n, test.size, err)
			}
			content, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if want := sha256.Sum256(content); !bytes.Equal(h.Sum(nil), want[:]) {
				t.Error("the stream's content is not the file's")
			}
			if d.BytesRead() != stored {
				t.Errorf("%d bytes were read for extents of %d", d.BytesRead(), stored)
			}
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if blocks := info.Sys().(*syscall.Stat_t).Blocks * 512; blocks < test.size && stored >= test.size {
				t.Errorf("the file system stores %d bytes of %d, and yet all were read", blocks, test.size)
			}
		})
	}
}

func TestDiskThatChanges(t *testing.T) {
	const mib = 1 << 20
	for name, test := range map[string]struct {
		after int64 // bytes of the stream before the size changes
		size  int64
		want  string
	}{
		"cut off before the first byte": {0, mib, "its size changed from 4194304 to 1048576 bytes"},
		"cut off in data":               {mib, 2 * mib, "it ends at byte 2097152, but was 4194304 bytes long"},
		"cut off in the last hole":      {mib, 3*mib + 5, "its size changed from 4194304 to 3145733 bytes"},
		"grown":                         {mib, 5 * mib, "its size changed from 4194304 to 5242880 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			path := sparse(t, 4*mib, Extent{0, 3 * mib})
			r := open(t, path).Stream()
			if _, err := io.CopyN(io.Discard, r, test.after); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(path, test.size); err != nil {
				t.Fatal(err)
			}
			_, err := io.Copy(io.Discard, r)
			wantError(t, err, test.want)
			wantError(t, err, path)
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	_, err := Open(dir)
	wantError(t, err, "it is a directory: give the raw disk image itself")
	_, err = Open(filepath.Join(dir, "none.raw"))
	wantError(t, err, "none.raw: no such file or directory")
}

func BenchmarkStream(b *testing.B) {
	const size = 1 << 30
	d := open(b, sparse(b, size, Extent{1 << 20, 16 << 20}))
	b.SetBytes(size)
	buf := make([]byte, 1<<20)
	for b.Loop() {
		if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, d.Stream(), buf); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(d.BytesRead())/float64(b.N), "bytes-read/op")
}
