package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBuildCommandLine(t *testing.T) {
	output := filepath.Join(t.TempDir(), "output")
	empty := t.TempDir()
	file := filepath.Join(empty, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	broken := t.TempDir()
	if err := os.WriteFile(filepath.Join(broken, "config.xml"), []byte("<image name="), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		args   []string
		status int
		stderr string
	}{
		{"neither", []string{"--output", output}, 2, "neither --template nor --description was given"},
		{"empty values are none", []string{"--template=", "--description=", "--output", output}, 2, "neither --template nor --description was given"},
		{"both", []string{"--template", "debian", "--description", "x", "--output", output}, 2, "both --template and --description were given: keep one"},
		{"no output", []string{"--template", "debian"}, 2, "--output is missing"},
		{"an argument", []string{"debian"}, 2, `"debian" is none`},
		{"no such template", []string{"--template", "fedora", "--output", output}, 2, `there is no template "fedora": there is al2023, debian, ubuntu`},
		{"template that climbs", []string{"--template", "../debian", "--output", output}, 2, `there is no template "../debian"`},
		{"no such description", []string{"--description", "/nonexistent", "--output", output}, 2, "/nonexistent: no such file or directory"},
		{"description is a file", []string{"--description", file, "--output", output}, 2, "is not a directory: give the directory that it lies in"},
		{"no description in it", []string{"--description", empty, "--output", output}, 1, "it holds neither config.xml nor a file ending in .kiwi"},
		{"broken description", []string{"--description", broken, "--output", output}, 1, "it is not XML"},
		{"no such overlay", []string{"--template", "debian", "--overlay", "/nonexistent", "--output", output}, 2, "the overlay /nonexistent is not a directory"},
		{"name", []string{"--template", "debian", "--name", "a b", "--output", output}, 2, `"a b" cannot be an image's name`},
		{"version", []string{"--template", "debian", "--version", "v1", "--output", output}, 2, "write major.minor.patch"},
		{"package source", []string{"--template", "debian", "--package-source", "debian", "--output", output}, 2, `package source "debian" is neither`},
		{"foreign output", []string{"--template", "debian", "--output", empty}, 1, "has files that no build made (file)"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			status, stdout, stderr := execute(t, append([]string{"build"}, tc.args...)...)
			if status != tc.status || !strings.Contains(stderr, tc.stderr) {
				t.Errorf("status %d, stderr %q; want status %d and %q", status, stderr, tc.status, tc.stderr)
			}
			if stdout != "" {
				t.Errorf("stdout %q", stdout)
			}
		})
	}
}
