// Package untrusted reads directories whose content somebody else chose: a description,
// an overlay, a checkout, what a container left behind.
//
// No symbolic link leads out of such a directory, and nothing but regular files and
// directories is opened: a FIFO would block whoever opens it, and a device would act.
// What a file holds stays as hostile as it was.
package untrusted

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxEntries bounds the entries of one directory.
const maxEntries = 1 << 20

// ErrNotFile is what opening ends with where there is something, and it is neither a
// regular file nor a directory.
var ErrNotFile = errors.New("it is neither a file nor a directory")

// ErrOutside is what opening ends with where a symbolic link leads out of the directory.
var ErrOutside = errors.New("a symbolic link that leads out of its directory, or around in a circle")

// Tree is a directory whose files may be opened. Its methods make it an fs.ReadLinkFS.
type Tree struct{ root *os.Root }

// Dir opens the directory at a path of the caller's, which may be a symbolic link. What
// it holds does not matter to the path: the directory stays the one that was opened.
func Dir(path string) (*Tree, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	return &Tree{root}, nil
}

// Dir opens a directory of the tree as a tree of its own.
func (t *Tree) Dir(name string) (*Tree, error) {
	root, err := t.root.OpenRoot(name)
	if err != nil {
		return nil, explain(t, name, err)
	}
	return &Tree{root}, nil
}

// Close gives the directory free.
func (t *Tree) Close() error { return t.root.Close() }

// Open opens a regular file or a directory for reading.
func (t *Tree) Open(name string) (fs.File, error) {
	info, err := t.Stat(name)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (fs.File, error) { return nil, &fs.PathError{Op: "open", Path: name, Err: err} }
	if !plain(info) {
		return fail(ErrNotFile)
	}
	// It may have become a FIFO since.
	file, err := t.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, explain(t, name, err)
	}
	now, err := file.Stat()
	if err == nil && !plain(now) {
		err = ErrNotFile
	}
	if err != nil {
		_ = file.Close()
		return fail(err)
	}
	return file, nil
}

func plain(info fs.FileInfo) bool { return info.Mode().IsRegular() || info.IsDir() }

// Stat describes a file, or what a symbolic link leads to.
func (t *Tree) Stat(name string) (fs.FileInfo, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: fs.ErrInvalid}
	}
	info, err := t.root.Stat(name)
	if err != nil {
		return nil, explain(t, name, err)
	}
	return info, nil
}

// Lstat describes a file, which may be a symbolic link.
func (t *Tree) Lstat(name string) (fs.FileInfo, error) { return t.root.Lstat(name) }

// ReadLink returns where a symbolic link leads.
func (t *Tree) ReadLink(name string) (string, error) { return t.root.Readlink(name) }

// ReadDir lists a directory, sorted by name.
func (t *Tree) ReadDir(name string) ([]fs.DirEntry, error) {
	file, err := t.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	dir, ok := file.(fs.ReadDirFile)
	if !ok {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: errors.New("it is no directory")}
	}
	entries, err := dir.ReadDir(maxEntries + 1)
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return nil, err
	case len(entries) > maxEntries:
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: fmt.Errorf("it has more than %d entries", maxEntries)}
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, nil
}

// explain says of a failure that a symbolic link is the reason, if it is.
func explain(t *Tree, name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for at := name; at != "."; at = path.Dir(at) {
		if info, statErr := t.root.Lstat(at); statErr == nil && info.Mode()&fs.ModeSymlink != 0 {
			return &fs.PathError{Op: "open", Path: name, Err: fmt.Errorf("%s is %w", at, ErrOutside)}
		}
	}
	return err
}

// ReadFile reads a regular file of at most limit bytes.
func ReadFile(tree fs.FS, name string, limit int64) ([]byte, error) {
	file, err := tree.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: name, Err: errors.New("it is no file")}
	}
	content, err := io.ReadAll(io.LimitReader(file, limit+1))
	switch {
	case err != nil:
		return nil, err
	case int64(len(content)) > limit:
		return nil, fmt.Errorf("%s is larger than %d bytes", path.Base(name), limit)
	}
	return content, nil
}
