package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"
)

// ext4 reads ext4 as Linux's Documentation/filesystems/ext4 describes it, and
// what ext2 and ext3 share with it. It does not replay a journal: a file system
// that needs that is refused, as what lies on the disk is not what the kernel
// would show.
type ext4 struct {
	r              io.ReaderAt
	blockSize      int64
	blocks         int64
	descriptors    int64 // byte offset of the group descriptors
	descriptorSize int64
	inodeSize      int64
	inodesPerGroup uint32
	inodeCount     uint32
	firstInode     uint32 // that is no reserved one
	firstBlock     int64
	blocksPerGroup int64
	groups         int64
	clusterSize    int64
	reservedTables int64 // blocks behind the group descriptors
	zones          []zone
	hashSeed       [4]uint32
	hashFlags      uint32 // 1: a hash index takes bytes as signed, 2: as unsigned
	seed           uint32 // of checksums
	fileTypes      bool   // directory entries have file types
	checksums      bool   // all metadata has checksums
	dirIndex       bool   // directories may have a hash index
	largeDirs      bool   // of three levels, and of a size with 64 bits
	hugeFiles      bool   // the number of blocks has 48 bits
	sparseSuper    bool
	backups        []int64 // groups with a copy of the superblock, where the file system names them
}

// ext4Inode is what an inode says about where its content lies.
type ext4Inode struct {
	node   *inode
	flags  uint32
	block  []byte // the 60 bytes of i_block
	inline []byte // the xattr system.data, which goes on where block ends; nil when the content is in blocks
	blocks uint64 // that it takes, in units of 512 bytes
	acl    int64  // the block with xattrs
	seed   uint32 // of its checksums
}

const (
	ext4SuperOffset = 1024
	ext4Magic       = 0xef53
	ext4RootInode   = 2

	ext4IncompatFiletype = 0x2
	ext4IncompatRecover  = 0x4
	ext4Incompat64Bit    = 0x80
	// FILETYPE, EXTENTS, 64BIT, MMP, FLEX_BG, EA_INODE, CSUM_SEED, LARGEDIR,
	// INLINE_DATA, ENCRYPT
	ext4IncompatKnown = 0x2 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x10000

	ext4IncompatCsumSeed   = 0x2000
	ext4IncompatLargeDir   = 0x4000
	ext4CompatDirIndex     = 0x20
	ext4CompatSparseSuper2 = 0x200
	ext4ROSparseSuper      = 0x1
	ext4ROHugeFile         = 0x8
	ext4ROBigalloc         = 0x200
	ext4ROChecksums        = 0x400

	ext4FlagEncrypted = 0x800
	ext4FlagIndex     = 0x1000
	ext4FlagHugeFile  = 0x40000
	ext4FlagVerity    = 0x100000
	ext4FlagEAInode   = 0x200000
	ext4FlagCasefold  = 0x40000000
	ext4FlagExtents   = 0x80000
	ext4FlagInline    = 0x10000000

	ext4ExtentMagic = 0xf30a
	ext4XattrMagic  = 0xea020000
)

func openExt4(r io.ReaderAt, size int64) (*Filesystem, error) {
	le := binary.LittleEndian
	if size < ext4SuperOffset+1024 {
		return nil, ErrNoFilesystem
	}
	sb := make([]byte, 1024)
	if n, err := r.ReadAt(sb, ext4SuperOffset); n < len(sb) {
		return nil, fmt.Errorf("read superblock: %w", noEOF(err))
	}
	if le.Uint16(sb[0x38:]) != ext4Magic {
		return nil, ErrNoFilesystem
	}
	log := le.Uint32(sb[0x18:])
	if log > 6 {
		return nil, fmt.Errorf("blocks of 2^%d bytes are longer than 65,536", log+10)
	}
	e := &ext4{
		r:              r,
		blockSize:      1024 << log,
		blocks:         int64(le.Uint32(sb[4:])),
		descriptorSize: 32,
		inodeSize:      128,
		inodesPerGroup: le.Uint32(sb[0x28:]),
		inodeCount:     le.Uint32(sb),
	}
	compat, incompat, readOnly := le.Uint32(sb[0x5c:]), le.Uint32(sb[0x60:]), le.Uint32(sb[0x64:])
	revision := le.Uint32(sb[0x4c:])
	e.firstInode = 11
	if revision > 0 {
		e.firstInode, e.inodeSize = le.Uint32(sb[0x54:]), int64(le.Uint16(sb[0x58:]))
	}
	if incompat&ext4Incompat64Bit != 0 {
		e.blocks |= int64(le.Uint32(sb[0x150:])) << 32
		e.descriptorSize = int64(le.Uint16(sb[0xfe:]))
	}
	e.fileTypes = incompat&ext4IncompatFiletype != 0
	e.largeDirs = incompat&ext4IncompatLargeDir != 0
	e.dirIndex = compat&ext4CompatDirIndex != 0
	e.sparseSuper, e.hugeFiles, e.checksums = readOnly&ext4ROSparseSuper != 0, readOnly&ext4ROHugeFile != 0, readOnly&ext4ROChecksums != 0
	e.firstBlock, e.blocksPerGroup = int64(le.Uint32(sb[0x14:])), int64(le.Uint32(sb[0x20:]))
	if compat&ext4CompatSparseSuper2 != 0 {
		e.backups = []int64{0, int64(le.Uint32(sb[0x24c:])), int64(le.Uint32(sb[0x250:]))}
	}
	e.reservedTables = int64(le.Uint16(sb[0xce:]))
	e.clusterSize = e.blockSize
	if readOnly&ext4ROBigalloc != 0 && le.Uint32(sb[0x1c:]) <= 20 {
		e.clusterSize = 1024 << le.Uint32(sb[0x1c:])
	}
	e.hashFlags = le.Uint32(sb[0x160:])
	for i := range e.hashSeed {
		e.hashSeed[i] = le.Uint32(sb[0xec+4*i:])
	}
	if e.seed = ext4CRC(^uint32(0), sb[0x68:0x78]); incompat&ext4IncompatCsumSeed != 0 {
		e.seed = le.Uint32(sb[0x270:])
	}
	// The group descriptors are in the block behind the superblock's.
	e.descriptors = max(e.blockSize, 2*ext4SuperOffset)
	switch {
	case incompat&ext4IncompatRecover != 0:
		return nil, errors.New("its journal was not replayed, so that what lies on the disk is not what the kernel would show: unmount it cleanly or run e2fsck")
	case incompat&^ext4IncompatKnown != 0:
		return nil, fmt.Errorf("it has the features %#x, which this version does not know", incompat&^ext4IncompatKnown)
	case revision > 1 || revision == 0 && compat|incompat|readOnly != 0:
		return nil, fmt.Errorf("its revision is %d, with the features %#x, %#x and %#x", revision, compat, incompat, readOnly)
	case e.blocks <= 0 || e.blocks > size/e.blockSize:
		return nil, fmt.Errorf("it has %d blocks of %d bytes, where there are %d bytes", e.blocks, e.blockSize, size)
	case e.inodeSize < 128 || e.inodeSize > e.blockSize || e.inodeSize&(e.inodeSize-1) != 0:
		return nil, fmt.Errorf("inodes of %d bytes are not a power of two from 128 to a block", e.inodeSize)
	case e.inodesPerGroup == 0:
		return nil, errors.New("its groups have no inodes")
	case e.firstBlock > 1 || e.firstBlock >= e.blocks || e.firstBlock == 0 && e.blockSize == 1024 && e.clusterSize == 1024:
		return nil, fmt.Errorf("its first block is %d", e.firstBlock)
	case e.blocksPerGroup == 0 || (e.blocks-e.firstBlock+e.blocksPerGroup-1)/e.blocksPerGroup > maxGroups:
		return nil, fmt.Errorf("groups of %d blocks make more than %d groups", e.blocksPerGroup, maxGroups)
	case e.descriptorSize < 32 || incompat&ext4Incompat64Bit != 0 && e.descriptorSize < 64 || e.descriptorSize > 1024 || e.descriptorSize&(e.descriptorSize-1) != 0:
		return nil, fmt.Errorf("group descriptors of %d bytes are not a power of two from 32 to 1,024", e.descriptorSize)
	}
	if got, want := ext4CRC(^uint32(0), sb[:0x3fc]), le.Uint32(sb[0x3fc:]); e.checksums && (got != want || sb[0x175] != 1) {
		return nil, fmt.Errorf("superblock checksum is %08x, but its content gives %08x: it is damaged", want, got)
	}
	e.groups = (e.blocks - e.firstBlock + e.blocksPerGroup - 1) / e.blocksPerGroup
	if e.groups*int64(e.inodesPerGroup) != int64(e.inodeCount) {
		return nil, fmt.Errorf("%d groups of %d inodes do not have %d", e.groups, e.inodesPerGroup, e.inodeCount)
	}
	if err := e.readZones(); err != nil {
		return nil, err
	}
	label, _, _ := strings.Cut(string(sb[0x78:0x88]), "\x00")
	return &Filesystem{UUID: formatUUID([16]byte(sb[0x68:0x78])), Label: label, tree: e}, nil
}

// readAt reads all of p or fails.
func (e *ext4) readAt(p []byte, off int64) error {
	size := e.blocks * e.blockSize
	if off < 0 || off > size-int64(len(p)) {
		return fmt.Errorf("%d bytes at byte %d lie outside the file system of %d bytes", len(p), off, size)
	}
	if n, err := e.r.ReadAt(p, off); n < len(p) {
		return noEOF(err)
	}
	return nil
}

// readBlock reads a whole block.
func (e *ext4) readBlock(n int64) ([]byte, error) {
	if err := e.checkBlocks(n, 1); err != nil {
		return nil, err
	}
	block := make([]byte, e.blockSize)
	return block, e.readAt(block, n*e.blockSize)
}

func (e *ext4) root() uint64 { return ext4RootInode }

func (e *ext4) inode(n uint64) (*inode, error) {
	node, err := e.readInode(n)
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", n, err)
	}
	return node, nil
}

func (e *ext4) readInode(n uint64) (*inode, error) {
	le := binary.LittleEndian
	if n == 0 || n > uint64(e.inodeCount) {
		return nil, fmt.Errorf("the file system has %d", e.inodeCount)
	}
	if n < uint64(e.firstInode) && n != ext4RootInode {
		return nil, fmt.Errorf("it is a reserved one: those of files begin at %d", e.firstInode)
	}
	group, index := int64((n-1)/uint64(e.inodesPerGroup)), int64((n-1)%uint64(e.inodesPerGroup))
	descriptor, err := e.descriptor(group)
	if err != nil {
		return nil, err
	}
	table := int64(le.Uint32(descriptor[8:]))
	if len(descriptor) >= 64 {
		table |= int64(le.Uint32(descriptor[0x28:])) << 32
	}
	if table <= 0 || table >= e.blocks {
		return nil, fmt.Errorf("the inode table of group %d is at block %d of %d", group, table, e.blocks)
	}
	raw := make([]byte, e.inodeSize)
	if err := e.readAt(raw, table*e.blockSize+index*e.inodeSize); err != nil {
		return nil, err
	}
	own := &ext4Inode{flags: le.Uint32(raw[0x20:]), block: raw[0x28:0x64]}
	if err := e.checkInode(n, raw, own); err != nil {
		return nil, err
	}
	mode, err := unixMode(le.Uint16(raw))
	if err != nil {
		return nil, err
	}
	node := &inode{id: n, mode: mode, size: int64(le.Uint32(raw[4:]))}
	if mode.IsRegular() || e.largeDirs { // elsewhere the kernel does not look at the upper half
		node.size |= int64(le.Uint32(raw[0x6c:])) << 32
	}
	if node.size < 0 {
		return nil, fmt.Errorf("its size %d is negative", node.size)
	}
	node.stat.Inode = n
	node.stat.UID = uint32(le.Uint16(raw[2:])) | uint32(le.Uint16(raw[0x78:]))<<16
	node.stat.GID = uint32(le.Uint16(raw[0x18:])) | uint32(le.Uint16(raw[0x7a:]))<<16
	node.stat.Nlink = uint32(le.Uint16(raw[0x1a:]))
	seconds, nanoseconds := int64(int32(le.Uint32(raw[0x10:]))), int64(0)
	extra := 0
	if e.inodeSize > 128 {
		if extra = int(le.Uint16(raw[0x80:])); extra%4 != 0 || int64(128+extra) > e.inodeSize {
			return nil, fmt.Errorf("its fields end at byte %d of %d", 128+extra, e.inodeSize)
		}
		if extra >= 0x0c && e.inodeSize >= 0x8c {
			more := le.Uint32(raw[0x88:])
			seconds += int64(more&3) << 32
			nanoseconds = int64(more >> 2)
		}
	}
	node.modTime = time.Unix(seconds, nanoseconds)
	own.node, node.private = node, own
	switch {
	case node.stat.Nlink == 0:
		return nil, errors.New("it was deleted")
	case own.flags&ext4FlagEncrypted != 0:
		return nil, errors.New("it is encrypted")
	case own.flags&(ext4FlagVerity|ext4FlagEAInode|ext4FlagCasefold) != 0:
		return nil, fmt.Errorf("it has the flags %#x, which this version does not read", own.flags&(ext4FlagVerity|ext4FlagEAInode|ext4FlagCasefold))
	}
	if own.blocks = uint64(le.Uint32(raw[0x1c:])); e.hugeFiles {
		if own.blocks |= uint64(le.Uint16(raw[0x74:])) << 32; own.flags&ext4FlagHugeFile != 0 {
			own.blocks *= uint64(e.blockSize / 512) //nolint:gosec // positive
		}
	}
	if mode&fs.ModeDevice != 0 {
		if dev := le.Uint32(own.block); dev != 0 { // the old encoding: 8 bits each
			node.stat.Rdev = decodeDev(dev & 0xffff)
		} else {
			node.stat.Rdev = decodeDev(le.Uint32(own.block[4:]))
		}
	}
	own.acl = int64(le.Uint32(raw[0x68:]))
	if e.descriptorSize >= 64 {
		own.acl |= int64(le.Uint16(raw[0x76:])) << 32
	}
	if err := e.readXattrs(own, raw, 128+extra, own.acl); err != nil {
		return nil, fmt.Errorf("read xattrs: %w", err)
	}
	return node, e.checkPlace(own)
}

// checkPlace refuses an inode whose content cannot be where it says.
func (e *ext4) checkPlace(own *ext4Inode) error {
	mode := own.node.mode
	switch {
	case own.inline != nil:
		if own.flags&ext4FlagExtents != 0 {
			return errors.New("its content is in the inode and in extents at once")
		}
		return nil
	case mode.Type() == fs.ModeSymlink && e.isFast(own):
		if n := bytes.IndexByte(append(slices.Clip(own.block), 0), 0); own.node.size == 0 || int64(n) != own.node.size {
			return fmt.Errorf("a symbolic link of %d bytes has a target of %d", own.node.size, n)
		}
		return nil
	case !mode.IsRegular() && !mode.IsDir() && mode.Type() != fs.ModeSymlink:
		return nil
	case own.flags&ext4FlagExtents != 0:
		return e.checkExtents(own, own.block, -1, -1)
	}
	for i := range 15 {
		if block := int64(binary.LittleEndian.Uint32(own.block[4*i:])); block != 0 {
			if err := e.checkBlocks(block, 1); err != nil {
				return err
			}
		}
	}
	return nil
}

// isFast reports whether the target of a symbolic link is in the inode: the kernel
// goes by the number of blocks that the link takes, and not by its flags or size.
func (e *ext4) isFast(own *ext4Inode) bool {
	blocks := own.blocks
	if own.acl != 0 {
		blocks -= uint64(e.clusterSize / 512) //nolint:gosec // positive
	}
	return blocks == 0
}

// descriptor reads the descriptor of a group.
func (e *ext4) descriptor(group int64) ([]byte, error) {
	raw := make([]byte, e.descriptorSize)
	if err := e.readAt(raw, e.descriptors+group*e.descriptorSize); err != nil {
		return nil, fmt.Errorf("read group descriptor %d: %w", group, err)
	}
	return raw, e.checkDescriptor(group, raw)
}

// readXattrs reads the xattrs behind the fields of an inode, and those in a
// block of their own.
func (e *ext4) readXattrs(own *ext4Inode, raw []byte, body int, block int64) error {
	le := binary.LittleEndian
	xattrs := map[string][]byte{}
	if body > 128 && body+4 <= len(raw) && le.Uint32(raw[body:]) == ext4XattrMagic {
		entries := raw[body+4:]
		if err := addExt4Xattrs(xattrs, entries, entries); err != nil {
			return err
		}
		// Without its xattr, or with one elsewhere, the flag means nothing.
		if own.flags&ext4FlagInline != 0 {
			own.inline = xattrs["system.data"]
			delete(xattrs, "system.data")
		}
	}
	if block != 0 {
		values, err := e.readBlock(block)
		if err != nil {
			return err
		}
		if le.Uint32(values) != ext4XattrMagic {
			return fmt.Errorf("block %d holds none", block)
		}
		if err := e.checkXattrBlock(block, values); err != nil {
			return err
		}
		if err := addExt4Xattrs(xattrs, values[32:], values); err != nil {
			return err
		}
	}
	if len(xattrs) > 0 {
		own.node.stat.Xattrs = xattrs
	}
	return nil
}

// addExt4Xattrs reads entries of 16 bytes and a name each; the offsets of values
// count from the beginning of values.
func addExt4Xattrs(xattrs map[string][]byte, entries, values []byte) error {
	le := binary.LittleEndian
	for len(entries) >= 16 && le.Uint32(entries) != 0 {
		nameLen := int(entries[0])
		if 16+nameLen > len(entries) {
			return errors.New("a name is cut off")
		}
		prefix, ok := xattrNames[entries[1]]
		if !ok {
			return fmt.Errorf("name prefix %d is not known", entries[1])
		}
		name := prefix + string(entries[16:16+nameLen])
		offset, size := int(le.Uint16(entries[2:])), le.Uint32(entries[8:])
		switch {
		case le.Uint32(entries[4:]) != 0:
			return fmt.Errorf("the value of %s is in an inode of its own, which this version does not read", name)
		case offset > len(values) || size > uint32(len(values)-offset):
			return fmt.Errorf("the value of %s lies outside", name)
		}
		xattrs[name] = bytes.Clone(values[offset : offset+int(size)])
		if xattrs[name] == nil {
			xattrs[name] = []byte{}
		}
		entries = entries[min(len(entries), (16+nameLen+3)&^3):]
	}
	return nil
}

// listBlock reads the entries of a directory block. The nodes of a hash index
// and the checksum at the end look like unused entries.
func (e *ext4) listBlock(block []byte, yield func(dirent) error) error {
	le := binary.LittleEndian
	for len(block) >= 8 {
		length, nameLen := recordLength(block, e.blockSize), int(block[6])
		if length < 8+nameLen || length%4 != 0 || length > len(block) {
			return fmt.Errorf("an entry of %d bytes with a name of %d in the %d that are left", length, nameLen, len(block))
		}
		d := dirent{name: string(block[8 : 8+nameLen]), id: uint64(le.Uint32(block))}
		kind := block[7]
		block = block[length:]
		if d.id == 0 || d.name == "." || d.name == ".." {
			continue
		}
		if err := checkName(d.name); err != nil {
			return err
		}
		var err error
		if e.fileTypes {
			d.kind, err = direntType(kind)
		} else {
			var node *inode
			if node, err = e.inode(d.id); err == nil {
				d.kind = node.mode.Type()
			}
		}
		if err != nil {
			return err
		}
		if err := yield(d); err != nil {
			return err
		}
	}
	return nil
}

func (e *ext4) content(node *inode) (io.ReaderAt, error) {
	own := node.private.(*ext4Inode)
	switch {
	case own.inline != nil:
		return inlineContent(append(bytes.Clone(own.block), own.inline...)), nil
	case node.mode.Type() == fs.ModeSymlink && e.isFast(own):
		return bytes.NewReader(own.block), nil
	case own.flags&ext4FlagExtents != 0:
		return &ext4File{ext4: e, own: own, find: e.findExtent}, nil
	}
	return &ext4File{ext4: e, own: own, find: e.findMapped}, nil
}

// inlineContent is the content of a file in its inode, which reads as zero behind
// that.
type inlineContent []byte

func (c inlineContent) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off >= 0 && off < int64(len(c)) {
		copy(p, c[off:])
	}
	return len(p), nil
}

// ext4Run is a run of blocks of a file; block 0 stands for a hole.
type ext4Run struct {
	first, length int64 // in the file, in blocks
	block         int64
}

// ext4File is an open file; it keeps the run that was read last.
type ext4File struct {
	*ext4
	own  *ext4Inode
	find func(own *ext4Inode, block int64) (ext4Run, error)
	run  ext4Run
}

func (f *ext4File) ReadAt(p []byte, off int64) (int, error) {
	return readParts(p, off, f.own.node.size, func(p []byte, off int64) (int64, error) {
		block := off / f.blockSize
		if block < f.run.first || block >= f.run.first+f.run.length {
			var err error
			if f.run, err = f.find(f.own, block); err != nil {
				f.run = ext4Run{}
				return 0, fmt.Errorf("find block %d: %w", block, err)
			}
		}
		inRun := off - f.run.first*f.blockSize
		n := min(int64(len(p)), f.run.length*f.blockSize-inRun)
		if f.run.block == 0 {
			clear(p[:n])
			return n, nil
		}
		return n, f.readAt(p[:n], f.run.block*f.blockSize+inRun)
	})
}

// findExtent finds a block of a file in its extent tree.
func (e *ext4) findExtent(own *ext4Inode, want int64) (ext4Run, error) {
	le := binary.LittleEndian
	node := own.block
	end := int64(1) << 32 // the first block that the node does not cover
	if want >= end {
		return ext4Run{}, errors.New("it lies behind what an extent tree can reach")
	}
	for depth, begin := -1, int64(-1); ; {
		if err := e.checkExtents(own, node, depth, begin); err != nil {
			return ext4Run{}, err
		}
		count := int(le.Uint16(node[2:]))
		depth = int(le.Uint16(node[6:]))
		entries := node[12 : 12+12*count]
		hit := -1
		for i := range count {
			first := int64(le.Uint32(entries[12*i:]))
			if first > want {
				end = min(end, first)
				break
			}
			hit = i
		}
		if hit < 0 {
			return ext4Run{first: want, length: end - want}, nil
		}
		entry := entries[12*hit:]
		if depth > 0 {
			depth, begin = depth-1, int64(le.Uint32(entry))
			block := int64(le.Uint32(entry[4:])) | int64(le.Uint16(entry[8:]))<<32
			var err error
			if node, err = e.readBlock(block); err != nil {
				return ext4Run{}, fmt.Errorf("read node of the extent tree: %w", err)
			}
			continue
		}
		run := ext4Run{
			first:  int64(le.Uint32(entry)),
			length: int64(le.Uint16(entry[4:])),
			block:  int64(le.Uint32(entry[8:])) | int64(le.Uint16(entry[6:]))<<32,
		}
		unwritten := run.length > 1<<15
		if unwritten {
			run.length -= 1 << 15
		}
		if want >= run.first+run.length {
			return ext4Run{first: want, length: end - want}, nil
		}
		if unwritten {
			run.block = 0
		}
		return run, nil
	}
}

// findMapped finds a block of a file through the block map of ext2 and ext3: 12
// blocks, then those behind one, two and three levels of indirection.
func (e *ext4) findMapped(own *ext4Inode, want int64) (ext4Run, error) {
	le := binary.LittleEndian
	// entries are those around want in the same block of the map, from which a
	// longer run is made.
	entries, index := own.block[:48], want
	if want >= 12 {
		perBlock := e.blockSize / 4
		index = want - 12
		level, span := 0, perBlock
		for ; level < 3 && index >= span; level++ {
			index -= span
			span *= perBlock
		}
		if level == 3 {
			return ext4Run{}, errors.New("it lies behind what a block map can reach")
		}
		at := int64(le.Uint32(own.block[4*(12+level):]))
		for ; level >= 0; level-- {
			span /= perBlock
			if at == 0 { // a hole as long as what it would lead to
				return ext4Run{first: want, length: span*perBlock - index}, nil
			}
			var err error
			if entries, err = e.readBlock(at); err != nil {
				return ext4Run{}, fmt.Errorf("read block map: %w", err)
			}
			if level > 0 {
				at = int64(le.Uint32(entries[index/span*4:]))
				index %= span
			}
		}
	}
	run := ext4Run{first: want, length: 1, block: int64(le.Uint32(entries[4*index:]))}
	for i := index + 1; 4*i < int64(len(entries)); i++ {
		next := int64(le.Uint32(entries[4*i:]))
		if run.block == 0 && next != 0 || run.block != 0 && next != run.block+run.length {
			break
		}
		run.length++
	}
	if run.block != 0 {
		if err := e.checkBlocks(run.block, run.length); err != nil {
			return run, err
		}
	}
	return run, nil
}
