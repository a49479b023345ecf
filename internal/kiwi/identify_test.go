package kiwi

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// standIn runs a tool of the container as name, in front of a program of that name
// that prints its arguments, one a line.
func standIn(t *testing.T, tool, name, seed string, args ...string) []string {
	t.Helper()
	dir := t.TempDir()
	tool, err := filepath.Abs(filepath.Join("container", tool))
	if err != nil {
		t.Fatal(err)
	}
	front, behind := filepath.Join(dir, "front"), filepath.Join(dir, "behind")
	for _, d := range []string{front, behind} {
		if err := os.Mkdir(d, 0o755); err != nil { //nolint:gosec // a test's
			t.Fatal(err)
		}
	}
	if err := os.Symlink(tool, filepath.Join(front, name)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(behind, name), []byte("#!/bin/sh\nprintf '%s\\n' \"$@\"\n"), 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(front, name), args...)
	cmd.Env = []string{"PATH=" + front + ":" + behind + ":" + os.Getenv("PATH"), "ATTESTABLE_IMAGE_SEED=" + seed}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
}

const testUUID = `[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-a[0-9a-f]{3}-[0-9a-f]{12}`

// TestIdentify asks which options the stand-ins add, and that these depend on the
// seed alone.
func TestIdentify(t *testing.T) {
	for _, tc := range []struct {
		name, program string
		args          []string
		want          string // a regular expression of the arguments, joined by spaces
	}{
		{"new partition", "sgdisk", []string{"-n", "2:0:+100M", "-c", "2:p.lxroot", "disk"},
			`-n 2:0:\+100M -c 2:p\.lxroot disk --partition-guid=2:` + testUUID + ` --disk-guid=` + testUUID},
		{"type of a partition", "sgdisk", []string{"-t", "1:EF00", "disk"}, `-t 1:EF00 disk`},
		{"hash tree", "veritysetup", []string{"format", "a", "a", "--hash-offset=4096"},
			`format --salt=[0-9a-f]{64} --uuid=` + testUUID + ` a a --hash-offset=4096`},
		{"no hash tree", "veritysetup", []string{"verify", "a", "a", "00"}, `verify a a 00`},
		{"erofs", "mkfs.erofs", []string{"-z", "lz4", "file", "/nonexistent"}, `-b4096 -U ` + testUUID + ` -z lz4 file /nonexistent`},
		{"squashfs", "mksquashfs", []string{"/nonexistent", "file", "-noappend"}, `/nonexistent file -noappend`},
		{"FAT", "mkdosfs", []string{"-F32", "-I", "-n", "EFI", "-i", "12345678", "disk"}, `-F32 -I -n EFI -i 12345678 disk -i [0-9a-f]{8}`},
		{"ext4", "mkfs.ext4", []string{"-L", "ROOT", "disk"}, `-E hash_seed=` + testUUID + ` -U ` + testUUID + ` -L ROOT disk`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := strings.Join(standIn(t, "identify", tc.program, "5eed", tc.args...), " ")
			if !regexp.MustCompile(`^` + tc.want + `$`).MatchString(got) {
				t.Errorf("it is called with %q, want %q", got, tc.want)
			}
			if again := strings.Join(standIn(t, "identify", tc.program, "5eed", tc.args...), " "); again != got {
				t.Errorf("a second time it is called with %q", again)
			}
			other := strings.Join(standIn(t, "identify", tc.program, "5eee", tc.args...), " ")
			if strings.Contains(tc.want, "[0-9a-f]") == (other == got) {
				t.Errorf("with another seed it is called with %q", other)
			}
		})
	}
	labels := map[string]bool{}
	for _, label := range []string{"EFI", "BOOT"} {
		args := standIn(t, "identify", "mkfs.vfat", "5eed", "-n", label, "disk")
		labels[args[len(args)-1]] = true
	}
	if len(labels) != 2 {
		t.Errorf("two file systems have the serial number %v", labels)
	}
}

// TestForget makes a root file system of a directory with records of an installation.
func TestForget(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{"etc/motd", "var/cache/ldconfig/aux-cache", "var/log/dpkg.log", "var/log/apt/term.log", "var/log/lastlog", "var/lib/systemd/random-seed", "dev/null"} {
		write(t, filepath.Join(root, name), "x")
	}
	standIn(t, "identify", "mkfs.erofs", "5eed", "file", root)
	var left []string
	err := filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			left = append(left, strings.TrimPrefix(path, root+"/"))
		}
		return err
	})
	if got := strings.Join(left, " "); err != nil || got != "dev/null etc/motd var/log/lastlog" {
		t.Errorf("there is %q (%v)", got, err)
	}
	if info, err := os.Stat(filepath.Join(root, "dev/null")); err != nil || info.Size() != 0 {
		t.Errorf("what was thrown away is kept: %v (%v)", info, err)
	}
}

// TestDiskUsage asks for a sum that does not depend on what directories take.
func TestDiskUsage(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip(err)
	}
	root := t.TempDir()
	write(t, filepath.Join(root, "a", "file"), "12345")
	write(t, filepath.Join(root, "left out", "file"), "12345")
	if err := os.Link(filepath.Join(root, "a", "file"), filepath.Join(root, "a", "other name")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("123", filepath.Join(root, "a", "link")); err != nil {
		t.Fatal(err)
	}
	// du itself is behind it.
	cmd := exec.Command("container/du", "-s", "--apparent-size", "--block-size", "1", "--exclude", filepath.Join(root, "left out"), root)
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "8\t"+root+"\n" {
		t.Errorf("it prints %q (%v)", out, err)
	}
	if got := standIn(t, "du", "du", "", "-s", root); strings.Join(got, " ") != "-s "+root {
		t.Errorf("another call becomes %q", got)
	}
}
