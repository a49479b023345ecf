package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/org/attestable-image-action/internal/testenv"
)

// TestImage makes the image twice, of the same and of other parts, pushes it, and lets
// docker run it.
func TestImage(t *testing.T) {
	if testing.Short() {
		t.Skip("the program is not built with -short")
	}
	binary := filepath.Join(t.TempDir(), "attestable-image")
	build := exec.Command(filepath.Join(testenv.Root(t), "scripts/release-binary"), "linux", "amd64", "7.8.9", strings.Repeat("c", 40), binary)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, []byte("another program"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := release{version: "7.8.9", revision: strings.Repeat("c", 40), created: time.Unix(1_700_000_000, 0).UTC()}
	write := func(r release, binaries ...string) (string, v1.Hash) {
		t.Helper()
		dir := filepath.Join(t.TempDir(), "image")
		digest, err := r.write(dir, binaries)
		if err != nil {
			t.Fatal(err)
		}
		return dir, digest
	}
	dir, digest := write(r, "amd64="+binary, "arm64="+other)
	if _, again := write(r, "amd64="+binary, "arm64="+other); again != digest {
		t.Errorf("the same parts make %s and %s", digest, again)
	}
	later := r
	later.created = later.created.Add(time.Second)
	_, changed := write(later, "amd64="+binary, "arm64="+other)
	_, swapped := write(r, "amd64="+other, "arm64="+binary)
	if changed == digest || swapped == digest {
		t.Error("other parts make the same digest")
	}
	path, err := layout.FromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	index, err := path.ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}

	registry := testenv.StartRegistry(t)
	reference := registry.Host + "/org/attestable-image-action:7.8.9"
	if err := push(digest.String(), dir, reference); err != nil {
		t.Fatal(err)
	}
	if err := push(changed.String(), dir, reference); err == nil {
		t.Error("what the layout lacks was pushed")
	}
	if exec.Command("docker", "info").Run() != nil {
		testenv.Missing(t, "docker does not answer")
	}
	byDigest := registry.Host + "/org/attestable-image-action@" + digest.String()
	t.Cleanup(func() { _ = exec.Command("docker", "rmi", "--force", byDigest).Run() })
	docker := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("docker", append([]string{"run", "--rm", "--platform=linux/amd64", "--read-only", "--cap-drop=ALL", "--network=none"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	if out := docker(byDigest, "version"); !strings.Contains(out, "attestable-image 7.8.9\ncommit "+r.revision) {
		t.Errorf("version says %q", out)
	}
	// Neither root nor a writable file system is needed to measure a disk.
	disk := testenv.GoldenDisk(t, "stub257")
	if err := os.Chmod(disk, 0o644); err != nil { //nolint:gosec // another user reads it
		t.Fatal(err)
	}
	if out := docker("--volume="+disk+":/image.raw:ro", byDigest, "measure", "/image.raw"); !strings.Contains(out, "\nPCR12  0000") {
		t.Errorf("measure says %q", out)
	}
}

// TestImageRefuses gives parts that make no image.
func TestImageRefuses(t *testing.T) {
	good := release{version: "1.0.0", revision: "c", created: time.Unix(0, 0)}
	for name, c := range map[string]struct {
		r        release
		binaries []string
		want     string
	}{
		"no version":  {release{revision: "c"}, []string{"amd64=/bin/true"}, "give -version"},
		"no revision": {release{version: "1.0.0"}, []string{"amd64=/bin/true"}, "give -version"},
		"no binary":   {good, nil, "give -version"},
		"no name":     {good, []string{"/bin/true"}, "is not ARCH=BINARY"},
		"no file":     {good, []string{"amd64=/nowhere"}, "no such file"},
	} {
		if _, err := c.r.write(t.TempDir(), c.binaries); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
