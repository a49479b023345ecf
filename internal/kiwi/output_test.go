package kiwi

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

func TestOutputDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "output")
	first, err := openOutput(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openOutput(dir); err == nil || !strings.Contains(err.Error(), "another build is using it") {
		t.Errorf("a second build at once: %v", err)
	}
	made := filepath.Join(first.scratch, "disk.raw")
	write(t, made, "x")
	kept, err := first.keep(made, "disk.raw")
	if err != nil || kept != filepath.Join(dir, "disk.raw") {
		t.Fatalf("kept %q: %v", kept, err)
	}
	if _, err := first.keep(filepath.Join(first.scratch, "none"), "none"); err == nil {
		t.Error("a file that is not there is kept")
	}
	first.close()
	if got := names(t, dir); got != ".attestable-image-build disk.raw" {
		t.Errorf("after a build there is %q", got)
	}
	// The next build removes what the first one made, and nothing else.
	other := filepath.Join(dir, "notes.txt")
	write(t, other, "mine")
	if _, err := openOutput(dir); err == nil || !strings.Contains(err.Error(), "has files that no build made (notes.txt)") {
		t.Errorf("with a file of the user's: %v", err)
	}
	if got := names(t, dir); got != ".attestable-image-build disk.raw notes.txt" {
		t.Errorf("a refused build left %q", got)
	}
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	second, err := openOutput(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(kept); err == nil {
		t.Error("the earlier disk is still there")
	}
	second.close()
}

func TestOutputRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, "x")
	if _, err := openOutput(file); err == nil || !strings.Contains(err.Error(), "make the output directory") {
		t.Errorf("a file: %v", err)
	}
	home := t.TempDir()
	write(t, filepath.Join(home, "thesis.tex"), "x")
	if _, err := openOutput(home); err == nil || !strings.Contains(err.Error(), "thesis.tex") {
		t.Errorf("somebody's directory: %v", err)
	}
}

func TestStage(t *testing.T) {
	overlay := t.TempDir()
	write(t, filepath.Join(overlay, "etc", "issue"), "from the overlay")
	write(t, filepath.Join(overlay, "usr", "bin", "tool"), "#!/bin/sh\n")
	if err := os.Chmod(filepath.Join(overlay, "usr", "bin", "tool"), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../usr/bin/tool", filepath.Join(overlay, "etc", "link")); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "staged")
	o := Options{
		Source: "template x", Embedded: true, Overlay: overlay, Version: "2.0.0",
		Description: fstest.MapFS{
			"config.xml":      {Data: []byte(`<image name="a"><preferences><version>1.0.0</version></preferences></image>`), Mode: 0o444},
			"config.sh":       {Data: []byte("#!/bin/bash\n"), Mode: 0o444},
			"root/etc/issue":  {Data: []byte("from the description"), Mode: 0o444},
			"root/etc/motd":   {Data: []byte("x"), Mode: 0o444},
			"builder/ignored": {Data: []byte("x"), Mode: 0o444},
		},
	}
	if _, err := o.stage(dir); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]struct {
		content string
		mode    os.FileMode
	}{
		"config.sh":         {"#!/bin/bash\n", 0o755},
		"root/etc/issue":    {"from the overlay", 0o644},
		"root/etc/motd":     {"x", 0o644},
		"root/usr/bin/tool": {"#!/bin/sh\n", 0o750},
	} {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if string(content) != want.content || info.Mode() != want.mode {
			t.Errorf("%s is %q with %v, want %q with %v", name, content, info.Mode(), want.content, want.mode)
		}
	}
	if target, err := os.Readlink(filepath.Join(dir, "root/etc/link")); err != nil || target != "../usr/bin/tool" {
		t.Errorf("the link points to %q (%v)", target, err)
	}
	if config, err := os.ReadFile(filepath.Join(dir, "config.xml")); err != nil || !strings.Contains(string(config), "<version>2.0.0</version>") {
		t.Errorf("config.xml is %q (%v)", config, err)
	}
}

func TestStageRefuses(t *testing.T) {
	config := &fstest.MapFile{Data: []byte(`<image name="a"/>`)}
	overlay := t.TempDir()
	write(t, filepath.Join(overlay, "etc"), "a file")
	outside := t.TempDir()
	escaping := t.TempDir()
	write(t, filepath.Join(escaping, "config.xml"), `<image name="a"/>`)
	write(t, filepath.Join(escaping, "root", "x"), "x")
	if err := os.Symlink(outside, filepath.Join(escaping, "root", "etc")); err != nil {
		t.Fatal(err)
	}
	inside := t.TempDir()
	write(t, filepath.Join(inside, "etc", "passwd"), "x")
	for _, tc := range []struct {
		name string
		o    Options
		want string
	}{
		{"no description", Options{Description: fstest.MapFS{"readme": config}}, "holds neither config.xml nor a file ending in .kiwi"},
		{"config.xml is a directory", Options{Description: fstest.MapFS{"config.xml/x": config}}, "holds neither config.xml"},
		{"no overlay", Options{Description: fstest.MapFS{"config.xml": config}, Overlay: "/nonexistent"}, "read the overlay: "},
		{"overlay with archive", Options{Description: fstest.MapFS{"config.xml": config, "root.tar.gz": config}, Overlay: overlay}, "root.tar.gz, which KIWI does not join"},
		{"file over directory", Options{Description: fstest.MapFS{"config.xml": config, "root/etc/x": config}, Overlay: overlay}, "etc"},
		{"device", Options{Description: fstest.MapFS{"config.xml": config, "root/null": {Mode: os.ModeDevice | 0o666}}}, "neither a file, a directory nor a symbolic link"},
		{"through a link that leads out", Options{Description: os.DirFS(escaping), Overlay: inside}, "etc is a directory in one place and a file in the other"},
		{"large description", Options{Description: fstest.MapFS{"config.xml": {Data: make([]byte, maxConfigBytes+1)}}}, "larger than"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := tc.o.stage(filepath.Join(t.TempDir(), "staged"))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v, want %q", err, tc.want)
			}
		})
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, entry := range entries {
		all = append(all, entry.Name())
	}
	return strings.Join(all, " ")
}
