package audit

import (
	"errors"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
)

// The file system that an initrd is unpacked to, in memory: what rootfs is after
// each of the calls that the kernel makes for an entry of an archive (Linux,
// init/initramfs.c and fs/init.c).

// Types of files, as in stat(2).
const (
	typeMask      = 0o170000
	typeLink      = 0o120000
	typeRegular   = 0o100000
	typeDirectory = 0o040000
)

// rootfsNode is a file. A hard link is one more name of it.
type rootfsNode struct {
	mode     uint32 // as in stat(2)
	uid, gid uint32
	modTime  time.Time
	device   uint64
	size     int64  // bytes
	content  []byte // of a symbolic link, and of a file where it was kept
	kept     bool
	digest   [32]byte               // of the content, SHA-256, when it was asked for
	children map[string]*rootfsNode // of a directory
	parent   *rootfsNode            // of a directory
	part     int                    // of the initrd that it came from last
	given    bool                   // by an archive, and not by the kernel
}

func (n *rootfsNode) kind() uint32 { return n.mode & typeMask }

func newDirectory(parent *rootfsNode, mode uint32) *rootfsNode {
	d := &rootfsNode{mode: typeDirectory | mode, children: map[string]*rootfsNode{}, parent: parent}
	if parent == nil {
		d.parent = d
	}
	return d
}

// rootfs begins as the kernel's own archive leaves it (usr/default_cpio_list).
type rootfs struct {
	root  *rootfsNode
	steps int // that paths may still take
}

// The errors of the kernel's calls that make a difference to nobody but people.
var (
	errNotDirectory = errors.New("not a directory")
	errTooManyLinks = errors.New("too many symbolic links")
	errNameTooLong  = errors.New("a name is longer than 255 bytes")
	errTooManySteps = errors.New("its paths are too long, or lead through too many symbolic links")
)

const (
	rootfsMaxLinks = 40  // that a path may lead through
	rootfsMaxName  = 255 // bytes
	rootfsMaxSteps = 1 << 26
)

func newRootfs() *rootfs {
	t := &rootfs{root: newDirectory(nil, 0o755), steps: rootfsMaxSteps}
	dev := newDirectory(t.root, 0o755)
	dev.children["console"] = &rootfsNode{mode: 0o020600, device: 5<<8 | 1}
	t.root.children["dev"] = dev
	t.root.children["root"] = newDirectory(t.root, 0o700)
	return t
}

// place is what all of a path but its last name leads to.
type rootfsPlace struct {
	dir   *rootfsNode
	last  string // "" where the path is empty or consists of slashes
	slash bool   // behind the last name
}

// special reports whether the last name is none of a file.
func (p rootfsPlace) special() bool { return p.last == "" || p.last == "." || p.last == ".." }

// walk goes along a path up to its last name.
func (t *rootfs) walk(dir *rootfsNode, name string, links *int) (rootfsPlace, error) {
	if strings.HasPrefix(name, "/") {
		dir = t.root
	}
	for rest := strings.TrimLeft(name, "/"); ; {
		at := strings.IndexByte(rest, '/')
		if at < 0 {
			return rootfsPlace{dir, rest, false}, nil
		}
		first, behind := rest[:at], strings.TrimLeft(rest[at:], "/")
		if behind == "" {
			return rootfsPlace{dir, first, true}, nil
		}
		next, err := t.final(rootfsPlace{dir, first, true}, true, links)
		if err != nil {
			return rootfsPlace{}, err
		}
		dir, rest = next, behind
	}
}

// final is the file that a place has.
func (t *rootfs) final(p rootfsPlace, follow bool, links *int) (*rootfsNode, error) {
	if t.steps--; t.steps < 0 {
		return nil, errTooManySteps
	}
	switch p.last {
	case "", ".":
		return p.dir, nil
	case "..":
		return p.dir.parent, nil
	}
	if len(p.last) > rootfsMaxName {
		return nil, errNameTooLong
	}
	node := p.dir.children[p.last]
	if node == nil {
		return nil, fs.ErrNotExist
	}
	if node.kind() == typeLink && (follow || p.slash) {
		if *links++; *links > rootfsMaxLinks {
			return nil, errTooManyLinks
		}
		next, err := t.walk(p.dir, string(node.content), links)
		if err != nil {
			return nil, err
		}
		if node, err = t.final(next, true, links); err != nil {
			return nil, err
		}
	}
	if p.slash && node.kind() != typeDirectory {
		return nil, errNotDirectory
	}
	return node, nil
}

// resolve is the file that a path leads to.
func (t *rootfs) resolve(name string, follow bool) (*rootfsNode, error) {
	links := 0
	p, err := t.walk(t.root, name, &links)
	if err != nil {
		return nil, err
	}
	return t.final(p, follow, &links)
}

// clean removes what is at a path when it is of another type than mode has; a
// directory only when it is empty.
func (t *rootfs) clean(name string, mode uint32) {
	node, err := t.resolve(name, false)
	if err != nil || (node.mode^mode)&typeMask == 0 {
		return
	}
	links := 0
	p, err := t.walk(t.root, name, &links)
	if err != nil || p.special() {
		return
	}
	found := p.dir.children[p.last] // without following it
	switch {
	case found == nil || found != node:
	case node.kind() == typeDirectory && len(node.children) == 0, node.kind() != typeDirectory && !p.slash:
		delete(p.dir.children, p.last)
	}
}

// create makes a file, or returns the one that is there. The kernel opens it with
// O_CREAT, after clean: so it is no symbolic link.
func (t *rootfs) create(name string) *rootfsNode {
	links := 0
	p, err := t.walk(t.root, name, &links)
	if err != nil || p.special() || p.slash || len(p.last) > rootfsMaxName {
		return nil
	}
	if node := p.dir.children[p.last]; node != nil {
		if node.kind() != typeRegular {
			return nil
		}
		return node
	}
	node := &rootfsNode{mode: typeRegular, kept: true}
	p.dir.children[p.last] = node
	return node
}

// add puts a new file at a path where there is none.
func (t *rootfs) add(name string, node *rootfsNode) {
	links := 0
	p, err := t.walk(t.root, name, &links)
	if err != nil || p.special() || len(p.last) > rootfsMaxName || p.slash && node.kind() != typeDirectory || p.dir.children[p.last] != nil {
		return
	}
	if node.kind() == typeDirectory {
		node.parent = p.dir
	}
	p.dir.children[p.last] = node
}

// link gives a file another name, and reports whether it could.
func (t *rootfs) link(old, name string) bool {
	node, err := t.resolve(old, false)
	if err != nil || node.kind() == typeDirectory {
		return false
	}
	links := 0
	p, err := t.walk(t.root, name, &links)
	if err != nil || p.special() || p.slash || len(p.last) > rootfsMaxName || p.dir.children[p.last] != nil {
		return false
	}
	p.dir.children[p.last] = node
	return true
}

// all calls visit for every file by its path, without a leading slash, in the
// order of their names; and once more for what lies behind a symbolic link to a
// directory, by the path through it. aliases bounds the latter; it returns false
// when there are more.
func (t *rootfs) all(aliases int, visit func(name string, node *rootfsNode, alias bool)) bool {
	open := map[*rootfsNode]bool{} // directories on the way to the one that is visited
	var links []string
	var directory func(at string, dir *rootfsNode, alias bool) bool
	directory = func(at string, dir *rootfsNode, alias bool) bool {
		open[dir] = true
		defer delete(open, dir)
		for _, name := range slices.Sorted(maps.Keys(dir.children)) {
			node, full := dir.children[name], path.Join(at, name)
			if alias {
				if aliases--; aliases < 0 {
					return false
				}
			}
			visit(full, node, alias)
			switch node.kind() {
			case typeDirectory:
				if !open[node] && !directory(full, node, alias) {
					return false
				}
			case typeLink:
				if !alias {
					links = append(links, full)
				} else if target, err := t.resolve(full, true); err == nil && target.kind() == typeDirectory && !open[target] && !directory(full, target, true) {
					return false
				}
			}
		}
		return true
	}
	if !directory("", t.root, false) {
		return false
	}
	for _, full := range links {
		target, err := t.resolve(full, true)
		if err != nil || target.kind() != typeDirectory {
			continue
		}
		// Directories on the way to the link itself are behind it again when it
		// leads upwards, and are not visited.
		for dir, rest := t.root, full; ; {
			open[dir] = true
			name, behind, more := strings.Cut(rest, "/")
			if !more {
				break
			}
			dir, rest = dir.children[name], behind
		}
		if !open[target] && !directory(full, target, true) {
			return false
		}
		clear(open)
	}
	return true
}
