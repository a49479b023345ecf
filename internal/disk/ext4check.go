package disk

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
)

// The checks that the kernel makes before it believes what it read. What it would
// refuse is refused here, too: a file that the kernel does not open is not there.

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ext4CRC goes on with a CRC-32C, without the inversions at both ends.
func ext4CRC(crc uint32, p ...[]byte) uint32 {
	for _, b := range p {
		crc = ^crc32.Update(^crc, castagnoli, b)
	}
	return crc
}

func le32(n uint32) []byte { return binary.LittleEndian.AppendUint32(nil, n) }

// without returns bytes with some of them zeroed.
func without(b []byte, at, length int) []byte {
	b = slices.Clone(b)
	clear(b[at : at+length])
	return b
}

func (e *ext4) checkDescriptor(group int64, raw []byte) error {
	if !e.checksums {
		return nil
	}
	want := binary.LittleEndian.Uint16(raw[0x1e:])
	if got := uint16(ext4CRC(e.seed, le32(uint32(group)), without(raw, 0x1e, 2))); got != want { //nolint:gosec // its lower half is what is kept
		return fmt.Errorf("group descriptor %d has the checksum %04x, and its content gives %04x", group, want, got)
	}
	return nil
}

func (e *ext4) checkInode(n uint64, raw []byte, own *ext4Inode) error {
	le := binary.LittleEndian
	own.seed = ext4CRC(e.seed, le32(uint32(n)), raw[0x64:0x68]) //nolint:gosec // inode numbers have 32 bits
	if !e.checksums {
		return nil
	}
	want, mask := uint32(le.Uint16(raw[0x7c:])), uint32(0xffff)
	content := without(raw, 0x7c, 2)
	if len(raw) > 128 && le.Uint16(raw[0x80:]) >= 4 {
		want, mask = want|uint32(le.Uint16(raw[0x82:]))<<16, ^uint32(0)
		content = without(content, 0x82, 2)
	}
	if got := ext4CRC(own.seed, content) & mask; got != want {
		return fmt.Errorf("its checksum is %08x, and its content gives %08x", want, got)
	}
	return nil
}

func (e *ext4) checkXattrBlock(n int64, block []byte) error {
	if !e.checksums {
		return nil
	}
	want := binary.LittleEndian.Uint32(block[16:])
	if got := ext4CRC(e.seed, binary.LittleEndian.AppendUint64(nil, uint64(n)), without(block, 16, 4)); got != want { //nolint:gosec // not negative
		return fmt.Errorf("block %d has the checksum %08x, and its content gives %08x", n, want, got)
	}
	return nil
}

// checkBlock checks a directory block by its last entry, an unused one of 12 bytes
// that holds the checksum. Nodes of a hash index are checked where they are used.
func (d *ext4Directory) checkBlock(block []byte, n uint32) error {
	if !d.e.checksums || d.hashed && (n == 0 && isRoot(block) || d.isInner(block)) {
		return nil
	}
	tail := block[len(block)-12:]
	if le := binary.LittleEndian; le.Uint32(tail) != 0 || le.Uint16(tail[4:]) != 12 || tail[6] != 0 || tail[7] != 0xde {
		return errors.New("it has no checksum")
	}
	want := binary.LittleEndian.Uint32(tail[8:])
	if got := ext4CRC(d.own.seed, block[:len(block)-12]); got != want {
		return fmt.Errorf("its checksum is %08x, and its content gives %08x", want, got)
	}
	return nil
}

func (e *ext4) checkNode(own *ext4Inode, block []byte, at, limit, count int) error {
	if !e.checksums {
		return nil
	}
	tail := block[at+8*limit:]
	want := binary.LittleEndian.Uint32(tail[4:])
	if got := ext4CRC(own.seed, block[:at+8*count], tail[:4], make([]byte, 4)); got != want {
		return fmt.Errorf("a node has the checksum %08x, and its content gives %08x", want, got)
	}
	return nil
}

// checkExtents checks a node of an extent tree, which begins with the block number
// first of the file; first is negative for the root.
func (e *ext4) checkExtents(own *ext4Inode, node []byte, depth int, first int64) error {
	le := binary.LittleEndian
	if le.Uint16(node) != ext4ExtentMagic {
		return errors.New("a node of the extent tree has no magic number")
	}
	count, limit, level := int(le.Uint16(node[2:])), int(le.Uint16(node[4:])), int(le.Uint16(node[6:]))
	if limit == 0 || 12+12*limit > len(node) || count > limit || level > 5 || depth >= 0 && level != depth || level > 0 && count == 0 {
		return fmt.Errorf("a node of the extent tree has %d entries of %d at depth %d", count, limit, level)
	}
	if e.checksums && depth >= 0 {
		at := 12 + 12*limit
		if at+4 > len(node) {
			return errors.New("a node of the extent tree has no checksum")
		}
		if want, got := le.Uint32(node[at:]), ext4CRC(own.seed, node[:at]); got != want {
			return fmt.Errorf("a node of the extent tree has the checksum %08x, and its content gives %08x", want, got)
		}
	}
	end := int64(-1)
	for i := range count {
		entry := node[12+12*i:]
		begin, length := int64(le.Uint32(entry)), int64(1)
		block := int64(le.Uint32(entry[4:])) | int64(le.Uint16(entry[8:]))<<32
		if level == 0 {
			block = int64(le.Uint32(entry[8:])) | int64(le.Uint16(entry[6:]))<<32
			if length = int64(le.Uint16(entry[4:])); length > 1<<15 {
				length -= 1 << 15
			}
		}
		switch {
		case i == 0 && first >= 0 && begin != first:
			return fmt.Errorf("a node of the extent tree begins at block %d of the file, and the one above says %d", begin, first)
		case length == 0 || begin <= end && i > 0 || begin+length > 1<<32:
			return fmt.Errorf("an extent of %d blocks for block %d of the file is empty or not behind the one in front of it", length, begin)
		}
		if err := e.checkBlocks(block, length); err != nil {
			return err
		}
		end = begin + length - 1
	}
	return nil
}

// zone is a run of blocks with the file system's own tables.
type zone struct{ first, end int64 }

// maxGroups bounds the groups of a file system: 128 TiB in groups of 128 MiB.
const maxGroups = 1 << 20

// readZones finds the blocks that the kernel lets no file have: superblocks, group
// descriptors, bitmaps and inode tables.
func (e *ext4) readZones() error {
	le := binary.LittleEndian
	tables := (e.groups*e.descriptorSize+e.blockSize-1)/e.blockSize + e.reservedTables
	inodes := (int64(e.inodesPerGroup)*e.inodeSize + e.blockSize - 1) / e.blockSize
	for group := range e.groups {
		raw, err := e.descriptor(group)
		if err != nil {
			return err
		}
		place := func(low, high int) int64 {
			at := int64(le.Uint32(raw[low:]))
			if len(raw) >= 64 {
				at |= int64(le.Uint32(raw[high:])) << 32
			}
			return at
		}
		first := e.firstBlock + group*e.blocksPerGroup
		blockMap, inodeMap, table := place(0, 0x20), place(4, 0x24), place(8, 0x28)
		if e.hasSuper(group) {
			e.zones = append(e.zones, zone{first, first + 1 + tables})
		}
		for _, z := range []zone{{blockMap, blockMap + 1}, {inodeMap, inodeMap + 1}, {table, table + inodes}} {
			if z.first <= e.firstBlock || z.end > e.blocks {
				return fmt.Errorf("group descriptor %d names the blocks %d to %d of %d", group, z.first, z.end, e.blocks)
			}
			e.zones = append(e.zones, z)
		}
	}
	slices.SortFunc(e.zones, func(a, b zone) int { return cmp.Compare(a.first, b.first) })
	return nil
}

// hasSuper reports whether a group begins with a copy of the superblock.
func (e *ext4) hasSuper(group int64) bool {
	if e.backups != nil {
		return slices.Contains(e.backups, group)
	}
	if group <= 1 || !e.sparseSuper {
		return true
	}
	for _, base := range []int64{3, 5, 7} {
		n := base
		for n < group {
			n *= base
		}
		if n == group {
			return true
		}
	}
	return false
}

// checkBlocks refuses blocks that no file can have.
func (e *ext4) checkBlocks(first, count int64) error {
	if first <= e.firstBlock || count < 0 || first+count > e.blocks {
		return fmt.Errorf("%d blocks at block %d of %d", count, first, e.blocks)
	}
	// The last zone that begins in front of the end; zones do not nest.
	i, _ := slices.BinarySearchFunc(e.zones, first+count, func(z zone, end int64) int { return cmp.Compare(z.first, end) })
	if i > 0 && e.zones[i-1].end > first {
		return fmt.Errorf("%d blocks at block %d are those of the file system's own tables", count, first)
	}
	return nil
}
