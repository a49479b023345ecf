package imagediff

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/org/attestable-image-action/internal/disk"
)

// errTooMuch ends the reading of files.
var errTooMuch = errors.New("the files have more bytes than are read of a disk of this size")

// entry is a file as a walk comes to it.
type entry struct {
	name string
	info fs.FileInfo
	err  error
}

// errStopped ends a walk whose reader has had enough.
var errStopped = errors.New("stopped")

// entries walks a file system.
func entries(f *disk.Filesystem) iter.Seq[entry] {
	return func(yield func(entry) bool) {
		err := f.Walk(func(name string, info fs.FileInfo, err error) error {
			if !yield(entry{name, info, err}) {
				return errStopped
			}
			return nil
		})
		if err != nil && !errors.Is(err, errStopped) {
			yield(entry{"", nil, err})
		}
	}
}

// comparePaths orders paths as a walk comes to them: a directory, what is in it, and
// then what follows.
func comparePaths(a, b string) int {
	if a == "." || b == "." {
		return btoi(a != ".") - btoi(b != ".")
	}
	for {
		partA, restA, moreA := strings.Cut(a, "/")
		partB, restB, moreB := strings.Cut(b, "/")
		if n := strings.Compare(partA, partB); n != 0 {
			return n
		}
		if !moreA || !moreB {
			return btoi(moreA) - btoi(moreB)
		}
		a, b = restA, restB
	}
}

// filesystems compares two file systems, file by file. Both are walked at the same
// time, so that neither is kept.
func (c *comparison) filesystems(number int, a, b *disk.Filesystem) error {
	nextA, stopA := iter.Pull(entries(a))
	defer stopA()
	nextB, stopB := iter.Pull(entries(b))
	defer stopB()
	x, moreX := nextA()
	y, moreY := nextB()
	times := newTimes(fmt.Sprintf("partition %d", number))
	defer func() { times.into(c.report) }()
	for moreX || moreY {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		// A walk ends with an error when there is no telling where to go on.
		for _, e := range []struct {
			entry
			more bool
			s    *side
		}{{x, moreX, c.a}, {y, moreY, c.b}} {
			if e.more && e.name == "" {
				c.report.notCompared(fmt.Sprintf("partition %d of %s, files", number, e.s.disk.Name()), e.err)
				return nil
			}
		}
		order := 0
		switch {
		case !moreX:
			order = 1
		case !moreY:
			order = -1
		default:
			order = comparePaths(x.name, y.name)
		}
		switch {
		case order < 0:
			c.only(number, Removed, x, c.a)
			x, moreX = nextA()
		case order > 0:
			c.only(number, Added, y, c.b)
			y, moreY = nextB()
		default:
			if err := c.both(number, x, y, a, b, times); err != nil {
				return err
			}
			x, moreX = nextA()
			y, moreY = nextB()
		}
	}
	return nil
}

// only reports a file that one side has.
func (c *comparison) only(number int, how How, e entry, s *side) {
	if e.err != nil {
		c.report.notCompared(fmt.Sprintf("/%s of partition %d of %s", e.name, number, s.disk.Name()), e.err)
		return
	}
	file := File{Partition: number, Path: e.name, How: how, Package: c.owners.of(e.name)}
	// Who may do more than others is told, whatever brought it.
	special := e.info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 && !e.info.IsDir() || len(stat(e.info).Xattrs["security.capability"]) > 0
	c.file(file, special)
}

// file puts a file into the report, unless it goes without saying.
func (c *comparison) file(f File, special bool) {
	r := c.report
	switch {
	case f.Package != "" && !special && !c.options.All && !strings.HasPrefix(f.Path, "etc/"):
		r.FilesHidden++
	case len(r.Files) == maxFileChanges:
		r.FilesMore++
	default:
		r.Files = append(r.Files, f)
	}
}

// both compares a file that both sides have.
func (c *comparison) both(number int, x, y entry, a, b *disk.Filesystem, times *times) error {
	if x.err != nil || y.err != nil {
		c.either(fmt.Sprintf("/%s of partition %d", x.name, number), x.err, y.err)
		return nil
	}
	changes := attributes(x.info, y.info)
	special := len(changes) > 0
	content, err := c.contents(x.info, y.info, a, b)
	if err != nil {
		if c.ctx.Err() != nil {
			return err
		}
		c.report.notCompared(fmt.Sprintf("/%s of partition %d", x.name, number), err)
	}
	changes = append(changes, content...)
	owner := c.owners.of(x.name)
	switch {
	case len(changes) > 0:
		c.file(File{Partition: number, Path: x.name, How: Changed, Changes: changes, Package: owner}, special)
	case owner == "" || c.options.All:
		times.add(x.info.ModTime(), y.info.ModTime())
	}
	return nil
}

// attributes compares all that an inode has but its content and times.
func attributes(a, b fs.FileInfo) []Change {
	var changes []Change
	change := func(name, a, b string) {
		if a != b {
			changes = append(changes, Change{name, bounded(a), bounded(b)})
		}
	}
	x, y := stat(a), stat(b)
	change("type", typeName(a.Mode()), typeName(b.Mode()))
	if a.Mode().Type() != fs.ModeSymlink || b.Mode().Type() != fs.ModeSymlink {
		change("mode", octal(a.Mode()), octal(b.Mode()))
	}
	change("owner", fmt.Sprintf("%d:%d", x.UID, x.GID), fmt.Sprintf("%d:%d", y.UID, y.GID))
	if x.Rdev != y.Rdev {
		change("device", device(x.Rdev), device(y.Rdev))
	}
	names := slices.Collect(maps.Keys(x.Xattrs))
	names = slices.AppendSeq(names, maps.Keys(y.Xattrs))
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		v, hasA := x.Xattrs[name]
		w, hasB := y.Xattrs[name]
		if hasA != hasB || !bytes.Equal(v, w) {
			change("attribute "+name, attribute(v, hasA), attribute(w, hasB))
		}
	}
	return changes
}

func attribute(value []byte, has bool) string {
	if !has {
		return ""
	}
	return fmt.Sprintf("%q", value)
}

func device(rdev uint64) string { return fmt.Sprintf("%d:%d", unix.Major(rdev), unix.Minor(rdev)) }

// contents compares what files and symbolic links hold. Files of different sizes
// are not read.
func (c *comparison) contents(a, b fs.FileInfo, from, to *disk.Filesystem) ([]Change, error) {
	switch {
	case a.Mode().Type() != b.Mode().Type():
		return nil, nil
	case a.Mode().Type() == fs.ModeSymlink:
		x, err := target(from, a)
		if err != nil {
			return nil, err
		}
		y, err := target(to, b)
		if err != nil || x == y {
			return nil, err
		}
		return []Change{{"target", bounded(x), bounded(y)}}, nil
	case !a.Mode().IsRegular():
		return nil, nil
	case a.Size() != b.Size():
		return []Change{{"size", fmt.Sprint(a.Size()), fmt.Sprint(b.Size())}}, nil
	case a.Size() == 0:
		return nil, nil
	}
	if c.left -= a.Size(); c.left < 0 {
		c.left += a.Size() // smaller ones may still be read
		return nil, errTooMuch
	}
	x, err := from.Content(a)
	if err != nil {
		return nil, err
	}
	y, err := to.Content(b)
	if err != nil {
		return nil, err
	}
	same, err := c.sameContent(x, y, a.Size())
	if same || err != nil {
		return nil, err
	}
	// Few files come here: those of the same size that differ.
	digestA, err := c.digest(from, a)
	if err != nil {
		return nil, err
	}
	digestB, err := c.digest(to, b)
	if err != nil {
		return nil, err
	}
	return []Change{{"content", digestA, digestB}}, nil
}

// digest takes the SHA-256 of a file.
func (c *comparison) digest(f *disk.Filesystem, info fs.FileInfo) (string, error) {
	if c.left -= info.Size(); c.left < 0 {
		c.left += info.Size()
		return "", errTooMuch
	}
	r, err := f.Content(info)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for {
		n, err := r.Read(c.blockA)
		h.Write(c.blockA[:n])
		if err == nil {
			err = c.ctx.Err()
		}
		if errors.Is(err, io.EOF) {
			return fmt.Sprintf("%x", h.Sum(nil)), nil
		}
		if err != nil {
			return "", err
		}
	}
}

// maxTarget bounds the target of a symbolic link, in bytes: Linux's PATH_MAX.
const maxTarget = 4096

func target(f *disk.Filesystem, info fs.FileInfo) (string, error) {
	if info.Size() > maxTarget {
		return "", fmt.Errorf("a symbolic link of %d bytes is longer than %d", info.Size(), maxTarget)
	}
	r, err := f.Content(info)
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(r)
	return string(text), err
}

func stat(info fs.FileInfo) *disk.Stat { return info.Sys().(*disk.Stat) }

// octal is a mode as chmod(1) takes it.
func octal(m fs.FileMode) string {
	bits := uint32(m.Perm())
	for flag, bit := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if m&flag != 0 {
			bits |= bit
		}
	}
	return fmt.Sprintf("%04o", bits)
}

func typeName(m fs.FileMode) string {
	switch m.Type() {
	case 0:
		return "file"
	case fs.ModeDir:
		return "directory"
	case fs.ModeSymlink:
		return "symbolic link"
	case fs.ModeNamedPipe:
		return "named pipe"
	case fs.ModeSocket:
		return "socket"
	case fs.ModeDevice:
		return "block device"
	}
	return "character device"
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// times counts pairs of times of modification.
type times struct {
	where string
	count map[[2]int64]int // by nanoseconds since 1970
	more  int
}

// maxTimePairs bounds the pairs that are counted.
const maxTimePairs = 4096

func newTimes(where string) *times { return &times{where: where, count: map[[2]int64]int{}} }

// add counts a pair that differs, to the second where that tells them apart.
func (t *times) add(a, b time.Time) {
	if a.Equal(b) {
		return
	}
	if x, y := a.Truncate(time.Second), b.Truncate(time.Second); !x.Equal(y) {
		a, b = x, y
	}
	pair := [2]int64{a.UnixNano(), b.UnixNano()}
	if _, known := t.count[pair]; !known && len(t.count) == maxTimePairs {
		t.more++
		return
	}
	t.count[pair]++
}

// into puts the most frequent pairs into the report.
func (t *times) into(r *Report) {
	found := make([]Time, 0, len(t.count))
	for pair, n := range t.count {
		found = append(found, Time{t.where, time.Unix(0, pair[0]).UTC(), time.Unix(0, pair[1]).UTC(), n})
	}
	slices.SortFunc(found, func(a, b Time) int {
		return cmp.Or(cmp.Compare(b.Files, a.Files), a.A.Compare(b.A), a.B.Compare(b.B))
	})
	r.TimesMore += t.more
	for _, rest := range found[min(len(found), maxTimes):] {
		r.TimesMore += rest.Files
	}
	r.Times = append(r.Times, found[:min(len(found), maxTimes)]...)
}
