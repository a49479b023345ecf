package source

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/org/attestable-image-action/internal/testenv"
)

// canary is a program that leaves a file behind when it runs.
type canary struct{ program, ran string }

func newCanary(t *testing.T) canary {
	t.Helper()
	dir := t.TempDir()
	c := canary{filepath.Join(dir, "program"), filepath.Join(dir, "ran")}
	write(t, c.program, "#!/bin/sh\necho \"$0 $*\" >> "+c.ran+"\ncat\n")
	if err := os.Chmod(c.program, 0o700); err != nil {
		t.Fatal(err)
	}
	return c
}

// check fails when the program ran, and forgets that it did.
func (c canary) check(t *testing.T) {
	t.Helper()
	if content, err := os.ReadFile(c.ran); err == nil {
		t.Errorf("a program of the repository's ran: %s", content)
		_ = os.Remove(c.ran)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// armed is a configuration that names a program wherever git would start one.
func armed(program string) string {
	return `[core]
	repositoryformatversion = 0
	fsmonitor = ` + program + `
	hooksPath = ` + filepath.Dir(program) + `
	pager = ` + program + `
	sshCommand = ` + program + `
	gitProxy = ` + program + `
	askPass = ` + program + `
	editor = ` + program + `
	alternateRefsCommand = ` + program + `
[log]
	showSignature = true
[gpg]
	program = ` + program + `
[gpg "ssh"]
	program = ` + program + `
	defaultKeyCommand = ` + program + `
	allowedSignersFile = /dev/null
[gpg "x509"]
	program = ` + program + `
[diff]
	external = ` + program + `
[filter "evil"]
	clean = ` + program + `
	smudge = ` + program + `
	process = ` + program + `
	required = true
[uploadpack]
	packObjectsHook = ` + program + `
[credential]
	helper = !` + program + `
[alias]
	log = !` + program + `
	cat-file = !` + program + `
[protocol]
	allow = always
[protocol "ext"]
	allow = always
[include]
	path = more
`
}

// signed replaces the commit that is checked out by one with a signature: `git log` has
// a program verify it when the configuration says so.
func signed(t *testing.T, dir, signature string) {
	t.Helper()
	object := call(t, dir, "cat-file", "commit", "HEAD")
	object = strings.Replace(object, "\n\n", "\ngpgsig "+signature+"\n\n", 1)
	file := filepath.Join(t.TempDir(), "commit")
	write(t, file, object)
	commit := strings.TrimSpace(call(t, dir, "hash-object", "-t", "commit", "-w", file))
	call(t, dir, "reset", "--quiet", "--soft", commit)
}

const (
	pgpSignature = "-----BEGIN PGP SIGNATURE-----\n \n aGVsbG8=\n -----END PGP SIGNATURE-----"
	sshSignature = "-----BEGIN SSH SIGNATURE-----\n aGVsbG8=\n -----END SSH SIGNATURE-----"
)

// TestAttacks asks about repositories that would have a program run. Each was seen to
// have git run one when git was asked about the repository itself, or is another way that
// its configuration names one.
func TestAttacks(t *testing.T) {
	testenv.Tool(t, "git")
	tests := []struct {
		name string
		// arm makes the repository in dir hostile and returns the directory to ask about.
		arm func(t *testing.T, dir string, c canary) string
		// plain says that the directory is in a work tree all the same.
		plain bool
	}{
		{name: "configuration, signed commit", plain: true, arm: func(t *testing.T, dir string, c canary) string {
			signed(t, dir, pgpSignature)
			write(t, filepath.Join(dir, ".git/config"), armed(c.program))
			return dir
		}},
		{name: "configuration, commit signed with an SSH key", plain: true, arm: func(t *testing.T, dir string, c canary) string {
			signed(t, dir, sshSignature)
			write(t, filepath.Join(dir, ".git/config"), armed(c.program))
			return dir
		}},
		{name: "files that look like a bare repository", arm: func(t *testing.T, dir string, c canary) string {
			signed(t, dir, pgpSignature)
			inside := filepath.Join(t.TempDir(), "description")
			if err := os.Rename(filepath.Join(dir, ".git"), inside); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(inside, "config"), armed(c.program)+"[core]\n\tbare = false\n\tworktree = "+inside+"\n")
			return inside
		}},
		{name: "files that look like a bare repository, in a checkout", plain: true, arm: func(t *testing.T, dir string, c canary) string {
			other := filepath.Join(t.TempDir(), "other")
			call(t, dir, "clone", "--quiet", "--bare", ".", other)
			write(t, filepath.Join(other, "config"), armed(c.program)+"[core]\n\tbare = false\n\tworktree = .\n")
			write(t, filepath.Join(other, "more"), "[core]\n\tfsmonitor = "+c.program+"\n")
			inside := filepath.Join(dir, "image/description")
			if err := os.Rename(other, inside); err != nil {
				t.Fatal(err)
			}
			return inside
		}},
		{name: "partial clone without the commit", arm: func(t *testing.T, dir string, c canary) string {
			write(t, filepath.Join(dir, ".git/config"), armed(c.program)+`[core]
	repositoryformatversion = 1
[extensions]
	partialClone = origin
[remote "origin"]
	url = ext::`+c.program+` x
	promisor = true
	partialclonefilter = blob:none
	uploadpack = `+c.program+`
`)
			write(t, filepath.Join(dir, ".git/HEAD"), strings.Repeat("1", 40)+"\n")
			return dir
		}},
		{name: "configuration of a work tree", plain: true, arm: func(t *testing.T, dir string, c canary) string {
			signed(t, dir, pgpSignature)
			write(t, filepath.Join(dir, ".git/config"), "[core]\n\trepositoryformatversion = 1\n[extensions]\n\tworktreeConfig = true\n")
			write(t, filepath.Join(dir, ".git/config.worktree"), armed(c.program))
			return dir
		}},
		{name: "a file .git", plain: true, arm: func(t *testing.T, dir string, c canary) string {
			signed(t, dir, pgpSignature)
			if err := os.Rename(filepath.Join(dir, ".git"), filepath.Join(dir, "dot")); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, "dot/config"), armed(c.program))
			write(t, filepath.Join(dir, ".git"), "gitdir: dot\n")
			return dir
		}},
		{name: "hooks", plain: true, arm: func(t *testing.T, dir string, c canary) string {
			for _, hook := range []string{"post-index-change", "post-checkout", "reference-transaction", "fsmonitor-watchman"} {
				if err := os.RemoveAll(filepath.Join(dir, ".git/hooks", hook)); err != nil {
					t.Fatal(err)
				}
				if err := os.MkdirAll(filepath.Join(dir, ".git/hooks"), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(c.program, filepath.Join(dir, ".git/hooks", hook)); err != nil {
					t.Fatal(err)
				}
			}
			return dir
		}},
		{name: "FIFO for HEAD", arm: func(t *testing.T, dir string, _ canary) string {
			fifo(t, filepath.Join(dir, ".git/HEAD"))
			return dir
		}},
		{name: "FIFO for the index", arm: func(t *testing.T, dir string, _ canary) string {
			fifo(t, filepath.Join(dir, ".git/index"))
			return dir
		}},
		{name: "HEAD is a file of the machine", arm: func(t *testing.T, dir string, _ canary) string {
			link(t, "/proc/self/environ", filepath.Join(dir, ".git/HEAD"))
			return dir
		}},
		{name: "the branch is a file of the machine", arm: func(t *testing.T, dir string, _ canary) string {
			write(t, filepath.Join(dir, ".git/HEAD"), "ref: refs/heads/environ\n")
			link(t, "/proc/self/environ", filepath.Join(dir, ".git/refs/heads/environ"))
			return dir
		}},
		{name: "refs around in a circle", arm: func(t *testing.T, dir string, _ canary) string {
			write(t, filepath.Join(dir, ".git/HEAD"), "ref: refs/heads/a\n")
			write(t, filepath.Join(dir, ".git/refs/heads/a"), "ref: refs/heads/a\n")
			return dir
		}},
		{name: "another object under the commit's name", arm: func(t *testing.T, dir string, _ canary) string {
			head := strings.TrimSpace(call(t, dir, "rev-parse", "HEAD"))
			call(t, dir, "commit", "--quiet", "--allow-empty", "-m", "other")
			other := strings.TrimSpace(call(t, dir, "rev-parse", "HEAD"))
			object := func(id string) string { return filepath.Join(dir, ".git/objects", id[:2], id[2:]) }
			content, err := os.ReadFile(object(other))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(object(head)); err != nil {
				t.Fatal(err)
			}
			write(t, object(head), string(content))
			call(t, dir, "update-ref", "--no-deref", "HEAD", other)
			write(t, filepath.Join(dir, ".git/HEAD"), head+"\n")
			return dir
		}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("CANARY_SECRET", "do not tell")
			_, _, dir := makeRepository(t, map[string]string{"image/config.xml": "<image/>", ".gitattributes": "* filter=evil diff=evil\n"})
			t.Setenv("GIT_CEILING_DIRECTORIES", filepath.Dir(dir))
			c := newCanary(t)
			asked := tc.arm(t, dir, c)
			_ = os.Remove(c.ran) // making it may have had it run
			checkout, err := ReadCheckout(t.Context(), asked)
			c.check(t)
			if (checkout != nil) != tc.plain {
				t.Errorf("the checkout is %v (%v)", checkout, err)
			}
			head, headErr := Head(t.Context(), asked)
			c.check(t)
			if tc.plain && (headErr != nil || head != checkout.Commit) {
				t.Errorf("HEAD is %q (%v), want %q", head, headErr, checkout.Commit)
			}
			for _, err := range []error{err, headErr} {
				if err != nil && strings.Contains(err.Error(), "do not tell") {
					t.Errorf("the error tells what a file of the machine holds: %v", err)
				}
			}
			to := filepath.Join(t.TempDir(), "source")
			if head != "" {
				_ = Fetch(t.Context(), "file://"+asked, head, to)
				c.check(t)
			}
		})
	}
}

func fifo(t *testing.T, path string) {
	t.Helper()
	_ = os.Remove(path)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, target, path string) {
	t.Helper()
	_ = os.Remove(path)
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

// TestOrdinary reads repositories as people and runners have them.
func TestOrdinary(t *testing.T) {
	testenv.Tool(t, "git")
	tests := []struct {
		name string
		make func(t *testing.T, dir string) string // returns the top of the work tree
	}{
		{"loose", func(_ *testing.T, dir string) string { return dir }},
		{"packed", func(t *testing.T, dir string) string {
			call(t, dir, "gc", "--quiet", "--aggressive")
			return dir
		}},
		{"packed refs with an annotated tag", func(t *testing.T, dir string) string {
			call(t, dir, "tag", "-a", "v1", "-m", "v1")
			call(t, dir, "pack-refs", "--all")
			return dir
		}},
		{"detached", func(t *testing.T, dir string) string {
			call(t, dir, "checkout", "--quiet", "--detach")
			return dir
		}},
		{"linked work tree", func(t *testing.T, dir string) string {
			tree := filepath.Join(t.TempDir(), "tree")
			call(t, dir, "worktree", "add", "--quiet", tree)
			return tree
		}},
		{"shallow clone", func(t *testing.T, dir string) string {
			clone := filepath.Join(t.TempDir(), "clone")
			call(t, dir, "clone", "--quiet", "--depth=1", "file://"+dir, clone)
			return clone
		}},
		{"partial clone", func(t *testing.T, dir string) string {
			call(t, dir, "config", "uploadpack.allowFilter", "true")
			clone := filepath.Join(t.TempDir(), "clone")
			call(t, dir, "clone", "--quiet", "--filter=blob:none", "file://"+dir, clone)
			return clone
		}},
		{"clone that shares objects", func(t *testing.T, dir string) string {
			clone := filepath.Join(t.TempDir(), "clone")
			call(t, dir, "clone", "--quiet", "--shared", dir, clone)
			return clone
		}},
		{"submodule", func(t *testing.T, dir string) string {
			above := t.TempDir()
			call(t, above, "init", "--quiet")
			call(t, above, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", "file://"+dir, "module")
			return filepath.Join(above, "module")
		}},
		{"split index", func(t *testing.T, dir string) string {
			call(t, dir, "update-index", "--split-index")
			return dir
		}},
		{"index version 4", func(t *testing.T, dir string) string {
			call(t, dir, "update-index", "--index-version", "4")
			return dir
		}},
		{"sparse index", func(t *testing.T, dir string) string {
			call(t, dir, "sparse-checkout", "set", "--cone", "--sparse-index", "image")
			return dir
		}},
		{"commit graph", func(t *testing.T, dir string) string {
			call(t, dir, "commit-graph", "write", "--reachable")
			return dir
		}},
		{"path with odd characters", func(t *testing.T, dir string) string {
			odd := filepath.Join(t.TempDir(), "\"a\nb\\ #")
			if err := os.Rename(dir, odd); err != nil {
				t.Fatal(err)
			}
			return odd
		}},
		{"signed commit", func(t *testing.T, dir string) string {
			signed(t, dir, pgpSignature)
			return dir
		}},
	}
	for _, format := range []string{"sha1", "sha256"} {
		for _, tc := range tests {
			t.Run(format+"/"+tc.name, func(t *testing.T) {
				t.Setenv("GIT_DEFAULT_HASH", format)
				_, _, dir := makeRepository(t, map[string]string{"image/config.xml": "<image/>", "image/root/etc/motd": "x", "other/file": "y", "imagelike": "z"})
				call(t, dir, "commit", "--quiet", "--allow-empty", "-m", "another")
				top := tc.make(t, dir)
				want := strings.TrimSpace(call(t, top, "rev-parse", "HEAD"))
				checkout, err := ReadCheckout(t.Context(), filepath.Join(top, "image"))
				if err != nil || checkout == nil {
					t.Fatalf("the checkout is %v (%v)", checkout, err)
				}
				if checkout.Commit != want || checkout.Path != "image" || checkout.Top != top {
					t.Errorf("it is %s at %q of %s, want %s", checkout.Commit, checkout.Path, checkout.Top, want)
				}
				if got, want := checkout.Epoch, strings.TrimSpace(call(t, top, "log", "-1", "--format=%ct")); want != strconv.FormatInt(got, 10) {
					t.Errorf("the time is %d, want %s", got, want)
				}
				if len(checkout.Tracked) != 4 || checkout.Tracked["config.xml"] != 0o644 || checkout.Tracked["root/etc/motd"] != 0o644 {
					t.Errorf("tracked is %v", checkout.Tracked)
				}
				whole, err := ReadCheckout(t.Context(), top)
				if err != nil || whole.Path != "." || whole.Tracked["imagelike"] != 0o644 || whole.Tracked["other/file"] != 0o644 {
					t.Errorf("the whole checkout is %v (%v)", whole, err)
				}
				if head, err := Head(t.Context(), top); err != nil || head != want {
					t.Errorf("HEAD is %q (%v), want %q", head, err, want)
				}
				if strings.Contains(top, "\n") || tc.name == "partial clone" { // its files are elsewhere
					return
				}
				to := filepath.Join(t.TempDir(), "source")
				if err := Fetch(t.Context(), "file://"+top, want, to); err != nil {
					t.Fatal(err)
				}
				if content, err := os.ReadFile(filepath.Join(to, "image/config.xml")); err != nil || string(content) != "<image/>" {
					t.Errorf("what is fetched has the config.xml %q (%v)", content, err)
				}
			})
		}
	}
}

// TestOwner reads a repository of somebody else's, as a job in a container has it.
func TestOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root gives files to somebody else")
	}
	_, commit, dir := makeRepository(t, map[string]string{"file": "x"})
	for _, path := range []string{dir, filepath.Join(dir, ".git")} {
		if err := os.Chown(path, 12345, 12345); err != nil {
			t.Fatal(err)
		}
	}
	checkout, err := ReadCheckout(t.Context(), dir)
	if err != nil || checkout == nil || checkout.Commit != commit {
		t.Errorf("the checkout is %v (%v)", checkout, err)
	}
}
