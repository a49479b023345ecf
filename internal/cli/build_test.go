package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/kiwi"
	"github.com/org/attestable-image-action/internal/testenv"
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
	locked := t.TempDir()
	lock, none := filepath.Join(locked, "packages.lock"), filepath.Join(locked, "none.lock")
	for path, content := range map[string]string{filepath.Join(locked, "config.xml"): `<image name="a"/>`, lock: "x86_64 bash\n", none: ""} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
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
		{"no such lock", []string{"--template", "debian", "--lock", "/nonexistent", "--output", output}, 2, "there is no such file: make it with --update-lock"},
		{"no lock", []string{"--template", "debian", "--lock", lock, "--output", output}, 2, "line 1: it does not name a package"},
		{"lock of a description", []string{"--description", locked, "--output", output}, 2, "read the lock packages.lock of " + locked + ": line 1"},
		{"lock of another architecture", []string{"--template", "debian", "--lock", none, "--output", output}, 1, none + " has no packages for an image for "},
		{"lock that is a device", []string{"--template", "debian", "--lock", "/dev/null", "--output", output}, 2, "it is neither a file nor a directory"},
		{"nowhere to write a lock", []string{"--template", "debian", "--update-lock", "--output", output}, 2, "name it with --lock"},
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

// TestUpdateLock renews the packages of one architecture, and leaves the other's.
func TestUpdateLock(t *testing.T) {
	const sum = "15c2030e0fb46580af4f1b4cc303f4bd26da781b004e99763bc9eff7cf8e19b8"
	path := filepath.Join(t.TempDir(), "packages.lock")
	used := kiwi.Lock{"x86_64": {{Name: "bash", Version: "5.3", Architecture: "amd64", SHA256: sum}}}
	if err := updateLock(path, used); err != nil {
		t.Fatal(err)
	}
	old := "x86_64 zstd 1.5 amd64 " + sum + "\naarch64 bash 5.2 arm64 " + sum + "\n"
	if err := os.WriteFile(path, []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := updateLock(path, used); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if want := "aarch64 bash 5.2 arm64 " + sum + "\nx86_64 bash 5.3 amd64 " + sum + "\n"; err != nil || !strings.HasSuffix(string(content), "\n"+want) {
		t.Errorf("the lock is %q (%v), want %q at its end", content, err, want)
	}
	outside := filepath.Join(t.TempDir(), "authorized_keys")
	if err := os.WriteFile(outside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	hostile := filepath.Join(t.TempDir(), "packages.lock")
	if err := os.Symlink(outside, hostile); err != nil {
		t.Fatal(err)
	}
	_ = updateLock(hostile, used)
	if content, err := os.ReadFile(outside); err != nil || len(content) > 0 {
		t.Errorf("through a link, %q was written (%v)", content, err)
	}
	if err := updateLock(path, nil); err == nil || !strings.Contains(err.Error(), "cannot be locked") {
		t.Errorf("with unknown packages: %v", err)
	}
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := updateLock(path, used); err == nil || !strings.Contains(err.Error(), "read the lock") {
		t.Errorf("over something else: %v", err)
	}
}

// TestBuildTime asks where an image's time comes from.
func TestBuildTime(t *testing.T) {
	plain, tree := t.TempDir(), t.TempDir()
	t.Setenv("GIT_CEILING_DIRECTORIES", filepath.Dir(plain)+":"+filepath.Dir(tree))
	for _, args := range [][]string{{"init", "--quiet"}, {"-c", "user.name=x", "-c", "user.email=x@localhost", "-c", "commit.gpgsign=false", "commit", "--quiet", "--allow-empty", "-m", "x"}} {
		cmd := exec.Command(testenv.Tool(t, "git"), append([]string{"-C", tree}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_COMMITTER_DATE=1764000000 +0000")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %q: %v\n%s", args, err, out)
		}
	}
	for _, tc := range []struct {
		name, variable string
		flags          buildFlags
		want           int64
		told           string
	}{
		{"variable", "1700000000", buildFlags{description: tree}, 1700000000, "SOURCE_DATE_EPOCH"},
		{"description", "", buildFlags{description: tree, overlay: plain}, 1764000000, "the commit of " + tree},
		{"overlay", "", buildFlags{template: "debian", overlay: tree}, 1764000000, "the commit of " + tree},
		{"overlay of a description", "", buildFlags{description: plain, overlay: tree}, kiwi.DefaultEpoch, "the source has no commit"},
		{"template", "", buildFlags{template: "debian"}, kiwi.DefaultEpoch, "the default for a template"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("SOURCE_DATE_EPOCH", tc.variable)
			var o kiwi.Options
			told, err := tc.flags.source(t.Context(), &o)
			if err != nil || o.Epoch != tc.want || !strings.Contains(told, tc.told) {
				t.Errorf("the time is %d, %q (%v)", o.Epoch, told, err)
			}
		})
	}
	t.Setenv("SOURCE_DATE_EPOCH", "yesterday")
	if _, err := (buildFlags{template: "debian"}).source(t.Context(), new(kiwi.Options)); err == nil {
		t.Error("a time that is none is taken")
	}
}

// TestRecipe asks what a build says of how to do it again.
func TestRecipe(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "")
	tree, _ := sourceTree(t)
	other, _ := sourceTree(t)
	plain := t.TempDir()
	t.Setenv("GIT_CEILING_DIRECTORIES", filepath.Dir(plain))
	in := func(dir, name string) string { return filepath.Join(dir, name) }
	for _, tc := range []struct {
		name  string
		flags buildFlags
		want  *kiwi.Recipe
	}{
		{"template", buildFlags{template: "debian", serve: true}, &kiwi.Recipe{Template: "debian", Serve: true}},
		{"template and overlay", buildFlags{template: "debian", overlay: in(tree, "files")}, &kiwi.Recipe{Template: "debian", Overlay: "files"}},
		{"description", buildFlags{description: in(tree, "image"), name: "a", version: "1.0.0"}, &kiwi.Recipe{Description: "image", Name: "a", Version: "1.0.0"}},
		{"the top", buildFlags{description: tree}, &kiwi.Recipe{Description: "."}},
		{"a lock", buildFlags{description: in(tree, "image"), lock: in(tree, "locks/image.lock")}, &kiwi.Recipe{Description: "image", Lock: "locks/image.lock"}},
		{"a lock that is written", buildFlags{description: in(tree, "image"), lock: in(tree, "locks/image.lock"), updateLock: true}, &kiwi.Recipe{Description: "image"}},
		{"a lock of another tree", buildFlags{description: in(tree, "image"), lock: in(other, "locks/image.lock")}, &kiwi.Recipe{Description: "image"}},
		{"a lock that git does not track", buildFlags{description: in(tree, "image"), lock: in(tree, "locks/none.lock")}, &kiwi.Recipe{Description: "image"}},
		{"two trees", buildFlags{description: in(tree, "image"), overlay: in(other, "files")}, nil},
		{"no tree", buildFlags{description: plain}, nil},
		{"an overlay of no tree", buildFlags{template: "debian", overlay: plain}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var o kiwi.Options
			if _, err := tc.flags.source(t.Context(), &o); err != nil {
				t.Fatal(err)
			}
			if (o.Recipe == nil) != (tc.want == nil) || o.Recipe != nil && *o.Recipe != *tc.want {
				t.Errorf("the recipe is %+v, want %+v", o.Recipe, tc.want)
			}
		})
	}
}
