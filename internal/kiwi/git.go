package kiwi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"strconv"
	"strings"
	"time"
)

// gitTimeout bounds a question to git.
const gitTimeout = time.Minute

// Checkout is what git knows of a directory in a work tree.
type Checkout struct {
	Epoch int64  // committer's time of HEAD, in seconds since 1970
	Top   string // of the work tree: an absolute path
	Path  string // of the directory, relative to Top, with slashes; "." is Top itself
	// Tracked are the permissions of what is tracked in the directory, by path: 0644
	// or 0755 for a file. A checkout's own follow the umask of whoever made it.
	Tracked map[string]fs.FileMode
}

// ReadCheckout asks git about a directory. It returns nil when the directory is in
// no work tree, has no commit yet, or when there is no git.
func ReadCheckout(ctx context.Context, dir string) (*Checkout, error) {
	program, err := exec.LookPath("git")
	if err != nil {
		return nil, nil //nolint:nilnil // documented
	}
	git := func(args ...string) ([]byte, error) {
		ctx, cancel := context.WithTimeout(ctx, gitTimeout)
		defer cancel()
		// A program that watches the tree is none of those who only read it.
		cmd := exec.CommandContext(ctx, program, append([]string{"-C", dir, "-c", "core.fsmonitor=false"}, args...)...) //nolint:gosec // git, and arguments of ours
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		cmd.Env = append(os.Environ(), "LC_ALL=C", "GIT_OPTIONAL_LOCKS=0")
		out, err := cmd.Output()
		if err != nil {
			first, _, _ := strings.Cut(strings.TrimSpace(stderr.String()), "\n")
			if first == "" {
				first = err.Error()
			}
			return nil, errors.New(first)
		}
		return out, nil
	}
	top, err := git("rev-parse", "--show-toplevel")
	if err != nil {
		switch text := err.Error(); {
		case strings.Contains(text, "not a git repository (or any"):
			return nil, nil //nolint:nilnil // documented
		case strings.Contains(text, "dubious ownership"):
			return nil, fmt.Errorf("ask git for the commit of %s: %w: make the work tree this user's own, or name it with git config --global --add safe.directory", dir, err)
		default:
			return nil, fmt.Errorf("ask git for the commit of %s: %w", dir, err)
		}
	}
	if _, err := git("rev-parse", "--verify", "--quiet", "HEAD"); err != nil && ctx.Err() == nil {
		return nil, nil //nolint:nilnil // documented
	}
	out, err := git("log", "-1", "--format=%ct", "HEAD")
	if err != nil {
		return nil, fmt.Errorf("ask git for the time of the commit of %s: %w", dir, err)
	}
	epoch, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("ask git for the time of the commit of %s: %w", dir, err)
	}
	out, err = git("ls-files", "--stage", "-z")
	if err != nil {
		return nil, fmt.Errorf("ask git for the files of %s: %w", dir, err)
	}
	tracked, err := parseTracked(out)
	if err != nil {
		return nil, fmt.Errorf("ask git for the files of %s: %w", dir, err)
	}
	prefix, err := git("rev-parse", "--show-prefix")
	if err != nil {
		return nil, fmt.Errorf("ask git where %s is in its work tree: %w", dir, err)
	}
	return &Checkout{
		Epoch: epoch, Tracked: tracked,
		Top: strings.TrimSuffix(string(top), "\n"), Path: path.Clean(strings.TrimSuffix(string(prefix), "\n")),
	}, nil
}

// parseTracked reads what `git ls-files --stage -z` prints: MODE OBJECT STAGE, a tab
// and the path, ended by a zero byte.
func parseTracked(list []byte) (map[string]fs.FileMode, error) {
	tracked := map[string]fs.FileMode{}
	for entry := range bytes.SplitSeq(list, []byte{0}) {
		if len(entry) == 0 {
			continue
		}
		fields, name, ok := strings.Cut(string(entry), "\t")
		mode, _, _ := strings.Cut(fields, " ")
		if !ok {
			return nil, fmt.Errorf("%q is no entry of its index", entry)
		}
		switch mode {
		case "100644":
			tracked[name] = 0o644
		case "100755":
			tracked[name] = 0o755
		case "120000", "160000": // a link has no permissions, a submodule an index of its own
		default:
			return nil, fmt.Errorf("%q has the unknown mode %q", name, mode)
		}
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, known := tracked[dir]; known {
				break
			}
			tracked[dir] = fs.ModeDir | 0o755
		}
	}
	return tracked, nil
}
