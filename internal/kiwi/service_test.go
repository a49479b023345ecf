package kiwi

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"
)

// goProgram builds a program for an architecture.
func goProgram(t *testing.T, arch string, settings ...string) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "main.go"), "package main\n\nfunc main() {}\n")
	program := filepath.Join(dir, "program")
	cmd := exec.Command("go", append(append([]string{"build"}, settings...), "-o", program, filepath.Join(dir, "main.go"))...)
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+arch, "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return program
}

func TestStageService(t *testing.T) {
	program := goProgram(t, runtime.GOARCH)
	overlay := t.TempDir()
	write(t, filepath.Join(overlay, "usr/lib/systemd/system/attestable-image.socket"), "the user's own")
	dir := filepath.Join(t.TempDir(), "staged")
	o := Options{
		Source:      "template x",
		Description: fstest.MapFS{"config.xml": {Data: []byte(`<image name="a"/>`)}},
		Service:     &Service{Files: os.DirFS(filepath.Join("..", "..", "kiwi-templates", "serve")), Program: program},
		Overlay:     overlay,
	}
	if _, err := o.stage(dir); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, "root")
	want, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(root, serviceProgram))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("the program in the image is another one (%v)", err)
	}
	if info, err := os.Stat(filepath.Join(root, serviceProgram)); err != nil || info.Mode() != 0o755 {
		t.Errorf("the program's mode: %v (%v)", info.Mode(), err)
	}
	for name, want := range map[string]string{
		"attestable-image.service":                     "ExecStart=/" + serviceProgram + " serve\n",
		"sockets.target.wants/attestable-image.socket": "the user's own", // through the link
	} {
		content, err := os.ReadFile(filepath.Join(root, serviceUnits, name))
		if err != nil || !strings.Contains(string(content), want) {
			t.Errorf("%s is %q, without %q (%v)", name, content, want, err)
		}
	}
}

func TestStageServiceRefuses(t *testing.T) {
	script := filepath.Join(t.TempDir(), "script")
	write(t, script, "#!/bin/sh\n")
	other := map[string]string{"amd64": "arm64"}[runtime.GOARCH]
	if other == "" {
		other = "amd64"
	}
	for _, c := range []struct {
		name, program, want string
		files               fstest.MapFS
	}{
		{"no program", filepath.Join(t.TempDir(), "none"), "no Linux program", nil},
		{"a script", script, "no Linux program", nil},
		{"of another architecture", goProgram(t, other), "is for EM_", nil},
		{"with a C library", "/bin/sh", "build it with CGO_ENABLED=0", nil},
		{"beside an archive", goProgram(t, runtime.GOARCH), "root.tar.gz", fstest.MapFS{"root.tar.gz": {}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			description := fstest.MapFS{"config.xml": {Data: []byte(`<image name="a"/>`)}}
			maps.Copy(description, c.files)
			o := Options{Description: description, Service: &Service{Files: fstest.MapFS{}, Program: c.program}}
			if _, err := o.stage(filepath.Join(t.TempDir(), "staged")); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v, want %q", err, c.want)
			}
		})
	}
}
