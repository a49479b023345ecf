package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// directory is a directory that was read. A listing of it and the kernel's lookup
// of a name go different ways through a directory: a hash index, an index of
// names, bisection. A file system that was made to deceive answers differently on
// each.
type directory interface {
	// list calls yield for each entry except "." and "..", in the order of the
	// disk, until it fails. It says whether find comes to the same.
	list(yield func(dirent) error) (agreement, error)
	// find looks a name up on the way that the kernel goes when a path is opened.
	// The error is fs.ErrNotExist when the kernel finds nothing.
	find(name string) (dirent, error)
}

// search returns the first entry with a name among those that list yields. The error is
// fs.ErrNotExist when there is none.
func search(name string, list func(yield func(dirent) error) error) (dirent, error) {
	var found dirent
	err := list(func(e dirent) error {
		if e.name == name {
			found = e
			return errFound
		}
		return nil
	})
	if errors.Is(err, errFound) {
		return found, nil
	}
	if err == nil {
		err = fs.ErrNotExist
	}
	return dirent{}, err
}

// agreement says how what find finds goes with what list yields.
type agreement int

const (
	agrees   agreement = iota // find comes to each entry, and to no other
	unproven                  // find comes to no other entry, and perhaps not to each
	differs                   // find may come to entries that are not listed
)

// NamesError says that the kernel's lookup by name and a listing of a directory
// do not come to the same files: a program that opens a path sees another file
// system than one that lists a directory.
type NamesError struct {
	// Reason says which name, and what is found instead, as a clause.
	Reason string
}

func (e *NamesError) Error() string {
	return "the kernel's lookup by name and a listing disagree: " + e.Reason
}

// maxDirectories bounds how many directories are kept in memory.
const maxDirectories = 64

// directory reads a directory, or takes it from those that were read last.
func (f *Filesystem) directory(node *inode) (directory, error) {
	if !node.mode.IsDir() {
		return nil, unix.ENOTDIR
	}
	f.mu.Lock()
	d, ok := f.directories[node.id]
	f.mu.Unlock()
	if ok {
		return d, nil
	}
	if node.size > maxDirSize {
		return nil, fmt.Errorf("the directory of %d bytes is longer than %d", node.size, maxDirSize)
	}
	d, err := f.tree.directory(node)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.directories == nil || len(f.directories) >= maxDirectories || node.size > maxDirSize/maxDirectories {
		f.directories = map[uint64]directory{}
	}
	f.directories[node.id] = d
	return d, nil
}

// entryInode reads the inode that an entry names.
func (f *Filesystem) entryInode(e dirent) (*inode, error) {
	node, err := f.tree.inode(e.id)
	if err == nil && e.number != 0 && uint64(e.number) != node.stat.Inode {
		err = &NamesError{fmt.Sprintf("the directory gives %q the inode number %d, its inode %d, and the kernel keeps inodes by the former", e.name, e.number, node.stat.Inode)}
	}
	return node, err
}

// readDirectory lists what the kernel finds in a directory, sorted by name. When
// that is not what a listing shows, the error is a *NamesError, beside the entries;
// when the directory is damaged, the entries are those in front of the damage.
func (f *Filesystem) readDirectory(node *inode) ([]fs.DirEntry, error) {
	d, err := f.directory(node)
	if err != nil {
		return nil, err
	}
	var listed []dirent
	agreement, err := d.list(func(e dirent) error {
		if len(listed) == maxDirEntries {
			return fmt.Errorf("the directory has more than %d entries", maxDirEntries)
		}
		listed = append(listed, e)
		return nil
	})
	var names *NamesError
	disagree := func(format string, args ...any) {
		if names == nil {
			names = &NamesError{fmt.Sprintf(format, args...)}
		}
	}
	slices.SortStableFunc(listed, func(a, b dirent) int { return strings.Compare(a.name, b.name) })
	entries := make([]fs.DirEntry, 0, len(listed))
	for i, e := range listed {
		if i > 0 && e.name == listed[i-1].name {
			disagree("there are two entries named %q, and which one the kernel opens cannot be told", e.name)
			continue
		}
		if agreement != agrees {
			found, err := d.find(e.name)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				disagree("%q is listed, and the kernel does not find it", e.name)
				continue
			case err != nil:
				disagree("%q is listed, and what the kernel finds by that name cannot be told: %v", e.name, err)
				continue
			case found.id != e.id:
				disagree("%q is listed as inode %d, and the kernel finds inode %d", e.name, e.id, found.id)
			}
			e = found
		}
		entries = append(entries, dirEntry{f, e})
	}
	if agreement == differs {
		disagree("the directory is not in the order in which the kernel looks for names, so that it may find names that are not listed")
	}
	if names != nil {
		err = names
	}
	return entries, err
}

// ReadDir lists the directory at name, sorted by name: the entries that the
// kernel finds by their names. When it fails, the entries are those that were
// found all the same; a *NamesError says that a listing shows others.
func (f *Filesystem) ReadDir(name string) ([]fs.DirEntry, error) {
	node, err := f.lookup(name, true)
	var entries []fs.DirEntry
	if err == nil {
		entries, err = f.readDirectory(node)
	}
	if err != nil {
		err = &fs.PathError{Op: "readdir", Path: name, Err: err}
	}
	return entries, err
}

// ReadDir lists the directory as fs.ReadDirFile demands.
func (f *fsFile) ReadDir(n int) ([]fs.DirEntry, error) {
	if !f.listed {
		entries, err := f.filesystem.readDirectory(f.node)
		if err != nil {
			return nil, &fs.PathError{Op: "readdir", Path: f.name, Err: err}
		}
		f.entries, f.listed = entries, true
	}
	if n > 0 && len(f.entries) == 0 {
		return nil, io.EOF
	}
	if n <= 0 || n > len(f.entries) {
		n = len(f.entries)
	}
	entries := f.entries[:n]
	f.entries = f.entries[n:]
	return entries, nil
}

type dirEntry struct {
	filesystem *Filesystem
	dirent     dirent
}

func (e dirEntry) Name() string      { return e.dirent.name }
func (e dirEntry) IsDir() bool       { return e.dirent.kind.IsDir() }
func (e dirEntry) Type() fs.FileMode { return e.dirent.kind }
func (e dirEntry) Info() (fs.FileInfo, error) {
	node, err := e.filesystem.entryInode(e.dirent)
	if err == nil && node.mode.Type() != e.dirent.kind {
		err = &NamesError{fmt.Sprintf("%q is of type %v in its directory, and of type %v in its inode", e.dirent.name, e.dirent.kind, node.mode.Type())}
	}
	if err != nil {
		return nil, &fs.PathError{Op: "lstat", Path: e.dirent.name, Err: err}
	}
	return fileInfo{e.dirent.name, node}, nil
}
