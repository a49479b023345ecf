package disk

import (
	"bytes"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// verityDisk makes a file of pseudo-random data with a hole, and veritysetup
// puts a hash tree behind it. It returns the path and veritysetup's root hash.
func verityDisk(t testing.TB, size int64, args ...string) (path string, root []byte) {
	t.Helper()
	tool := testenv.Tool(t, "veritysetup")
	path = filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 64<<10)
	for off := int64(0); off < size; off += int64(len(block)) {
		if off >= size/4 && off < size/2 {
			continue // the hole
		}
		for i := range block {
			block[i] = byte(off>>16) ^ byte(i*7) ^ byte(i>>8)
		}
		if _, err := f.WriteAt(block[:min(int64(len(block)), size-off)], off); err != nil {
			t.Fatal(err)
		}
	}
	args = append([]string{"format", "--hash-offset", strconv.FormatInt(size, 10)}, append(args, path, path)...)
	out, err := exec.Command(tool, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("veritysetup: %v\n%s", err, out)
	}
	found := regexp.MustCompile(`Root hash:\s+([0-9a-f]+)`).FindSubmatch(out)
	if found == nil {
		t.Fatalf("veritysetup printed no root hash:\n%s", out)
	}
	if root, err = hex.DecodeString(string(found[1])); err != nil {
		t.Fatal(err)
	}
	return path, root
}

// hashDevice is a hash device that is all of a disk.
func hashDevice(d *Disk) Extent { return Extent{0, d.Size()} }

func openTest(t testing.TB, path string) *Disk {
	t.Helper()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// TestVerity recomputes trees that veritysetup made.
func TestVerity(t *testing.T) {
	for _, tc := range []struct {
		name string
		size int64
		args []string
	}{
		{"one block", 4096, nil},
		{"two blocks", 8192, nil},
		{"one hash block exactly", 128 * 4096, nil},
		{"one more", 129 * 4096, nil},
		{"three levels", 128*128*4096 + 4096, nil},
		{"no salt", 4 << 20, []string{"--salt", "-"}},
		{"sha512", 4 << 20, []string{"--hash", "sha512"}},
		{"small data blocks", 4 << 20, []string{"--data-block-size", "512", "--hash-block-size", "1024"}},
		{"Chromium OS's type", 4 << 20, []string{"--format", "0"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path, root := verityDisk(t, tc.size, tc.args...)
			d := openTest(t, path)
			v, err := d.Verity(hashDevice(d), tc.size)
			if err != nil {
				t.Fatal(err)
			}
			report, err := v.Verify(t.Context(), 0)
			if err != nil {
				t.Fatal(err)
			}
			if !report.Holds(root) {
				t.Errorf("root hash %x, %d bad data blocks, %d bad hash blocks; veritysetup says %x", report.RootHash, report.BadDataCount, report.BadTreeCount, root)
			}
			if read := d.BytesRead(); tc.size >= 4<<20 && read > tc.size {
				t.Errorf("read %d bytes of %d, a quarter of which is a hole", read, tc.size)
			}
			if tree := v.Tree(); tree.Offset+tree.Length > d.Size() {
				t.Errorf("a tree of %d bytes does not fit into what veritysetup wrote", v.TreeSize())
			}
		})
	}
}

// TestVerityFindsFlippedBytes flips bytes and expects their block by number.
func TestVerityFindsFlippedBytes(t *testing.T) {
	const size = 20 << 20
	path, root := verityDisk(t, size)
	flip := func(off int64) {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		b := make([]byte, 1)
		if _, err := f.ReadAt(b, off); err != nil {
			t.Fatal(err)
		}
		b[0] ^= 0x10
		if _, err := f.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
	}
	verify := func() *VerityReport {
		d := openTest(t, path)
		v, err := d.Verity(hashDevice(d), size)
		if err != nil {
			t.Fatal(err)
		}
		report, err := v.Verify(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		return report
	}
	flip(1024 * 4096)   // in the hole
	flip(4000*4096 + 7) // in data
	flip(4000*4096 + 9) // the same block again
	if r := verify(); r.Holds(root) || r.BadDataCount != 2 || len(r.BadData) != 2 || r.BadData[0] != 1024 && r.BadData[0] != 4000 || !bytes.Equal(r.RootHash, root) {
		t.Errorf("report %+v, want blocks 1024 and 4000", r)
	}
	flip(1024 * 4096)
	flip(4000*4096 + 7)
	flip(4000*4096 + 9)
	if r := verify(); !r.Holds(root) {
		t.Fatalf("report %+v after all was flipped back", r)
	}
	// The superblock has the first hash block, the root's block the second.
	flip(size + 4096*2 + 5)
	if r := verify(); r.Holds(root) || r.BadTreeCount != 1 || r.BadTree[0] != size+4096*2 || r.BadDataCount != 1 {
		t.Errorf("report %+v, want the hash block at %d and the data block that it no longer confirms", r, int64(size+4096*2))
	}
	flip(size + 4096*2 + 5)
	flip(size + 4096 + 5)
	if r := verify(); r.Holds(root) || bytes.Equal(r.RootHash, root) {
		t.Errorf("report %+v after the root's block was changed", r)
	}
}

func TestVerityBadInput(t *testing.T) {
	const size = 4 << 20
	path, _ := verityDisk(t, size)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		at    int64 // in the superblock
		bytes []byte
		err   string
	}{
		{"no signature", 0, []byte("Verity"), "there is none"},
		{"version", 8, []byte{2}, "version 2 is not known"},
		{"type", 12, []byte{9}, "hash type 9 is not known"},
		{"algorithm", 32, []byte("md5\x00"), `hash algorithm "md5" is neither sha256 nor sha512`},
		{"block size", 64, []byte{1, 0x10}, "are not powers of two"},
		{"huge block size", 68, []byte{0, 0, 0, 1}, "are not powers of two"},
		{"no data blocks", 72, make([]byte, 8), "0 data blocks"},
		{"too many data blocks", 72, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, "are more than the disk's"},
		{"tree too long", 72, []byte{0x07, 0x04}, "behind the partition's end"},
		{"long salt", 80, []byte{1, 2}, "a salt of 513 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bad := bytes.Clone(good)
			copy(bad[size+tc.at:], tc.bytes)
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			d := openTest(t, path)
			if _, err := d.Verity(hashDevice(d), size); err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("error %v, want %q", err, tc.err)
			}
		})
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	d := openTest(t, path)
	for _, offset := range []int64{-1, d.Size() - 511, d.Size() + 1, 1 << 62} {
		if _, err := d.Verity(hashDevice(d), offset); err == nil || !strings.Contains(err.Error(), "lies outside") {
			t.Errorf("superblock at %d: %v", offset, err)
		}
	}
	v, err := d.Verity(hashDevice(d), size)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(t.Context(), d.Size()-4096); err == nil || !strings.Contains(err.Error(), "lie outside the disk") {
		t.Errorf("data behind the disk: %v", err)
	}
}

func BenchmarkVerity(b *testing.B) {
	const size = 256 << 20
	path, root := verityDisk(b, size)
	d := openTest(b, path)
	v, err := d.Verity(hashDevice(d), size)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	for b.Loop() {
		report, err := v.Verify(b.Context(), 0)
		if err != nil || !report.Holds(root) {
			b.Fatal(report, err)
		}
	}
}
