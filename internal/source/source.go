// Package source checks out one commit of a git repository that nobody trusts yet,
// with git as a program.
//
// A commit's name is the hash of what it holds, so it does not matter where it comes
// from. What comes with it is kept from acting: no hooks, no configuration but the
// options here, no submodules, no filters, and no protocol but HTTPS and, for a
// repository that is named by a file: URL, this machine's files.
package source

import (
	"bytes"
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
	maxBytes   = 16 << 30
	gitTimeout = 30 * time.Minute
	watchEvery = time.Second
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
	if err := os.Mkdir(dir, 0o700); err != nil {
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
		{"fetch", "--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head", "--end-of-options", repository, commit},
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

// Head is the commit that a directory is checked out at, "" when it is in no work tree
// of git, or has no commit.
func Head(ctx context.Context, dir string) (string, error) {
	out, err := (&git{dir: dir, own: true}).run(ctx, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
	text := strings.TrimSpace(out)
	if err != nil {
		if _, ended := errors.AsType[*exec.ExitError](err); ended && ctx.Err() == nil {
			if strings.Contains(err.Error(), "dubious ownership") {
				return "", fmt.Errorf("ask git for the commit of %s: %w", dir, err)
			}
			return "", nil
		}
		return "", fmt.Errorf("ask git for the commit of %s: %w", dir, err)
	}
	if !commitForm().MatchString(text) {
		return "", fmt.Errorf("ask git for the commit of %s: %q is none", dir, text)
	}
	return text, nil
}

// git calls git in a directory.
type git struct {
	dir    string
	scheme string // protocol that it may use, "" for none
	own    bool   // the directory is the user's, and so is git's configuration
}

// run returns what git prints. The error has git's own first line.
func (g *git) run(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, gitTimeout)
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
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = g.environment()
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	if err == nil {
		return stdout.String(), nil
	}
	if cause := context.Cause(ctx); cause != nil {
		return "", cause
	}
	if first, _, _ := strings.Cut(strings.TrimSpace(stderr.String()), "\n"); first != "" {
		return "", fmt.Errorf("git says %q: %w", first, err)
	}
	return "", err
}

// environment is that of this process without what would lead git elsewhere, or make
// it ask a person.
func (g *git) environment() []string {
	var env []string
	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		keep := !strings.HasPrefix(name, "GIT_") && !strings.HasPrefix(name, "SSH_")
		if keep || name == "GIT_SSL_CAINFO" || name == "GIT_SSL_CAPATH" || name == "GIT_CEILING_DIRECTORIES" {
			env = append(env, variable)
		}
	}
	env = append(env, "LC_ALL=C", "GIT_OPTIONAL_LOCKS=0", "GIT_TERMINAL_PROMPT=0", "GIT_ASKPASS=/bin/false", "GIT_LFS_SKIP_SMUDGE=1")
	if !g.own {
		env = append(env, "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_ATTR_NOSYSTEM=1")
	}
	return env
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
