package disk

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"strings"
	"sync"
	"time"
)

// erofs reads EROFS as Linux's Documentation/filesystems/erofs.rst and
// fs/erofs/erofs_fs.h define it, with the features that mkfs.erofs 1.8 knows:
// flat, inline and chunk-based files, and files compressed with LZ4, DEFLATE or
// Zstandard, with big physical clusters, tail packing, fragments and
// deduplication. LZMA, several devices, and the 48-bit and metabox layouts of
// erofs-utils 1.9 are refused.
type erofs struct {
	r         io.ReaderAt
	size      int64 // bytes, of the file system itself
	blockBits uint
	meta      int64
	xattrs    int64 // byte offset of the shared xattr area
	rootNID   uint64
	packedNID uint64 // of the inode that holds fragments, 0 when there is none
	epoch     int64  // seconds
	epochNsec int64
	prefixes  []erofsPrefix

	packedOnce sync.Once
	packed     *erofsPacked
	packedErr  error
}

// erofsPrefix is a long xattr name prefix: an infix behind one of the short
// prefixes.
type erofsPrefix struct {
	base  byte
	infix string
}

// erofsInode is what an inode says about where its content lies.
type erofsInode struct {
	node   *inode
	nid    uint64
	layout uint16
	start  uint32 // start block, chunk format, or device
	tail   int64  // byte offset behind inode and xattrs
}

const (
	erofsSuperOffset = 1024
	erofsSuperSize   = 128
	erofsMagic       = 0xe0f5e1e2
	erofsNullBlock   = 0xffffffff

	erofsCompatChecksum = 0x1

	erofsIncompatFragments     = 0x20
	erofsIncompatXattrPrefixes = 0x40
	erofsIncompatKnown         = 0x7f

	erofsFlatPlain         = 0
	erofsCompressedFull    = 1
	erofsFlatInline        = 2
	erofsCompressedCompact = 3
	erofsChunkBased        = 4
)

func openErofs(r io.ReaderAt, size int64) (*Filesystem, error) {
	le := binary.LittleEndian
	if size < erofsSuperOffset+erofsSuperSize {
		return nil, ErrNoFilesystem
	}
	sb := make([]byte, erofsSuperSize)
	if n, err := r.ReadAt(sb, erofsSuperOffset); n < len(sb) {
		return nil, fmt.Errorf("read superblock: %w", noEOF(err))
	}
	if le.Uint32(sb) != erofsMagic {
		return nil, ErrNoFilesystem
	}
	e := &erofs{
		r:         r,
		blockBits: uint(sb[12]),
		rootNID:   uint64(le.Uint16(sb[14:])),
		epoch:     int64(le.Uint64(sb[24:])),
		epochNsec: int64(le.Uint32(sb[32:])),
		packedNID: le.Uint64(sb[96:]),
	}
	if e.blockBits < 9 || e.blockBits > 16 {
		return nil, fmt.Errorf("blocks of 2^%d bytes are not between 512 and 65,536 bytes", sb[12])
	}
	incompat := le.Uint32(sb[80:])
	switch {
	case incompat&0x80 != 0:
		return nil, errors.New("it has the 48-bit layout of erofs-utils 1.9, which this version does not read: make it without -E48bit")
	case incompat&0x100 != 0:
		return nil, errors.New("its inodes are in a metabox (erofs-utils 1.9), which this version does not read: make it without -m")
	case incompat&^erofsIncompatKnown != 0:
		return nil, fmt.Errorf("it has the features %#x, which this version does not know", incompat&^erofsIncompatKnown)
	case le.Uint16(sb[86:]) != 0:
		return nil, fmt.Errorf("its data are on %d other devices", le.Uint16(sb[86:]))
	}
	e.size = int64(le.Uint32(sb[36:])) << e.blockBits
	if e.size < erofsSuperOffset+erofsSuperSize || e.size > size {
		return nil, fmt.Errorf("it is %d bytes long by its superblock, where there are %d", e.size, size)
	}
	if le.Uint32(sb[8:])&erofsCompatChecksum != 0 {
		if err := e.checkSuper(le.Uint32(sb[4:])); err != nil {
			return nil, err
		}
	}
	if sb[90] != 0 {
		return nil, fmt.Errorf("its directory blocks are 2^%d times as long as its blocks, which the kernel refuses", sb[90])
	}
	e.meta = int64(le.Uint32(sb[40:])) << e.blockBits
	e.xattrs = int64(le.Uint32(sb[44:])) << e.blockBits
	if incompat&erofsIncompatFragments == 0 {
		e.packedNID = 0
	}
	if incompat&erofsIncompatXattrPrefixes != 0 && sb[91] > 0 {
		if err := e.readPrefixes(int(sb[91]), int64(le.Uint32(sb[92:]))<<2); err != nil {
			return nil, fmt.Errorf("read xattr prefixes: %w", err)
		}
	}
	label, _, _ := strings.Cut(string(sb[64:80]), "\x00")
	return &Filesystem{UUID: formatUUID([16]byte(sb[48:64])), Label: label, tree: e}, nil
}

// checkSuper compares the CRC-32C (without its final inversion) of the block
// that has the superblock, from the superblock on, with its own field zeroed.
func (e *erofs) checkSuper(want uint32) error {
	block := make([]byte, 1<<e.blockBits)
	if len(block) > erofsSuperOffset {
		block = block[erofsSuperOffset:]
	}
	if err := e.readAt(block, erofsSuperOffset); err != nil {
		return fmt.Errorf("read superblock: %w", err)
	}
	clear(block[4:8])
	if got := ^crc32.Checksum(block, crc32.MakeTable(crc32.Castagnoli)); got != want {
		return fmt.Errorf("superblock checksum is %08x, but its content gives %08x: it is damaged", want, got)
	}
	return nil
}

// readAt reads all of p or fails.
func (e *erofs) readAt(p []byte, off int64) error {
	if off < 0 || off > e.size-int64(len(p)) {
		return fmt.Errorf("%d bytes at byte %d lie outside the file system of %d bytes", len(p), off, e.size)
	}
	if n, err := e.r.ReadAt(p, off); n < len(p) {
		return noEOF(err)
	}
	return nil
}

// readPrefixes reads the long xattr name prefixes: each a length of 16 bits,
// then the number of a short prefix and the infix, aligned to 4 bytes.
func (e *erofs) readPrefixes(count int, off int64) error {
	read := e.readAt
	if e.packedNID != 0 {
		node, err := e.inode(e.packedNID)
		if err != nil {
			return err
		}
		content, err := e.content(node)
		if err != nil {
			return err
		}
		read = func(p []byte, off int64) error {
			if off+int64(len(p)) > node.size {
				return fmt.Errorf("%d bytes at byte %d lie outside the packed inode of %d bytes", len(p), off, node.size)
			}
			n, err := content.ReadAt(p, off)
			if n < len(p) {
				return noEOF(err)
			}
			return nil
		}
	}
	for range count {
		off = (off + 3) &^ 3
		length := make([]byte, 2)
		if err := read(length, off); err != nil {
			return err
		}
		entry := make([]byte, binary.LittleEndian.Uint16(length))
		if len(entry) == 0 || len(entry) > 1+maxName {
			return fmt.Errorf("a prefix of %d bytes is not between 1 and %d long", len(entry), 1+maxName)
		}
		if err := read(entry, off+2); err != nil {
			return err
		}
		e.prefixes = append(e.prefixes, erofsPrefix{entry[0], string(entry[1:])})
		off += 2 + int64(len(entry))
	}
	return nil
}

func (e *erofs) root() uint64 { return e.rootNID }

func (e *erofs) inode(nid uint64) (*inode, error) {
	node, err := e.readInode(nid)
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", nid, err)
	}
	return node, nil
}

func (e *erofs) readInode(nid uint64) (*inode, error) {
	if nid > uint64(e.size)>>5 {
		return nil, errors.New("it lies outside the file system")
	}
	at := e.meta + int64(nid)<<5
	raw := make([]byte, 32)
	if err := e.readAt(raw, at); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	format := le.Uint16(raw)
	if format&^0x1f != 0 {
		return nil, fmt.Errorf("its format %#x is not known", format)
	}
	extended := format&1 != 0
	if extended {
		raw = make([]byte, 64)
		if err := e.readAt(raw, at); err != nil {
			return nil, err
		}
	}
	mode, err := unixMode(le.Uint16(raw[4:]))
	if err != nil {
		return nil, err
	}
	node := &inode{id: nid, mode: mode}
	own := &erofsInode{node: node, nid: nid, layout: format >> 1 & 7, start: le.Uint32(raw[16:]), tail: at + int64(len(raw))}
	node.private = own
	node.stat.Inode = nid
	if extended {
		node.size = int64(le.Uint64(raw[8:]))
		node.stat.UID, node.stat.GID = le.Uint32(raw[24:]), le.Uint32(raw[28:])
		node.modTime = time.Unix(int64(le.Uint64(raw[32:])), int64(le.Uint32(raw[40:])))
		node.stat.Nlink = le.Uint32(raw[44:])
	} else {
		node.size = int64(le.Uint32(raw[8:]))
		node.stat.UID, node.stat.GID = uint32(le.Uint16(raw[24:])), uint32(le.Uint16(raw[26:]))
		// Before erofs-utils 1.9 this is zero, and the epoch alone counts.
		node.modTime = time.Unix(e.epoch+int64(le.Uint32(raw[12:])), e.epochNsec)
		node.stat.Nlink = uint32(le.Uint16(raw[6:]))
	}
	switch {
	case own.layout > erofsChunkBased:
		return nil, fmt.Errorf("its data layout %d is not known", own.layout)
	case node.size < 0:
		return nil, fmt.Errorf("its size %d is negative", node.size)
	}
	if mode&fs.ModeDevice != 0 {
		node.stat.Rdev = decodeDev(own.start)
	}
	if count := int64(le.Uint16(raw[2:])); count > 0 {
		body := make([]byte, 12+4*(count-1))
		if err := e.readAt(body, own.tail); err != nil {
			return nil, fmt.Errorf("read xattrs: %w", err)
		}
		own.tail += int64(len(body))
		if node.stat.Xattrs, err = e.readXattrs(body); err != nil {
			return nil, fmt.Errorf("read xattrs: %w", err)
		}
	}
	return node, nil
}

// readXattrs reads the xattrs of an inode: a header of 12 bytes, the numbers of
// shared ones, then those of its own.
func (e *erofs) readXattrs(body []byte) (map[string][]byte, error) {
	xattrs := map[string][]byte{}
	shared := int(body[4])
	if 12+4*shared > len(body) {
		return nil, fmt.Errorf("%d shared ones do not fit into %d bytes", shared, len(body))
	}
	for i := range shared {
		at := e.xattrs + int64(binary.LittleEndian.Uint32(body[12+4*i:]))*4
		entry := make([]byte, 4)
		if err := e.readAt(entry, at); err != nil {
			return nil, err
		}
		entry = make([]byte, 4+int(entry[0])+int(binary.LittleEndian.Uint16(entry[2:])))
		if err := e.readAt(entry, at); err != nil {
			return nil, err
		}
		if _, err := e.addXattr(xattrs, entry); err != nil {
			return nil, err
		}
	}
	for rest := body[12+4*shared:]; len(rest) >= 4; {
		if binary.LittleEndian.Uint32(rest) == 0 {
			break // padding
		}
		n, err := e.addXattr(xattrs, rest)
		if err != nil {
			return nil, err
		}
		rest = rest[min(len(rest), (n+3)&^3):]
	}
	return xattrs, nil
}

// xattrNames are the prefixes of xattr names that erofs and ext4 number alike.
var xattrNames = map[byte]string{
	0: "", 1: "user.", 2: "system.posix_acl_access", 3: "system.posix_acl_default",
	4: "trusted.", 5: "lustre.", 6: "security.", 7: "system.", 8: "system.richacl",
}

func (e *erofs) addXattr(xattrs map[string][]byte, raw []byte) (length int, err error) {
	index, nameLen, valueLen := raw[1], int(raw[0]), int(binary.LittleEndian.Uint16(raw[2:]))
	length = 4 + nameLen + valueLen
	if length > len(raw) {
		return 0, fmt.Errorf("one of %d bytes in the %d that are left", length, len(raw))
	}
	infix := ""
	if index&0x80 != 0 {
		n := int(index & 0x7f)
		if n >= len(e.prefixes) {
			return 0, fmt.Errorf("name prefix %d of %d", n, len(e.prefixes))
		}
		index, infix = e.prefixes[n].base, e.prefixes[n].infix
	}
	prefix, ok := xattrNames[index]
	if !ok {
		return 0, fmt.Errorf("name prefix %d is not known", index)
	}
	xattrs[prefix+infix+string(raw[4:4+nameLen])] = bytes.Clone(raw[4+nameLen : length])
	return length, nil
}

// erofsDirectory is a directory by its blocks. The kernel looks a name up by
// bisection: over the first names of the blocks, then in one block.
type erofsDirectory struct {
	blocks [][]dirent
	// cut says that the last name goes on behind the end of the directory, where a
	// lookup reads on and a listing does not.
	cut bool
}

// directory reads directory blocks: 12-byte entries first, then the names.
func (e *erofs) directory(dir *inode) (directory, error) {
	content, err := e.content(dir)
	if err != nil {
		return nil, err
	}
	d := &erofsDirectory{}
	block := make([]byte, 1<<e.blockBits)
	for off := int64(0); off < dir.size; off += int64(cap(block)) {
		block = block[:min(int64(cap(block)), dir.size-off)]
		if n, err := content.ReadAt(block, off); n < len(block) {
			return nil, fmt.Errorf("read directory: %w", noEOF(err))
		}
		entries, err := erofsDirents(block)
		if err != nil {
			return nil, fmt.Errorf("directory block at byte %d: %w", off, err)
		}
		d.blocks = append(d.blocks, entries)
	}
	if own := dir.private.(*erofsInode); own.layout == erofsFlatPlain && len(block) < cap(block) && !bytes.HasSuffix(block, []byte{0}) {
		next := make([]byte, 1)
		if err := e.readAt(next, int64(own.start)<<e.blockBits+dir.size); err != nil {
			return nil, fmt.Errorf("read directory: %w", err)
		}
		d.cut = next[0] != 0
	}
	return d, nil
}

func (d *erofsDirectory) list(yield func(dirent) error) (agreement, error) {
	last, agreement := "", agrees
	if d.cut {
		agreement = differs
	}
	for _, block := range d.blocks {
		for _, e := range block {
			if e.name <= last {
				agreement = differs
			}
			last = e.name
			if e.name == "." || e.name == ".." {
				continue
			}
			if err := yield(e); err != nil {
				return agreement, err
			}
		}
	}
	return agreement, nil
}

func (d *erofsDirectory) find(name string) (dirent, error) {
	candidate := -1
	at, _ := erofsBisect(name, 0, len(d.blocks)-1, func(i int) string { return d.blocks[i][0].name }, &candidate)
	if at >= 0 {
		return d.blocks[at][0], nil
	}
	if candidate < 0 {
		return dirent{}, fs.ErrNotExist
	}
	block := d.blocks[candidate]
	at, cut := erofsBisect(name, 1, len(block)-1, func(i int) string { return block[i].name }, new(int))
	if cut = cut && d.cut && candidate == len(d.blocks)-1; cut {
		return dirent{}, errors.New("its last name goes on behind its end")
	}
	if at < 0 {
		return dirent{}, fs.ErrNotExist
	}
	return block[at], nil
}

// erofsBisect finds a name among those from head to back as fs/erofs/namei.c does,
// which leaves out what of the prefix both ends share: among names that are not
// sorted that decides what is found. before becomes the last index whose name
// sorted in front. lastSeen says that the name at back was compared.
func erofsBisect(name string, head, back int, at func(int) string, before *int) (found int, lastSeen bool) {
	last, low, high := back, 0, 0
	for head <= back {
		mid := head + (back-head)/2
		lastSeen = lastSeen || mid == last
		matched, order := erofsCompare(name, at(mid), min(low, high))
		switch {
		case order == 0:
			return mid, lastSeen
		case order > 0:
			*before, head, low = mid, mid+1, matched
		default:
			back, high = mid-1, matched
		}
	}
	return -1, lastSeen
}

// erofsCompare compares two names from their byte number matched on, and counts
// the bytes that are the same.
func erofsCompare(name, with string, matched int) (int, int) {
	for ; matched < len(with); matched++ {
		var c byte // a NUL behind its end
		if matched < len(name) {
			c = name[matched]
		}
		if c != with[matched] {
			return matched, cmp.Compare(c, with[matched])
		}
	}
	if matched < len(name) {
		return matched, 1
	}
	return matched, 0
}

func erofsDirents(block []byte) ([]dirent, error) {
	if len(block) < 12 {
		return nil, fmt.Errorf("%d bytes have no room for an entry", len(block))
	}
	le := binary.LittleEndian
	names := int(le.Uint16(block[8:]))
	if names < 12 || names%12 != 0 || names > len(block) {
		return nil, fmt.Errorf("names begin at byte %d of %d", names, len(block))
	}
	entries := make([]dirent, 0, names/12)
	for at := 0; at < names; at += 12 {
		begin, end := int(le.Uint16(block[at+8:])), len(block)
		if at+12 < names {
			end = int(le.Uint16(block[at+20:]))
		}
		if begin < names || begin >= end || end > len(block) {
			return nil, fmt.Errorf("a name from byte %d to %d of %d", begin, end, len(block))
		}
		name := block[begin:end]
		if at+12 == names { // the last name may be padded
			name, _, _ = bytes.Cut(name, []byte{0})
		}
		d := dirent{name: string(name), id: le.Uint64(block[at:])}
		if err := checkName(d.name); err != nil {
			return nil, err
		}
		var err error
		if d.kind, err = direntType(block[at+10]); err != nil {
			return nil, err
		}
		entries = append(entries, d)
	}
	return entries, nil
}

func (e *erofs) content(node *inode) (io.ReaderAt, error) {
	i := node.private.(*erofsInode)
	switch i.layout {
	case erofsCompressedFull, erofsCompressedCompact:
		return e.openCompressed(i)
	case erofsChunkBased:
		return e.openChunks(i)
	}
	return erofsFlat{e, i}, nil
}

// erofsFlat is a file in consecutive blocks; with the inline layout its last
// block stands behind the inode.
type erofsFlat struct {
	*erofs
	i *erofsInode
}

func (f erofsFlat) ReadAt(p []byte, off int64) (int, error) {
	size, block := f.i.node.size, int64(1)<<f.blockBits
	inline := size
	if f.i.layout == erofsFlatInline {
		inline = (size - 1) &^ (block - 1)
	}
	return readParts(p, off, size, func(p []byte, off int64) (int64, error) {
		switch {
		case off >= inline:
			at := f.i.tail + off - inline
			if f.i.tail&(block-1)+size-inline > block {
				return 0, errors.New("the inline end of the file crosses a block")
			}
			return size - off, f.readAt(p[:min(int64(len(p)), size-off)], at)
		case f.i.start == erofsNullBlock && f.i.layout == erofsFlatPlain:
			clear(p[:min(int64(len(p)), size-off)])
			return size - off, nil
		}
		n := min(int64(len(p)), inline-off)
		return n, f.readAt(p[:n], int64(f.i.start)<<f.blockBits+off)
	})
}

// readParts fills p from a file of size bytes by parts: read fills the
// beginning of what it is given and says how far the part reaches.
func readParts(p []byte, off, size int64, read func(p []byte, off int64) (int64, error)) (int, error) {
	if off < 0 {
		return 0, fs.ErrInvalid
	}
	done := 0
	for done < len(p) && off+int64(done) < size {
		n, err := read(p[done:], off+int64(done))
		if err != nil {
			return done, err
		}
		if n <= 0 {
			return done, errors.New("a part of the file is empty")
		}
		done += int(min(n, int64(len(p)-done), size-off-int64(done)))
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

// erofsChunks is a file in chunks of equal size, each anywhere.
type erofsChunks struct {
	*erofs
	i     *erofsInode
	bits  uint  // log2 of a chunk's bytes
	unit  int64 // bytes of an index entry: 4 or 8
	index int64 // byte offset
}

func (e *erofs) openChunks(i *erofsInode) (io.ReaderAt, error) {
	format := i.start & 0xffff
	c := erofsChunks{erofs: e, i: i, bits: e.blockBits + uint(format&0x1f), unit: 4}
	switch {
	case format&^0x3f != 0:
		return nil, fmt.Errorf("chunk format %#x is not known", format)
	case c.bits > 40:
		return nil, fmt.Errorf("chunks of 2^%d bytes are too long", c.bits)
	case format&0x20 != 0:
		c.unit = 8
	}
	c.index = (i.tail + c.unit - 1) &^ (c.unit - 1)
	return c, nil
}

func (c erofsChunks) ReadAt(p []byte, off int64) (int, error) {
	return readParts(p, off, c.i.node.size, func(p []byte, off int64) (int64, error) {
		raw := make([]byte, c.unit)
		if err := c.readAt(raw, c.index+off>>c.bits*c.unit); err != nil {
			return 0, fmt.Errorf("read chunk index: %w", err)
		}
		block := binary.LittleEndian.Uint32(raw[c.unit-4:])
		if c.unit == 8 && block != erofsNullBlock && binary.LittleEndian.Uint16(raw[2:]) != 0 {
			return 0, errors.New("a chunk lies on another device")
		}
		inChunk := off & (1<<c.bits - 1)
		n := min(int64(len(p)), 1<<c.bits-inChunk, c.i.node.size-off)
		if block == erofsNullBlock {
			clear(p[:n])
			return n, nil
		}
		return n, c.readAt(p[:n], int64(block)<<c.blockBits+inChunk)
	})
}
