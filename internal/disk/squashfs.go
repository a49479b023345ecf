package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"time"

	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
	"github.com/xi2/xz"
	"golang.org/x/sys/unix"
)

// squashfs reads Squashfs 4.0 as Linux's fs/squashfs/squashfs_fs.h defines it,
// compressed with gzip, xz, lz4 or zstd. LZMA and LZO are refused.
type squashfs struct {
	r           io.ReaderAt
	size        int64 // bytes, of the file system itself
	blockSize   int64
	compressor  uint16
	rootRef     uint64
	inodes      int64 // byte offsets of the tables
	directories int64
	fragments   squashfsTable
	ids         squashfsTable
	xattrs      squashfsTable
	xattrBase   int64

	mu         sync.Mutex
	metadata   map[int64]squashfsBlock // by byte offset
	fragment   []byte                  // the fragment block that was read last
	fragmentAt int64
}

// squashfsTable is a table of entries of equal size in metadata blocks, which a
// list of byte offsets at index leads to.
type squashfsTable struct {
	index int64
	count int64
	entry int64 // bytes
}

// squashfsBlock is a decoded metadata block.
type squashfsBlock struct {
	data []byte
	next int64 // byte offset of the block behind it
}

// squashfsInode is what an inode says about where its content lies.
type squashfsInode struct {
	node     *inode
	start    int64 // file: byte offset of the first block; directory: of its metadata block
	offset   int64 // directory: in that block; file: in the fragment
	fragment uint32
	blocks   squashfsCursor // file: the list of block sizes
	index    squashfsCursor // directory: its index
	indexes  int            // directory: how many entries that has
	target   []byte         // symbolic link
}

const (
	squashfsMagic      = 0x73717368
	squashfsSuperSize  = 96
	squashfsMetaSize   = 8192
	squashfsMaxBlock   = 1 << 20
	squashfsNoFragment = 0xffffffff
	squashfsNoXattr    = 0xffffffff
	squashfsNoTable    = 0xffffffffffffffff
	// squashfsCache bounds how many metadata blocks are kept.
	squashfsCache = 512
)

func openSquashfs(r io.ReaderAt, size int64) (*Filesystem, error) {
	le := binary.LittleEndian
	if size < squashfsSuperSize {
		return nil, ErrNoFilesystem
	}
	sb := make([]byte, squashfsSuperSize)
	if n, err := r.ReadAt(sb, 0); n < len(sb) {
		return nil, fmt.Errorf("read superblock: %w", noEOF(err))
	}
	if le.Uint32(sb) != squashfsMagic {
		return nil, ErrNoFilesystem
	}
	s := &squashfs{
		r:          r,
		size:       int64(le.Uint64(sb[40:])),
		blockSize:  int64(le.Uint32(sb[12:])),
		compressor: le.Uint16(sb[20:]),
		rootRef:    le.Uint64(sb[32:]),
		metadata:   map[int64]squashfsBlock{},
		fragmentAt: -1,
	}
	major, minor, log := le.Uint16(sb[28:]), le.Uint16(sb[30:]), le.Uint16(sb[22:])
	switch {
	case major != 4 || minor != 0:
		return nil, fmt.Errorf("version %d.%d is not 4.0", major, minor)
	case s.size < squashfsSuperSize || s.size > size:
		return nil, fmt.Errorf("it is %d bytes long by its superblock, where there are %d", s.size, size)
	case s.blockSize < 4096 || s.blockSize > squashfsMaxBlock || log > 20 || 1<<log != s.blockSize:
		return nil, fmt.Errorf("blocks of %d bytes (2^%d) are not a power of two from 4,096 to 1,048,576", s.blockSize, log)
	case s.compressor == 2 || s.compressor == 3:
		return nil, fmt.Errorf("it is compressed with %s, which this version does not read: use zstd, xz, gzip or lz4", []string{"LZMA", "LZO"}[s.compressor-2])
	case s.compressor < 1 || s.compressor > 6:
		return nil, fmt.Errorf("compressor %d is not known", s.compressor)
	}
	offset := func(at int) int64 { return int64(min(le.Uint64(sb[at:]), uint64(s.size))) }
	s.inodes, s.directories = offset(64), offset(72)
	s.ids = squashfsTable{offset(48), int64(le.Uint16(sb[26:])), 4}
	s.fragments = squashfsTable{offset(80), int64(le.Uint32(sb[16:])), 16}
	if at := le.Uint64(sb[56:]); at != squashfsNoTable {
		head := make([]byte, 16)
		if err := s.readAt(head, offset(56)); err != nil {
			return nil, fmt.Errorf("read xattr table: %w", err)
		}
		s.xattrBase = int64(min(le.Uint64(head), uint64(s.size)))
		s.xattrs = squashfsTable{offset(56) + 16, int64(le.Uint32(head[8:])), 16}
	}
	return &Filesystem{tree: s}, nil
}

// readAt reads all of p or fails.
func (s *squashfs) readAt(p []byte, off int64) error {
	if off < 0 || off > s.size-int64(len(p)) {
		return fmt.Errorf("%d bytes at byte %d lie outside the file system of %d bytes", len(p), off, s.size)
	}
	if n, err := s.r.ReadAt(p, off); n < len(p) {
		return noEOF(err)
	}
	return nil
}

// decode decompresses a block, which may fill at most limit bytes.
func (s *squashfs) decode(src []byte, limit int64) ([]byte, error) {
	dst := make([]byte, limit)
	var n int
	var err error
	switch s.compressor {
	case 1:
		var z io.ReadCloser
		if z, err = zlib.NewReader(bytes.NewReader(src)); err == nil {
			n, err = readUpTo(z, dst)
		}
	case 4:
		// A dictionary larger than a block is of no use.
		var z *xz.Reader
		if z, err = xz.NewReader(bytes.NewReader(src), squashfsMaxBlock); err == nil {
			n, err = readUpTo(z, dst)
		}
	case 5:
		n, err = lz4Block(dst, src)
	case 6:
		var z *zstd.Decoder
		if z, err = squashfsZstd(); err == nil {
			var out []byte
			out, err = z.DecodeAll(src, dst[:0])
			n = len(out)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	return dst[:n], nil
}

// squashfsZstd is shared: DecodeAll may be called concurrently.
var squashfsZstd = sync.OnceValues(func() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecodeAllCapLimit(true),
		zstd.WithDecoderMaxWindow(8<<20), zstd.WithDecoderMaxMemory(squashfsMaxBlock))
})

// readUpTo reads to the end, which must come before dst is exceeded.
func readUpTo(r io.Reader, dst []byte) (int, error) {
	n, err := io.ReadFull(r, dst)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return n, nil
	}
	if err != nil {
		return n, err
	}
	if m, err := r.Read(make([]byte, 1)); m > 0 {
		return n, fmt.Errorf("it is longer than %d bytes", len(dst))
	} else if err != nil && !errors.Is(err, io.EOF) {
		return n, err
	}
	return n, nil
}

// block reads the metadata block at a byte offset.
func (s *squashfs) block(at int64) (squashfsBlock, error) {
	s.mu.Lock()
	b, ok := s.metadata[at]
	s.mu.Unlock()
	if ok {
		return b, nil
	}
	head := make([]byte, 2)
	if err := s.readAt(head, at); err != nil {
		return b, fmt.Errorf("read metadata block: %w", err)
	}
	size := binary.LittleEndian.Uint16(head)
	raw := make([]byte, size&0x7fff)
	if len(raw) == 0 || len(raw) > squashfsMetaSize {
		return b, fmt.Errorf("a metadata block of %d bytes at byte %d", len(raw), at)
	}
	if err := s.readAt(raw, at+2); err != nil {
		return b, fmt.Errorf("read metadata block: %w", err)
	}
	b = squashfsBlock{data: raw, next: at + 2 + int64(len(raw))}
	if size&0x8000 == 0 {
		var err error
		if b.data, err = s.decode(raw, squashfsMetaSize); err != nil {
			return b, fmt.Errorf("metadata block at byte %d: %w", at, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.metadata) >= squashfsCache {
		for k := range s.metadata { // any one makes room
			delete(s.metadata, k)
			break
		}
	}
	s.metadata[at] = b
	return b, nil
}

// squashfsCursor is a place in a row of metadata blocks.
type squashfsCursor struct {
	s      *squashfs
	block  int64 // byte offset
	offset int64 // in the decoded block
}

// cursor decodes a reference: a block's distance from base, then 16 bits of the
// offset in it.
func (s *squashfs) cursor(base int64, ref uint64) squashfsCursor {
	return squashfsCursor{s, base + int64(min(ref>>16, uint64(s.size))), int64(ref & 0xffff)}
}

// read fills p and moves on.
func (c *squashfsCursor) read(p []byte) error {
	for len(p) > 0 {
		b, err := c.s.block(c.block)
		if err != nil {
			return err
		}
		if c.offset > int64(len(b.data)) {
			return fmt.Errorf("byte %d of a metadata block of %d bytes", c.offset, len(b.data))
		}
		n := copy(p, b.data[c.offset:])
		p = p[n:]
		c.offset += int64(n)
		if c.offset == int64(len(b.data)) {
			c.block, c.offset = b.next, 0
		}
	}
	return nil
}

// lookup reads an entry of a table.
func (s *squashfs) lookup(t squashfsTable, n int64) ([]byte, error) {
	if n < 0 || n >= t.count {
		return nil, fmt.Errorf("entry %d of a table of %d", n, t.count)
	}
	at := make([]byte, 8)
	if err := s.readAt(at, t.index+n*t.entry/squashfsMetaSize*8); err != nil {
		return nil, fmt.Errorf("read table index: %w", err)
	}
	c := squashfsCursor{s, int64(min(binary.LittleEndian.Uint64(at), uint64(s.size))), n * t.entry % squashfsMetaSize}
	entry := make([]byte, t.entry)
	return entry, c.read(entry)
}

func (s *squashfs) root() uint64 { return s.rootRef }

func (s *squashfs) inode(ref uint64) (*inode, error) {
	node, err := s.readInode(ref)
	if err != nil {
		return nil, fmt.Errorf("inode %#x: %w", ref, err)
	}
	return node, nil
}

// squashfsTypes are the file types by inode type; 7 more make the extended ones.
var squashfsTypes = []uint16{0, unix.S_IFDIR, unix.S_IFREG, unix.S_IFLNK, unix.S_IFBLK, unix.S_IFCHR, unix.S_IFIFO, unix.S_IFSOCK}

// squashfsFixed is the size of what follows the header of 16 bytes, by inode
// type.
var squashfsFixed = []int{0, 16, 16, 8, 8, 8, 4, 4, 24, 40, 8, 12, 12, 8, 8}

func (s *squashfs) readInode(ref uint64) (*inode, error) {
	le := binary.LittleEndian
	c := s.cursor(s.inodes, ref)
	head := make([]byte, 16)
	if err := c.read(head); err != nil {
		return nil, err
	}
	kind := int(le.Uint16(head))
	if kind == 0 || kind >= len(squashfsFixed) {
		return nil, fmt.Errorf("inode type %d is not known", kind)
	}
	basic, extended := kind, kind > 7
	if extended {
		basic -= 7
	}
	mode, err := unixMode(squashfsTypes[basic] | le.Uint16(head[2:])&0o7777)
	if err != nil {
		return nil, err
	}
	node := &inode{id: ref, mode: mode, modTime: time.Unix(int64(le.Uint32(head[8:])), 0)}
	node.stat.Inode = uint64(le.Uint32(head[12:]))
	for i, id := range []*uint32{&node.stat.UID, &node.stat.GID} {
		raw, err := s.lookup(s.ids, int64(le.Uint16(head[4+2*i:])))
		if err != nil {
			return nil, fmt.Errorf("owner: %w", err)
		}
		*id = le.Uint32(raw)
	}
	raw := make([]byte, squashfsFixed[kind])
	if err := c.read(raw); err != nil {
		return nil, err
	}
	own := &squashfsInode{node: node}
	node.private = own
	xattr, err := s.fill(own, raw, &c, basic, extended)
	if err != nil {
		return nil, err
	}
	if xattr != squashfsNoXattr {
		if node.stat.Xattrs, err = s.readXattrs(xattr); err != nil {
			return nil, fmt.Errorf("read xattrs: %w", err)
		}
	}
	return node, nil
}

// fill takes the fields behind the header of an inode; c stands behind them. It
// returns the number of the xattrs.
func (s *squashfs) fill(own *squashfsInode, raw []byte, c *squashfsCursor, basic int, extended bool) (xattr uint32, err error) {
	le := binary.LittleEndian
	node := own.node
	xattr = squashfsNoXattr
	switch {
	case basic == 1 && extended:
		node.stat.Nlink, node.size = le.Uint32(raw), int64(le.Uint32(raw[4:]))
		own.start, own.offset, xattr = int64(le.Uint32(raw[8:])), int64(le.Uint16(raw[18:])), le.Uint32(raw[20:])
		own.index, own.indexes = *c, int(le.Uint16(raw[16:]))
	case basic == 1:
		node.stat.Nlink, node.size = le.Uint32(raw[4:]), int64(le.Uint16(raw[8:]))
		own.start, own.offset = int64(le.Uint32(raw)), int64(le.Uint16(raw[10:]))
	case basic == 2 && extended:
		own.start, node.size = int64(le.Uint64(raw)), int64(le.Uint64(raw[8:]))
		node.stat.Nlink, own.fragment = le.Uint32(raw[24:]), le.Uint32(raw[28:])
		own.offset, xattr = int64(le.Uint32(raw[32:])), le.Uint32(raw[36:])
		own.blocks = *c
	case basic == 2:
		own.start, own.fragment = int64(le.Uint32(raw)), le.Uint32(raw[4:])
		own.offset, node.size, node.stat.Nlink = int64(le.Uint32(raw[8:])), int64(le.Uint32(raw[12:])), 1
		own.blocks = *c
	case basic == 3:
		node.stat.Nlink, node.size = le.Uint32(raw), int64(le.Uint32(raw[4:]))
		if node.size > maxSymlink {
			return 0, fmt.Errorf("a symbolic link of %d bytes is longer than %d", node.size, maxSymlink)
		}
		own.target = make([]byte, node.size)
		if err := c.read(own.target); err != nil {
			return 0, err
		}
		if extended {
			raw = make([]byte, 4)
			err = c.read(raw)
			xattr = le.Uint32(raw)
		}
	default:
		node.stat.Nlink = le.Uint32(raw)
		if basic < 6 {
			node.stat.Rdev = decodeDev(le.Uint32(raw[4:]))
		}
		if extended {
			xattr = le.Uint32(raw[len(raw)-4:])
		}
	}
	if err == nil && (node.size < 0 || own.start < 0) {
		err = fmt.Errorf("its size %d or place %d is negative", node.size, own.start)
	}
	// The kernel looks the fragment up when it reads the inode, whether or not any
	// byte of the file lies in it.
	if err == nil && basic == 2 && own.fragment != squashfsNoFragment {
		if _, err = s.lookup(s.fragments, int64(own.fragment)); err != nil {
			err = fmt.Errorf("fragment: %w", err)
		}
	}
	return xattr, err
}

func (s *squashfs) readXattrs(number uint32) (map[string][]byte, error) {
	le := binary.LittleEndian
	entry, err := s.lookup(s.xattrs, int64(number))
	if err != nil {
		return nil, err
	}
	c := s.cursor(s.xattrBase, le.Uint64(entry))
	count, total := le.Uint32(entry[8:]), 0
	xattrs := map[string][]byte{}
	for range count {
		head := make([]byte, 4)
		if err := c.read(head); err != nil {
			return nil, err
		}
		kind := le.Uint16(head)
		prefix, ok := map[uint16]string{0: "user.", 1: "trusted.", 2: "security."}[kind&0xff]
		if !ok {
			return nil, fmt.Errorf("name prefix %d is not known", kind)
		}
		name := make([]byte, le.Uint16(head[2:]))
		if len(name) > maxName {
			return nil, fmt.Errorf("a name of %d bytes", len(name))
		}
		if err := c.read(name); err != nil {
			return nil, err
		}
		value, err := squashfsValue(&c)
		if err == nil && kind&0x100 != 0 {
			if len(value) != 8 {
				return nil, fmt.Errorf("a reference of %d bytes", len(value))
			}
			elsewhere := s.cursor(s.xattrBase, le.Uint64(value))
			value, err = squashfsValue(&elsewhere)
		}
		if err != nil {
			return nil, err
		}
		if total += len(name) + len(value); total > 1<<20 {
			return nil, errors.New("they are longer than 1,048,576 bytes")
		}
		xattrs[prefix+string(name)] = value
	}
	return xattrs, nil
}

func squashfsValue(c *squashfsCursor) ([]byte, error) {
	head := make([]byte, 4)
	if err := c.read(head); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(head)
	if n > 64<<10 {
		return nil, fmt.Errorf("a value of %d bytes is longer than 65,536", n)
	}
	value := make([]byte, n)
	return value, c.read(value)
}

// squashfsDirectory is a directory with its index, if it has one. The kernel goes
// through the index to find where to begin, and from there through the entries,
// whose headers are each followed by up to 256 entries of inodes in the same
// metadata block.
type squashfsDirectory struct {
	s     *squashfs
	start squashfsCursor
	size  int64 // bytes of entries
	index []squashfsIndex
}

// squashfsIndex is an entry of the index: from its name on, entries are looked for
// from a byte of the directory on, which is said to be in a metadata block.
type squashfsIndex struct {
	name  string
	at    int64 // byte of the entries
	block int64 // byte offset of the metadata block
}

func (s *squashfs) directory(dir *inode) (directory, error) {
	own := dir.private.(*squashfsInode)
	// The size counts 3 bytes for "." and "..", which are not stored.
	d := &squashfsDirectory{s: s, start: squashfsCursor{s, s.directories + own.start, own.offset}, size: dir.size - 3}
	le := binary.LittleEndian
	for c := own.index; len(d.index) < own.indexes; {
		head := make([]byte, 12)
		if err := c.read(head); err != nil {
			return nil, fmt.Errorf("read index of directory: %w", err)
		}
		length := le.Uint32(head[8:])
		if length >= maxName+1 {
			return nil, fmt.Errorf("read index of directory: a name of %d bytes", int64(length)+1)
		}
		name := make([]byte, length+1)
		if err := c.read(name); err != nil {
			return nil, fmt.Errorf("read index of directory: %w", err)
		}
		name, _, _ = bytes.Cut(name, []byte{0})
		// The kernel takes the byte for a number with a sign.
		at := int64(int32(le.Uint32(head))) //nolint:gosec // as in the kernel
		if at > maxDirSize || at < -own.offset {
			return nil, fmt.Errorf("read index of directory: %q is said to be at byte %d", name, at)
		}
		d.index = append(d.index, squashfsIndex{string(name), at, s.directories + int64(le.Uint32(head[4:]))})
	}
	return d, nil
}

// from goes through the entries from a byte of the directory on, which is at a
// place of the disk. header is called in front of the entries behind a header.
func (d *squashfsDirectory) from(at int64, c squashfsCursor, header func(at int64, c squashfsCursor), yield func(dirent) error) error {
	le := binary.LittleEndian
	begin := at
	for at < d.size {
		header(at, c)
		head := make([]byte, 12)
		if err := c.read(head); err != nil {
			return fmt.Errorf("read directory: %w", err)
		}
		at += 12
		count := le.Uint32(head)
		if count >= 256 {
			return fmt.Errorf("read directory: %d entries behind a header", int64(count)+1)
		}
		for range count + 1 {
			raw := make([]byte, 8, 8+256)
			if err := c.read(raw); err != nil {
				return fmt.Errorf("read directory: %w", err)
			}
			name := make([]byte, int(le.Uint16(raw[6:]))+1)
			if len(name) > maxName {
				return fmt.Errorf("read directory: a name of %d bytes", len(name))
			}
			if err := c.read(name); err != nil {
				return fmt.Errorf("read directory: %w", err)
			}
			at += 8 + int64(len(name))
			e := dirent{name: string(name), id: uint64(le.Uint32(head[4:]))<<16 | uint64(le.Uint16(raw))}
			// The difference to the header's number has a sign.
			e.number = le.Uint32(head[8:]) + uint32(int32(int16(le.Uint16(raw[2:])))) //nolint:gosec // wraps around as in the kernel
			if err := checkName(e.name); err != nil {
				return fmt.Errorf("read directory: %w", err)
			}
			if e.number == 0 {
				return fmt.Errorf("read directory: %q has the inode number 0", e.name)
			}
			if kind := int(le.Uint16(raw[4:])); kind == 0 || kind > 7 {
				return fmt.Errorf("read directory: %q is of the unknown type %d", e.name, kind)
			} else if mode, err := unixMode(squashfsTypes[kind]); err == nil {
				e.kind = mode
			}
			if err := yield(e); err != nil {
				return err
			}
		}
	}
	if at > d.size && at != begin {
		return errors.New("read directory: its entries are longer than itself")
	}
	return nil
}

func (d *squashfsDirectory) list(yield func(dirent) error) (agreement, error) {
	type place struct {
		at, block, offset int64
	}
	headers := map[place]string{} // to the first name behind each
	var open place
	last, agreement, first := "", agrees, true
	err := d.from(0, d.start, func(at int64, c squashfsCursor) {
		open, first = place{at, c.block, c.offset}, true
	}, func(e dirent) error {
		if first && len(d.index) > 0 {
			headers[open] = e.name
		}
		first = false
		if e.name <= last {
			agreement = differs
		}
		last = e.name
		return yield(e)
	})
	// An index that leads to the header of its name only makes a lookup shorter.
	previous := ""
	for _, i := range d.index {
		name, ok := headers[place{i.at, i.block, (i.at + d.start.offset) % squashfsMetaSize}]
		if !ok || name != i.name || i.name <= previous {
			agreement = differs
		}
		previous = i.name
	}
	return agreement, err
}

// errFound ends a lookup.
var errFound = errors.New("found")

func (d *squashfsDirectory) find(name string) (dirent, error) {
	at, c := int64(0), d.start
	for _, i := range d.index {
		if i.name > name {
			break
		}
		at, c = i.at, squashfsCursor{d.s, i.block, (i.at + d.start.offset) % squashfsMetaSize}
	}
	return search(name, func(yield func(dirent) error) error {
		return d.from(at, c, func(int64, squashfsCursor) {}, func(e dirent) error {
			if name[0] < e.name[0] {
				return fs.ErrNotExist
			}
			return yield(e)
		})
	})
}

func (s *squashfs) content(node *inode) (io.ReaderAt, error) {
	own := node.private.(*squashfsInode)
	if own.target != nil {
		return bytes.NewReader(own.target), nil
	}
	f := &squashfsFile{squashfs: s, own: own, decodedAt: -1}
	f.rewind()
	return f, nil
}

// squashfsFile is an open file. The sizes of its blocks are read in order, as
// only their sum tells where a block lies.
type squashfsFile struct {
	*squashfs
	own *squashfsInode

	sizes squashfsCursor
	next  int64 // number of the block whose size is read next
	at    int64 // its byte offset

	decoded   []byte
	decodedAt int64 // number of the block
}

func (f *squashfsFile) rewind() {
	f.sizes, f.next, f.at = f.own.blocks, 0, f.own.start
}

func (f *squashfsFile) ReadAt(p []byte, off int64) (int, error) {
	size := f.own.node.size
	return readParts(p, off, size, func(p []byte, off int64) (int64, error) {
		n := off / f.blockSize
		if n != f.decodedAt {
			f.decodedAt = -1
			length := min(f.blockSize, size-n*f.blockSize)
			var err error
			if f.own.fragment != squashfsNoFragment && length < f.blockSize {
				f.decoded, err = f.readFragment(length)
			} else {
				f.decoded, err = f.readBlock(n, length)
			}
			if err != nil {
				return 0, fmt.Errorf("block %d: %w", n, err)
			}
			f.decodedAt = n
		}
		return int64(copy(p, f.decoded[off%f.blockSize:])), nil
	})
}

// readBlock reads the block n of the file, which decodes to length bytes.
func (f *squashfsFile) readBlock(n, length int64) ([]byte, error) {
	if n < f.next {
		f.rewind()
	}
	for {
		raw := make([]byte, 4)
		if err := f.sizes.read(raw); err != nil {
			return nil, err
		}
		size, at := binary.LittleEndian.Uint32(raw), f.at
		f.next++
		f.at += int64(size & 0xffffff)
		if f.at > f.size {
			return nil, fmt.Errorf("it ends at byte %d of the file system of %d bytes", f.at, f.size)
		}
		if f.next <= n {
			continue
		}
		if size == 0 {
			return make([]byte, length), nil
		}
		decoded, err := f.readData(at, size)
		if err == nil && int64(len(decoded)) != length {
			err = fmt.Errorf("it decodes to %d bytes, not %d", len(decoded), length)
		}
		return decoded, err
	}
}

// readData reads a data block whose size has the bit 24 when it is not
// compressed.
func (s *squashfs) readData(at int64, size uint32) ([]byte, error) {
	stored := int64(size & 0xffffff)
	if size>>25 != 0 || stored > s.blockSize {
		return nil, fmt.Errorf("a stored size of %#x", size)
	}
	raw := make([]byte, stored)
	if err := s.readAt(raw, at); err != nil || size&(1<<24) != 0 {
		return raw, err
	}
	return s.decode(raw, s.blockSize)
}

// readFragment reads the end of the file, which shares a block with others.
func (f *squashfsFile) readFragment(length int64) ([]byte, error) {
	f.mu.Lock()
	fragment, known := f.fragment, f.fragmentAt == int64(f.own.fragment)
	f.mu.Unlock()
	if !known {
		entry, err := f.lookup(f.fragments, int64(f.own.fragment))
		if err != nil {
			return nil, fmt.Errorf("fragment: %w", err)
		}
		at := int64(min(binary.LittleEndian.Uint64(entry), uint64(f.size)))
		if fragment, err = f.readData(at, binary.LittleEndian.Uint32(entry[8:])); err != nil {
			return nil, fmt.Errorf("fragment: %w", err)
		}
		f.mu.Lock()
		f.fragment, f.fragmentAt = fragment, int64(f.own.fragment)
		f.mu.Unlock()
	}
	if f.own.offset > int64(len(fragment)) || length > int64(len(fragment))-f.own.offset {
		return nil, fmt.Errorf("fragment: %d bytes at byte %d of %d", length, f.own.offset, len(fragment))
	}
	return fragment[f.own.offset : f.own.offset+length], nil
}

var _ fs.ReadLinkFS = (*Filesystem)(nil)
