package kiwi

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

func TestEnough(t *testing.T) {
	for name, c := range map[string]struct {
		need, free uint64
		want       string
	}{
		"room":       {2 << 30, 3 << 30, ""},
		"just":       {2 << 30, 2 << 30, ""},
		"too little": {5 << 30, 3 << 29, "takes up to 5.0 GiB in out, and the file system there has 1.5 GiB left"},
		"full":       {2 << 30, 0, "has 0.0 GiB left"},
	} {
		err := enough("out", c.need, c.free)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestSizeOf(t *testing.T) {
	dir := t.TempDir()
	for name, size := range map[string]int64{"a": 3, "b/c": 1 << 40} { // the second is a hole
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		file, err := os.Create(path)
		if err == nil {
			err = file.Truncate(size)
		}
		if err != nil {
			t.Fatal(err)
		}
		_ = file.Close()
	}
	if err := os.Symlink("/", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if size, err := sizeOf(os.DirFS(dir)); err != nil || size != 1<<40+3 {
		t.Errorf("%d bytes: %v", size, err)
	}
	// More than any machine has: told before anything of it is copied.
	o := Options{
		Description: fstest.MapFS{"config.xml": {Data: []byte("<image/>")}}, Source: "test", Overlay: dir,
		Output: filepath.Join(t.TempDir(), "out"),
	}
	if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "GiB left") {
		t.Errorf("build: %v", err)
	}
}

// TestBuildOnASmallDisk builds on a file system of 64 MiB, where one can be mounted:
// TestSizeOf has the same where none can.
func TestBuildOnASmallDisk(t *testing.T) {
	const inside = "ATTESTABLE_IMAGE_SMALL_DISK"
	if dir := os.Getenv(inside); dir != "" {
		_, err := Build(t.Context(), Options{
			Description: fstest.MapFS{"config.xml": {Data: []byte("<image/>")}}, Source: "test", Output: filepath.Join(dir, "out"),
		})
		if err == nil || !strings.Contains(err.Error(), "the file system there has 0.1 GiB left") {
			t.Errorf("build: %v", err)
		}
		return
	}
	dir := t.TempDir()
	// The mount is gone with the process that made it.
	cmd := exec.Command("unshare", "--user", "--map-root-user", "--mount", "sh", "-c",
		`mount -t tmpfs -o size=64m tmpfs "$1" && exec "$0" -test.run '^TestBuildOnASmallDisk$'`, os.Args[0], dir)
	if out, err := exec.Command("unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Skipf("no file system can be mounted here: %v %s", err, out)
	}
	cmd.Env = append(os.Environ(), inside+"="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
