package source

import (
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

func TestReadCheckout(t *testing.T) {
	testenv.Tool(t, "git")
	dir := t.TempDir()
	for _, name := range []string{"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"} {
		t.Setenv(name, "")
		os.Unsetenv(name)
	}
	write := func(path, content string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	git := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=x", "-c", "user.email=x@localhost", "-c", "commit.gpgsign=false"}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_COMMITTER_DATE=1764000000 +1300", "GIT_AUTHOR_DATE=1500000000 +0000", "GIT_CEILING_DIRECTORIES="+filepath.Dir(dir))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %q: %v\n%s", args, err, out)
		}
	}
	t.Setenv("GIT_CEILING_DIRECTORIES", filepath.Dir(dir))
	if checkout, err := ReadCheckout(t.Context(), dir); err != nil || checkout != nil {
		t.Errorf("no work tree: %v (%v)", checkout, err)
	}
	git("init", "--quiet")
	if checkout, err := ReadCheckout(t.Context(), dir); err != nil || checkout != nil {
		t.Errorf("no commit: %v (%v)", checkout, err)
	}
	write(filepath.Join(dir, "image", "config.xml"), "x")
	write(filepath.Join(dir, "image", "root", "etc", "a file"), "x")
	write(filepath.Join(dir, "image", "config.sh"), "#!/bin/sh")
	if err := os.Chmod(filepath.Join(dir, "image", "config.sh"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("config.xml", filepath.Join(dir, "image", "link")); err != nil {
		t.Fatal(err)
	}
	git("add", ".")
	git("commit", "--quiet", "-m", "x")
	write(filepath.Join(dir, "image", "untracked"), "x")
	checkout, err := ReadCheckout(t.Context(), filepath.Join(dir, "image"))
	if err != nil {
		t.Fatal(err)
	}
	if checkout.Epoch != 1764000000 {
		t.Errorf("the time is %d", checkout.Epoch)
	}
	want := map[string]fs.FileMode{
		"config.xml": 0o644, "config.sh": 0o755, "root/etc/a file": 0o644,
		"root": fs.ModeDir | 0o755, "root/etc": fs.ModeDir | 0o755,
	}
	if !maps.Equal(checkout.Tracked, want) {
		t.Errorf("tracked is %v, want %v", checkout.Tracked, want)
	}
	if err := os.Rename(filepath.Join(dir, ".git"), filepath.Join(dir, "moved")); err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(dir, ".git"), "gitdir: /nonexistent\n")
	if checkout, err := ReadCheckout(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "does not lead to a repository") {
		t.Errorf("a broken work tree: %v (%v)", checkout, err)
	}
}
