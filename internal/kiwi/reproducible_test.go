package kiwi

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"
)

func TestParseEpoch(t *testing.T) {
	if epoch, err := ParseEpoch("1764000000"); err != nil || epoch != 1764000000 {
		t.Errorf("it is %d (%v)", epoch, err)
	}
	for _, text := range []string{"", "now", "-1", "0", "1764000000.5", "+1764000000", "01764000000", " 1764000000", "315532799", "4354819200", "99999999999999999999"} {
		if _, err := ParseEpoch(text); err == nil || !strings.Contains(err.Error(), "SOURCE_DATE_EPOCH") {
			t.Errorf("%q: %v", text, err)
		}
	}
	now := time.Unix(1764000000, 0)
	if err := checkEpoch(1764000000, now); err != nil {
		t.Error(err)
	}
	if err := checkEpoch(1764000001, now); err == nil || !strings.Contains(err.Error(), "2025-11-24T16:00:01Z") {
		t.Errorf("a time to come: %v", err)
	}
}

// testDescription is a description that nothing is built from.
func testDescription() fstest.MapFS {
	return fstest.MapFS{
		"config.xml": {Data: []byte(`<image name="a"><preferences><version>1.0.0</version></preferences>` +
			`<repository type="apt-deb"><source path="http://deb.debian.org/debian"/></repository></image>`), Mode: 0o644},
		"config.sh":          {Data: []byte("#!/bin/bash\n"), Mode: 0o755},
		"root/etc/motd":      {Data: []byte("x"), Mode: 0o644},
		"Dockerfile":         {Data: []byte("FROM scratch\n"), Mode: 0o644},
		"builder/kiwi.yml":   {Data: []byte("x"), Mode: 0o644},
		"packages.lock":      {Data: []byte("# none\n"), Mode: 0o644},
		"root/usr/bin/empty": {Data: nil, Mode: 0o644},
	}
}

// staged returns the digest of a staged description, and where it is.
func staged(t *testing.T, o Options) (digest, dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "staged")
	files, err := o.stage(dir)
	if err != nil {
		t.Fatal(err)
	}
	return DigestFiles(files), dir
}

// TestDescriptionDigest asks what a description's digest depends on.
func TestDescriptionDigest(t *testing.T) {
	base := Options{Source: "test", Description: testDescription(), Epoch: 1764000000}
	want, _ := staged(t, base)
	overlay := t.TempDir()
	write(t, filepath.Join(overlay, "etc", "motd"), "x")
	for _, tc := range []struct {
		name string
		same bool
		edit func(o *Options, d fstest.MapFS)
	}{
		{"nothing", true, func(*Options, fstest.MapFS) {}},
		{"package sources", true, func(o *Options, _ fstest.MapFS) {
			o.PackageSources = []PackageSource{{URI: "http://mirror.example/debian", Suite: "trixie"}}
		}},
		{"builder", true, func(_ *Options, d fstest.MapFS) { d["builder/kiwi.yml"].Data = []byte("y") }},
		{"Dockerfile", true, func(_ *Options, d fstest.MapFS) { d["Dockerfile"].Data = nil }},
		{"git's directory", true, func(_ *Options, d fstest.MapFS) { d[".git/HEAD"] = &fstest.MapFile{Data: []byte("x"), Mode: 0o644} }},
		{"git's file in the image", false, func(_ *Options, d fstest.MapFS) { d["root/.git"] = &fstest.MapFile{Mode: 0o644} }},
		{"lock", true, func(_ *Options, d fstest.MapFS) { delete(d, "packages.lock") }},
		{"overlay of the same", true, func(o *Options, _ fstest.MapFS) { o.Overlay = overlay }},
		{"time of a file", true, func(_ *Options, d fstest.MapFS) { d["config.sh"].ModTime = time.Unix(1e9, 0) }},
		{"permissions of git", true, func(o *Options, d fstest.MapFS) {
			d["config.sh"].Mode, d["root/etc/motd"].Mode = 0o700, 0o600
			o.Tracked = map[string]fs.FileMode{"config.sh": 0o755, "root/etc/motd": 0o644}
		}},
		{"name", false, func(o *Options, _ fstest.MapFS) { o.Name = "b" }},
		{"version", false, func(o *Options, _ fstest.MapFS) { o.Version = "1.0.1" }},
		{"config", false, func(_ *Options, d fstest.MapFS) { d["config.xml"].Data = append(d["config.xml"].Data, ' ') }},
		{"content", false, func(_ *Options, d fstest.MapFS) { d["root/etc/motd"].Data = []byte("y") }},
		{"permissions", false, func(_ *Options, d fstest.MapFS) { d["root/etc/motd"].Mode = 0o640 }},
		{"set-user-ID", false, func(_ *Options, d fstest.MapFS) { d["root/usr/bin/empty"].Mode |= fs.ModeSetuid }},
		{"one more file", false, func(_ *Options, d fstest.MapFS) { d["root/etc/issue"] = &fstest.MapFile{Mode: 0o644} }},
		{"a link", false, func(_ *Options, d fstest.MapFS) {
			d["root/etc/motd"] = &fstest.MapFile{Data: []byte("x"), Mode: fs.ModeSymlink}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o, d := base, testDescription()
			o.Description = d
			tc.edit(&o, d)
			if got, _ := staged(t, o); (got == want) != tc.same {
				t.Errorf("the digest is %s, that of the description %s", got, want)
			}
		})
	}
	if a, b := seed(want, 1764000000, "x86_64"), seed(want, 1764000001, "x86_64"); a == b || len(a) != 64 {
		t.Errorf("seeds are %s and %s", a, b)
	}
}

// TestCheckoutStaysBehind has a checkout as the description and as the overlay: the token
// in git's configuration reaches neither the build container nor the image.
func TestCheckoutStaysBehind(t *testing.T) {
	overlay := t.TempDir()
	write(t, filepath.Join(overlay, ".git", "config"), "token")
	write(t, filepath.Join(overlay, "srv", "file"), "x")
	d := testDescription()
	d[".git/config"] = &fstest.MapFile{Data: []byte("token"), Mode: 0o644}
	_, dir := staged(t, Options{Source: "test", Description: d, Epoch: 1764000000, Overlay: overlay})
	for _, name := range []string{".git", "root/.git"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is there (%v)", name, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "root/srv/file")); err != nil {
		t.Error(err)
	}
}

// TestStagedTimes asks for one time of everything, and for permissions that do not
// follow the umask.
func TestStagedTimes(t *testing.T) {
	overlay := t.TempDir()
	write(t, filepath.Join(overlay, "srv", "file"), "x")
	if err := os.Symlink("file", filepath.Join(overlay, "srv", "link")); err != nil {
		t.Fatal(err)
	}
	d := testDescription()
	for name := range d {
		if strings.HasPrefix(name, "root/") {
			delete(d, name)
		}
	}
	parent := t.TempDir()
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	o := Options{Source: "test", Description: d, Embedded: true, Overlay: overlay, Epoch: 1764000000}
	dir := filepath.Join(parent, "staged")
	if _, err := o.stage(dir); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if info.ModTime() != time.Unix(1764000000, 0) {
			t.Errorf("%s is of %s", path, info.ModTime())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "root", "builder"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%q: %v (%v)", name, info.Mode(), err)
		}
	}
}

func TestFromSnapshot(t *testing.T) {
	for _, tc := range []struct {
		name, path string
		want       bool
	}{
		{"mirror", "http://deb.debian.org/debian", false},
		{"snapshot", "http://snapshot.debian.org/archive/debian/20261101T000000Z", true},
		{"snapshot with a slash", "https://snapshot.ubuntu.com/ubuntu/20261101T000000Z/", true},
		{"another number", "http://mirror.example/20261101", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := testDescription()
			d["config.xml"].Data = []byte(strings.ReplaceAll(string(d["config.xml"].Data), "http://deb.debian.org/debian", tc.path))
			_, dir := staged(t, Options{Source: "test", Description: d, Epoch: 1764000000})
			if got, err := fromSnapshot(dir); err != nil || got != tc.want {
				t.Errorf("it is %t (%v)", got, err)
			}
		})
	}
}
