package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"

	"golang.org/x/sys/unix"

	"github.com/org/attestable-image-action/internal/testenv"
)

// oddTree makes a directory with what file systems store in special ways. It
// holds devices and xattrs only where the machine allows them.
func oddTree(t testing.TB) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "tree")
	random := rand.New(rand.NewPCG(1, 2))
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		return b
	}
	text := func(n int) []byte {
		var b bytes.Buffer
		for b.Len() < n {
			fmt.Fprintf(&b, "line %d of %d, word %d\n", b.Len(), n, random.IntN(50))
		}
		return b.Bytes()[:n]
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(name string, content []byte) string {
		path := filepath.Join(root, name)
		must(os.MkdirAll(filepath.Dir(path), 0o755))
		must(os.WriteFile(path, content, 0o644))
		return path
	}
	for _, n := range []int{0, 1, 100, 2000, 4000, 4095, 4096, 4097, 6000, 8191, 8192, 8193, 12000, 65536, 65537, 131072, 200000, 1 << 20} {
		write(fmt.Sprintf("text/%d", n), text(n))
		write(fmt.Sprintf("noise/%d", n), noise(n))
	}
	write("zeros", make([]byte, 3<<20))
	same := text(150000)
	write("same/a", same)
	write("same/b", same)
	write("same/shifted", append(noise(5000), same...))
	write("same/end", same[70000:])
	mixed := write("mixed", bytes.Join([][]byte{text(70000), noise(90000), make([]byte, 50000), text(300000), noise(333)}, nil))
	sparse := write("sparse", []byte("begin"))
	f, err := os.OpenFile(sparse, os.O_WRONLY, 0)
	must(err)
	_, err = f.WriteAt([]byte("middle"), 5<<20)
	must(err)
	must(f.Truncate(9<<20 + 17))
	must(f.Close())
	must(os.Link(mixed, filepath.Join(root, "hard")))
	must(os.MkdirAll(filepath.Join(root, "links"), 0o755))
	for name, target := range map[string]string{
		"short": "../zeros", "absolute": "/text/100", "dangling": "nowhere", "escape": "../../../text/100", "self": "self",
		"long": strings.Repeat("./", 450) + "short", "dir": "../text", "fits59": "../text/" + strings.Repeat("./", 23) + "00001", "fits": strings.Repeat("x", 60),
	} {
		must(os.Symlink(target, filepath.Join(root, "links", name)))
	}
	must(os.MkdirAll(filepath.Join(root, "empty"), 0o700))
	for i := range 700 {
		write(fmt.Sprintf("many/%s%d", strings.Repeat("n", i%200), i), nil)
	}
	write("deep/"+strings.Repeat("d/", 60)+"file", []byte("deep"))
	must(unix.Mkfifo(filepath.Join(root, "fifo"), 0o640))
	if os.Getuid() == 0 {
		must(unix.Mknod(filepath.Join(root, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		must(unix.Mknod(filepath.Join(root, "nvme"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 70000))))
		must(os.Lchown(filepath.Join(root, "text/100"), 70000, 80000))
		must(os.Lchown(filepath.Join(root, "links/short"), 5, 6))
	}
	must(os.Chmod(filepath.Join(root, "text/2000"), 0o4755|os.ModeSetuid))
	must(os.Chmod(filepath.Join(root, "text/4000"), 0o755|os.ModeSetgid))
	must(os.Chmod(filepath.Join(root, "many"), 0o777|os.ModeSticky))
	for path, xattrs := range map[string]map[string]string{
		"text/100":  {"user.one": "1", "user.empty": "", "security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"},
		"text/4097": {"user.long": strings.Repeat("value ", 130)},
		"zeros":     {"user.one": "1", "user.a.long.name.with.many.parts": "2", "trusted.overlay.opaque": "y"},
		"empty":     {"user.one": "1", "user.binary": "\x00\xff\x00"},
	} {
		for name, value := range xattrs {
			if err := unix.Lsetxattr(filepath.Join(root, path), name, []byte(value), 0); err != nil {
				t.Logf("no xattr %s here: %v", name, err)
			}
		}
	}
	return root
}

// hostXattrs reads the xattrs of a file of the machine.
func hostXattrs(t testing.TB, path string) map[string][]byte {
	t.Helper()
	list := make([]byte, 4096)
	n, err := unix.Llistxattr(path, list)
	if err != nil {
		return nil
	}
	xattrs := map[string][]byte{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if name == "" || name == "security.selinux" {
			continue
		}
		value := make([]byte, 8192)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Fatal(err)
		}
		xattrs[name] = value[:n]
	}
	return xattrs
}

// compareTree compares a file system with the directory that it was made from,
// byte by byte, and returns the number of files. Hard links and xattrs count
// only when the directory is a faithful one.
func compareTree(t testing.TB, root string, f *Filesystem, faithful bool) int {
	t.Helper()
	seen := map[string]bool{}
	err := f.Walk(func(name string, info fs.FileInfo, err error) error {
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if name != "lost+found" {
			seen[name] = true
			compareContent(t, f, filepath.Join(root, name), info)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		count++
		if !seen[name] {
			t.Errorf("%s is not in the file system", name)
			return nil
		}
		delete(seen, name)
		want, err := os.Lstat(path)
		if err != nil {
			return err
		}
		got, err := f.Lstat(name)
		if err != nil {
			return err
		}
		compareFile(t, f, path, name, want, got)
		if faithful {
			compareAttributes(t, path, name, want, got)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name := range seen {
		t.Errorf("%s is in the file system only", name)
	}
	return count
}

// compareContent compares what a walk gives of a file.
func compareContent(t testing.TB, f *Filesystem, path string, info fs.FileInfo) {
	t.Helper()
	r, err := f.Content(info)
	var want []byte
	switch mode := info.Mode(); {
	case mode.IsRegular():
		want, _ = os.ReadFile(path) // compareFile says that it is missing
	case mode.Type() == fs.ModeSymlink:
		target, _ := os.Readlink(path)
		want = []byte(target)
	default:
		if err == nil {
			t.Errorf("%s, of type %v, has content", path, mode.Type())
		}
		return
	}
	var got []byte
	if err == nil {
		got, err = io.ReadAll(r)
	}
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("content of %s: %d bytes, %v; want %d others", path, len(got), err, len(want))
	}
}

func compareFile(t testing.TB, f *Filesystem, path, name string, want, got fs.FileInfo) {
	t.Helper()
	if got.Mode() != want.Mode() {
		t.Errorf("%s: mode %v, want %v", name, got.Mode(), want.Mode())
	}
	host, stat := want.Sys().(*syscallStat), got.Sys().(*Stat)
	if stat.UID != host.Uid || stat.GID != host.Gid {
		t.Errorf("%s: owner %d:%d, want %d:%d", name, stat.UID, stat.GID, host.Uid, host.Gid)
	}
	if want.Mode()&fs.ModeDevice != 0 && stat.Rdev != uint64(host.Rdev) {
		t.Errorf("%s: device %#x, want %#x", name, stat.Rdev, host.Rdev)
	}
	if got.ModTime().Unix() != want.ModTime().Unix() && name != "." && f.Kind != "erofs" {
		t.Errorf("%s: changed at %v, want %v", name, got.ModTime(), want.ModTime())
	}
	switch want.Mode().Type() {
	case fs.ModeSymlink:
		target, err := f.ReadLink(name)
		if host, _ := os.Readlink(path); err != nil || target != host {
			t.Errorf("%s leads to %q, %v, want %q", name, target, err, host)
		}
	case 0:
		if got.Size() != want.Size() {
			t.Errorf("%s: %d bytes, want %d", name, got.Size(), want.Size())
		}
		content, err := fs.ReadFile(f, name)
		if err != nil {
			t.Error(err)
			return
		}
		if host, _ := os.ReadFile(path); !bytes.Equal(content, host) {
			t.Errorf("%s: its content differs", name)
		}
	}
}

// compareAttributes compares hard links and xattrs.
func compareAttributes(t testing.TB, path, name string, want, got fs.FileInfo) {
	t.Helper()
	host, stat := want.Sys().(*syscallStat), got.Sys().(*Stat)
	if name != "." && !want.IsDir() && uint64(stat.Nlink) != uint64(host.Nlink) {
		t.Errorf("%s: %d links, want %d", name, stat.Nlink, host.Nlink)
	}
	xattrs := hostXattrs(t, path)
	for k, v := range xattrs {
		if !bytes.Equal(stat.Xattrs[k], v) {
			t.Errorf("%s: xattr %s is %q, want %q", name, k, stat.Xattrs[k], v)
		}
	}
	if len(xattrs) != len(stat.Xattrs) {
		t.Errorf("%s: xattrs %q, want %q", name, stat.Xattrs, xattrs)
	}
}

// syscallStat is what os.Lstat knows of a file.
type syscallStat = syscall.Stat_t

// makeImage runs a program that makes a file system; args have IMAGE and TREE
// where the paths belong. A program that is too old for an option skips the
// test.
func makeImage(t testing.TB, tree, tool string, args ...string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	args = append([]string(nil), args...)
	for i := range args {
		args[i] = strings.NewReplacer("IMAGE", image, "TREE", tree).Replace(args[i])
	}
	out, err := exec.Command(testenv.Tool(t, tool), args...).CombinedOutput()
	if err != nil {
		if old := []string{"invalid option", "unrecognized option", "invalid extended option", "Cannot find a valid compressor", "failed to initialize"}; containsAny(string(out), old) {
			t.Skipf("this %s is too old for %v: %.200s", tool, args, out)
		}
		t.Fatalf("%s %v: %v\n%s", tool, args, err, out)
	}
	return image
}

func containsAny(s string, list []string) bool {
	for _, e := range list {
		if strings.Contains(s, e) {
			return true
		}
	}
	return false
}

// openImage opens the file system in a file.
func openImage(t testing.TB, path string) *Filesystem {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	f, err := OpenFilesystem(file, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// checkLinks checks how paths lead through symbolic links of oddTree.
func checkLinks(t *testing.T, f *Filesystem) {
	t.Helper()
	for name, want := range map[string]string{"links/absolute": "text/100", "links/escape": "text/100", "links/dir/100": "text/100", "links/long": "zeros"} {
		got, err := f.Stat(name)
		if err != nil {
			t.Error(err)
			continue
		}
		direct, err := f.Stat(want)
		if err != nil {
			t.Fatal(err)
		}
		if got.Sys().(*Stat).Inode != direct.Sys().(*Stat).Inode {
			t.Errorf("%s does not lead to %s", name, want)
		}
	}
	for name, want := range map[string]error{
		"links/self": unix.ELOOP, "links/dangling": fs.ErrNotExist, "zeros/x": unix.ENOTDIR, "nothing": fs.ErrNotExist, "/zeros": fs.ErrInvalid,
	} {
		if _, err := f.Stat(name); !errors.Is(err, want) {
			t.Errorf("stat %s: %v, want %v", name, err, want)
		}
	}
	if _, err := f.ReadLink("zeros"); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("zeros is no link: %v", err)
	}
	if _, err := fs.ReadFile(f, "text"); err == nil {
		t.Error("a directory was read like a file")
	}
	sub, err := fs.Sub(f, "text")
	if err != nil {
		t.Fatal(err)
	}
	if err := fstest.TestFS(sub, "0", "100", "4097"); err != nil {
		t.Error(err)
	}
}

// checkRandomReads compares reads anywhere in the larger files.
func checkRandomReads(t *testing.T, root string, f *Filesystem) {
	t.Helper()
	random := rand.New(rand.NewPCG(3, 4))
	for _, name := range []string{"mixed", "sparse", "same/shifted", "same/end", "text/200000", "noise/65537"} {
		host, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		file, err := f.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		for range 60 {
			off, p := random.IntN(len(host)), make([]byte, random.IntN(100000))
			n, err := file.(io.ReaderAt).ReadAt(p, int64(off))
			want := host[off:min(len(host), off+len(p))]
			if !bytes.Equal(p[:n], want) || (err != nil) != (len(want) < len(p)) {
				t.Fatalf("%s: %d bytes at byte %d differ: %d, %v", name, len(p), off, n, err)
			}
		}
		file.Close()
	}
}

func TestNoFilesystem(t *testing.T) {
	for _, size := range []int{0, 512, 4096, 1 << 20} {
		if _, err := OpenFilesystem(bytes.NewReader(make([]byte, size)), int64(size)); !errors.Is(err, ErrNoFilesystem) {
			t.Errorf("%d bytes of zeros: %v", size, err)
		}
	}
}
