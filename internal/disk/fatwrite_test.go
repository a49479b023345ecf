package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/iotest"
)

const replaced = "EFI/BOOT/BOOTX64.EFI"

// randomBytes are the same for the same seed.
func randomBytes(seed uint64, n int) []byte {
	random := rand.NewChaCha8([32]byte{byte(seed)})
	b := make([]byte, n)
	_, _ = random.Read(b) // it never fails
	return b
}

// replaceIn changes a file system in a file.
func replaceIn(t testing.TB, image, path string, content []byte) {
	t.Helper()
	d, err := OpenWritable(image)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.ReplaceFile(&Partition{Number: 1, Size: d.Size()}, path, bytes.NewReader(content), int64(len(content))); err != nil {
		t.Fatal(err)
	}
}

func readImage(t testing.TB, image string) map[string][]byte {
	t.Helper()
	d := open(t, image)
	f, err := OpenFAT(d, d.Size())
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	readFAT(t, f, "", files)
	return files
}

// TestReplaceFile grows, shrinks, empties and refills a file in every kind of
// FAT file system. fsck.vfat finds nothing wrong, mtools reads the same, and
// every other file is as it was.
func TestReplaceFile(t *testing.T) {
	t.Setenv("LC_ALL", "C.UTF-8")
	tree := sourceTree(t)
	for _, shape := range fatShapes {
		t.Run(shape.name, func(t *testing.T) {
			image := makeFAT(t, shape.kib, shape.args, tree)
			want := readImage(t, image)
			sizes := []int{250_001, 250_001, 300_007, 8192, 1, 0, 0, 65_536, 100_001}
			if shape.kib > 100<<10 {
				sizes = sizes[:2] // the image is compared as a whole, which takes its time
			}
			for i, size := range sizes {
				content := randomBytes(uint64(i), size)
				before, err := os.ReadFile(image)
				if err != nil {
					t.Fatal(err)
				}
				replaceIn(t, image, replaced, content)
				after, err := os.ReadFile(image)
				if err != nil {
					t.Fatal(err)
				}
				// Twice the same change is the same bytes.
				again := filepath.Join(t.TempDir(), "again.img")
				if err := os.WriteFile(again, before, 0o600); err != nil {
					t.Fatal(err)
				}
				replaceIn(t, again, replaced, content)
				if second, err := os.ReadFile(again); err != nil || !bytes.Equal(second, after) {
					t.Errorf("%d bytes: the same change gave other bytes (%v)", size, err)
				}
				if old := want[replaced]; len(old) > 64 && bytes.Contains(after, old[:64]) {
					t.Errorf("%d bytes: the old content is still on the disk", size)
				}
				want[replaced] = content
				sameFiles(t, fmt.Sprintf("our reader after %d bytes", size), readImage(t, image), want)
				tool(t, "fsck.vfat", "-n", image)
			}
			out := filepath.Join(t.TempDir(), "out")
			if err := os.Mkdir(out, 0o755); err != nil {
				t.Fatal(err)
			}
			tool(t, "mcopy", "-s", "-n", "-i", image, "::*", out)
			sameFiles(t, "mcopy", readTree(t, out), want)
		})
	}
}

// memoryVolume is a volume that records what is done to it.
type memoryVolume struct {
	content []byte
	log     []operation
}

// operation is a write; one without data is a Sync.
type operation struct {
	off  int64
	data []byte
}

func (v *memoryVolume) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(v.content).ReadAt(p, off)
}

func (v *memoryVolume) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(v.content)) {
		return 0, errors.New("write outside of the volume")
	}
	v.log = append(v.log, operation{off, bytes.Clone(p)})
	return copy(v.content[off:], p), nil
}

func (v *memoryVolume) Sync() error {
	v.log = append(v.log, operation{})
	return nil
}

func (v *memoryVolume) Erase(off, length int64) error {
	_, err := v.WriteAt(make([]byte, length), off)
	return err
}

// TestReplaceFileCrash loses power after every write, and loses any part of
// what was not yet stored: the file then has its old content or its new one,
// whole, and all others have theirs.
func TestReplaceFileCrash(t *testing.T) {
	tree := sourceTree(t)
	for _, shape := range fatShapes[:4] {
		t.Run(shape.name, func(t *testing.T) {
			before, err := os.ReadFile(makeFAT(t, shape.kib, shape.args, tree))
			if err != nil {
				t.Fatal(err)
			}
			want := readBytes(t, before)
			old, fresh := want[replaced], randomBytes(7, 200_003)
			v := &memoryVolume{content: bytes.Clone(before)}
			if err := replaceFile(v, int64(len(before)), replaced, bytes.NewReader(fresh), int64(len(fresh))); err != nil {
				t.Fatal(err)
			}
			random := rand.New(rand.NewPCG(3, 4))
			outcomes := map[bool]int{}
			crash := func(lose bool, end int) {
				stored := bytes.Clone(before)
				epoch := 0 // where the writes begin that no Sync followed
				for i, o := range v.log[:end] {
					if o.data == nil {
						epoch = i
					}
				}
				for i, o := range v.log[:end] {
					if lose && i > epoch && random.IntN(2) == 0 {
						continue
					}
					copy(stored[o.off:], o.data)
				}
				got := readBytes(t, stored)
				isNew := bytes.Equal(got[replaced], fresh)
				if !isNew && !bytes.Equal(got[replaced], old) {
					t.Errorf("after %d of %d operations the file has neither content", end, len(v.log))
				}
				outcomes[isNew]++
				got[replaced] = old
				sameFiles(t, fmt.Sprintf("a crash after %d operations", end), got, want)
			}
			for end := range len(v.log) + 1 {
				crash(false, end)
				crash(true, end)
			}
			if outcomes[true] == 0 || outcomes[false] == 0 {
				t.Errorf("%d crashes left the new content and %d the old", outcomes[true], outcomes[false])
			}
		})
	}
}

func readBytes(t testing.TB, image []byte) map[string][]byte {
	t.Helper()
	f, err := OpenFAT(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	readFAT(t, f, "", files)
	return files
}

func TestReplaceFileRefuses(t *testing.T) {
	tree := sourceTree(t)
	fat16, err := os.ReadFile(makeFAT(t, 16<<10, []string{"-F", "16", "-s", "2"}, tree))
	if err != nil {
		t.Fatal(err)
	}
	f, err := OpenFAT(bytes.NewReader(fat16), int64(len(fat16)))
	if err != nil {
		t.Fatal(err)
	}
	target, _, err := f.lookup(replaced)
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := f.lookup("many/a file that is number 002 of many")
	if err != nil {
		t.Fatal(err)
	}
	// fats changes both FATs of a copy.
	fats := func(cluster uint32, value uint16) func(b []byte) {
		return func(b []byte) {
			for i := range int64(2) {
				at := f.fatOffset + i*f.fatSize + 2*int64(cluster)
				b[at], b[at+1] = byte(value), byte(value>>8)
			}
		}
	}
	for _, tc := range []struct {
		name   string
		path   string
		size   int64
		change func([]byte)
		want   string
	}{
		{"no room", replaced, 16 << 20, nil, "bytes are free, but the new content of 16777216 bytes needs 16777216 beside the old: make the partition larger"},
		{"longer than FAT allows", replaced, 1 << 32, nil, "is longer than FAT allows"},
		{"no such file", "EFI/BOOT/BOOTAA64.EFI", 1, nil, "file does not exist"},
		{"a directory", "EFI/BOOT", 1, nil, "it is a directory"},
		{"content ends early", replaced, 300_000, nil, "read the new content: unexpected EOF"},
		{"content goes on", replaced, 199_999, nil, "it does not end after 199999 bytes"},
		{"no file system", replaced, 1, func(b []byte) { b[0] = 0 }, "it is no FAT file system"},
		{"mounted", replaced, 1, func(b []byte) { b[37] |= 1 }, "the file system is mounted somewhere"},
		{"FATs differ", replaced, 1, func(b []byte) { b[f.fatOffset+f.fatSize+100] ^= 1 }, "FATs 1 and 2 differ: repair it with fsck.vfat first"},
		{"shared cluster", replaced, 1, fats(other.cluster, uint16(target.cluster)), "is part of two chains"},
		{"circle", replaced, 1, fats(target.cluster, uint16(target.cluster)), "is part of two chains"},
		{"chain into nothing", replaced, 1, fats(target.cluster, 0), "does not end: repair it with fsck.vfat first"},
		{"bad cluster", replaced, 1, fats(target.cluster, 0xfff7), "does not end"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			image := bytes.Clone(fat16)
			if tc.change != nil {
				tc.change(image)
			}
			v := &memoryVolume{content: image}
			err := replaceFile(v, int64(len(image)), tc.path, bytes.NewReader(randomBytes(1, 200_000)), tc.size)
			wantError(t, err, tc.want)
			// What was written to free clusters is erased: free space was zero.
			clean := bytes.Clone(fat16)
			if tc.change != nil {
				tc.change(clean)
			}
			if !bytes.Equal(v.content[:f.dataOffset], clean[:f.dataOffset]) {
				t.Error("the tables were changed")
			}
			if tc.change == nil && len(v.log) > 0 {
				sameFiles(t, "the file system", readBytes(t, v.content), readBytes(t, fat16))
			} else if !bytes.Equal(v.content, clean) {
				t.Error("the file system was changed")
			}
		})
	}

	t.Run("a failing reader", func(t *testing.T) {
		v := &memoryVolume{content: bytes.Clone(fat16)}
		err := replaceFile(v, int64(len(fat16)), replaced, iotest.ErrReader(io.ErrClosedPipe), 1)
		if !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("not opened for writing", func(t *testing.T) {
		d := openBytes(t, fat16)
		err := d.ReplaceFile(&Partition{Number: 1, Size: d.Size()}, replaced, bytes.NewReader(nil), 0)
		wantError(t, err, "replace "+replaced+" in partition 1 of")
	})
	t.Run("locked", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "fat.img")
		if err := os.WriteFile(path, fat16, 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := OpenWritable(path)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		_, err = OpenWritable(path)
		wantError(t, err, "another program has locked it")
	})
	t.Run("missing", func(t *testing.T) {
		_, err := OpenWritable(filepath.Join(t.TempDir(), "missing.raw"))
		wantError(t, err, "no such file")
	})
}

// TestReplaceFileInPartition changes nothing outside of the partition.
func TestReplaceFileInPartition(t *testing.T) {
	image, err := os.ReadFile(makeFAT(t, 16<<10, []string{"-F", "16", "-s", "2"}, sourceTree(t)))
	if err != nil {
		t.Fatal(err)
	}
	const before = 1 << 20
	around := slices.Concat(randomBytes(1, before), image, randomBytes(2, 4096))
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, around, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := OpenWritable(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	fresh := randomBytes(3, 150_000)
	partition := &Partition{Number: 3, Offset: before, Size: int64(len(image))}
	if err := d.ReplaceFile(partition, replaced, bytes.NewReader(fresh), int64(len(fresh))); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(after[:before], around[:before]) || !bytes.Equal(after[before+len(image):], around[before+len(image):]) {
		t.Error("bytes outside of the partition changed")
	}
	if got := readBytes(t, after[before:before+len(image)]); !bytes.Equal(got[replaced], fresh) {
		t.Error("the file has not the new content")
	}
}

// FuzzReplaceFile changes file systems that nobody made: it does not panic, and
// what it says that it wrote can be read.
func FuzzReplaceFile(f *testing.F) {
	f.Add(smallFAT()[:4096], "A.TXT", []byte("new content"))
	f.Add(smallFAT()[:4096], "D/B.TXT", bytes.Repeat([]byte("grown"), 1000))
	f.Fuzz(func(t *testing.T, head []byte, path string, content []byte) {
		v := &memoryVolume{content: make([]byte, max(len(head), 64<<10))}
		copy(v.content, head)
		size := int64(len(v.content))
		if err := replaceFile(v, size, path, bytes.NewReader(content), int64(len(content))); err != nil {
			return
		}
		fat, err := OpenFAT(v, size)
		if err != nil {
			t.Fatal(err)
		}
		file, err := fat.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(io.NewSectionReader(file, 0, file.Size())); err != nil || !bytes.Equal(got, content) {
			t.Errorf("read %d bytes, %v; wrote %d", len(got), err, len(content))
		}
	})
}
