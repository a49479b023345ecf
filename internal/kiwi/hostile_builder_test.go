package kiwi_test

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/kiwi"
	"github.com/org/attestable-image-action/internal/testenv"
	"github.com/org/attestable-image-action/internal/untrusted"
)

// hostileBuilder gives docker a builder image whose bash attacks the machine.
func hostileBuilder(t *testing.T, attack string) string {
	t.Helper()
	docker := testenv.Tool(t, "docker")
	program := filepath.Join(t.TempDir(), "bash")
	cmd := exec.Command("go", "build", "-o", program, "./testdata/hostile-builder")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	content, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, h := range []*tar.Header{
		{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "bin/bash", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(content))},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	name := "attestable-image-hostile:" + strings.ToLower(rand.Text()[:12])
	cmd = exec.Command(docker, "import", "--change", "ENV ATTACK=\""+attack+"\"", "-", name)
	cmd.Stdin = &archive
	if out, err := cmd.CombinedOutput(); err != nil {
		testenv.Missing(t, errors.New("docker import: "+string(out)))
	}
	t.Cleanup(func() { _ = exec.Command(docker, "rmi", "--force", name).Run() })
	return name
}

// buildHostile has a hostile builder build.
func buildHostile(t *testing.T, attack string) (*kiwi.Result, error) {
	t.Helper()
	description := t.TempDir()
	if err := os.WriteFile(filepath.Join(description, "config.xml"), []byte(`<image name="x"/>`), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := untrusted.Dir(description)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("SECRET_OF_THE_JOB", "do not tell")
	result, err := kiwi.Build(t.Context(), kiwi.Options{
		Description: d, Source: "test", BuilderImage: hostileBuilder(t, attack), Output: filepath.Join(t.TempDir(), "output"),
	})
	if errors.Is(err, kiwi.ErrNoEngine) {
		testenv.Missing(t, err)
	}
	return result, err
}

// TestHostileBuilder has the build container leave what would lead the program elsewhere.
func TestHostileBuilder(t *testing.T) {
	for _, tc := range []struct{ attack, want string }{
		{"environ builder.packages", "builder.packages is a symbolic link that leads out"},
		{"environ builder.kiwi", "builder.kiwi is a symbolic link that leads out"},
		{"environ packages.used", "packages.used is a symbolic link that leads out"},
		{"environ build/kiwi.result.json", "kiwi.result.json is a symbolic link that leads out"},
		{"environ kiwi.log", "kiwi.log: it is not a file"},
		{"environ build/x.raw", "x.raw: it is not a file"},
		{"link build", "build is a symbolic link that leads out"},
		{"fifo builder.packages", "it is neither a file nor a directory"},
		{"fifo build/x.raw", "x.raw: it is not a file"},
		{"node build/x.raw", "x.raw: it is not a file"},
		{"setuid build/x.raw", ""},
	} {
		t.Run(tc.attack, func(t *testing.T) {
			result, err := buildHostile(t, tc.attack)
			if tc.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if info, err := os.Stat(result.Disk); err != nil || info.Mode() != 0o644 {
					t.Errorf("the disk is %v (%v)", info.Mode(), err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "do not tell") {
				t.Errorf("error is %v, want %q", err, tc.want)
			}
		})
	}
}

// TestDevicesOfTheMachine has the build container open every block device that the machine
// has. A partition of a loop device of the machine's own stands in for an NVMe disk, whose
// number is of the same kind.
func TestDevicesOfTheMachine(t *testing.T) {
	if os.Geteuid() != 0 {
		testenv.Missing(t, errors.New("only root makes loop devices"))
	}
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 16<<20); err != nil {
		t.Fatal(err)
	}
	run := func(program string, args ...string) string {
		t.Helper()
		cmd := exec.Command(testenv.Tool(t, program), args...)
		out, err := cmd.Output()
		if err != nil {
			testenv.Missing(t, err)
		}
		return strings.TrimSpace(string(out))
	}
	run("sgdisk", "--new=1:2048:4095", disk)
	device := run("losetup", "--find", "--show", disk)
	t.Cleanup(func() {
		_ = exec.Command("partx", "--delete", device).Run()
		_ = exec.Command("losetup", "--detach", device).Run()
	})
	_ = exec.Command("partx", "--delete", device).Run() // which somebody may have left there
	run("partx", "--add", device)
	name := filepath.Base(device)
	own := func(path string) string {
		t.Helper()
		content, err := os.ReadFile(filepath.Join("/sys/block", name, path))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(content))
	}
	result, err := buildHostile(t, "none")
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(result.Log)
	if err != nil {
		t.Fatal(err)
	}
	lines := map[string]bool{}
	for line := range strings.Lines(string(log)) {
		line = strings.TrimSpace(line)
		lines[line] = true
		if number, ok := strings.CutPrefix(line, "opened "); ok && !strings.HasPrefix(number, "7:") && !strings.HasPrefix(number, "259:") {
			t.Errorf("the container opens %s", number)
		}
		if strings.HasPrefix(line, "terminal ") {
			t.Errorf("the container sees a %s of the machine", line)
		}
	}
	for _, number := range []string{own("dev"), own(name + "p1/dev")} {
		if !lines["tried "+number] || lines["opened "+number] {
			t.Errorf("the container opens %s, or did not try: its log is\n%s", number, log)
		}
	}
}

// TestLeftPartitions has the build container's losetup take a loop device on which a
// killed build left partitions: Linux keeps them when the device is detached.
func TestLeftPartitions(t *testing.T) {
	if os.Geteuid() != 0 {
		testenv.Missing(t, errors.New("only root makes loop devices"))
	}
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	// A device that nobody else asks for.
	const number, device = "211", "/dev/loop211"
	run := func(program string, args ...string) string {
		t.Helper()
		cmd := exec.Command(testenv.Tool(t, program), args...)
		cmd.Env = append(os.Environ(), "LOOPS="+number)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out))
	}
	t.Cleanup(func() {
		_ = exec.Command("partx", "--delete", device).Run()
		_ = exec.Command("losetup", "--detach", device).Run()
	})
	run("sgdisk", "--new=1:2048:4095", "--new=2:4096:6143", disk)
	run("losetup", device, disk)
	run("partx", "--add", device)
	run("losetup", "--detach", device)
	if left, err := filepath.Glob("/sys/block/loop" + number + "/loop" + number + "p*"); err != nil || len(left) != 2 {
		t.Fatalf("%s has the partitions %v (%v)", device, left, err)
	}
	if got := run("bash", "container/losetup", "--find", "--show", disk); got != device {
		t.Errorf("losetup took %s", got)
	}
	run("partx", "--add", device)
}
