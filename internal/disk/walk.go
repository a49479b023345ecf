package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
)

// maxInodes bounds a walk; the largest distributions have a twentieth of it.
const maxInodes = 16 << 20

// Walk calls visit for each file and directory below the root, in lexical
// order within a directory, without following symbolic links. The root itself
// is ".". What cannot be read is handed to visit with its error and a nil
// FileInfo, and the walk goes on. It ends with the first error of visit, or when
// the tree is no tree.
func (f *Filesystem) Walk(visit func(name string, info fs.FileInfo, err error) error) error {
	w := walk{f: f, visit: visit, seen: map[uint64]bool{}, numbers: map[uint64]uint64{}}
	node, err := f.tree.inode(f.tree.root())
	if err != nil {
		return visit(".", nil, err)
	}
	return w.directory(".", node)
}

type walk struct {
	f       *Filesystem
	visit   func(string, fs.FileInfo, error) error
	seen    map[uint64]bool   // directories
	numbers map[uint64]uint64 // the inodes of squashfs by the numbers under which the kernel keeps them
	count   int
}

func (w *walk) directory(name string, node *inode) error {
	// A directory in two places may contain itself.
	if w.seen[node.stat.Inode] {
		return w.visit(name, nil, fmt.Errorf("directory inode %d is in two places", node.stat.Inode))
	}
	if len(name) > 2*maxSymlink {
		return w.visit(name, nil, errors.New("its path is too long"))
	}
	w.seen[node.stat.Inode] = true
	if err := w.visit(name, fileInfo{path.Base(name), node}, nil); err != nil {
		return err
	}
	entries, err := w.f.readDirectory(node)
	if err != nil {
		if err := w.visit(name, nil, err); err != nil {
			return err
		}
	}
	for _, e := range entries {
		if w.count++; w.count > maxInodes {
			return fmt.Errorf("the file system has more than %d files", maxInodes)
		}
		at := path.Join(name, e.Name())
		info, err := e.Info()
		if err == nil {
			err = w.number(e.(dirEntry).dirent)
		}
		if err != nil {
			info = nil
		}
		if err == nil && info.IsDir() {
			err = w.directory(at, info.(fileInfo).node)
		} else {
			err = w.visit(at, info, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// number refuses a second inode of the same number: the kernel keeps inodes by
// their numbers, and gives the one that was asked for first.
func (w *walk) number(e dirent) error {
	if e.number == 0 {
		return nil
	}
	first, known := w.numbers[uint64(e.number)]
	if !known {
		w.numbers[uint64(e.number)] = e.id
	} else if first != e.id {
		return &NamesError{fmt.Sprintf("%q has the inode number %d of another file, and the kernel gives whichever was opened first", e.name, e.number)}
	}
	return nil
}

// Content returns a reader over the content of a regular file, or over the
// target of a symbolic link, that Walk came to. No path is looked up again, so that
// reading every file of a large directory stays cheap.
func (f *Filesystem) Content(info fs.FileInfo) (io.Reader, error) {
	i, ok := info.(fileInfo)
	if !ok {
		return nil, fmt.Errorf("read %q: it was not found in this file system", info.Name())
	}
	if mode := i.node.mode; !mode.IsRegular() && mode.Type() != fs.ModeSymlink {
		return nil, fmt.Errorf("read %q: a file of type %v has no content", info.Name(), mode.Type())
	}
	if i.node.size == 0 {
		return bytes.NewReader(nil), nil
	}
	content, err := f.tree.content(i.node)
	if err != nil {
		return nil, fmt.Errorf("read %q: %w", info.Name(), err)
	}
	return io.NewSectionReader(content, 0, i.node.size), nil
}
