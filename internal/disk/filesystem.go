package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoFilesystem is returned by OpenFilesystem when the bytes are no file
// system that it knows.
var ErrNoFilesystem = errors.New("there is no erofs, squashfs or ext4 file system")

// Filesystem is a Linux file system on a raw disk. It is read-only and safe for
// concurrent use as far as the reader below it is; the files that it opens are
// not. Paths are those of package io/fs: relative, slash-separated, "." for the
// root. Symbolic links are followed inside the file system, as the kernel would
// with it as the root: an absolute link starts at its root, and ".." does not
// leave it.
type Filesystem struct {
	Kind  string // "erofs", "squashfs" or "ext4"
	UUID  string // 36 characters, "" where the format has none
	Label string

	tree fileTree

	mu          sync.Mutex
	directories map[uint64]directory // those that were read last
}

// Stat is what FileInfo.Sys returns, as a *Stat.
type Stat struct {
	Inode  uint64 // unique in the file system
	UID    uint32
	GID    uint32
	Nlink  uint32
	Rdev   uint64 // of a device, as Linux's makedev(3) encodes it
	Xattrs map[string][]byte
}

// fileTree is a format: it finds inodes by number and reads what they hold.
type fileTree interface {
	root() uint64
	inode(id uint64) (*inode, error)
	directory(dir *inode) (directory, error)
	content(file *inode) (io.ReaderAt, error)
}

// inode is an inode that was read and checked.
type inode struct {
	id      uint64 // by which it was found
	mode    fs.FileMode
	size    int64
	modTime time.Time
	stat    Stat
	private any // what the format needs to find the content
}

// dirent is an entry of a directory.
type dirent struct {
	name string
	id   uint64
	kind fs.FileMode // type bits, as the directory has them
	// number is what squashfs keeps of the inode's number in the directory, under
	// which the kernel keeps the inode in memory; 0 in the other formats.
	number uint32
}

const (
	// A directory may hold this many entries and bytes; real ones hold fewer by
	// far. The bounds keep a hostile one from filling memory.
	maxDirEntries = 1 << 20
	maxDirSize    = 64 << 20
	maxSymlink    = 4096 // bytes: Linux's PATH_MAX
	maxLinks      = 40   // symbolic links in a path, as in Linux
	maxName       = 255  // bytes
)

// readers are the formats that are read.
var readers = map[string]func(io.ReaderAt, int64) (*Filesystem, error){"erofs": openErofs, "squashfs": openSquashfs, "ext4": openExt4}

// signatures are magic numbers of file systems and of what wraps one, in the order
// in which Kinds names them. ext4's has two bytes and is looked at more closely.
var signatures = []struct {
	kind   string
	offset int64
	magic  string
}{
	{"erofs", 1024, "\xe2\xe1\xf5\xe0"}, {"squashfs", 0, "hsqs"}, {"ext4", 1080, "\x53\xef"},
	{"XFS", 0, "XFSB"}, {"btrfs", 65600, "_BHRfS_M"}, {"F2FS", 1024, "\x10\x20\xf5\xf2"}, {"ISO 9660", 32769, "CD001"}, {"UDF", 32769, "BEA01"},
	{"exFAT", 3, "EXFAT   "}, {"NTFS", 3, "NTFS    "}, {"JFS", 32768, "JFS1"}, {"ReiserFS", 65588, "ReIsEr"}, {"bcachefs", 4120, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"},
	{"romfs", 0, "-rom1fs-"}, {"cramfs", 0, "\x45\x3d\xcd\x28"}, {"cramfs", 512, "\x45\x3d\xcd\x28"}, {"HFS+", 1024, "H+\x00\x04"}, {"HFS+", 1024, "HX\x00\x05"},
	{"GFS2", 65536, "\x01\x16\x19\x70"}, {"OCFS2", 4096, "OCFSV2"}, {"NILFS2", 1030, "\x34\x34"}, {"ZFS", 135168, "\x0c\xb1\xba\x00\x00\x00\x00\x00"},
	{"LUKS", 0, "LUKS\xba\xbe"}, {"LVM", 512, "LABELONE"}, {"LVM", 536, "LVM2 001"}, {"swap", 4086, "SWAPSPACE2"}, {"verity", 0, "verity\x00\x00"},
}

// Kinds names what the magic numbers in size bytes of r say that is there: "erofs",
// "squashfs" and "ext4", which OpenFilesystem reads, or others. The kernel tries one
// file system after the other, or the one that it is told, so that each that is
// named may be the one that is mounted.
func Kinds(r io.ReaderAt, size int64) ([]string, error) {
	var kinds []string
	for _, s := range signatures {
		if size < s.offset+int64(len(s.magic)) {
			continue
		}
		magic := make([]byte, len(s.magic))
		if n, err := r.ReadAt(magic, s.offset); n < len(magic) {
			return nil, fmt.Errorf("look for the signature of %s: %w", s.kind, noEOF(err))
		}
		if string(magic) != s.magic || slices.Contains(kinds, s.kind) {
			continue
		}
		switch s.kind {
		case "ext4":
			// The kernel refuses larger blocks, and what stands here in another file
			// system is a large number.
			log := make([]byte, 4)
			if n, err := r.ReadAt(log, ext4SuperOffset+0x18); n < len(log) {
				return nil, fmt.Errorf("look for the signature of ext4: %w", noEOF(err))
			}
			if len(kinds) > 0 && binary.LittleEndian.Uint32(log) > 6 {
				continue
			}
		case "NILFS2", "GFS2": // short, or where others have content
			if len(kinds) > 0 {
				continue
			}
		}
		kinds = append(kinds, s.kind)
	}
	return kinds, nil
}

// AmbiguousError says that there is more than one file system in the same bytes.
type AmbiguousError struct {
	Kinds []string // as Kinds names them
}

func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("there are signatures of %s, and nothing says which of them the kernel mounts", strings.Join(e.Kinds, " and of "))
}

// OpenFilesystem opens the file system in size bytes of r. Of several the one is
// opened that is of a kind that the kernel is told to mount, by rootfstype= say; it
// need not be told any. The error is an *AmbiguousError when that leaves more than
// one, and ErrNoFilesystem when there is none that is read.
func OpenFilesystem(r io.ReaderAt, size int64, told ...string) (*Filesystem, error) {
	kinds, err := Kinds(r, size)
	if err != nil {
		return nil, err
	}
	if len(kinds) > 1 {
		chosen := slices.DeleteFunc(slices.Clone(kinds), func(kind string) bool {
			return !slices.ContainsFunc(told, func(t string) bool { return sameKind(t, kind) })
		})
		if len(chosen) != 1 {
			return nil, &AmbiguousError{kinds}
		}
		kinds = chosen
	}
	if len(kinds) == 0 || readers[kinds[0]] == nil {
		return nil, ErrNoFilesystem
	}
	kind := kinds[0]
	f, err := readers[kind](r, size)
	if err != nil {
		return nil, fmt.Errorf("open %s file system: %w", kind, err)
	}
	f.Kind = kind
	root, err := f.tree.inode(f.tree.root())
	if err == nil && !root.mode.IsDir() {
		err = errors.New("it is not a directory")
	}
	if err != nil {
		return nil, fmt.Errorf("open %s file system: read its root directory: %w", kind, err)
	}
	return f, nil
}

// MountedAs reports whether the kernel's name of a file system, as rootfstype= gives
// it, is that of the one that was opened.
func (f *Filesystem) MountedAs(name string) bool { return sameKind(name, f.Kind) }

// sameKind reports whether the kernel's name of a file system means a kind.
func sameKind(name, kind string) bool {
	if name == "ext2" || name == "ext3" {
		name = "ext4"
	}
	return strings.EqualFold(name, strings.ReplaceAll(kind, " ", ""))
}

// lookup finds the inode at a path. A symbolic link at its end is followed only
// when follow is set.
func (f *Filesystem) lookup(name string, follow bool) (*inode, error) {
	if !fs.ValidPath(name) {
		return nil, fs.ErrInvalid
	}
	root, err := f.tree.inode(f.tree.root())
	if err != nil {
		return nil, err
	}
	parents := []*inode{root}
	rest := strings.Split(name, "/")
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		dir := parents[len(parents)-1]
		switch part {
		case "", ".":
			continue
		case "..":
			parents = parents[:max(1, len(parents)-1)]
			continue
		}
		if !dir.mode.IsDir() {
			return nil, unix.ENOTDIR
		}
		child, err := f.child(dir, part)
		if err != nil {
			return nil, err
		}
		if child.mode.Type() != fs.ModeSymlink || len(rest) == 0 && !follow {
			parents = append(parents, child)
			continue
		}
		if links++; links > maxLinks {
			return nil, unix.ELOOP
		}
		target, err := f.target(child)
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(target, "/") {
			parents = parents[:1]
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return parents[len(parents)-1], nil
}

func (f *Filesystem) child(dir *inode, name string) (*inode, error) {
	d, err := f.directory(dir)
	if err != nil {
		return nil, err
	}
	e, err := d.find(name)
	if err != nil {
		return nil, err
	}
	return f.entryInode(e)
}

func (f *Filesystem) target(link *inode) (string, error) {
	if link.size <= 0 || link.size > maxSymlink {
		return "", fmt.Errorf("a symbolic link of %d bytes is not between 1 and %d long", link.size, maxSymlink)
	}
	content, err := f.tree.content(link)
	if err != nil {
		return "", err
	}
	target := make([]byte, link.size)
	if n, err := content.ReadAt(target, 0); n < len(target) {
		return "", noEOF(err)
	}
	if slices.Contains(target, 0) {
		return "", errors.New("a symbolic link has a NUL in it")
	}
	return string(target), nil
}

// noEOF is for reads that may not meet the end.
func noEOF(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Open opens the file or directory at name, following symbolic links.
func (f *Filesystem) Open(name string) (fs.File, error) {
	node, err := f.lookup(name, true)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return &fsFile{filesystem: f, name: name, node: node}, nil
}

// Stat describes the file at name, following symbolic links.
func (f *Filesystem) Stat(name string) (fs.FileInfo, error) {
	node, err := f.lookup(name, true)
	if err != nil {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	return fileInfo{path.Base(name), node}, nil
}

// Lstat describes the file at name without following a symbolic link at its
// end.
func (f *Filesystem) Lstat(name string) (fs.FileInfo, error) {
	node, err := f.lookup(name, false)
	if err != nil {
		return nil, &fs.PathError{Op: "lstat", Path: name, Err: err}
	}
	return fileInfo{path.Base(name), node}, nil
}

// ReadLink returns the target of the symbolic link at name as it is stored.
func (f *Filesystem) ReadLink(name string) (string, error) {
	node, err := f.lookup(name, false)
	if err == nil && node.mode.Type() != fs.ModeSymlink {
		err = fs.ErrInvalid
	}
	var target string
	if err == nil {
		target, err = f.target(node)
	}
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: err}
	}
	return target, nil
}

// checkName refuses names that no path can lead to.
func checkName(name string) error {
	if name == "" || len(name) > maxName || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("%q is no file name", name)
	}
	return nil
}

type fileInfo struct {
	name string
	node *inode
}

func (i fileInfo) Name() string       { return i.name }
func (i fileInfo) Size() int64        { return i.node.size }
func (i fileInfo) Mode() fs.FileMode  { return i.node.mode }
func (i fileInfo) ModTime() time.Time { return i.node.modTime }
func (i fileInfo) IsDir() bool        { return i.node.mode.IsDir() }
func (i fileInfo) Sys() any           { return &i.node.stat }

// fsFile is an open file or directory.
type fsFile struct {
	filesystem *Filesystem
	name       string
	node       *inode
	data       io.ReaderAt
	off        int64
	entries    []fs.DirEntry
	listed     bool
}

func (f *fsFile) Stat() (fs.FileInfo, error) { return fileInfo{path.Base(f.name), f.node}, nil }
func (f *fsFile) Close() error               { return nil }

// Read reads from where the last Read ended.
func (f *fsFile) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := f.ReadAt(p, f.off)
	f.off += int64(n)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// ReadAt reads from the file at a byte offset.
func (f *fsFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.readAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &fs.PathError{Op: "read", Path: f.name, Err: err}
	}
	return n, err
}

func (f *fsFile) readAt(p []byte, off int64) (int, error) {
	switch {
	case f.node.mode.IsDir():
		return 0, unix.EISDIR
	case !f.node.mode.IsRegular():
		return 0, fmt.Errorf("a file of type %v has no content", f.node.mode.Type())
	case off < 0:
		return 0, fs.ErrInvalid
	case off >= f.node.size:
		return 0, io.EOF
	}
	if f.data == nil {
		data, err := f.filesystem.tree.content(f.node)
		if err != nil {
			return 0, err
		}
		f.data = data
	}
	want := min(int64(len(p)), f.node.size-off)
	n, err := f.data.ReadAt(p[:want], off)
	switch {
	case int64(n) < want:
		return n, noEOF(err)
	case want < int64(len(p)):
		return n, io.EOF
	}
	return n, nil
}

// unixMode turns Linux's st_mode into Go's.
func unixMode(mode uint16) (fs.FileMode, error) {
	m := fs.FileMode(mode & 0o777)
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		m |= fs.ModeDir
	case unix.S_IFLNK:
		m |= fs.ModeSymlink
	case unix.S_IFCHR:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case unix.S_IFBLK:
		m |= fs.ModeDevice
	case unix.S_IFIFO:
		m |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		m |= fs.ModeSocket
	default:
		return 0, fmt.Errorf("mode %#o has no known file type", mode)
	}
	if mode&unix.S_ISUID != 0 {
		m |= fs.ModeSetuid
	}
	if mode&unix.S_ISGID != 0 {
		m |= fs.ModeSetgid
	}
	if mode&unix.S_ISVTX != 0 {
		m |= fs.ModeSticky
	}
	return m, nil
}

// direntType is the file type that erofs and ext4 keep in a directory entry.
func direntType(t byte) (fs.FileMode, error) {
	types := []uint16{0, unix.S_IFREG, unix.S_IFDIR, unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFLNK}
	if t == 0 || int(t) >= len(types) {
		return 0, fmt.Errorf("a directory entry is of the unknown type %d", t)
	}
	return unixMode(types[t])
}

// decodeDev decodes a device number as Linux's new_encode_dev writes it.
func decodeDev(dev uint32) uint64 {
	return unix.Mkdev(dev>>8&0xfff, dev&0xff|dev>>12&0xfff00)
}

// formatUUID writes a UUID in its usual form, or "" when it is nil.
func formatUUID(u [16]byte) string {
	if u == ([16]byte{}) {
		return ""
	}
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}
