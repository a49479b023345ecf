package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/xi2/xz"
	"golang.org/x/sys/unix"
)

// initrd is the file system that the kernel unpacks an initrd to: cpio archives in
// the newc format, one after the other, each compressed or not, as Linux's
// Documentation/driver-api/early-userspace/buffer-format.rst describes them and
// init/initramfs.c reads them.
type initrd struct {
	tree *rootfs
	// files are all files by their paths. What lies behind a symbolic link to a
	// directory is here by the path through it, too.
	files map[string]initrdFile
	// config is the boot configuration behind the archives, whose keys become
	// options of the kernel's and of init's.
	config []byte
}

// initrdFile is a file of an initrd.
type initrdFile struct {
	mode    uint32 // as in stat(2)
	size    int64
	content []byte // of a symbolic link, and of files that the audit reads
	unread  bool   // it has more content than is kept
	part    int    // of the initrd
	alias   bool   // the path leads through a symbolic link
	node    *rootfsNode
}

const (
	initrdMaxFiles   = 1 << 18
	initrdMaxName    = 4096
	initrdMaxFile    = 64 << 10 // bytes that are kept of a file
	initrdMaxKept    = 64 << 20 // bytes that are kept of all files
	initrdMaxDecoded = 4 << 30  // bytes
	initrdMaxWindow  = 128 << 20
)

var errInitrdTooLong = fmt.Errorf("it is longer than %d bytes when unpacked", int64(initrdMaxDecoded))

// InitrdFile is a file of an initrd as the kernel unpacks it.
type InitrdFile struct {
	Mode     uint32 // as in stat(2), the type included
	UID, GID uint32
	ModTime  time.Time
	Device   uint64 // of a device, as Linux's makedev(3) encodes it
	Size     int64  // bytes
	SHA256   [sha256.Size]byte
}

// InitrdFiles lists the files that the kernel unpacks an initrd of size bytes to,
// by their paths, without a leading slash. One of which the kernel would leave a
// part unpacked is an error.
func InitrdFiles(r io.ReaderAt, size int64) (map[string]InitrdFile, error) {
	u := newUnpacker()
	u.digests = true
	if err := u.unpack([]initrdPart{{r, size}}); err != nil {
		return nil, err
	}
	listed := map[string]InitrdFile{}
	u.tree.all(0, func(name string, n *rootfsNode, alias bool) {
		if n.given && !alias {
			listed[name] = InitrdFile{Mode: n.mode, UID: n.uid, GID: n.gid, ModTime: n.modTime, Device: n.device, Size: n.size, SHA256: n.digest}
		}
	})
	return listed, nil
}

// initrdPart is one of the pieces that systemd-stub joins to an initrd.
type initrdPart struct {
	r    io.ReaderAt
	size int64 // bytes
}

// maxAliases bounds the paths through symbolic links that are looked at.
const maxAliases = 1 << 19

// readInitrd unpacks an initrd. What the kernel unpacked before it would stop is
// there beside the error that says why it stops, or why that is not known.
func readInitrd(parts ...initrdPart) (*initrd, error) {
	u := newUnpacker()
	err := u.unpack(parts)
	rd := &initrd{tree: u.tree, files: map[string]initrdFile{}, config: u.config}
	whole := u.tree.all(maxAliases, func(name string, n *rootfsNode, alias bool) {
		if n.given {
			rd.files[name] = initrdFile{mode: n.mode, size: n.size, content: n.content, unread: !n.kept, part: n.part, alias: alias, node: n}
		}
	})
	if !whole && err == nil {
		err = fmt.Errorf("read initrd: symbolic links lead to its files by more than %d paths", maxAliases)
	}
	return rd, err
}

// initrdUnpacker does what the kernel does with an initrd.
type initrdUnpacker struct {
	tree    *rootfs
	left    int64 // bytes that may still be unpacked
	kept    int64 // bytes of contents
	files   int
	part    int
	begun   bool // an entry was read before
	digests bool // of all files are wanted
	config  []byte
	links   map[linkKey]string // the first name of a file with several, until a trailer
	doubt   error              // about what the kernel does, which did not stop the reading
}

// linkKey is by what the kernel knows that two entries are one file.
type linkKey struct{ ino, major, minor, kind uint32 }

func newUnpacker() *initrdUnpacker {
	return &initrdUnpacker{tree: newRootfs(), left: initrdMaxDecoded, links: map[linkKey]string{}}
}

// joinedParts are the parts of an initrd, each padded with zeros to four bytes.
type joinedParts struct {
	parts []initrdPart
	ends  []int64
}

func joinParts(parts []initrdPart) joinedParts {
	j := joinedParts{parts: parts}
	end := int64(0)
	for i, p := range parts {
		end += p.size
		if len(parts) > 1 && i < len(parts) {
			end = (end + 3) &^ 3
		}
		j.ends = append(j.ends, end)
	}
	return j
}

func (j joinedParts) size() int64 {
	if len(j.ends) == 0 {
		return 0
	}
	return j.ends[len(j.ends)-1]
}

// at is the part that has a byte.
func (j joinedParts) at(off int64) int {
	i, _ := slices.BinarySearch(j.ends, off+1)
	return min(i, len(j.ends)-1)
}

func (j joinedParts) ReadAt(p []byte, off int64) (int, error) {
	total := 0
	for total < len(p) && off < j.size() {
		i := j.at(off)
		start := int64(0)
		if i > 0 {
			start = j.ends[i-1]
		}
		n := int(min(int64(len(p)-total), j.ends[i]-off))
		piece := p[total : total+n]
		clear(piece)
		if own := j.parts[i].size - (off - start); own > 0 {
			piece = piece[:min(int64(n), own)]
			if got, err := j.parts[i].r.ReadAt(piece, off-start); got < len(piece) {
				return total + got, err
			}
		}
		total, off = total+n, off+int64(n)
	}
	if total < len(p) {
		return total, io.EOF
	}
	return total, nil
}

// unpack unpacks the parts, joined, as unpack_to_rootfs does.
func (u *initrdUnpacker) unpack(parts []initrdPart) error {
	if n := len(parts); n > 0 {
		// The kernel looks for it at the end of all that it gets. systemd-stub may
		// put more behind a part, and then nothing looks for it there.
		for i, p := range parts {
			config, rest := bootConfig(p)
			if config != nil {
				u.config = append(append(u.config, config...), '\n')
				parts = slices.Clone(parts)
				parts[i].size = rest
			}
		}
	}
	j := joinParts(parts)
	size := j.size()
	position := int64(0) // as the kernel counts it
	for off := int64(0); off < size; {
		u.part = j.at(off)
		first := make([]byte, 1)
		if n, err := j.ReadAt(first, off); n == 0 {
			return fmt.Errorf("read initrd at byte %d: %w", off, err)
		}
		var n int64
		var err error
		switch {
		case first[0] == 0:
			n, err = zerosFrom(io.NewSectionReader(j, off, size-off))
			position += n
		case first[0] == '0' && position&3 == 0:
			c := &cpioReader{r: io.NewSectionReader(j, off, size-off), position: position, left: &u.left}
			c.buffered = bufio.NewReaderSize(c.r, 64<<10)
			err = u.entries(c, false, func(at int64) { u.part = j.at(off + at - position) })
			n = c.position - position
			position = c.position
			if errors.Is(err, io.ErrUnexpectedEOF) {
				return fmt.Errorf("read initrd at byte %d: a cpio archive is cut off or damaged: %w", off, err)
			}
		default:
			n, err = u.compressed(j, off, size)
			position += n
		}
		if err != nil {
			return fmt.Errorf("read initrd at byte %d: %w", off, err)
		}
		off += n
	}
	if u.doubt != nil {
		return fmt.Errorf("read initrd: %w", u.doubt)
	}
	if u.files == 0 {
		return errors.New("read initrd: it is empty")
	}
	return nil
}

// compressed unpacks what is compressed at off, and returns its length.
func (u *initrdUnpacker) compressed(r io.ReaderAt, off, size int64) (int64, error) {
	magic := make([]byte, 10)
	n, _ := r.ReadAt(magic, off)
	magic = magic[:n]
	section := io.NewSectionReader(r, off, size-off)
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		// The kernel skips a name in the header, and nothing else that may be there.
		if len(magic) < 10 || magic[2] != 8 || magic[3]&^0x09 != 0 {
			return 0, errors.New("its gzip header is one that the kernel does not read")
		}
		c := &countingReader{r: bufio.NewReaderSize(section, 64<<10)} // gzip reads no more of a ByteReader than it needs
		z, err := gzip.NewReader(c)
		if err != nil {
			return 0, err
		}
		z.Multistream(false)
		err = u.stream(z)
		return c.n, err
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
		return length, u.stream(z)
	case bytes.HasPrefix(magic, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		if len(magic) > 7 && magic[7] > 1 {
			u.doubtful(errors.New("it is compressed by xz with a check that kernels do not know: use xz --check=crc32"))
		}
		c := &xzStream{r: bufio.NewReaderSize(section, 64<<10)}
		z, err := xz.NewReader(c, initrdMaxWindow)
		if err != nil {
			return 0, err
		}
		err = u.stream(z)
		return c.n, err
	}
	for prefix, name := range map[string]string{"BZ": "bzip2", "\x5d\x00": "LZMA", "\x89L": "LZO", "\x02\x21": "LZ4", "\x04\x22\x4d\x18": "LZ4", "\x1f\x9e": "gzip's oldest form"} {
		if bytes.HasPrefix(magic, []byte(prefix)) {
			return 0, fmt.Errorf("it is compressed with %s, which this version does not read: use zstd, gzip or xz", name)
		}
	}
	return 0, fmt.Errorf("%x is the beginning of nothing known", magic[:min(len(magic), 6)])
}

// doubtful keeps the first doubt.
func (u *initrdUnpacker) doubtful(err error) {
	if u.doubt == nil {
		u.doubt = err
	}
}

// zerosFrom counts the zeros at the beginning.
func zerosFrom(r io.Reader) (int64, error) {
	block := make([]byte, 64<<10)
	for count := int64(0); ; {
		n, err := r.Read(block)
		for i, b := range block[:n] {
			if b != 0 {
				return count + int64(i), nil
			}
		}
		count += int64(n)
		if errors.Is(err, io.EOF) {
			return count, nil
		}
		if err != nil {
			return count, err
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

// stream unpacks what was compressed; it must end behind an entry.
func (u *initrdUnpacker) stream(r io.Reader) error {
	c := &cpioReader{r: r, left: &u.left}
	c.buffered = bufio.NewReaderSize(r, 64<<10)
	err := u.entries(c, true, func(int64) {})
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("a cpio archive is cut off or damaged: %w", err)
	}
	return err
}

// cpioReader reads archives and keeps its place.
type cpioReader struct {
	r        io.Reader
	buffered *bufio.Reader
	position int64 // as the kernel counts it, for alignment
	left     *int64
}

// read fills p; io.ErrUnexpectedEOF means that the archive ends before.
func (c *cpioReader) read(p []byte) error {
	if *c.left -= int64(len(p)); *c.left < 0 {
		return errInitrdTooLong
	}
	n, err := io.ReadFull(c.buffered, p)
	c.position += int64(n)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// copy hands n bytes to w.
func (c *cpioReader) copy(w io.Writer, n int64) error {
	if *c.left -= n; *c.left < 0 {
		return errInitrdTooLong
	}
	m, err := io.CopyN(w, c.buffered, n)
	c.position += m
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// skipZeros skips the zeros that are there by now.
func (c *cpioReader) skipZeros() error {
	there, err := c.buffered.Peek(c.buffered.Buffered())
	if err != nil {
		return err
	}
	return c.copy(io.Discard, int64(len(there)-len(bytes.TrimLeft(there, "\x00"))))
}

// entries unpacks entries up to the end of a stream, or up to what begins neither
// an entry nor padding when that may be a compressed stream. at is told where each
// entry begins.
func (u *initrdUnpacker) entries(c *cpioReader, compressed bool, at func(int64)) error {
	for {
		if u.begun || !compressed {
			// The first entry of all is read without a look at what is there.
			for {
				b, err := c.buffered.Peek(1)
				if errors.Is(err, io.EOF) {
					return nil
				}
				if err != nil {
					return err
				}
				if b[0] == 0 {
					if err := c.skipZeros(); err != nil {
						return err
					}
					continue
				}
				switch {
				case c.position&3 != 0:
					return fmt.Errorf("%q stands where padding must end at a multiple of four bytes", b)
				case b[0] != '0' && compressed:
					return fmt.Errorf("%q begins no entry of an archive", b)
				case b[0] != '0':
					return nil
				}
				break
			}
		}
		at(c.position)
		err := u.entry(c)
		if errors.Is(err, errCutPadding) && !compressed {
			return nil
		}
		if err != nil {
			return err
		}
		u.begun = true
	}
}

// errCutPadding means that a stream ends in what is skipped.
var errCutPadding = fmt.Errorf("it ends in padding: %w", io.ErrUnexpectedEOF)

// cpioHeader is an entry's header.
type cpioHeader struct {
	linkKey
	mode     uint32
	uid, gid uint32
	links    uint32
	modTime  time.Time
	device   uint64
	size     int64
	nameSize int64
	sum      uint32
	summed   bool
}

// header decodes a header.
func (u *initrdUnpacker) header(raw []byte) (cpioHeader, error) {
	h := cpioHeader{}
	switch magic := string(raw[:6]); magic {
	case "070701":
	case "070702":
		u.doubtful(errors.New("it has check sums, and kernels before 6.0 do not unpack such an archive"))
		h.summed = true
	default:
		return h, fmt.Errorf("%q does not begin a cpio archive in the newc format", magic)
	}
	var field [13]uint32
	for i := range field {
		text := string(raw[6+8*i : 14+8*i])
		v, err := strconv.ParseUint(text, 16, 32)
		if err != nil {
			return h, fmt.Errorf("%q is no number of a cpio header", text)
		}
		field[i] = uint32(v)
	}
	const mode16 = 0xffff // the kernel keeps no more
	h.linkKey = linkKey{field[0], field[7], field[8], field[1] & typeMask}
	h.mode, h.uid, h.gid, h.links = field[1]&mode16, field[2], field[3], field[4]
	h.modTime, h.size = time.Unix(int64(field[5]), 0).UTC(), int64(field[6])
	h.device, h.nameSize, h.sum = unix.Mkdev(field[9], field[10]), int64(field[11]), field[12]
	return h, nil
}

// entry unpacks one entry, and skips its padding.
func (u *initrdUnpacker) entry(c *cpioReader) error {
	raw := make([]byte, 110)
	if err := c.read(raw); err != nil {
		return err
	}
	h, err := u.header(raw)
	if err != nil {
		return err
	}
	// The name has its NUL and is padded so that the content begins at a multiple
	// of four bytes from the header.
	nameRoom := (h.nameSize+1)&^3 + 2
	end := (c.position + nameRoom + h.size + 3) &^ 3
	named := h.mode&typeMask == typeRegular || h.mode&typeMask == typeLink || h.size == 0
	if h.nameSize < 1 || h.nameSize > initrdMaxName || h.mode&typeMask == typeLink && h.size > initrdMaxName || !named {
		// It is passed over; what comes behind it depends on what came before.
		u.doubtful(fmt.Errorf("an entry with a name of %d bytes and %d bytes of content is one that the kernel passes over", h.nameSize, h.size))
		return u.skipTo(c, end)
	}
	name := make([]byte, nameRoom)
	if err := c.read(name); err != nil {
		return err
	}
	if name[h.nameSize-1] != 0 {
		return fmt.Errorf("the name %.100q does not end with NUL", name[:h.nameSize])
	}
	text, _, _ := strings.Cut(string(name), "\x00")
	if text == "TRAILER!!!" && h.mode&typeMask != typeLink {
		clear(u.links)
		return u.skipTo(c, end)
	}
	if u.files++; u.files > initrdMaxFiles {
		return fmt.Errorf("there are more than %d files", initrdMaxFiles)
	}
	if err := u.file(c, text, h); err != nil {
		return fmt.Errorf("%.100q: %w", text, err)
	}
	if u.tree.steps < 0 {
		return fmt.Errorf("%.100q: %w", text, errTooManySteps)
	}
	return u.skipTo(c, end)
}

func (u *initrdUnpacker) skipTo(c *cpioReader, end int64) error {
	err := c.copy(io.Discard, end-c.position)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return errCutPadding
	}
	return err
}

// own marks a file as one that an entry has made or changed.
func (u *initrdUnpacker) own(n *rootfsNode, h cpioHeader) {
	n.mode = n.kind() | h.mode&0o7777
	n.uid, n.gid, n.modTime, n.part, n.given = h.uid, h.gid, h.modTime, u.part, true
}

// file makes a file, directory, link or device of an entry.
func (u *initrdUnpacker) file(c *cpioReader, name string, h cpioHeader) error {
	switch kind := h.mode & typeMask; kind {
	case typeLink:
		target := make([]byte, h.size)
		if err := c.read(target); err != nil {
			return err
		}
		u.tree.clean(name, 0)
		if at := bytes.IndexByte(target, 0); at >= 0 {
			target = target[:at]
		}
		node := &rootfsNode{mode: typeLink | 0o777, uid: h.uid, gid: h.gid, modTime: h.modTime, size: int64(len(target)), content: target, kept: true, part: u.part, given: true}
		if u.digests {
			node.digest = sha256.Sum256(target)
		}
		if len(target) < initrdMaxName { // longer ones the kernel makes none of
			u.tree.add(name, node)
		}
		if there, err := u.tree.resolve(name, false); err == nil { // whatever it is
			there.uid, there.gid, there.modTime = h.uid, h.gid, h.modTime
		}
		return nil
	case typeRegular:
		u.tree.clean(name, h.mode)
		linked, ok := u.maybeLink(name, h)
		if !ok {
			return nil
		}
		node := u.tree.create(name)
		if node == nil {
			return nil
		}
		u.own(node, h)
		if linked && h.size == 0 {
			return nil // the content stays
		}
		return u.content(c, node, h)
	case typeDirectory:
		u.tree.clean(name, h.mode)
		u.tree.add(name, newDirectory(u.tree.root, 0)) // add knows the parent
		if node, err := u.tree.resolve(name, true); err == nil {
			u.own(node, h)
		}
	case unix.S_IFBLK, unix.S_IFCHR, unix.S_IFIFO, unix.S_IFSOCK:
		u.tree.clean(name, h.mode)
		if linked, ok := u.maybeLink(name, h); linked || !ok {
			return nil
		}
		u.tree.add(name, &rootfsNode{mode: kind, device: h.device, kept: true})
		if node, err := u.tree.resolve(name, true); err == nil {
			u.own(node, h)
		}
	default:
		u.tree.clean(name, h.mode)
	}
	return nil
}

// maybeLink makes another name of a file that came before, when the entry is one;
// ok is false when that failed.
func (u *initrdUnpacker) maybeLink(name string, h cpioHeader) (linked, ok bool) {
	if h.links < 2 {
		return false, true
	}
	old, known := u.links[h.linkKey]
	if !known {
		u.links[h.linkKey] = name
		return false, true
	}
	u.tree.clean(name, 0)
	linked = u.tree.link(old, name)
	return linked, linked
}

// neverText are beginnings of files that nothing reads as text: ELF, and what is
// compressed by zstd, xz or gzip.
var neverText = [][]byte{[]byte("\x7fELF"), {0x28, 0xb5, 0x2f, 0xfd}, {0xfd, '7', 'z', 'X', 'Z', 0}, {0x1f, 0x8b}}

// content gives a file its content.
func (u *initrdUnpacker) content(c *cpioReader, node *rootfsNode, h cpioHeader) error {
	u.kept -= int64(len(node.content))
	node.content, node.kept, node.size = nil, h.size == 0, h.size
	sum := sha256.New()
	into := io.Discard
	if u.digests {
		into = sum
	}
	if h.summed {
		counted := &sumWriter{}
		into = io.MultiWriter(into, counted)
		defer func() {
			if counted.sum != h.sum {
				u.doubtful(errors.New("a check sum of it is wrong, where the kernel stops"))
			}
		}()
	}
	var kept bytes.Buffer
	if h.size <= initrdMaxFile && u.kept+h.size <= initrdMaxKept {
		into = io.MultiWriter(into, &kept)
	}
	from := c.position
	err := c.copy(into, h.size)
	whole := err == nil
	if errors.Is(err, io.ErrUnexpectedEOF) && h.size <= initrdMaxFile {
		// The file has its size by then, and zeros behind what there is.
		_, padded := into.Write(make([]byte, h.size-(c.position-from)))
		whole = padded == nil
	}
	sum.Sum(node.digest[:0])
	if h.size <= initrdMaxFile && u.kept+h.size <= initrdMaxKept && whole &&
		!slices.ContainsFunc(neverText, func(magic []byte) bool { return bytes.HasPrefix(kept.Bytes(), magic) }) {
		node.content, node.kept = bytes.Clone(kept.Bytes()), true
		u.kept += h.size
	}
	return err
}

// sumWriter adds bytes, as the check sums of an archive do.
type sumWriter struct{ sum uint32 }

func (w *sumWriter) Write(p []byte) (int, error) {
	for _, b := range p {
		w.sum += uint32(b)
	}
	return len(p), nil
}

// text reads a file that matters.
func (rd *initrd) text(name string) ([]byte, error) {
	file, err := rd.file(name)
	switch {
	case err != nil:
		return nil, err
	case file.mode&typeMask != typeRegular:
		return nil, fs.ErrNotExist
	case file.unread:
		return nil, fmt.Errorf("it has %d bytes, and is too long, or no text: it was not read", file.size)
	}
	return file.content, nil
}

// file returns a file by its path, following symbolic links on the way.
func (rd *initrd) file(name string) (initrdFile, error) {
	node, err := rd.tree.resolve(name, true)
	if err != nil {
		return initrdFile{}, err
	}
	return initrdFile{mode: node.mode, size: node.size, content: node.content, unread: !node.kept, part: node.part, node: node}, nil
}

// count is how many files there are.
func (rd *initrd) count() int {
	n := 0
	for _, file := range rd.files {
		if !file.alias {
			n++
		}
	}
	return n
}

// has reports whether one of the paths exists.
func (rd *initrd) has(names ...string) bool {
	return slices.ContainsFunc(names, func(name string) bool {
		_, err := rd.tree.resolve(name, true)
		return err == nil
	})
}
