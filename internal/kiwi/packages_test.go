package kiwi

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestPackagesHook has the hook read what apt tells it.
func TestPackagesHook(t *testing.T) {
	hook, err := tools.ReadFile("container/packages")
	if err != nil {
		t.Fatal(err)
	}
	archives := t.TempDir()
	var files, lines []string
	for _, name := range []string{"bash 5.2-1 amd64", "tzdata 1:2025b all"} {
		file := filepath.Join(archives, strings.NewReplacer(" ", "_", ":", "%3a").Replace(name)+".deb")
		if err := os.WriteFile(file, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
		lines = append(lines, name+" "+sumOf([]byte(name)))
	}
	odd := filepath.Join(archives, `b\ash.deb`)
	if err := os.WriteFile(odd, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const start = "VERSION 3\nAPT::Architecture=amd64\nDir=/\n\n"
	asked := start + "bash - - none < 5.2-1 amd64 foreign " + files[0] + "\n" + "tzdata 1:2024a all foreign < 1:2025b all foreign " + files[1] + "\n" +
		"bash - - none < 5.2-1 amd64 foreign **CONFIGURE**\nold 1 amd64 none > - - none **REMOVE**\n"
	for _, tc := range []struct {
		name, input, lock, used, said string
	}{
		{"without a lock", asked, "", lines[0] + "\n" + lines[1] + "\n", ""},
		{"with one", asked, lines[1] + "\nzsh 5.9 amd64 " + sumA + "\n" + lines[0] + "\n", lines[0] + "\n" + lines[1] + "\n", ""},
		{"another digest", asked, lines[0] + "\ntzdata 1:2025b all " + sumA + "\n", lines[0] + "\n" + lines[1] + "\n",
			"E: packages.lock does not have tzdata 1:2025b all with SHA-256 " + sumOf([]byte("tzdata 1:2025b all"))},
		{"another version", asked, lines[0] + "\n" + strings.Replace(lines[1], "2025b", "2025a", 1) + "\n", lines[0] + "\n" + lines[1] + "\n", "does not have tzdata 1:2025b all"},
		{"an empty lock", asked, "\n", lines[0] + "\n" + lines[1] + "\n", "does not have bash"},
		{"nothing to unpack", start + "bash - - none < 5.2-1 amd64 foreign **CONFIGURE**\n", lines[0], "", ""},
		{"another protocol", files[0] + "\n", "", "", "does not speak version 3"},
		{"no file", start + "bash - - none < 5.2-1 amd64 foreign /nonexistent/bash.deb\n", "", "", "No such file"},
		{"a line of another form", start + files[0] + "\n", "", "", "is not told as expected: " + files[0]},
		{"a name that is written otherwise", start + "bash - - none < 5.2-1 amd64 foreign " + odd + "\n", "", "", "is not told as expected"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			write := func(name, content string) string {
				path := filepath.Join(dir, name)
				if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
				return path
			}
			script := write("packages", string(hook))
			if tc.lock != "" {
				write("packages.lock", tc.lock)
			}
			cmd := exec.Command("/bin/sh", script)
			cmd.Stdin = strings.NewReader(tc.input)
			out, err := cmd.CombinedOutput()
			if (err == nil) != (tc.said == "") || !strings.Contains(string(out), tc.said) {
				t.Errorf("%v: %s\nwant %q", err, out, tc.said)
			}
			used, _ := os.ReadFile(filepath.Join(dir, "packages.used"))
			if string(used) != tc.used {
				t.Errorf("it wrote down\n%swant\n%s", used, tc.used)
			}
		})
	}
}
