package kiwi

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/org/attestable-image-action/internal/untrusted"
)

// symlink makes a link in place of what is there.
func symlink(t *testing.T, target, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

func mkfifo(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(path, 0o644); err != nil {
		t.Fatal(err)
	}
}

// secret is what no error, no staged file and no container image may have.
const secret = "s3cret-of-this-machine"

// TestHostileDescriptions stages descriptions and overlays that would have this machine's
// files read, replaced or waited for. Nothing outside of the staged copy changes, and
// nothing of the machine gets into it.
func TestHostileDescriptions(t *testing.T) {
	const config = `<image name="a"><preferences><version>1.0.0</version></preferences></image>`
	tests := []struct {
		name string
		arm  func(t *testing.T, description, overlay, outside string)
		want string // of the error; "" where the description is harmless all the same
	}{
		{"root is a link", func(t *testing.T, d, _, outside string) { symlink(t, outside, filepath.Join(d, "root")) }, "make it a directory"},
		{"root is a link upwards", func(t *testing.T, d, _, _ string) { symlink(t, "../outside", filepath.Join(d, "root")) }, "make it a directory"},
		{"a directory of root is a link", func(t *testing.T, d, _, outside string) {
			symlink(t, outside, filepath.Join(d, "root/etc"))
		}, "is a directory in one place and a file in the other"},
		{"a file of root is a link", func(t *testing.T, d, _, outside string) {
			symlink(t, filepath.Join(outside, "file"), filepath.Join(d, "root/etc/motd"))
		}, ""},
		{"image is a link", func(t *testing.T, d, _, outside string) {
			if err := os.Remove(filepath.Join(d, "config.xml")); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(outside, "config.xml"), config)
			symlink(t, outside, filepath.Join(d, "image"))
		}, "image is a symbolic link that leads out"},
		{"config.xml is a link", func(t *testing.T, d, _, outside string) {
			write(t, filepath.Join(outside, "config.xml"), config)
			symlink(t, filepath.Join(outside, "config.xml"), filepath.Join(d, "config.xml"))
		}, "config.xml is a symbolic link that leads out"},
		{"config.xml is a link inside", func(t *testing.T, d, _, _ string) {
			write(t, filepath.Join(d, "other.xml"), config)
			symlink(t, "other.xml", filepath.Join(d, "config.xml"))
		}, ""},
		{"config.xml is a FIFO", func(t *testing.T, d, _, _ string) { mkfifo(t, filepath.Join(d, "config.xml")) }, "holds neither config.xml"},
		{"a description in another form is a link", func(t *testing.T, d, _, _ string) {
			symlink(t, "/proc/self/environ", filepath.Join(d, "a.kiwi"))
			if err := os.Remove(filepath.Join(d, "config.xml")); err != nil {
				t.Fatal(err)
			}
		}, "a.kiwi is a symbolic link that leads out"},
		{"a FIFO in root", func(t *testing.T, d, _, _ string) {
			write(t, filepath.Join(d, "root/x"), "x")
			mkfifo(t, filepath.Join(d, "root/fifo"))
		}, "neither a file, a directory nor a symbolic link"},
		{"a FIFO in the overlay", func(t *testing.T, _, o, _ string) { mkfifo(t, filepath.Join(o, "fifo")) }, "neither a file, a directory nor a symbolic link"},
		{"a file of immense size", func(t *testing.T, _, o, _ string) {
			write(t, filepath.Join(o, "large"), "")
			if err := os.Truncate(filepath.Join(o, "large"), 1<<43); err != nil {
				t.Fatal(err)
			}
		}, "larger than 16 GiB"},
		{"a directory of the overlay is a link", func(t *testing.T, _, o, outside string) {
			symlink(t, outside, filepath.Join(o, "srv"))
		}, ""},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("SECRET", secret)
			above := t.TempDir()
			description, overlay, outside := filepath.Join(above, "description"), filepath.Join(above, "overlay"), filepath.Join(above, "outside")
			write(t, filepath.Join(description, "config.xml"), config)
			write(t, filepath.Join(overlay, "etc/motd"), "of the overlay")
			write(t, filepath.Join(outside, "file"), secret)
			tc.arm(t, description, overlay, outside)
			before := tree(t, outside)
			d, err := untrusted.Dir(description)
			if err != nil {
				t.Fatal(err)
			}
			o := Options{Description: d, Source: "test", Overlay: overlay, Version: "2.0.0", Epoch: 1764000000}
			staged := filepath.Join(above, "staged")
			_, err = o.stage(staged)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("error is %v, want %q", err, tc.want)
			}
			if err != nil && strings.Contains(err.Error(), secret) {
				t.Errorf("the error tells a secret: %v", err)
			}
			if after := tree(t, outside); after != before {
				t.Errorf("what lies outside was\n%s and is\n%s", before, after)
			}
			if found := tree(t, staged); strings.Contains(found, secret) {
				t.Errorf("the staged description has a file of the machine:\n%s", found)
			}
		})
	}
}

// tree tells names, kinds and contents of what is in a directory.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var text strings.Builder
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // it is not there
		}
		text.WriteString(path + " " + entry.Type().String())
		if entry.Type().IsRegular() {
			file, err := os.Open(path)
			if err != nil {
				return err
			}
			defer file.Close()
			start := make([]byte, 4096)
			n, _ := file.Read(start)
			text.Write(start[:n])
		}
		text.WriteString("\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return text.String()
}

// TestHostileBuilderFiles stages what a container image is made of: nothing of this
// machine but the Dockerfile and builder/ gets into it.
func TestHostileBuilderFiles(t *testing.T) {
	for _, tc := range []struct {
		name string
		arm  func(t *testing.T, d, outside string)
		want string
	}{
		{"builder is a link", func(t *testing.T, d, outside string) { symlink(t, outside, filepath.Join(d, "builder")) }, "builder is not a directory"},
		{"builder is a link upwards", func(t *testing.T, d, _ string) { symlink(t, "../outside", filepath.Join(d, "builder")) }, "builder is not a directory"},
		{"builder is a file", func(t *testing.T, d, _ string) { write(t, filepath.Join(d, "builder"), "x") }, "builder is not a directory"},
		{"a file of builder is a link", func(t *testing.T, d, outside string) {
			symlink(t, filepath.Join(outside, "file"), filepath.Join(d, "builder/file"))
		}, "builder/file is neither a file nor a directory"},
		{"a directory of builder is a link", func(t *testing.T, d, outside string) {
			symlink(t, outside, filepath.Join(d, "builder/keys"))
		}, "builder/keys is neither a file nor a directory"},
		{"a FIFO in builder", func(t *testing.T, d, _ string) {
			write(t, filepath.Join(d, "builder/x"), "x")
			mkfifo(t, filepath.Join(d, "builder/fifo"))
		}, "builder/fifo is neither a file nor a directory"},
		{"Dockerfile is a link", func(t *testing.T, d, outside string) {
			symlink(t, filepath.Join(outside, "file"), filepath.Join(d, "Dockerfile"))
		}, "Dockerfile is a symbolic link that leads out"},
		{"Dockerfile is a FIFO", func(t *testing.T, d, _ string) { mkfifo(t, filepath.Join(d, "Dockerfile")) }, "neither a file nor a directory"},
		{"a name of two lines", func(t *testing.T, d, _ string) { write(t, filepath.Join(d, "builder/a 1\nx"), "x") }, "has a line break"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			above := t.TempDir()
			description, outside, context := filepath.Join(above, "description"), filepath.Join(above, "outside"), t.TempDir()
			write(t, filepath.Join(description, "Dockerfile"), "FROM scratch\nCOPY builder /\n")
			write(t, filepath.Join(outside, "file"), secret)
			tc.arm(t, description, outside)
			d, err := untrusted.Dir(description)
			if err != nil {
				t.Fatal(err)
			}
			_, err = (&builder{files: d}).stage(context)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v, want %q", err, tc.want)
			}
			if found := tree(t, context); strings.Contains(found, secret) {
				t.Errorf("the container image would have a file of the machine:\n%s", found)
			}
		})
	}
}

// TestChangedSource holds that nothing runs of a description that is not the attested one,
// whenever it changed.
func TestChangedSource(t *testing.T) {
	description := t.TempDir()
	write(t, filepath.Join(description, "config.xml"), `<image name="a"/>`)
	d, err := untrusted.Dir(description)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Description: d, Source: "test", Epoch: 1764000000, Output: t.TempDir()}
	files, err := Describe(o)
	if err != nil {
		t.Fatal(err)
	}
	o.DescriptionSHA256 = DigestFiles(files)
	write(t, filepath.Join(description, "config.sh"), "#!/bin/sh\n")
	if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "it changed while it was compared") {
		t.Errorf("error is %v", err)
	}
}
