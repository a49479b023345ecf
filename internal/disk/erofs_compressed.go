package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

const (
	// What the kernel allows a physical cluster to hold, in bytes.
	erofsMaxEncoded = 1 << 20
	erofsMaxDecoded = 12 << 20

	erofsAdviseCompact2B  = 0x01
	erofsAdviseExtents    = 0x01
	erofsAdviseBig1       = 0x02
	erofsAdviseBig2       = 0x04
	erofsAdviseInline     = 0x08
	erofsAdviseInterlaced = 0x10
	erofsAdviseFragment   = 0x20

	erofsPlain   = 0
	erofsHead1   = 1
	erofsNonHead = 2
	erofsHead2   = 3

	erofsPartialRef = 1 << 15
	// erofsBlockCount marks a distance that is a count of blocks.
	erofsBlockCount = 1 << 11
)

// erofsCompressed is a compressed file. Its content is a row of extents, each
// decoded from one physical cluster; logical clusters of equal size say where
// extents begin.
type erofsCompressed struct {
	*erofs
	i           *erofsInode
	clusterBits uint // log2 of a logical cluster's bytes
	advise      uint16
	algorithms  [2]byte // of HEAD1 and HEAD2
	index       int64   // byte offset of the first index
	inlineSize  int64   // bytes of the inline physical cluster, 0 when there is none
	inline      int64   // its byte offset
	fragment    uint64  // byte offset in the packed inode
	tailHead    int64   // logical cluster where the inline or fragment extent begins, -1 for none

	window  [4096]byte // of the index
	windowN int
	windowO int64

	decoded  []byte // the extent that was decoded last
	decodedO int64  // its offset in the file
}

// erofsCluster is a logical cluster's entry in the index.
type erofsCluster struct {
	kind    byte
	offset  int64 // HEAD: bytes into the logical cluster where the extent begins
	back    int64 // NONHEAD: distance to the head, in logical clusters
	blocks  int64 // NONHEAD: blocks of the physical cluster, 0 when it is not said
	block   int64 // HEAD: where the physical cluster begins
	partial bool  // the physical cluster holds more than the extent
	next    int64 // byte offset behind the index entry, or its pack
}

func (e *erofs) openCompressed(i *erofsInode) (io.ReaderAt, error) {
	le := binary.LittleEndian
	at := (i.tail + 7) &^ 7
	header := make([]byte, 8)
	if err := e.readAt(header, at); err != nil {
		return nil, fmt.Errorf("read compression header: %w", err)
	}
	c := &erofsCompressed{erofs: e, i: i, tailHead: -1, advise: le.Uint16(header[4:])}
	if header[7]&0x80 != 0 {
		// The whole file is a fragment.
		return c.whole(le.Uint64(header) &^ (1 << 63))
	}
	c.clusterBits = e.blockBits + uint(header[7]&15)
	c.algorithms = [2]byte{header[6] & 15, header[6] >> 4}
	c.index = at + 8
	compact := i.layout == erofsCompressedCompact
	switch {
	case header[7]&0x70 != 0:
		return nil, fmt.Errorf("compression header %x is not known", header)
	case !compact && c.advise&erofsAdviseExtents != 0:
		return nil, errors.New("it is compressed with the extent index of erofs-utils 1.9, which this version does not read")
	case compact && c.clusterBits > 14, c.clusterBits > 20:
		return nil, fmt.Errorf("logical clusters of 2^%d bytes are too long", c.clusterBits)
	case compact && (c.advise&erofsAdviseBig1 == 0) != (c.advise&erofsAdviseBig2 == 0):
		return nil, errors.New("the two kinds of clusters disagree about big physical clusters")
	}
	if !compact {
		c.index += 8
	}
	switch {
	case c.advise&erofsAdviseFragment != 0:
		c.fragment = uint64(le.Uint32(header))
	case c.advise&erofsAdviseInline != 0:
		c.inlineSize = int64(le.Uint16(header[2:]))
	}
	if i.node.size == 0 || c.inlineSize == 0 && c.advise&erofsAdviseFragment == 0 {
		return c, nil
	}
	return c, c.findTail()
}

// findTail finds where the last extent begins, which is inline or a fragment.
func (c *erofsCompressed) findTail() error {
	last := (c.i.node.size - 1) >> c.clusterBits
	entry, err := c.cluster(last)
	if err != nil {
		return err
	}
	c.inline = entry.next
	head, headEntry, err := c.head(c.i.node.size - 1)
	if err != nil {
		return err
	}
	c.tailHead = head
	if c.advise&erofsAdviseFragment != 0 && c.i.layout == erofsCompressedFull {
		c.fragment |= uint64(headEntry.block) << 32
	}
	return nil
}

// whole returns a reader over a file that is a fragment entirely.
func (c *erofsCompressed) whole(off uint64) (io.ReaderAt, error) {
	packed, err := c.openPacked()
	if err != nil {
		return nil, err
	}
	if off > uint64(packed.size) || c.i.node.size > packed.size-int64(off) {
		return nil, fmt.Errorf("%d bytes at byte %d lie outside the packed inode of %d bytes", c.i.node.size, off, packed.size)
	}
	return io.NewSectionReader(packed, int64(off), c.i.node.size), nil
}

// read is readAt through a small window, since index entries stand side by side.
func (c *erofsCompressed) read(p []byte, off int64) error {
	if off < c.windowO || off+int64(len(p)) > c.windowO+int64(c.windowN) {
		if off < 0 || off > c.size-int64(len(p)) {
			return c.readAt(p, off)
		}
		n := min(int64(len(c.window)), c.size-off)
		c.windowN = 0
		if err := c.readAt(c.window[:n], off); err != nil {
			return err
		}
		c.windowO, c.windowN = off, int(n)
	}
	copy(p, c.window[off-c.windowO:])
	return nil
}

// cluster reads the index entry of a logical cluster.
func (c *erofsCompressed) cluster(n int64) (entry erofsCluster, err error) {
	if c.i.layout == erofsCompressedCompact {
		entry, err = c.compactCluster(n)
	} else {
		entry, err = c.fullCluster(n)
	}
	if err == nil && entry.kind != erofsNonHead && entry.offset >= 1<<c.clusterBits {
		err = fmt.Errorf("an extent begins %d bytes into it", entry.offset)
	}
	if err != nil {
		err = fmt.Errorf("logical cluster %d: %w", n, err)
	}
	return entry, err
}

func (c *erofsCompressed) fullCluster(n int64) (entry erofsCluster, err error) {
	le := binary.LittleEndian
	at := c.index + n*8
	var raw [8]byte
	if err := c.read(raw[:], at); err != nil {
		return entry, err
	}
	advise := le.Uint16(raw[:])
	entry.kind, entry.next = byte(advise&3), at+8
	if entry.kind != erofsNonHead {
		entry.partial = advise&erofsPartialRef != 0
		entry.offset = int64(le.Uint16(raw[2:]))
		entry.block = int64(le.Uint32(raw[4:]))
		return entry, nil
	}
	entry.back = int64(le.Uint16(raw[4:]))
	if entry.back&erofsBlockCount != 0 {
		if c.advise&(erofsAdviseBig1|erofsAdviseBig2) == 0 {
			return entry, errors.New("a count of blocks in a file without big physical clusters")
		}
		entry.blocks, entry.back = entry.back&^erofsBlockCount, 1
	}
	return entry, nil
}

// compactCluster reads an entry of a compact index: packs of 2 entries in 8
// bytes and of 16 in 32, each ending in the block of its first head.
func (c *erofsCompressed) compactCluster(n int64) (entry erofsCluster, err error) {
	total := (c.i.node.size + 1<<c.blockBits - 1) >> c.blockBits
	if n >= total {
		return entry, fmt.Errorf("the file has %d", total)
	}
	// Packs of 32 bytes are aligned to 32; those of 8 fill what is before and
	// behind them.
	before := (32 - c.index%32) / 4 & 7
	var packed2 int64
	if c.advise&erofsAdviseCompact2B != 0 && before < total {
		packed2 = (total - before) &^ 15
	}
	at, shift := c.index, 2
	if n >= before {
		at += before * 4
		if n -= before; n < packed2 {
			shift = 1
		} else {
			at += packed2 * 2
			n -= packed2
		}
	}
	at += n << shift
	count := 2
	if shift == 1 {
		if count = 16; c.clusterBits > 12 {
			return entry, fmt.Errorf("logical clusters of 2^%d bytes have no compact index of 2 bytes", c.clusterBits)
		}
	}
	p := erofsPack{size: count << shift, low: max(c.clusterBits, 12)}
	p.bits = uint((p.size-4)*8) / uint(count)
	begin := at &^ int64(p.size-1)
	if err := c.read(p.raw[:p.size], begin); err != nil {
		return entry, err
	}
	i := int(at-begin) >> shift
	entry, err = p.entry(i, count, c.advise&erofsAdviseBig1 != 0)
	entry.next = begin + int64(p.size)
	if entry.kind == erofsNonHead {
		entry.offset = 1 << c.clusterBits
	}
	return entry, err
}

// erofsPack is a pack of a compact index.
type erofsPack struct {
	raw  [32 + 4]byte // room to read 32 bits anywhere
	size int
	low  uint // bits of an entry's number
	bits uint // of an entry
}

func (p *erofsPack) at(i int) (number int64, kind byte) {
	bit := uint(i) * p.bits
	v := binary.LittleEndian.Uint32(p.raw[bit/8:]) >> (bit & 7)
	return int64(v & (1<<p.low - 1)), byte(v >> p.low & 3)
}

func (p *erofsPack) entry(i, count int, big bool) (entry erofsCluster, err error) {
	number, kind := p.at(i)
	entry.kind = kind
	if kind == erofsNonHead {
		switch {
		case number&erofsBlockCount != 0 && !big:
			return entry, errors.New("a count of blocks in a file without big physical clusters")
		case number&erofsBlockCount != 0:
			entry.blocks, entry.back = number&^erofsBlockCount, 1
		case i+1 != count:
			entry.back = number
		default:
			// The last entry of a pack tells the distance forward: the one before
			// it tells the distance back.
			number, kind = p.at(i - 1)
			switch {
			case kind != erofsNonHead:
				number = 0
			case number&erofsBlockCount != 0:
				number = 1
			}
			entry.back = number + 1
		}
		return entry, nil
	}
	entry.offset = number
	var blocks int64
	if !big {
		blocks = 1
	}
	for j := i; j > 0; {
		j--
		number, kind := p.at(j)
		switch {
		case kind == erofsNonHead && !big:
			j -= int(number)
			if j >= 0 {
				blocks++
			}
		case kind != erofsNonHead:
			blocks++
		case number&erofsBlockCount != 0:
			j--
			blocks += number &^ erofsBlockCount
		case number <= 1:
			return entry, errors.New("a big physical cluster without a count of blocks")
		default:
			j -= int(number) - 2
		}
	}
	entry.block = int64(binary.LittleEndian.Uint32(p.raw[p.size-4:])) + blocks
	return entry, nil
}

// head finds the logical cluster in which the extent at off begins.
func (c *erofsCompressed) head(off int64) (int64, erofsCluster, error) {
	n := off >> c.clusterBits
	entry, err := c.cluster(n)
	if err != nil {
		return 0, entry, err
	}
	back := entry.back
	if entry.kind != erofsNonHead {
		if off&(1<<c.clusterBits-1) >= entry.offset {
			return n, entry, nil
		}
		back = 1
	}
	for limit := n - erofsMaxDecoded>>c.clusterBits; ; back = entry.back {
		if back <= 0 || back > n || n-back < limit-1 {
			return 0, entry, fmt.Errorf("logical cluster %d: there is no head %d before it", n, back)
		}
		n -= back
		if entry, err = c.cluster(n); err != nil {
			return 0, entry, err
		}
		if entry.kind != erofsNonHead {
			return n, entry, nil
		}
	}
}

// erofsExtent is a run of the file that is decoded in one go.
type erofsExtent struct {
	offset, length int64 // in the file
	head           int64 // logical cluster
	entry          erofsCluster
}

func (c *erofsCompressed) extent(off int64) (x erofsExtent, err error) {
	if x.head, x.entry, err = c.head(off); err != nil {
		return x, err
	}
	x.offset = x.head<<c.clusterBits + x.entry.offset
	for n := x.head + 1; ; n++ {
		if n<<c.clusterBits >= c.i.node.size {
			x.length = c.i.node.size - x.offset
			break
		}
		entry, err := c.cluster(n)
		if err != nil {
			return x, err
		}
		if entry.kind != erofsNonHead {
			x.length = n<<c.clusterBits + entry.offset - x.offset
			break
		}
		if (n-x.head)<<c.clusterBits > erofsMaxDecoded {
			break
		}
	}
	fragment := x.head == c.tailHead && c.advise&erofsAdviseFragment != 0
	if x.length <= 0 || off < x.offset || off >= x.offset+x.length || x.length > erofsMaxDecoded && !fragment {
		return x, fmt.Errorf("logical cluster %d: an extent of %d bytes at byte %d, or longer than %d", x.head, x.length, x.offset, erofsMaxDecoded)
	}
	return x, nil
}

// encodedSize is the size of an extent's physical cluster in bytes.
func (c *erofsCompressed) encodedSize(x erofsExtent) (int64, error) {
	blocks := int64(1)
	big := c.advise&erofsAdviseBig2 != 0
	if x.entry.kind == erofsHead1 {
		big = c.advise&erofsAdviseBig1 != 0
	}
	if next := x.head + 1; big && next<<c.clusterBits < c.i.node.size {
		entry, err := c.cluster(next)
		if err != nil {
			return 0, err
		}
		if entry.kind == erofsNonHead {
			if blocks = entry.blocks; blocks == 0 {
				return 0, fmt.Errorf("logical cluster %d: the blocks of its physical cluster are not counted", next)
			}
		}
	}
	if blocks<<c.blockBits > erofsMaxEncoded {
		return 0, fmt.Errorf("logical cluster %d: a physical cluster of %d blocks is longer than %d bytes", x.head, blocks, erofsMaxEncoded)
	}
	return blocks << c.blockBits, nil
}

func (c *erofsCompressed) ReadAt(p []byte, off int64) (int, error) {
	return readParts(p, off, c.i.node.size, func(p []byte, off int64) (int64, error) {
		if off < c.decodedO || off >= c.decodedO+int64(len(c.decoded)) {
			x, err := c.extent(off)
			if err != nil {
				return 0, err
			}
			if x.head == c.tailHead && c.advise&erofsAdviseFragment != 0 {
				return c.readFragment(p, x, off)
			}
			c.decoded = nil
			if c.decoded, err = c.decode(x); err != nil {
				return 0, fmt.Errorf("logical cluster %d: %w", x.head, err)
			}
			c.decodedO = x.offset
		}
		return int64(copy(p, c.decoded[off-c.decodedO:])), nil
	})
}

// readFragment reads from the last extent of a file, which is in the packed
// inode.
func (c *erofsCompressed) readFragment(p []byte, x erofsExtent, off int64) (int64, error) {
	packed, err := c.openPacked()
	if err != nil {
		return 0, err
	}
	if c.fragment > uint64(packed.size) || x.length > packed.size-int64(c.fragment) {
		return 0, fmt.Errorf("a fragment of %d bytes at byte %d lies outside the packed inode of %d bytes", x.length, c.fragment, packed.size)
	}
	n := min(int64(len(p)), x.offset+x.length-off)
	if m, err := packed.ReadAt(p[:n], int64(c.fragment)+off-x.offset); int64(m) < n {
		return 0, fmt.Errorf("read fragment: %w", noEOF(err))
	}
	return n, nil
}

// decode reads and decodes the physical cluster of an extent.
func (c *erofsCompressed) decode(x erofsExtent) ([]byte, error) {
	at, size := x.entry.block<<c.blockBits, c.inlineSize
	if x.head == c.tailHead {
		if at = c.inline; at&(1<<c.blockBits-1)+size > 1<<c.blockBits {
			return nil, errors.New("the inline end of the file crosses a block")
		}
	} else {
		var err error
		if size, err = c.encodedSize(x); err != nil {
			return nil, err
		}
	}
	encoded := make([]byte, size)
	if err := c.readAt(encoded, at); err != nil {
		return nil, err
	}
	algorithm := c.algorithms[0]
	switch x.entry.kind {
	case erofsPlain:
		return c.plain(x, encoded)
	case erofsHead2:
		algorithm = c.algorithms[1]
	}
	// The data end with the cluster; zeros stand before them.
	for len(encoded) > 0 && encoded[0] == 0 {
		encoded = encoded[1:]
	}
	decoded := make([]byte, x.length)
	var n int
	var err error
	switch algorithm {
	case 0:
		n, err = lz4Block(decoded, encoded)
	case 1:
		return nil, errors.New("it is compressed with LZMA, which this version does not read: use lz4hc, deflate or zstd")
	case 2:
		n, err = io.ReadFull(flate.NewReader(bytes.NewReader(encoded)), decoded)
	case 3:
		n, err = unzstd(decoded, encoded)
	default:
		return nil, fmt.Errorf("compression algorithm %d is not known", algorithm)
	}
	if n < len(decoded) {
		return nil, fmt.Errorf("%d of %d bytes could be decoded: %w", n, len(decoded), noEOF(err))
	}
	return decoded, nil
}

// plain returns an extent that is stored as it is, in one block possibly rotated.
func (c *erofsCompressed) plain(x erofsExtent, encoded []byte) ([]byte, error) {
	if x.length > int64(len(encoded)) {
		return nil, fmt.Errorf("%d bytes are stored in %d", x.length, len(encoded))
	}
	if c.advise&erofsAdviseInterlaced == 0 {
		return encoded[:x.length], nil
	}
	block := int64(1) << c.blockBits
	if int64(len(encoded)) > block {
		return nil, errors.New("more than a block is rotated")
	}
	skip := x.offset & (block - 1)
	if skip > int64(len(encoded)) {
		return nil, errors.New("a rotated block is too short")
	}
	right := min(int64(len(encoded))-skip, x.length)
	return append(append(make([]byte, 0, x.length), encoded[skip:skip+right]...), encoded[:x.length-right]...), nil
}

// unzstd decodes Zstandard frames until dst is full.
func unzstd(dst, src []byte) (int, error) {
	z, err := zstd.NewReader(bytes.NewReader(src), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(8<<20), zstd.WithDecoderMaxMemory(64<<20))
	if err != nil {
		return 0, err
	}
	defer z.Close()
	return io.ReadFull(z, dst)
}

// erofsPacked is the inode that holds fragments. Files share it, so that its
// last extent is decoded once.
type erofsPacked struct {
	mu   sync.Mutex
	r    io.ReaderAt
	size int64
}

func (p *erofsPacked) ReadAt(b []byte, off int64) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.r.ReadAt(b, off)
}

func (e *erofs) openPacked() (*erofsPacked, error) {
	e.packedOnce.Do(func() { e.packed, e.packedErr = e.readPacked() })
	return e.packed, e.packedErr
}

func (e *erofs) readPacked() (*erofsPacked, error) {
	if e.packedNID == 0 {
		return nil, errors.New("a fragment, and the file system has no packed inode")
	}
	node, err := e.inode(e.packedNID)
	if err != nil {
		return nil, fmt.Errorf("packed inode: %w", err)
	}
	i := node.private.(*erofsInode)
	var r io.ReaderAt
	if i.layout == erofsCompressedFull || i.layout == erofsCompressedCompact {
		if r, err = e.packedContent(i); err != nil {
			return nil, fmt.Errorf("packed inode: %w", err)
		}
	} else if r, err = e.content(node); err != nil {
		return nil, fmt.Errorf("packed inode: %w", err)
	}
	return &erofsPacked{r: r, size: node.size}, nil
}

// packedContent refuses fragments in the packed inode, which would lead back to
// it.
func (e *erofs) packedContent(i *erofsInode) (io.ReaderAt, error) {
	header := make([]byte, 8)
	if err := e.readAt(header, (i.tail+7)&^7); err != nil {
		return nil, err
	}
	if header[7]&0x80 != 0 || binary.LittleEndian.Uint16(header[4:])&erofsAdviseFragment != 0 {
		return nil, errors.New("it refers to itself")
	}
	return e.openCompressed(i)
}
