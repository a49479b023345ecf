package untrusted

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"golang.org/x/sys/unix"
)

// tree makes a directory beside a secret that lies outside of it.
func tree(t *testing.T) (*Tree, string) {
	t.Helper()
	above := t.TempDir()
	dir := filepath.Join(above, "tree")
	for _, d := range []string{dir, filepath.Join(above, "outside"), filepath.Join(dir, "sub")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range map[string]string{"outside/secret": "secret", "tree/file": "file", "tree/sub/file": "below"} {
		if err := os.WriteFile(filepath.Join(above, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := Dir(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tree.Close() })
	return tree, dir
}

func TestTree(t *testing.T) {
	tree, dir := tree(t)
	if err := os.Symlink("sub/file", filepath.Join(dir, "inside")); err != nil {
		t.Fatal(err)
	}
	if err := fstest.TestFS(tree, "file", "sub/file", "inside"); err != nil {
		t.Error(err)
	}
	if content, err := ReadFile(tree, "inside", 5); err != nil || string(content) != "below" {
		t.Errorf("inside is %q (%v)", content, err)
	}
	if _, err := ReadFile(tree, "inside", 4); err == nil || !strings.Contains(err.Error(), "larger than 4 bytes") {
		t.Errorf("a file that is too large: %v", err)
	}
	if _, err := ReadFile(tree, "sub", 4); err == nil {
		t.Error("a directory was read as a file")
	}
	sub, err := tree.Dir("sub")
	if err != nil {
		t.Fatal(err)
	}
	if content, err := ReadFile(sub, "file", 5); err != nil || string(content) != "below" {
		t.Errorf("file of sub is %q (%v)", content, err)
	}
}

// TestNothingElse opens what would lead out, block or act.
func TestNothingElse(t *testing.T) {
	tree, dir := tree(t)
	for name, target := range map[string]string{
		"absolute": filepath.Join(filepath.Dir(dir), "outside/secret"), "relative": "../outside/secret",
		"environ": "/proc/self/environ", "out": "../outside", "circle": "circle",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("fifo", filepath.Join(dir, "to-fifo")); err != nil {
		t.Fatal(err)
	}
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(socket)
	t.Chdir(dir) // its name is shorter
	if err := unix.Bind(socket, &unix.SockaddrUnix{Name: "socket"}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"absolute": "a symbolic link that leads out", "relative": "a symbolic link that leads out", "environ": "a symbolic link that leads out",
		"out/secret": "out is a symbolic link that leads out", "circle": "a symbolic link that leads out",
		"fifo": ErrNotFile.Error(), "to-fifo": ErrNotFile.Error(), "socket": ErrNotFile.Error(), "../outside/secret": "invalid",
	} {
		content, err := ReadFile(tree, name, 100)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q (%v), want an error with %q", name, content, err, want)
		}
	}
	if _, err := tree.Dir("out"); err == nil || !strings.Contains(err.Error(), "leads out") {
		t.Errorf("a directory outside: %v", err)
	}
	if _, err := tree.Open("absent"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}
