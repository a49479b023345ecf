package source

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/org/attestable-image-action/internal/untrusted"
)

// Bounds of what is read of a repository, in bytes and files.
const (
	maxRefBytes     = 64 << 10
	maxCopiedBytes  = 1 << 30
	maxSymbolicRefs = 5
)

// repository is where git keeps what it knows of a work tree. Nothing in it was ever
// given to git: its configuration names programs.
type repository struct {
	top    string // of the work tree: an absolute path without links; "" for a bare repository
	own    string // path of HEAD and the index: .git, or that of a linked work tree
	shared string // path of objects and refs
}

// errNotRepository is what a .git file ends with that leads nowhere.
var errNotRepository = errors.New("its file .git does not lead to a repository")

// findRepository looks for the work tree that a directory is in, as git does: .git in
// the directory, and in those above it. A directory that looks like a repository itself
// is none. It returns nil when there is no work tree, and the path of the directory
// without links.
func findRepository(dir string) (r *repository, physical string, err error) {
	if physical, err = filepath.Abs(dir); err == nil {
		physical, err = filepath.EvalSymlinks(physical)
	}
	if err != nil {
		return nil, "", err
	}
	for at := physical; ; at = filepath.Dir(at) {
		git := filepath.Join(at, ".git")
		info, err := os.Stat(git)
		switch {
		case err != nil:
		case info.IsDir():
			if r, err := openRepository(git); err == nil {
				r.top = at
				return r, physical, nil
			}
		case info.Mode().IsRegular():
			own, err := pointer(at, ".git", "gitdir: ")
			if err != nil {
				return nil, "", err
			}
			r, err := openRepository(own)
			if err != nil {
				return nil, "", errNotRepository
			}
			r.top = at
			return r, physical, nil
		}
		if at == filepath.Dir(at) || isCeiling(filepath.Dir(at)) {
			return nil, physical, nil
		}
	}
}

// isCeiling reports whether the search shall not go up into a directory, see
// GIT_CEILING_DIRECTORIES in git(1).
func isCeiling(dir string) bool {
	return slices.ContainsFunc(filepath.SplitList(os.Getenv("GIT_CEILING_DIRECTORIES")), func(ceiling string) bool {
		if physical, err := filepath.EvalSymlinks(ceiling); err == nil {
			ceiling = physical
		}
		return filepath.IsAbs(ceiling) && filepath.Clean(ceiling) == dir
	})
}

// pointer reads a file of git's that holds a path, which is relative to the file's
// directory.
func pointer(dir, name, prefix string) (string, error) {
	content, err := readFile(dir, name, maxRefBytes)
	if err != nil {
		return "", err
	}
	target, ok := strings.CutPrefix(strings.TrimRight(string(content), "\r\n"), prefix)
	if !ok || target == "" || strings.ContainsAny(target, "\x00\n") {
		return "", errNotRepository
	}
	if !filepath.IsAbs(target) {
		target = filepath.Join(dir, target)
	}
	return filepath.Clean(target), nil
}

// readFile reads a file in a directory of a repository.
func readFile(dir, name string, limit int64) ([]byte, error) {
	tree, err := untrusted.Dir(dir)
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	return untrusted.ReadFile(tree, name, limit)
}

// openRepository opens the repository at a path, see gitrepository-layout(5).
func openRepository(path string) (*repository, error) {
	r := &repository{own: path, shared: path}
	shared, err := pointer(path, "commondir", "")
	switch {
	case err == nil:
		r.shared = shared
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	for _, name := range []string{"objects", "refs"} {
		if info, err := os.Stat(filepath.Join(r.shared, name)); err != nil || !info.IsDir() {
			return nil, errors.New("it has no " + name)
		}
	}
	head, err := readFile(r.own, "HEAD", maxRefBytes)
	if err != nil {
		return nil, err
	}
	if _, _, err := parseRef(head); err != nil {
		return nil, err
	}
	return r, nil
}

// parseRef reads a ref's file: the name of an object, or that of another ref. The error
// does not repeat it: it may be any file of the machine.
func parseRef(content []byte) (id, name string, err error) {
	text := strings.TrimSpace(string(content))
	if name, ok := strings.CutPrefix(text, "ref:"); ok {
		name = strings.TrimSpace(name)
		if !strings.HasPrefix(name, "refs/") || !fs.ValidPath(name) || strings.ContainsFunc(name, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
			return "", "", errors.New("a ref of the repository names no other ref")
		}
		return "", name, nil
	}
	if !commitForm().MatchString(text) {
		return "", "", errors.New("a ref of the repository holds neither an object's name nor another ref's")
	}
	return text, "", nil
}

// head is the name of the commit that is checked out, "" when there is none yet.
func (r *repository) head(ctx context.Context) (string, error) {
	if info, err := os.Stat(filepath.Join(r.shared, "reftable")); err == nil && info.IsDir() {
		return r.headOfTables(ctx)
	}
	dir, name := r.own, "HEAD"
	for range maxSymbolicRefs {
		content, err := readFile(dir, name, maxRefBytes)
		if errors.Is(err, fs.ErrNotExist) {
			return r.packed(name)
		}
		if err != nil {
			return "", err
		}
		id, next, err := parseRef(content)
		if id != "" || err != nil {
			return id, err
		}
		dir, name = r.shared, next
	}
	return "", errors.New("the refs of the repository lead around in a circle")
}

// packed looks a ref up among those that git has packed.
func (r *repository) packed(ref string) (string, error) {
	tree, err := untrusted.Dir(r.shared)
	if err != nil {
		return "", err
	}
	defer tree.Close()
	file, err := tree.Open("packed-refs")
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if id, name, ok := strings.Cut(lines.Text(), " "); ok && name == ref && commitForm().MatchString(id) {
			return id, nil
		}
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("read packed-refs: %w", err)
	}
	return "", nil
}

// shadow makes a repository in the new directory dir that has the same objects, and
// whose HEAD is as given: a commit, or what this repository's holds. Its configuration is
// ours, and it has no hooks: git may be asked about it.
func (r *repository) shadow(dir, head, config string) error {
	for _, path := range []string{dir, filepath.Join(dir, "refs"), filepath.Join(dir, "objects"), filepath.Join(dir, "objects", "info")} {
		if err := os.Mkdir(path, 0o700); err != nil {
			return err
		}
	}
	for name, content := range map[string]string{
		"HEAD":                    head + "\n",
		"config":                  "[core]\n\tbare = true\n\trepositoryformatversion = 1\n" + config,
		"objects/info/alternates": alternate(filepath.Join(r.shared, "objects")) + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// formatOf is the configuration of a repository whose objects are named like one.
func formatOf(id string) string {
	if len(id) == 64 {
		return "[extensions]\n\tobjectformat = sha256\n"
	}
	return ""
}

// headOfTables is head where the refs are kept in reftables, which git itself reads.
func (r *repository) headOfTables(ctx context.Context) (string, error) {
	scratch, err := os.MkdirTemp("", "attestable-image-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(scratch)
	// Which hash the objects' names are is written in the tables, too, but git believes
	// its configuration.
	for _, format := range []string{"", "\tobjectformat = sha256\n"} {
		main := filepath.Join(scratch, "repository"+strconv.Itoa(len(format)))
		err := r.shadow(main, "ref: refs/heads/.invalid", "[extensions]\n\trefstorage = reftable\n"+format)
		if err == nil {
			err = copyTables(r.shared, main)
		}
		dir := main
		if err == nil && r.own != r.shared {
			dir = filepath.Join(main, "worktrees", "own")
			if err = os.MkdirAll(dir, 0o700); err == nil {
				err = os.WriteFile(filepath.Join(dir, "commondir"), []byte("../..\n"), 0o600)
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, "HEAD"), []byte("ref: refs/heads/.invalid\n"), 0o600)
			}
			if err == nil {
				err = copyTables(r.own, dir)
			}
		}
		if err != nil {
			return "", err
		}
		g := git{dir: dir, repository: dir, timeout: questionTimeout}
		if _, err := g.run(ctx, "for-each-ref", "--count=1"); err != nil {
			if format == "" {
				continue
			}
			return "", fmt.Errorf("its refs are in reftables, which git 2.45 and later read: %w", err)
		}
		out, err := g.run(ctx, "rev-parse", "--verify", "--quiet", "HEAD")
		if err != nil {
			return "", nil //nolint:nilerr // there is no commit yet
		}
		id, _, err := parseRef(out)
		return id, err
	}
	return "", nil
}

// copyTables copies the reftables of a repository.
func copyTables(from, to string) error {
	to = filepath.Join(to, "reftable")
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	return copyFiles(filepath.Join(from, "reftable"), to, func(string) bool { return true })
}

// alternate writes the path of a directory with objects as git reads it.
func alternate(path string) string {
	if !strings.ContainsAny(path, "\n") && !strings.HasPrefix(path, `"`) {
		return path
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(path) + `"`
}

// copyFiles copies the files whose names fit from a directory of the repository into
// another one.
func copyFiles(from, to string, fits func(name string) bool) error {
	tree, err := untrusted.Dir(from)
	if err != nil {
		return err
	}
	defer tree.Close()
	entries, err := tree.ReadDir(".")
	if err != nil {
		return err
	}
	left := int64(maxCopiedBytes)
	for _, entry := range entries {
		if !fits(entry.Name()) {
			continue
		}
		in, err := tree.Open(entry.Name())
		if err != nil {
			return err
		}
		n, err := copyFile(in, filepath.Join(to, entry.Name()), left)
		_ = in.Close()
		if err != nil {
			return err
		}
		left -= n
	}
	return nil
}

// copyFile copies at most limit bytes into a new file.
func copyFile(in io.Reader, to string, limit int64) (int64, error) {
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // in a directory of ours
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(out, io.LimitReader(in, limit+1))
	if err == nil && n > limit {
		err = fmt.Errorf("the repository's index or refs are larger than %d bytes", maxCopiedBytes)
	}
	return n, errors.Join(err, out.Close())
}
