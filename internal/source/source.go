// Package source reads what git knows of a directory, and checks out one commit of a git
// repository. Nobody trusts either yet; git is used as a program.
//
// A commit's name is the hash of what it holds, so it does not matter where it comes
// from. What comes with it is kept from acting: no hooks, no configuration but the
// options here, no submodules, no filters, and no protocol but HTTPS and, for a
// repository that is named by a file: URL, this machine's files.
//
// A repository's own configuration can name programs in more ways than options can close,
// so that git never reads it: it is asked about a repository that this package makes,
// with the same objects, see docs/decisions/0041.
package source

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/org/attestable-image-action/internal/lazyregexp"
)

// Bounds of a checkout: what is fetched and checked out together in bytes, and the
// time that each call of git may take.
const (
	maxBytes     = 16 << 30
	fetchTimeout = 30 * time.Minute
	watchEvery   = time.Second
)

// Bounds of a question about a repository on this machine: its time, and what git says
// in bytes.
const (
	questionTimeout = time.Minute
	maxAnswer       = 256 << 20
)

// commitForm is the name of a commit: SHA-1, or SHA-256.
var commitForm = lazyregexp.New(`^([0-9a-f]{40}|[0-9a-f]{64})$`)

// Fetch checks a commit (40 or 64 lower-case hex digits) of the repository at an
// https: or file: URL out into dir, which must not exist. Submodules stay empty, and
// what Git LFS keeps stays a pointer.
func Fetch(ctx context.Context, repository, commit, dir string) error {
	fail := func(err error) error {
		return fmt.Errorf("check out %s at %s: %w", repository, commit, err)
	}
	if !commitForm().MatchString(commit) {
		return fail(errors.New("this is no commit: a commit has 40 or 64 hex digits"))
	}
	u, err := url.Parse(repository)
	switch {
	case err != nil:
		return fail(err)
	case u.Scheme == "https" && u.Host != "" && u.User == nil:
	case u.Scheme == "file" && u.Host == "" && filepath.IsAbs(u.Path):
	default:
		return fail(errors.New("the source is fetched from https://HOST/PATH or file:///PATH, and from nowhere else"))
	}
	from := repository
	if u.Scheme == "file" {
		shadow, err := local(u.Path, commit)
		if err != nil {
			return fail(err)
		}
		defer os.RemoveAll(filepath.Dir(shadow))
		from = shadow
	}
	if dir, err = filepath.Abs(dir); err == nil {
		err = os.Mkdir(dir, 0o700)
	}
	if err != nil {
		return fail(err)
	}
	g := git{dir: dir, scheme: u.Scheme}
	format := "sha1"
	if len(commit) == 64 {
		format = "sha256"
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go watch(ctx, stop, dir, maxBytes)
	for _, args := range [][]string{
		{"init", "--quiet", "--template=", "--object-format=" + format},
		{"fetch", "--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head", "--end-of-options", from, commit},
		{"checkout", "--quiet", "--detach", "--no-recurse-submodules", commit},
	} {
		if _, err := g.run(ctx, args...); err != nil {
			return fail(err)
		}
	}
	head, err := Head(ctx, dir)
	if err != nil {
		return fail(err)
	}
	if head != commit {
		return fail(fmt.Errorf("git checked out %s", head))
	}
	return nil
}

// local makes a repository that git may be given in place of one on this machine, in a
// new directory. On the other side of a fetch git would read that one's configuration.
func local(path, commit string) (string, error) {
	var r *repository
	for _, candidate := range []string{path, path + ".git"} {
		if top, _, err := findRepository(candidate); err == nil && top != nil && sameFile(top.top, candidate) {
			r = top
			break
		}
		if bare, err := openRepository(candidate); err == nil {
			r = bare
			break
		}
	}
	if r == nil {
		return "", fmt.Errorf("there is no git repository at %s", path)
	}
	scratch, err := os.MkdirTemp("", "attestable-image-")
	if err != nil {
		return "", err
	}
	shadow := filepath.Join(scratch, "repository")
	err = r.shadow(shadow, commit, formatOf(commit))
	if err == nil {
		// What came before the commit is not asked for, and may not be there.
		err = os.WriteFile(filepath.Join(shadow, "shallow"), []byte(commit+"\n"), 0o600)
	}
	if err != nil {
		_ = os.RemoveAll(scratch)
		return "", err
	}
	return shadow, nil
}

func sameFile(a, b string) bool {
	first, err := os.Stat(a)
	if err != nil {
		return false
	}
	second, err := os.Stat(b)
	return err == nil && os.SameFile(first, second)
}

// Head is the commit that a directory is checked out at, "" when it is in no work tree
// of git, or has no commit.
func Head(ctx context.Context, dir string) (string, error) {
	r, _, err := findRepository(dir)
	if err == nil && r == nil {
		return "", nil
	}
	commit := ""
	if err == nil {
		commit, err = r.head(ctx)
	}
	if err != nil {
		return "", fmt.Errorf("read the commit of %s: %w", dir, err)
	}
	return commit, nil
}

// git calls git in a directory.
type git struct {
	dir        string
	repository string        // that it is asked about, "" for that of dir
	scheme     string        // protocol that it may use, "" for none
	timeout    time.Duration // of each call, 0 for fetchTimeout
}

// run returns what git prints. The error has git's own first line.
func (g *git) run(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(g.timeout, fetchTimeout))
	defer cancel()
	options := []string{
		"-C", g.dir,
		"-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "core.untrackedCache=false",
		"-c", "protocol.allow=never", "-c", "submodule.recurse=false", "-c", "credential.helper=",
		"-c", "fetch.fsckObjects=true", "-c", "maintenance.auto=false", "-c", "gc.auto=0", "-c", "http.followRedirects=initial",
	}
	if g.scheme != "" {
		options = append(options, "-c", "protocol."+g.scheme+".allow=always")
	}
	cmd := exec.CommandContext(ctx, "git", append(options, args...)...) //nolint:gosec // git; what is the source's stands behind --end-of-options, or is hex
	stdout, stderr := bounded{limit: maxAnswer}, bounded{limit: maxAnswer}
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = g.environment()
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	if err == nil {
		return stdout.Bytes(), nil
	}
	if cause := context.Cause(ctx); cause != nil {
		return nil, cause
	}
	if stdout.full || stderr.full {
		return nil, fmt.Errorf("git answers with more than %d bytes", maxAnswer)
	}
	if first, _, _ := strings.Cut(strings.TrimSpace(stderr.String()), "\n"); first != "" {
		return nil, fmt.Errorf("git says %.300q: %w", first, err)
	}
	return nil, err
}

// bounded keeps what is written to it, up to a limit in bytes.
type bounded struct {
	bytes.Buffer
	limit int
	full  bool
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.full = b.full || len(p) > b.limit-b.Len(); b.full {
		return 0, errors.New("the answer is too large")
	}
	return b.Buffer.Write(p)
}

// environment is that of this process without what would lead git elsewhere, have it
// read a configuration, or make it ask a person.
func (g *git) environment() []string {
	var env []string
	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		drop := strings.HasPrefix(name, "GIT_") || strings.HasPrefix(name, "SSH_") || name == "HOME" || name == "XDG_CONFIG_HOME"
		if !drop || name == "GIT_SSL_CAINFO" || name == "GIT_SSL_CAPATH" {
			env = append(env, variable)
		}
	}
	env = append(env,
		"LC_ALL=C", "GIT_OPTIONAL_LOCKS=0", "GIT_TERMINAL_PROMPT=0", "GIT_ASKPASS=/bin/false", "GIT_LFS_SKIP_SMUDGE=1",
		"GIT_NO_LAZY_FETCH=1", "GIT_NO_REPLACE_OBJECTS=1", "GIT_PAGER=cat", "GIT_EDITOR=/bin/false",
		"HOME=/nonexistent", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_ATTR_NOSYSTEM=1",
	)
	// Never one above, and never one that the directory itself looks like.
	if g.repository != "" {
		return append(env, "GIT_DIR="+g.repository)
	}
	return append(env, "GIT_DIR="+filepath.Join(g.dir, ".git"))
}

// watch ends a checkout that grows beyond limit bytes, until ctx is done: a small pack
// can hold a very large tree.
func watch(ctx context.Context, stop context.CancelCauseFunc, dir string, limit int64) {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if sizeOf(ctx, dir) > limit {
			stop(fmt.Errorf("it is larger than %d GiB", limit>>30))
			return
		}
	}
}

// sizeOf is the size of the files in a directory that is being written, in bytes.
func sizeOf(ctx context.Context, dir string) int64 {
	var size int64
	_ = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return fs.SkipAll
		}
		if err != nil {
			return nil //nolint:nilerr // it is gone again
		}
		if info, err := entry.Info(); err == nil && info.Mode().IsRegular() {
			size += info.Size()
		}
		return nil
	})
	return size
}
