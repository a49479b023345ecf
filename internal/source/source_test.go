package source

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// makeRepository makes a repository with files, and returns its file: URL and its commit.
func makeRepository(t *testing.T, files map[string]string) (url, commit, dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	call(t, dir, "init", "--quiet")
	call(t, dir, "add", ".")
	call(t, dir, "commit", "--quiet", "--allow-empty", "-m", "x")
	return "file://" + dir, strings.TrimSpace(call(t, dir, "rev-parse", "HEAD")), dir
}

func call(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command(testenv.Tool(t, "git"), append([]string{"-C", dir, "-c", "user.name=x", "-c", "user.email=x@localhost", "-c", "commit.gpgsign=false"}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git %q: %v", args, err)
	}
	return string(out)
}

func TestFetch(t *testing.T) {
	url, first, dir := makeRepository(t, map[string]string{"image/config.xml": "<image/>"})
	if err := os.WriteFile(filepath.Join(dir, "later"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	call(t, dir, "add", ".")
	call(t, dir, "commit", "--quiet", "-m", "later")
	to := filepath.Join(t.TempDir(), "source")
	if err := Fetch(t.Context(), url, first, to); err != nil {
		t.Fatal(err)
	}
	if content, err := os.ReadFile(filepath.Join(to, "image/config.xml")); err != nil || string(content) != "<image/>" {
		t.Errorf("config.xml is %q (%v)", content, err)
	}
	if _, err := os.Stat(filepath.Join(to, "later")); err == nil {
		t.Error("a later commit was checked out")
	}
	if head, err := Head(t.Context(), to); err != nil || head != first {
		t.Errorf("HEAD is %q (%v)", head, err)
	}
	t.Setenv("GIT_CEILING_DIRECTORIES", "/")
	if head, err := Head(t.Context(), t.TempDir()); err != nil || head != "" {
		t.Errorf("HEAD of no work tree is %q (%v)", head, err)
	}
}

// TestHostile fetches a repository that would have programs run, were it given the
// chance: by attributes that name the user's filters, and by a submodule.
func TestHostile(t *testing.T) {
	ran := filepath.Join(t.TempDir(), "ran")
	global := filepath.Join(t.TempDir(), "gitconfig")
	program := filepath.Join(t.TempDir(), "program")
	hooks := t.TempDir()
	for path, content := range map[string]string{
		program: "#!/bin/sh\ntouch " + ran + "\ncat\n", filepath.Join(hooks, "post-checkout"): "#!/bin/sh\ntouch " + ran + "\n",
		global: "[filter \"evil\"]\n\tsmudge = " + program + "\n[core]\n\thooksPath = " + hooks + "\n[protocol]\n\tallow = always\n[submodule]\n\trecurse = true\n",
	} {
		if err := os.WriteFile(path, []byte(content), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	url, commit, _ := makeRepository(t, map[string]string{
		".gitattributes": "* filter=evil\n", "file": "x",
		".gitmodules": "[submodule \"sub\"]\n\tpath = sub\n\turl = ext::" + program + "\n",
	})
	t.Setenv("GIT_CONFIG_GLOBAL", global)
	to := filepath.Join(t.TempDir(), "source")
	if err := Fetch(t.Context(), url, commit, to); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("a program of the source's choice ran")
	}
	if content, err := os.ReadFile(filepath.Join(to, "file")); err != nil || string(content) != "x" {
		t.Errorf("file is %q (%v)", content, err)
	}
}

func TestFetchRefuses(t *testing.T) {
	url, commit, _ := makeRepository(t, nil)
	other := strings.Repeat("0", 39) + "1"
	for _, tc := range []struct{ name, url, commit, want string }{
		{"branch", url, "main", "this is no commit"},
		{"option for a commit", url, "--upload-pack=x", "this is no commit"},
		{"ssh", "ssh://git@github.com/a/b", commit, "and from nowhere else"},
		{"http", "http://github.com/a/b", commit, "and from nowhere else"},
		{"ext", "ext::sh -c x", commit, "and from nowhere else"},
		{"credentials", "https://a:b@github.com/a/b", commit, "and from nowhere else"},
		{"option", "--upload-pack=x", commit, "and from nowhere else"},
		{"relative", "file:a", commit, "and from nowhere else"},
		{"no such commit", url, other, "git says"},
		{"no such repository", "file:///nonexistent", commit, "there is no git repository at /nonexistent"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := Fetch(t.Context(), tc.url, tc.commit, filepath.Join(t.TempDir(), "source")); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v, want %q", err, tc.want)
			}
		})
	}
}

// TestWatch ends what grows beyond a limit.
func TestWatch(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "pack"), make([]byte, 100), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancelCause(t.Context())
	defer stop(nil)
	watch(ctx, stop, dir, 99)
	if cause := context.Cause(ctx); cause == nil || !strings.Contains(cause.Error(), "it is larger than") {
		t.Errorf("it ended with %v", cause)
	}
}
