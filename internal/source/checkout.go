package source

import (
	"bytes"
	"context"
	"crypto/sha1" //nolint:gosec // the names of git's objects
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// Checkout is what git knows of a directory in a work tree.
type Checkout struct {
	Commit string // that is checked out, in hex
	Epoch  int64  // committer's time of Commit, in seconds since 1970
	Top    string // of the work tree: an absolute path
	Path   string // of the directory, relative to Top, with slashes; "." is Top itself
	// Tracked are the permissions of what is tracked in the directory, by path: 0644
	// or 0755 for a file. A checkout's own follow the umask of whoever made it.
	Tracked map[string]fs.FileMode
}

// ReadCheckout reads what git knows of a directory. It returns nil when the directory is
// in no work tree, has no commit yet, or when there is no git.
//
// git gets to see the objects and the index of the repository, and neither its
// configuration nor anything else in it that could name a program. So it does not matter
// whose the repository is.
func ReadCheckout(ctx context.Context, dir string) (*Checkout, error) {
	if _, err := exec.LookPath("git"); err != nil {
		return nil, nil //nolint:nilnil // documented
	}
	fail := func(err error) (*Checkout, error) {
		return nil, fmt.Errorf("ask git for the commit of %s: %w", dir, err)
	}
	r, physical, err := findRepository(dir)
	if err != nil {
		return fail(err)
	}
	if r == nil {
		return nil, nil //nolint:nilnil // documented
	}
	below, err := filepath.Rel(r.top, physical)
	if err != nil {
		return fail(err)
	}
	c := &Checkout{Top: r.top, Path: filepath.ToSlash(below)}
	if c.Commit, err = r.head(ctx); err != nil {
		return fail(err)
	}
	if c.Commit == "" {
		return nil, nil //nolint:nilnil // documented
	}
	scratch, err := os.MkdirTemp("", "attestable-image-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(scratch)
	shadow := filepath.Join(scratch, "repository")
	if err := r.shadow(shadow, c.Commit, formatOf(c.Commit)); err != nil {
		return fail(err)
	}
	// A part of the index may be in files of its own.
	isIndex := func(name string) bool { return name == "index" || strings.HasPrefix(name, "sharedindex.") }
	if err := copyFiles(r.own, shadow, isIndex); err != nil {
		return fail(err)
	}
	g := git{dir: shadow, repository: shadow, timeout: questionTimeout}
	object, err := g.run(ctx, "cat-file", "commit", c.Commit)
	if err != nil {
		return fail(err)
	}
	if c.Epoch, err = commitTime(c.Commit, object); err != nil {
		return nil, fmt.Errorf("ask git for the time of the commit of %s: %w", dir, err)
	}
	list, err := g.run(ctx, "--literal-pathspecs", "ls-files", "--stage", "-z", "--", c.Path)
	if err == nil {
		c.Tracked, err = parseTracked(list, c.Path)
	}
	if err != nil {
		return nil, fmt.Errorf("ask git for the files of %s: %w", dir, err)
	}
	return c, nil
}

// commitTime is the committer's time of a commit, in seconds since 1970. The object has
// to be the one with that name: whoever made the repository may have put another there.
func commitTime(commit string, object []byte) (int64, error) {
	sum := sha1.New() //nolint:gosec // as above
	if len(commit) == 64 {
		sum = sha256.New()
	}
	fmt.Fprintf(sum, "commit %d\x00", len(object))
	sum.Write(object)
	if hex.EncodeToString(sum.Sum(nil)) != commit {
		return 0, fmt.Errorf("the repository has another object under the name of %s", commit)
	}
	header, _, _ := bytes.Cut(object, []byte("\n\n"))
	for line := range bytes.Lines(header) {
		committer, ok := strings.CutPrefix(string(line), "committer ")
		if !ok {
			continue
		}
		fields := strings.Fields(committer[strings.LastIndex(committer, ">")+1:])
		if len(fields) == 0 {
			break
		}
		epoch, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil {
			break
		}
		return epoch, nil
	}
	return 0, errors.New("the commit does not say when it was made")
}

// parseTracked reads what `git ls-files --stage -z` prints of a directory: MODE OBJECT
// STAGE, a tab and the path from the top, ended by a zero byte.
func parseTracked(list []byte, dir string) (map[string]fs.FileMode, error) {
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
		if dir != "." {
			if name, ok = strings.CutPrefix(name, dir+"/"); !ok {
				continue // a file or a submodule in place of the directory
			}
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
