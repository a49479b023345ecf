package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/bits"
)

// ext4Directory is a directory. A listing reads all of its blocks; the kernel's
// lookup of a name does so only where there is no hash index (htree), or goes
// through the index to the blocks where the name has to be.
type ext4Directory struct {
	e      *ext4
	own    *ext4Inode
	inline [][]byte // the parts of an inline directory; nil when it has blocks
	data   []byte
	hashed bool
}

func (e *ext4) directory(dir *inode) (directory, error) {
	own := dir.private.(*ext4Inode)
	d := &ext4Directory{e: e, own: own}
	if own.inline != nil {
		// Four bytes name the parent; there are no "." and "..".
		d.inline = [][]byte{own.block[4:], own.inline}
		return d, nil
	}
	if dir.size%e.blockSize != 0 {
		return nil, fmt.Errorf("the directory of %d bytes is no whole number of blocks", dir.size)
	}
	content, err := e.content(dir)
	if err != nil {
		return nil, err
	}
	d.data = make([]byte, dir.size)
	if n, err := content.ReadAt(d.data, 0); n < len(d.data) {
		return nil, fmt.Errorf("read directory: %w", noEOF(err))
	}
	if d.hashed = own.flags&ext4FlagIndex != 0; d.hashed && !e.dirIndex {
		return nil, errors.New("the directory has a hash index, and the file system does not have that feature: the kernel refuses it")
	}
	return d, nil
}

// block is a block of the directory.
func (d *ext4Directory) block(n uint32) ([]byte, error) {
	at := int64(n) * d.e.blockSize
	if at >= int64(len(d.data)) {
		return nil, fmt.Errorf("block %d lies behind the end of the directory", n)
	}
	return d.data[at : at+d.e.blockSize], nil
}

func (d *ext4Directory) list(yield func(dirent) error) (agreement, error) {
	agreement := agrees
	if d.hashed {
		agreement = unproven
	}
	for _, part := range d.inline {
		if err := d.e.listBlock(part, yield); err != nil {
			return agreement, fmt.Errorf("read inline directory: %w", err)
		}
	}
	for n := range uint32(int64(len(d.data)) / d.e.blockSize) { //nolint:gosec // bounded by maxDirSize
		block, err := d.block(n)
		if err == nil {
			err = d.checkBlock(block, n)
		}
		if err == nil {
			err = d.e.listBlock(block, yield)
		}
		if err != nil {
			return agreement, fmt.Errorf("directory block %d: %w", n, err)
		}
	}
	return agreement, nil
}

// search looks for a name among the entries of a block.
func (d *ext4Directory) search(block []byte, name string) (dirent, error) {
	return search(name, func(yield func(dirent) error) error { return d.e.listBlock(block, yield) })
}

func (d *ext4Directory) find(name string) (dirent, error) {
	if d.hashed {
		e, err := d.findHashed(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("look up %q in the hash index: %w", name, err)
		}
		return e, err
	}
	for _, part := range d.inline {
		if e, err := d.search(part, name); !errors.Is(err, fs.ErrNotExist) {
			return e, err
		}
	}
	for n := range uint32(int64(len(d.data)) / d.e.blockSize) { //nolint:gosec // bounded by maxDirSize
		e, err := d.leaf(n, name)
		if !errors.Is(err, fs.ErrNotExist) {
			return e, err
		}
	}
	return dirent{}, fs.ErrNotExist
}

// leaf looks for a name in a block of entries.
func (d *ext4Directory) leaf(n uint32, name string) (dirent, error) {
	block, err := d.block(n)
	if err == nil {
		err = d.checkBlock(block, n)
	}
	if err != nil {
		return dirent{}, err
	}
	e, err := d.search(block, name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("directory block %d: %w", n, err)
	}
	return e, err
}

// ext4Node is a node of the hash index: pairs of a hash and a block.
type ext4Node struct {
	entries []byte // 8 bytes each; in the place of the first hash are limit and count
	count   int
	at      int
}

func (n *ext4Node) hash(i int) uint32 { return binary.LittleEndian.Uint32(n.entries[8*i:]) }
func (n *ext4Node) block() uint32 {
	return binary.LittleEndian.Uint32(n.entries[8*n.at+4:]) & 0x0fffffff
}

// nodeAt reads a node whose pairs begin at a byte of a block.
func (d *ext4Directory) nodeAt(block []byte, at int) (*ext4Node, error) {
	limit, count := int(binary.LittleEndian.Uint16(block[at:])), int(binary.LittleEndian.Uint16(block[at+2:]))
	room := len(block) - at
	if d.e.checksums {
		room -= 8
	}
	if limit != room/8 || count == 0 || count > limit {
		return nil, fmt.Errorf("a node has %d entries of %d, where there is room for %d", count, limit, room/8)
	}
	if err := d.e.checkNode(d.own, block, at, limit, count); err != nil {
		return nil, err
	}
	return &ext4Node{entries: block[at : at+8*count], count: count}, nil
}

// isRoot reports whether a block begins with the entries "." and ".." of 12 bytes
// each, as the root of the index does.
func isRoot(block []byte) bool {
	return block[4] == 12 && block[5] == 0 && block[6] == 1 && block[8] == '.' && block[18] == 2 && block[20] == '.' && block[21] == '.'
}

// findHashed goes through the hash index as dx_probe and ext4_dx_find_entry of
// Linux do. Where the kernel would give the index up and read all blocks, which
// differs among its versions, it fails.
func (d *ext4Directory) findHashed(name string) (dirent, error) {
	root, err := d.block(0)
	if err != nil {
		return dirent{}, err
	}
	const info = 24 // behind "." and ".."
	levels := 2
	if d.e.largeDirs {
		levels = 3
	}
	switch {
	case !isRoot(root):
		return dirent{}, errors.New("its root does not begin with the entries of the directory and its parent")
	case !bytes.Equal(root[info:info+4], make([]byte, 4)), root[info+5] != 8, root[info+7] != 0, int(root[info+6]) >= levels:
		return dirent{}, fmt.Errorf("its root has the header %x", root[info:info+8])
	}
	hash, err := d.e.hashOf(name, root[info+4])
	if err != nil {
		return dirent{}, err
	}
	// Down to the leaf.
	var path []*ext4Node
	block, at := root, info+8
	for level := 0; ; level++ {
		node, err := d.nodeAt(block, at)
		if err != nil {
			return dirent{}, err
		}
		low, high := 1, node.count-1
		for low <= high {
			if mid := low + (high-low)/2; node.hash(mid) > hash {
				high = mid - 1
			} else {
				low = mid + 1
			}
		}
		node.at = low - 1
		path = append(path, node)
		if level == int(root[info+6]) {
			break
		}
		if block, err = d.inner(node.block()); err != nil {
			return dirent{}, err
		}
		at = 8
	}
	for {
		last := path[len(path)-1]
		e, err := d.leaf(last.block(), name)
		if !errors.Is(err, fs.ErrNotExist) {
			return e, err
		}
		more, err := d.next(path, hash)
		if err != nil {
			return dirent{}, err
		}
		if !more {
			return dirent{}, fs.ErrNotExist
		}
	}
}

// inner is a block with a node below the root, which looks like one unused entry.
func (d *ext4Directory) inner(n uint32) ([]byte, error) {
	block, err := d.block(n)
	if err == nil && (n == 0 || !d.isInner(block)) {
		err = fmt.Errorf("block %d is no node", n)
	}
	return block, err
}

func (d *ext4Directory) isInner(block []byte) bool {
	return binary.LittleEndian.Uint32(block) == 0 && recordLength(block, d.e.blockSize) == len(block) && block[6] == 0
}

// next moves to the leaf behind, when names of the same hash go on there.
func (d *ext4Directory) next(path []*ext4Node, hash uint32) (bool, error) {
	level := len(path) - 1
	for ; ; level-- {
		if path[level].at++; path[level].at < path[level].count {
			break
		}
		if level == 0 {
			return false, nil
		}
	}
	if path[level].hash(path[level].at)&^1 != hash {
		return false, nil
	}
	for ; level < len(path)-1; level++ {
		block, err := d.inner(path[level].block())
		if err != nil {
			return false, err
		}
		node, err := d.nodeAt(block, 8)
		if err != nil {
			return false, err
		}
		path[level+1] = node
	}
	return true, nil
}

// recordLength is the length of the entry at the beginning of a block.
func recordLength(block []byte, blockSize int64) int {
	length := int(binary.LittleEndian.Uint16(block[4:]))
	if length == math.MaxUint16 || length == 0 && blockSize == 1<<16 {
		return 1 << 16
	}
	return length
}

// hashOf is the hash of a name by the version that the root of an index names
// (fs/ext4/hash.c): legacy, half MD4 and TEA, each over signed or unsigned bytes.
func (e *ext4) hashOf(name string, version byte) (uint32, error) {
	if version > 5 {
		return 0, fmt.Errorf("its hash version %d is not known", version)
	}
	unsigned := version >= 3
	if !unsigned && !isASCII(name) {
		switch e.hashFlags & 3 {
		case 1:
		case 2:
			unsigned = true
		default:
			return 0, errors.New("the superblock does not say whether bytes are signed, and the kernel takes its processor's way")
		}
	}
	char := func(c byte) uint32 {
		if unsigned {
			return uint32(c)
		}
		return uint32(int32(int8(c))) //nolint:gosec // sign extension is what is meant
	}
	state := [4]uint32{0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476}
	if e.hashSeed != ([4]uint32{}) {
		state = e.hashSeed
	}
	var hash uint32
	switch version % 3 {
	case 0:
		hash = legacyHash(name, char)
	case 1:
		for rest := name; len(rest) > 0; rest = rest[min(32, len(rest)):] {
			halfMD4(&state, hashWords(rest, 8, char))
		}
		hash = state[1]
	case 2:
		for rest := name; len(rest) > 0; rest = rest[min(16, len(rest)):] {
			tea(&state, hashWords(rest, 4, char))
		}
		hash = state[0]
	}
	if hash &^= 1; hash == 0xfffffffe { // stands for the end
		hash = 0xfffffffc
	}
	return hash, nil
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

func legacyHash(name string, char func(byte) uint32) uint32 {
	hash, before := uint32(0x12a3fe2d), uint32(0x37abe8f9)
	for i := range len(name) {
		next := before + (hash ^ char(name[i])*7152373)
		if next&0x80000000 != 0 {
			next -= 0x7fffffff
		}
		hash, before = next, hash
	}
	return hash << 1
}

// hashWords packs the first bytes of a name into words, filled up with its length.
func hashWords(name string, count int, char func(byte) uint32) []uint32 {
	pad := uint32(len(name)) //nolint:gosec // at most 255
	pad |= pad << 8
	pad |= pad << 16
	words := make([]uint32, count)
	for i := range words {
		words[i] = pad
		for _, c := range []byte(name[min(4*i, len(name)):min(4*i+4, len(name))]) {
			words[i] = char(c) + words[i]<<8
		}
	}
	return words
}

func tea(state *[4]uint32, in []uint32) {
	a, b, sum := state[0], state[1], uint32(0)
	for range 16 {
		sum += 0x9e3779b9
		a += (b<<4 + in[0]) ^ (b + sum) ^ (b>>5 + in[1])
		b += (a<<4 + in[2]) ^ (a + sum) ^ (a>>5 + in[3])
	}
	state[0] += a
	state[1] += b
}

// halfMD4 is three rounds of eight steps of MD4 (RFC 1320) each.
func halfMD4(state *[4]uint32, in []uint32) {
	a, b, c, d := state[0], state[1], state[2], state[3]
	rounds := []struct {
		mix   func(x, y, z uint32) uint32
		add   uint32
		order [8]int
		turn  [4]int
	}{
		{func(x, y, z uint32) uint32 { return z ^ x&(y^z) }, 0, [8]int{0, 1, 2, 3, 4, 5, 6, 7}, [4]int{3, 7, 11, 19}},
		{func(x, y, z uint32) uint32 { return x&y + (x^y)&z }, 0x5a827999, [8]int{1, 3, 5, 7, 0, 2, 4, 6}, [4]int{3, 5, 9, 13}},
		{func(x, y, z uint32) uint32 { return x ^ y ^ z }, 0x6ed9eba1, [8]int{3, 7, 2, 6, 1, 5, 0, 4}, [4]int{3, 9, 11, 15}},
	}
	for _, r := range rounds {
		for i, word := range r.order {
			a = bits.RotateLeft32(a+r.mix(b, c, d)+in[word]+r.add, r.turn[i%4])
			a, b, c, d = d, a, b, c
		}
	}
	state[0] += a
	state[1] += b
	state[2] += c
	state[3] += d
}
