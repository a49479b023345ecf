package measure

import (
	"fmt"
	"io"
	"strings"
)

// cpioMember is a file of an archive.
type cpioMember struct {
	name    string
	content io.ReaderAt
	size    int64 // bytes, less than 4 GiB
}

// cpioArchive is the archive that systemd-stub makes of files, and its size in
// bytes: in cpio's "newc" form (Linux, driver-api/early-userspace/buffer-format),
// the directory and those above it, then the files, all without owner and time.
// The directories above have the mode 0555.
func cpioArchive(directory string, dirMode, fileMode uint32, members ...cpioMember) (io.Reader, int64) {
	var a cpio
	for i, c := range directory {
		if c == '/' {
			a.header(0o040555, directory[:i], 0)
		}
	}
	a.header(0o040000|dirMode, directory, 0)
	for _, m := range members {
		a.header(0o100000|fileMode, directory+"/"+m.name, m.size)
		a.readers = append(a.readers, io.NewSectionReader(m.content, 0, m.size))
		a.size += m.size
		a.pad()
	}
	a.text("070701" + strings.Repeat("0", 32) + "00000001" + strings.Repeat("0", 48) + "0000000B" + "00000000" + "TRAILER!!!\x00\x00\x00\x00")
	return io.MultiReader(a.readers...), a.size
}

// cpio is an archive in the making.
type cpio struct {
	readers []io.Reader
	size    int64
	inode   uint32
}

func (a *cpio) text(s string) {
	a.readers = append(a.readers, strings.NewReader(s))
	a.size += int64(len(s))
}

// pad fills up to a multiple of four bytes.
func (a *cpio) pad() {
	if n := -a.size & 3; n > 0 {
		a.text("\x00\x00\x00"[:n])
	}
}

// header adds a member's header. The fields are inode, mode, user, group, links,
// time, size, two device numbers in two parts each, length of the name with its
// NUL, and a check sum, which this form does not use.
func (a *cpio) header(mode uint32, name string, size int64) {
	a.inode++
	var b strings.Builder
	b.WriteString("070701")
	for _, field := range []uint32{a.inode, mode, 0, 0, 1, 0, uint32(size), 0, 0, 0, 0, uint32(len(name) + 1), 0} {
		fmt.Fprintf(&b, "%08x", field)
	}
	b.WriteString(name + "\x00")
	a.text(b.String())
	a.pad()
}
