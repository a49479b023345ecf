package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/xi2/xz"
	"golang.org/x/sys/unix"
)

// initrd is what an initial RAM file system holds: cpio archives in the newc
// format, one after the other, each compressed or not, as Linux's
// Documentation/driver-api/early-userspace/buffer-format.rst describes them. A
// file that is in several archives is the last one's.
type initrd struct {
	files map[string]initrdFile
}

// initrdFile is a file of an initrd.
type initrdFile struct {
	mode    uint32 // as in stat(2)
	size    int64
	content []byte // of a symbolic link, and of files that the audit reads
}

const (
	initrdMaxFiles   = 1 << 18
	initrdMaxName    = 4096
	initrdMaxFile    = 64 << 10 // bytes that are kept of a file
	initrdMaxKept    = 16 << 20 // bytes that are kept of all files
	initrdMaxDecoded = 4 << 30  // bytes
	initrdMaxWindow  = 128 << 20
)

var errInitrdTooLong = fmt.Errorf("it is longer than %d bytes when unpacked", int64(initrdMaxDecoded))

// InitrdFile is a file of an initrd as its cpio archive describes it.
type InitrdFile struct {
	Mode     uint32 // as in stat(2), the type included
	UID, GID uint32
	ModTime  time.Time
	Device   uint64 // of a device, as Linux's makedev(3) encodes it
	Size     int64  // bytes
	SHA256   [sha256.Size]byte
}

// InitrdFiles lists the files of an initrd of size bytes by their paths, without a
// leading slash. A file that is in several archives is the last one's; the content
// of hard links is that of the last of them, and the others are empty.
func InitrdFiles(r io.ReaderAt, size int64) (map[string]InitrdFile, error) {
	rd := &initrdReader{listed: map[string]InitrdFile{}}
	if err := rd.read(r, size); err != nil {
		return nil, err
	}
	return rd.listed, nil
}

// cpioDetails reads the numbers of a cpio header that only a listing has.
func cpioDetails(field func(int) (int64, error)) (InitrdFile, error) {
	var values [5]int64
	for i, n := range []int{2, 3, 5, 9, 10} {
		var err error
		if values[i], err = field(n); err != nil {
			return InitrdFile{}, err
		}
	}
	return InitrdFile{
		UID: uint32(values[0]), GID: uint32(values[1]), ModTime: time.Unix(values[2], 0).UTC(),
		Device: unix.Mkdev(uint32(values[3]), uint32(values[4])),
	}, nil
}

// readInitrd reads an initrd of size bytes.
func readInitrd(r io.ReaderAt, size int64) (*initrd, error) {
	rd := new(initrdReader)
	if err := rd.read(r, size); err != nil {
		return nil, err
	}
	return &rd.initrd, nil
}

func (rd *initrdReader) read(r io.ReaderAt, size int64) error {
	rd.files, rd.left = map[string]initrdFile{}, initrdMaxDecoded
	for off := int64(0); off < size; {
		next, err := rd.member(r, off, size)
		if err != nil {
			return fmt.Errorf("read initrd at byte %d: %w", off, err)
		}
		off = next
	}
	if len(rd.files) == 0 {
		return errors.New("read initrd: it is empty")
	}
	return nil
}

type initrdReader struct {
	initrd
	left int64 // bytes that may still be unpacked
	kept int
	// listed are all files with what else is known of them, when it was asked for.
	listed map[string]InitrdFile
}

// member reads what begins at off, and returns where the next member begins.
func (rd *initrdReader) member(r io.ReaderAt, off, size int64) (int64, error) {
	magic := make([]byte, 6)
	n, err := r.ReadAt(magic, off)
	if magic = magic[:n]; n == 0 {
		return 0, fmt.Errorf("read it: %w", err)
	}
	section := io.NewSectionReader(r, off, size-off)
	switch {
	case magic[0] == 0:
		return skipZeros(section, off)
	case bytes.HasPrefix(magic, []byte("0707")):
		c := &countingReader{r: bufio.NewReaderSize(section, 64<<10)}
		err := rd.archives(c, false)
		return off + c.n, err
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		b := bufio.NewReaderSize(section, 64<<10) // gzip reads no more of a ByteReader than it needs
		c := &countingReader{r: b}
		z, err := gzip.NewReader(c)
		if err != nil {
			return 0, err
		}
		z.Multistream(false)
		err = rd.archives(z, true)
		return off + c.n, err
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		length, err := zstdFrame(r, off, size)
		if err != nil {
			return 0, err
		}
		z, err := zstd.NewReader(bufio.NewReaderSize(io.NewSectionReader(r, off, length), 64<<10),
			zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(initrdMaxWindow))
		if err != nil {
			return 0, err
		}
		defer z.Close()
		return off + length, rd.archives(z, true)
	case bytes.HasPrefix(magic, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		c := &xzStream{r: bufio.NewReaderSize(section, 64<<10)}
		z, err := xz.NewReader(c, initrdMaxWindow)
		if err != nil {
			return 0, err
		}
		err = rd.archives(z, true)
		return off + c.n, err
	}
	for prefix, name := range map[string]string{"BZh": "bzip2", "\x5d\x00\x00": "LZMA", "\x89LZO": "LZO", "\x02\x21\x4c\x18": "LZ4", "\x04\x22\x4d\x18": "LZ4"} {
		if bytes.HasPrefix(magic, []byte(prefix)) {
			return 0, fmt.Errorf("it is compressed with %s, which this version does not read: use zstd, gzip or xz", name)
		}
	}
	return 0, fmt.Errorf("%x is the beginning of nothing known", magic)
}

// skipZeros finds the end of the padding between members.
func skipZeros(r io.Reader, off int64) (int64, error) {
	block := make([]byte, 64<<10)
	for {
		n, err := r.Read(block)
		for i, b := range block[:n] {
			if b != 0 {
				return off + int64(i), nil
			}
		}
		off += int64(n)
		if errors.Is(err, io.EOF) {
			return off, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

// countingReader counts what was taken from it.
type countingReader struct {
	r *bufio.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func (c *countingReader) ReadByte() (byte, error) {
	b, err := c.r.ReadByte()
	if err == nil {
		c.n++
	}
	return b, err
}

// xzStream gives an xz stream byte by byte and ends with its footer (The .xz File
// Format, section 2.1.2), as the decoder would look for padding and another
// stream behind it. A footer in the middle makes the decoder fail.
type xzStream struct {
	r    *bufio.Reader
	n    int64
	last [12]byte
}

func (x *xzStream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if x.n > 12 && string(x.last[10:]) == "YZ" && binary.LittleEndian.Uint32(x.last[:]) == crc32.ChecksumIEEE(x.last[4:10]) {
		return 0, io.EOF
	}
	b, err := x.r.ReadByte()
	if err != nil {
		return 0, err
	}
	x.n++
	copy(x.last[:], x.last[1:])
	x.last[11], p[0] = b, b
	return 1, nil
}

// zstdFrame returns the length of the Zstandard frame at off (RFC 8878, section
// 3.1.1), without decoding it.
func zstdFrame(r io.ReaderAt, off, size int64) (int64, error) {
	head := make([]byte, 5)
	if _, err := r.ReadAt(head, off); err != nil {
		return 0, fmt.Errorf("read Zstandard frame: %w", err)
	}
	descriptor := head[4]
	at := off + 5
	if descriptor&0x20 == 0 { // no single segment: a window descriptor
		at++
	}
	at += []int64{0, 1, 2, 4}[descriptor&3] // dictionary
	switch descriptor >> 6 {
	case 0:
		at += int64(descriptor >> 5 & 1)
	case 1:
		at += 2
	case 2:
		at += 4
	case 3:
		at += 8
	}
	for {
		raw := make([]byte, 4)
		if _, err := r.ReadAt(raw[:3], at); err != nil || at >= size {
			return 0, errors.New("a Zstandard frame is cut off")
		}
		block := int64(binary.LittleEndian.Uint32(raw))
		at += 3
		switch block >> 1 & 3 {
		case 1: // one byte, repeated
			at++
		case 3:
			return 0, errors.New("a Zstandard frame has a block of the reserved type")
		default:
			at += block >> 3
		}
		if block&1 != 0 {
			break
		}
	}
	if descriptor&4 != 0 {
		at += 4 // checksum
	}
	if at > size {
		return 0, errors.New("a Zstandard frame is cut off")
	}
	return at - off, nil
}

// archives reads cpio archives; compressed says that r ends by itself, so that
// several archives and padding may follow.
func (rd *initrdReader) archives(r io.Reader, compressed bool) error {
	for {
		c := &cpioReader{r: r, left: &rd.left}
		if err := rd.archive(c); err != nil {
			return err
		}
		if !compressed {
			return nil
		}
		// What follows in the same stream is padding, or another archive.
		first, err := c.skipPadding()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		r = io.MultiReader(bytes.NewReader([]byte{first}), r)
	}
}

// cpioReader reads an archive and keeps its place for alignment.
type cpioReader struct {
	r    io.Reader
	n    int64
	left *int64
	hash hash.Hash // of what is read, when it is not nil
}

func (c *cpioReader) read(p []byte) error {
	if *c.left -= int64(len(p)); *c.left < 0 {
		return errInitrdTooLong
	}
	n, err := io.ReadFull(c.r, p)
	c.n += int64(n)
	if err != nil {
		return fmt.Errorf("a cpio archive is cut off or damaged: %w", err)
	}
	if c.hash != nil {
		c.hash.Write(p)
	}
	return nil
}

func (c *cpioReader) skip(n int64) error {
	if *c.left -= n; *c.left < 0 {
		return errInitrdTooLong
	}
	into := io.Discard
	if c.hash != nil {
		into = c.hash
	}
	m, err := io.CopyN(into, c.r, n)
	c.n += m
	if err != nil {
		return fmt.Errorf("a cpio archive is cut off or damaged: %w", err)
	}
	return nil
}

func (c *cpioReader) align() error { return c.skip(-c.n & 3) }

// skipPadding returns the first byte that is not zero.
func (c *cpioReader) skipPadding() (byte, error) {
	block := make([]byte, 1)
	for {
		if *c.left--; *c.left < 0 {
			return 0, errInitrdTooLong
		}
		n, err := c.r.Read(block)
		if n == 1 && block[0] != 0 {
			return block[0], nil
		}
		if n == 0 && err != nil {
			return 0, err
		}
	}
}

// archive reads an archive up to its trailer.
func (rd *initrdReader) archive(c *cpioReader) error {
	header := make([]byte, 110)
	for {
		if err := c.read(header); err != nil {
			return err
		}
		if magic := string(header[:6]); magic != "070701" && magic != "070702" {
			return fmt.Errorf("%q does not begin a cpio archive in the newc format", magic)
		}
		field := func(i int) (int64, error) {
			text := string(header[6+8*i : 14+8*i])
			v, err := strconv.ParseUint(text, 16, 32)
			if err != nil {
				return 0, fmt.Errorf("%q is no number of a cpio header", text)
			}
			return int64(v), nil
		}
		mode, err1 := field(1)
		size, err2 := field(6)
		nameSize, err3 := field(11)
		if err := errors.Join(err1, err2, err3); err != nil {
			return err
		}
		if nameSize < 1 || nameSize > initrdMaxName {
			return fmt.Errorf("a name of %d bytes is not between 1 and %d long", nameSize, initrdMaxName)
		}
		name := make([]byte, nameSize)
		if err := c.read(name); err != nil {
			return err
		}
		if err := c.align(); err != nil {
			return err
		}
		text, _, _ := strings.Cut(string(name), "\x00")
		if text == "TRAILER!!!" {
			return nil
		}
		var details InitrdFile
		if rd.listed != nil {
			var err error
			if details, err = cpioDetails(field); err != nil {
				return fmt.Errorf("%.100q: %w", text, err)
			}
			c.hash = sha256.New()
		}
		if err := rd.file(c, text, uint32(mode), size, details); err != nil {
			return fmt.Errorf("%.100q: %w", text, err)
		}
	}
}

func (rd *initrdReader) file(c *cpioReader, name string, mode uint32, size int64, details InitrdFile) error {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	file := initrdFile{mode: mode, size: size}
	if len(rd.files) >= initrdMaxFiles {
		return fmt.Errorf("there are more than %d files", initrdMaxFiles)
	}
	if link := mode&0o170000 == 0o120000; link || wantedInInitrd(name) {
		if size > initrdMaxFile {
			return fmt.Errorf("it has %d bytes, more than the %d expected", size, initrdMaxFile)
		}
		if rd.kept += int(size); rd.kept > initrdMaxKept {
			return fmt.Errorf("the files that matter have more than %d bytes", initrdMaxKept)
		}
		file.content = make([]byte, size)
		if err := c.read(file.content); err != nil {
			return err
		}
	} else if err := c.skip(size); err != nil {
		return err
	}
	rd.files[name] = file
	if rd.listed != nil {
		details.Mode, details.Size = mode, size
		c.hash.Sum(details.SHA256[:0])
		c.hash = nil
		rd.listed[name] = details
	}
	return c.align()
}

// wantedInInitrd reports whether the audit reads a file of the initrd.
func wantedInInitrd(name string) bool {
	switch name {
	case "etc/veritytab", "etc/fstab", "etc/passwd", "etc/shadow":
		return true
	}
	if name == "etc/cmdline" || strings.HasPrefix(name, "etc/cmdline.d/") {
		return true
	}
	return strings.Contains(name, "systemd/system/") && (strings.HasSuffix(name, ".service") || strings.HasSuffix(name, ".conf"))
}

// file returns a file by its path, following symbolic links on the way.
func (rd *initrd) file(name string) (initrdFile, error) {
	rest, at := strings.Split(name, "/"), ""
	for links := 0; ; {
		if len(rest) == 0 {
			file, ok := rd.files[at]
			if !ok {
				return file, fs.ErrNotExist
			}
			return file, nil
		}
		next := path.Join(at, rest[0])
		if rest[0] == ".." {
			next = path.Join("/", at, "..")[1:]
		}
		rest = rest[1:]
		file, ok := rd.files[next]
		if !ok || file.mode&0o170000 != 0o120000 {
			at = next
			continue
		}
		if links++; links > 40 {
			return file, errors.New("too many symbolic links")
		}
		target := string(file.content)
		if strings.HasPrefix(target, "/") {
			at = ""
		}
		rest = append(strings.Split(strings.Trim(target, "/"), "/"), rest...)
	}
}

// has reports whether one of the paths exists.
func (rd *initrd) has(names ...string) bool {
	return slices.ContainsFunc(names, func(name string) bool {
		_, err := rd.file(name)
		return err == nil
	})
}
