package cli

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/org/attestable-image-action/internal/kiwi"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/testenv"
)

// engine stands in for docker, and for KIWI in it: its "build" is a copy of $FAKE_DISK,
// of the packages $FAKE_PACKAGES. It keeps the seed of each build beside itself.
const engine = `#!/usr/bin/env bash
set -euo pipefail
here=$(dirname "$0")
case $1 in
version) echo 27.0 ;;
info) echo '[]' ;;
network) echo bridge ;;
image)
  if [ "$3" = --format ]; then echo sha256:$FAKE_ID; else
    echo '[{"Id":"sha256:'$FAKE_ID'","RepoDigests":[],"Config":{"Labels":{"org.opencontainers.image.base.name":"debian"}}}]'
  fi ;;
create)
  for argument; do
    case $argument in
    type=bind,source=*,target=/output) output=${argument#type=bind,source=}; echo "${output%,target=/output}" > "$here/output" ;;
    ATTESTABLE_IMAGE_SEED=*) echo "${argument#*=}" >> "$here/seeds" ;;
    esac
  done ;;
start)
  output=$(cat "$here/output")
  mkdir "$output/build"
  cp --sparse=always "$FAKE_DISK" "$output/build/image.raw"
  echo '{"disk_image": {"filename": "/output/build/image.raw"}}' > "$output/build/kiwi.result.json"
  echo built > "$output/kiwi.log"
  echo 'KIWI (next generation) version 10.3.9' > "$output/builder.kiwi"
  echo "$FAKE_TOOLS" > "$output/builder.packages"
  echo "$FAKE_PACKAGES" > "$output/packages.used" ;;
esac
`

const fakePackage = "bash 5.2 amd64 15c2030e0fb46580af4f1b4cc303f4bd26da781b004e99763bc9eff7cf8e19b8"

// fakeEngine puts the engine in front of docker, and has it make a disk.
func fakeEngine(t *testing.T, disk string) (dir string) {
	t.Helper()
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		testenv.Missing(t, fmt.Errorf("builds need loop devices: %w", err))
	}
	dir = t.TempDir()
	writeFile(t, filepath.Join(dir, "docker"), engine, 0o700)
	for name, value := range map[string]string{
		"PATH": dir + ":" + os.Getenv("PATH"), "FAKE_DISK": disk, "FAKE_ID": strings.Repeat("a", 64),
		"FAKE_PACKAGES": fakePackage, "FAKE_TOOLS": "apt 3.0.4 amd64",
	} {
		t.Setenv(name, value)
	}
	return dir
}

func writeFile(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

// gitIn calls git in a directory.
func gitIn(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command(testenv.Tool(t, "git"), append([]string{"-C", dir, "-c", "user.name=x", "-c", "user.email=x@localhost", "-c", "commit.gpgsign=false"}, args...)...)
	cmd.Env = append(os.Environ(), "GIT_COMMITTER_DATE=1764000000 +0000")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %q: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// sourceTree is a work tree with a description, an overlay and a lock of the overlay's
// name elsewhere, and its commit.
func sourceTree(t *testing.T) (dir, commit string) {
	t.Helper()
	dir = t.TempDir()
	writeFile(t, filepath.Join(dir, "image/config.xml"), `<image name="a"><preferences><version>1.0.0</version></preferences><packages type="bootstrap"/></image>`, 0o644)
	writeFile(t, filepath.Join(dir, "image/config.sh"), "#!/bin/bash\n", 0o755)
	writeFile(t, filepath.Join(dir, "files/etc/motd"), "hello\n", 0o644)
	writeFile(t, filepath.Join(dir, "locks/image.lock"), kiwi.Architecture()+" "+fakePackage+"\n", 0o644)
	gitIn(t, dir, "init", "--quiet")
	gitIn(t, dir, "add", ".")
	gitIn(t, dir, "commit", "--quiet", "-m", "x")
	return dir, gitIn(t, dir, "rev-parse", "HEAD")
}

// publish builds the source, measures the disk and pushes both to reference, and
// returns the reference with the digest.
func publish(t *testing.T, tree, reference string) string {
	t.Helper()
	out := t.TempDir()
	must := func(args ...string) string {
		t.Helper()
		status, stdout, stderr := executeHere(t, append(args, "--quiet")...)
		if status != 0 {
			t.Fatalf("%q: status %d: %s", args, status, stderr)
		}
		return strings.TrimSpace(stdout)
	}
	disk := must("build", "--description", filepath.Join(tree, "image"), "--overlay", filepath.Join(tree, "files"),
		"--lock", filepath.Join(tree, "locks/image.lock"), "--version", "1.2.3", "--builder-image", "fake", "--output", filepath.Join(out, "image"))
	measurements := filepath.Join(out, "measurements.json")
	writeFile(t, measurements, must("measure", "--format", "json", "--builder", filepath.Join(out, "image/builder.json"), disk), 0o644)
	return must("push", "--measurements", measurements, disk, reference)
}

// otherDisk is a disk with one byte changed in its last partition.
func otherDisk(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.LastIndexFunc(content[:len(content)-34*512], func(r rune) bool { return r != 0 })
	content[at] ^= 1
	changed := filepath.Join(t.TempDir(), "other.raw")
	writeFile(t, changed, string(content), 0o644)
	return changed
}

// TestRebuild builds an artifact again: from its source, from another one, and with
// tools that make another disk.
func TestRebuild(t *testing.T) {
	noJob(t)
	disk := testenv.GoldenDisk(t, "stub257")
	dir := fakeEngine(t, disk)
	tree, _ := sourceTree(t)
	layout := "oci:" + filepath.Join(t.TempDir(), "layout")
	trust := filepath.Join(t.TempDir(), "trust")
	reference := publish(t, tree, layout)
	if status, _, said := executeHere(t, "attest", "--quiet", "--local-trust", trust, reference); status != 0 {
		t.Fatal(said)
	}
	seeds := filepath.Join(dir, "seeds")

	t.Run("the same", func(t *testing.T) {
		made := filepath.Join(t.TempDir(), "rebuilt.json")
		status, out, said := executeHere(t, "rebuild", "--local-trust", trust, "--source", tree, "--builder-image", "fake", "--measurements", made, reference)
		if status != 0 || !strings.Contains(out, "reproduced: "+reference) {
			t.Fatalf("status %d: %s%s", status, out, said)
		}
		if built := lines(t, seeds); len(built) != 2 || built[0] != built[1] {
			t.Errorf("seeds are %q: the second build is another", built)
		}
		content, err := os.ReadFile(made)
		if err != nil {
			t.Fatal(err)
		}
		doc, err := measure.ParseDocument(content)
		if err != nil || doc.Builder.Inputs.Recipe == nil || *doc.Builder.Inputs.Recipe != (measure.BuildRecipe{Description: "image", Overlay: "files", Lock: "locks/image.lock", Version: "1.2.3"}) {
			t.Errorf("the new measurements: %+v (%v)", doc, err)
		}
	})
	t.Run("another disk", func(t *testing.T) {
		t.Setenv("FAKE_DISK", otherDisk(t, disk))
		t.Setenv("FAKE_TOOLS", "apt 3.0.5 amd64")
		status, out, said := executeHere(t, "rebuild", "--quiet", "--local-trust", trust, "--source", tree, "--builder-image", "fake", reference)
		if status != 1 || !strings.Contains(out, "NOT reproduced") || !strings.Contains(out, "EFI/BOOT/BOOTX64.EFI: sections .linux") || !strings.Contains(out, "apt:amd64 3.0.4 -> 3.0.5") {
			t.Errorf("status %d: %s%s", status, out, said)
		}
	})
	for _, tc := range []struct {
		name string
		edit func(tree string)
		args []string
		want string
	}{
		{"a file", func(tree string) { writeFile(t, filepath.Join(tree, "files/etc/motd"), "evil\n", 0o644) }, nil, "root/etc/motd has other content"},
		{"one more file", func(tree string) { writeFile(t, filepath.Join(tree, "files/etc/cron.d/evil"), "x", 0o644) }, nil, "root/etc/cron.d/evil was not there"},
		{"a script", func(tree string) { writeFile(t, filepath.Join(tree, "image/config.sh"), "#!/bin/sh\n", 0o755) }, nil, "config.sh has other content"},
		{"the version", func(string) {}, []string{"--version", "1.2.4"}, "config.xml has other content"},
		{"a file is missing", func(tree string) { _ = os.Remove(filepath.Join(tree, "image/config.sh")) }, nil, "config.sh is missing"},
		{"the lock", func(tree string) {
			writeFile(t, filepath.Join(tree, "locks/image.lock"), kiwi.Architecture()+" zsh 5.9 amd64 "+strings.Repeat("0", 64)+"\n", 0o644)
		}, nil, "has other packages than the attested build used"},
		{"a link out of it", func(tree string) {
			_ = os.RemoveAll(filepath.Join(tree, "files"))
			if err := os.Symlink("/etc", filepath.Join(tree, "files")); err != nil {
				t.Fatal(err)
			}
		}, nil, "it leads out of it, to /etc"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			copied := filepath.Join(t.TempDir(), "source")
			gitIn(t, tree, "clone", "--quiet", tree, copied)
			tc.edit(copied)
			before := len(lines(t, seeds))
			status, out, said := executeHere(t, append([]string{"rebuild", "--local-trust", trust, "--source", copied, "--builder-image", "fake", reference}, tc.args...)...)
			if status != 1 || out != "" || !strings.Contains(said, tc.want) {
				t.Errorf("status %d: %s%s\nwant %q", status, out, said, tc.want)
			}
			if len(lines(t, seeds)) != before {
				t.Error("something was built")
			}
		})
	}
	t.Run("a signed disk", func(t *testing.T) {
		out := t.TempDir()
		must := func(args ...string) string {
			t.Helper()
			status, stdout, stderr := executeHere(t, append(args, "--quiet")...)
			if status != 0 {
				t.Fatalf("%q: status %d: %s", args, status, stderr)
			}
			return strings.TrimSpace(stdout)
		}
		signed := must("build", "--description", filepath.Join(tree, "image"), "--builder-image", "fake", "--output", filepath.Join(out, "image"))
		keys := filepath.Join(out, "keys")
		must("sign", "--create-keys", keys, signed)
		measurements := filepath.Join(out, "measurements.json")
		writeFile(t, measurements, must("measure", "--format", "json", "--builder", filepath.Join(out, "image/builder.json"),
			"--PK", filepath.Join(keys, "PK.esl"), "--KEK", filepath.Join(keys, "KEK.esl"), "--db", filepath.Join(keys, "db.esl"), signed), 0o644)
		pushed := must("push", "--measurements", measurements, signed, "oci:"+filepath.Join(out, "layout"))
		must("attest", "--local-trust", trust, pushed)
		status, report, said := executeHere(t, "rebuild", "--local-trust", trust, "--source", tree, "--builder-image", "fake", pushed)
		if status != 1 || !strings.Contains(report, "But for signatures the images of the boot chain are the same") || strings.Contains(report, "PCR") || !strings.Contains(report, "is signed for Secure Boot") {
			t.Errorf("status %d: %s%s", status, report, said)
		}
	})
	t.Run("another artifact", func(t *testing.T) {
		other := filepath.Join(t.TempDir(), "trust")
		if status, _, said := executeHere(t, "attest", "--quiet", "--local-trust", other, reference); status != 0 {
			t.Fatal(said)
		}
		if err := os.Rename(other, trust+"2"); err != nil {
			t.Fatal(err)
		}
		plain := "oci:" + filepath.Join(t.TempDir(), "layout")
		_, pushed, _ := executeHere(t, "push", "--quiet", disk, plain)
		status, out, _ := executeHere(t, "rebuild", "--local-trust", trust, "--source", tree, strings.TrimSpace(pushed))
		if status != 1 || !strings.Contains(out, "NOT verified") {
			t.Errorf("without attestations: status %d: %s", status, out)
		}
		if status, _, said := executeHere(t, "attest", "--quiet", "--local-trust", trust, strings.TrimSpace(pushed)); status != 0 {
			t.Fatal(said)
		}
		status, _, said := executeHere(t, "rebuild", "--local-trust", trust, "--source", tree, strings.TrimSpace(pushed))
		if status != 1 || !strings.Contains(said, "do not say what the disk was built from") {
			t.Errorf("without a builder: status %d: %s", status, said)
		}
	})
}

// TestTwoBuilders has two machines build the same, each with a builder image that it made
// itself: they push the same artifact, at whatever time. With other tools it is another.
func TestTwoBuilders(t *testing.T) {
	noJob(t)
	t.Setenv("SOURCE_DATE_EPOCH", "")
	fakeEngine(t, testenv.GoldenDisk(t, "stub257"))
	tree, _ := sourceTree(t)
	digest := func() string {
		t.Helper()
		_, digest, _ := strings.Cut(publish(t, tree, "oci:"+filepath.Join(t.TempDir(), "layout")), "@")
		return digest
	}
	first := digest()
	t.Setenv("FAKE_ID", strings.Repeat("b", 64))
	time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second))) // the manifest has seconds
	if second := digest(); second != first {
		t.Errorf("the artifacts are %s and %s", first, second)
	}
	t.Setenv("FAKE_TOOLS", "apt 3.0.5 amd64")
	if other := digest(); other == first {
		t.Error("with other tools it is the same artifact")
	}
}

func TestRebuildCommandLine(t *testing.T) {
	noJob(t)
	for _, tc := range []struct {
		name   string
		args   []string
		status int
		stderr string
	}{
		{"nothing", nil, 2, "give the reference of the artifact to build again"},
		{"for nobody", []string{"ghcr.io/a/b"}, 2, "anybody can sign something"},
		{"template and description", []string{"--template", "debian", "--description", "x", "ghcr.io/a/b"}, 2, "keep one of them"},
		{"two sources", []string{"--source", ".", "--source-url", "https://x/y", "ghcr.io/a/b"}, 2, "leave out --source-url"},
		{"other commit of nothing", []string{"--other-commit", "ghcr.io/a/b"}, 2, "--other-commit needs a directory"},
		{"local and a URL", []string{"--local-trust", "x", "--source-url", "https://x/y", "ghcr.io/a/b"}, 2, "names no commit to fetch"},
		{"path that climbs", []string{"--description", "../x", "ghcr.io/a/b"}, 2, "../x is no path in the source"},
		{"absolute path", []string{"--overlay", "/etc", "ghcr.io/a/b"}, 2, "/etc is no path in the source"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			status, stdout, stderr := execute(t, append([]string{"rebuild"}, tc.args...)...)
			if status != tc.status || !strings.Contains(stderr, tc.stderr) || stdout != "" {
				t.Errorf("status %d, stderr %q; want status %d and %q", status, stderr, tc.status, tc.stderr)
			}
		})
	}
}

// TestByDigest names builder images as they are pulled.
func TestByDigest(t *testing.T) {
	digest := "sha256:" + strings.Repeat("a", 64)
	for image, want := range map[string]string{
		"ghcr.io/a/b:1":             "ghcr.io/a/b@" + digest,
		"localhost:5000/b":          "localhost:5000/b@" + digest,
		"ghcr.io/a/b@sha256:1":      "ghcr.io/a/b@" + digest,
		"localhost:5000/b:1@sha256": "localhost:5000/b@" + digest,
	} {
		if got := byDigest(&measure.BuilderInfo{Image: image, Digest: digest}); got != want {
			t.Errorf("%s is %s, want %s", image, got, want)
		}
	}
}
