package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/kiwi"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/testenv"
)

// TestReproducible builds the template once more, elsewhere, with another umask, time
// zone, name of the container's host and number of processors, and asks for the same
// disk. scripts/reproducible does it ten times.
func TestReproducible(t *testing.T) {
	first := testenv.DebianDisk(t)
	second, err := buildElsewhere(t, filepath.Join(filepath.Dir(first), kiwi.LockName))
	if err != nil || builder(t, first).PackagesSHA256 != builder(t, second).PackagesSHA256 {
		// The first disk may be of yesterday, from other packages or by other tools.
		t.Logf("the first disk is built anew, since the second cannot be compared with it: %v", err)
		out, err := exec.CommandContext(t.Context(), command(t), "build", "--quiet", "--template", "debian",
			"--package-source", os.Getenv("ATTESTABLE_IMAGE_PACKAGE_SOURCE"), "--output", filepath.Join(t.TempDir(), "first")).Output()
		if err != nil {
			t.Fatalf("build: %v", err)
		}
		first = strings.TrimSpace(string(out))
		if second, err = buildElsewhere(t, filepath.Join(filepath.Dir(first), kiwi.LockName)); err != nil {
			t.Fatal(err)
		}
	}
	if a, b := measureDisk(t, first), measureDisk(t, second); a != b {
		difference, _ := exec.Command("cmp", "--verbose", first, second).Output()
		t.Fatalf("the builds differ in %d bytes: %s\n%s", bytes.Count(difference, []byte("\n")), a, b)
	}
	a, errA := os.ReadFile(filepath.Join(filepath.Dir(first), kiwi.LockName))
	b, errB := os.ReadFile(filepath.Join(filepath.Dir(second), kiwi.LockName))
	if err := errors.Join(errA, errB); err != nil || !bytes.Equal(a, b) {
		t.Errorf("%s differs (%v)", kiwi.LockName, err)
	}
	one, two := builder(t, first), builder(t, second)
	if one.Inputs.PackagesLocked || !two.Inputs.PackagesLocked {
		t.Error("builder.json does not say which build had a lock")
	}
	// How to build it again only the command knows, which did not build the first one.
	if two.Inputs.Recipe == nil || two.Inputs.Recipe.Template != "debian" {
		t.Errorf("builder.json does not say how to build it again: %+v", two.Inputs.Recipe)
	}
	one.Inputs.PackagesLocked, one.Inputs.Recipe = true, two.Inputs.Recipe
	if !reflect.DeepEqual(one, two) {
		t.Errorf("builder.json says\n%+v and\n%+v", one, two)
	}
	if one.KIWI == "" || len(one.Packages) < 50 {
		t.Errorf("builder.json has KIWI %q and %d packages", one.KIWI, len(one.Packages))
	}
}

// TestLockRefuses builds with a lock in which a package has another digest.
func TestLockRefuses(t *testing.T) {
	locked, err := os.ReadFile(filepath.Join(filepath.Dir(testenv.DebianDisk(t)), kiwi.LockName))
	if err != nil {
		t.Fatal(err)
	}
	edited := regexp.MustCompile(`(?m)^(\S+ bash \S+ \S+) [0-9a-f]{8}`).ReplaceAll(locked, []byte("$1 00000000"))
	if bytes.Equal(edited, locked) {
		t.Fatalf("the lock has no bash:\n%s", locked)
	}
	lock := filepath.Join(t.TempDir(), "my.lock")
	if err := os.WriteFile(lock, edited, 0o600); err != nil {
		t.Fatal(err)
	}
	output := filepath.Join(t.TempDir(), "output")
	build := exec.CommandContext(t.Context(), command(t), "build", "--quiet", "--template", "debian",
		"--package-source", os.Getenv("ATTESTABLE_IMAGE_PACKAGE_SOURCE"), "--lock", lock, "--output", output)
	out, err := build.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "the packages are not those of "+lock+": ") ||
		!regexp.MustCompile(`bash \S+ \(\S+\) has other bytes: SHA-256 [0-9a-f]{64}, locked 00000000[0-9a-f]{56}`).Match(out) {
		t.Errorf("a package with other bytes: %v\n%s", err, out)
	}
	if disks, err := filepath.Glob(filepath.Join(output, "*.raw")); err != nil || len(disks) > 0 {
		t.Errorf("there are disks: %q (%v)", disks, err)
	}
}

// buildElsewhere builds the template with a lock under other conditions, and returns
// the path of the disk.
func buildElsewhere(t *testing.T, lock string) (string, error) {
	t.Helper()
	docker, err := exec.LookPath("docker")
	if err != nil {
		testenv.Missing(t, err)
	}
	// What differs in the container is put in front of the image's name.
	shim := t.TempDir()
	more := "--hostname another --env TZ=Asia/Tokyo"
	if runtime.NumCPU() > 1 {
		more += " --cpuset-cpus 0"
	}
	script := fmt.Sprintf("#!/bin/bash\n[ \"$1\" != create ] || set -- \"${@:1:$#-1}\" %s \"${@: -1}\"\nexec %s \"$@\"\n", more, docker)
	if err := os.WriteFile(filepath.Join(shim, "docker"), []byte(script), 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	// The shell sets the umask.
	build := exec.CommandContext(t.Context(), "sh", "-c", `umask 077; exec "$@"`, "sh", command(t), "build", "--template", "debian",
		"--package-source", os.Getenv("ATTESTABLE_IMAGE_PACKAGE_SOURCE"), "--lock", lock, "--output", filepath.Join(t.TempDir(), "another", "place"))
	build.Env = append(os.Environ(), "PATH="+shim+":"+os.Getenv("PATH"), "TZ=Pacific/Auckland", "SOURCE_DATE_EPOCH=")
	var stderr bytes.Buffer
	build.Stderr = &stderr
	out, err := build.Output()
	switch {
	case err != nil && strings.Contains(stderr.String(), "the packages are not those of"):
		return "", errors.New("the package sources have changed")
	case err != nil:
		t.Fatalf("build: %v\n%s", err, stderr.Bytes()[max(0, stderr.Len()-3000):])
	}
	return strings.TrimSpace(string(out)), nil
}

// builder returns what the build of a disk wrote down.
func builder(t *testing.T, disk string) *measure.BuilderInfo {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(filepath.Dir(disk), "builder.json"))
	if err != nil {
		t.Fatal(err)
	}
	info, err := measure.ParseBuilder(content)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// measureDisk returns a disk's SHA-256 and PCRs.
func measureDisk(t *testing.T, disk string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), command(t), "measure", "--format", "json", "--pcr", "4,5,7,9,11,12", disk).Output()
	if err != nil {
		t.Fatalf("measure %s: %v", disk, err)
	}
	document, err := measure.ParseDocument(out)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(document.Disk.SHA256, document.Measurements.PCRs)
}
