package disk

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/bits"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
)

// VerityParameters say how a dm-verity hash tree was made.
type VerityParameters struct {
	Algorithm     string // "sha256" or "sha512"
	HashType      uint32 // 1; 0 is Chromium OS's, with the salt behind
	DataBlockSize int64  // bytes
	HashBlockSize int64  // bytes
	DataBlocks    int64
	Salt          []byte
}

// Verity is a dm-verity hash tree, mostly with the superblock that veritysetup
// writes before it (cryptsetup's "DMVerity on-disk format", version 1).
type Verity struct {
	VerityParameters

	UUID [16]byte // of the superblock

	disk       *Disk
	superblock int64 // byte offset on the disk, or noSuperblock
	tree       int64 // byte offset of the tree on the disk
	levels     []verityLevel
}

const noSuperblock = -1

// verityLevel is a level of the tree; level 0 holds the digests of data blocks.
type verityLevel struct {
	offset int64 // bytes, from the start of the disk
	blocks int64
}

const (
	veritySignature   = "verity\x00\x00"
	veritySuperblock  = 512
	verityMaxSalt     = 256
	verityMinBlock    = 512
	verityMaxBlock    = 64 << 10
	verityMaxReported = 100
)

// Verity reads the verity superblock at a byte offset of a hash device, which is
// a run of bytes of the disk, a partition mostly. The hash tree behind it must
// end before the device does.
func (d *Disk) Verity(device Extent, offset int64) (*Verity, error) {
	v, err := d.verity(device, offset)
	if err != nil {
		return nil, fmt.Errorf("read verity superblock at byte %d of %s: %w", device.Offset+offset, d.Name(), err)
	}
	return v, nil
}

func (d *Disk) verity(device Extent, offset int64) (*Verity, error) {
	raw := make([]byte, veritySuperblock)
	limit := min(device.Offset+device.Length, d.size)
	if device.Offset < 0 || offset < 0 || offset > limit-device.Offset-veritySuperblock {
		return nil, errors.New("it lies outside the partition")
	}
	if _, err := d.ReadAt(raw, device.Offset+offset); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if string(raw[:8]) != veritySignature {
		return nil, errors.New("there is none")
	}
	algorithm, _, _ := bytes.Cut(raw[32:64], []byte{0})
	salt := int(le.Uint16(raw[80:]))
	if version := le.Uint32(raw[8:]); version != 1 {
		return nil, fmt.Errorf("version %d is not known", version)
	}
	if salt > verityMaxSalt {
		return nil, fmt.Errorf("a salt of %d bytes is longer than %d", salt, verityMaxSalt)
	}
	v := &Verity{
		VerityParameters: VerityParameters{
			Algorithm:     string(algorithm),
			HashType:      le.Uint32(raw[12:]),
			DataBlockSize: int64(le.Uint32(raw[64:])),
			HashBlockSize: int64(le.Uint32(raw[68:])),
			Salt:          raw[88 : 88+salt],
		},
		UUID:       [16]byte(raw[16:32]),
		disk:       d,
		superblock: device.Offset + offset,
	}
	if err := v.check(le.Uint64(raw[72:])); err != nil {
		return nil, err
	}
	// The tree begins with the next hash block of the device.
	v.tree = device.Offset + (offset+veritySuperblock+v.HashBlockSize-1)/v.HashBlockSize*v.HashBlockSize
	return v, v.layout(limit)
}

// VerityTree is a hash tree without a superblock (veritysetup's --no-superblock)
// at a byte offset of a hash device: what it is comes from elsewhere.
func (d *Disk) VerityTree(p VerityParameters, device Extent, offset int64) (*Verity, error) {
	limit := min(device.Offset+device.Length, d.size)
	if device.Offset < 0 || offset < 0 || offset > limit-device.Offset {
		return nil, fmt.Errorf("find verity tree at byte %d of %s: it lies outside the partition", offset, d.Name())
	}
	v := &Verity{VerityParameters: p, disk: d, superblock: noSuperblock, tree: device.Offset + offset}
	err := v.check(uint64(max(p.DataBlocks, 0)))
	if err == nil && offset%p.HashBlockSize != 0 {
		err = fmt.Errorf("the tree does not begin at a multiple of %d bytes", p.HashBlockSize)
	}
	if err == nil && len(p.Salt) > verityMaxSalt {
		err = fmt.Errorf("a salt of %d bytes is longer than %d", len(p.Salt), verityMaxSalt)
	}
	if err == nil {
		err = v.layout(limit)
	}
	if err != nil {
		return nil, fmt.Errorf("find verity tree at byte %d of %s: %w", v.tree, d.Name(), err)
	}
	return v, nil
}

// check refuses parameters that no tree of this disk has.
func (v *Verity) check(blocks uint64) error {
	switch {
	case v.HashType > 1:
		return fmt.Errorf("hash type %d is not known", v.HashType)
	case v.digestSize() == 0:
		return fmt.Errorf("hash algorithm %q is neither sha256 nor sha512", v.Algorithm)
	case !verityBlockSize(v.DataBlockSize) || !verityBlockSize(v.HashBlockSize):
		return fmt.Errorf("blocks of %d and %d bytes are not powers of two from 512 to 65,536", v.DataBlockSize, v.HashBlockSize)
	case blocks == 0 || blocks > uint64(v.disk.size/v.DataBlockSize):
		return fmt.Errorf("%d data blocks of %d bytes are more than the disk's %d bytes", blocks, v.DataBlockSize, v.disk.size)
	}
	v.DataBlocks = int64(blocks)
	return nil
}

func verityBlockSize(n int64) bool {
	return n >= verityMinBlock && n <= verityMaxBlock && n&(n-1) == 0
}

// digestSize is the length of a digest in bytes, 0 for an unknown algorithm.
func (v *Verity) digestSize() int64 {
	switch v.Algorithm {
	case "sha256":
		return sha256.Size
	case "sha512":
		return sha512.Size
	}
	return 0
}

// perBlock is the number of digests in a hash block: a power of two, as each is
// padded to one (both algorithms' digests are).
func (v *Verity) perBlock() int64 { return v.HashBlockSize / v.digestSize() }

// layout finds the levels, of which the topmost lies first.
func (v *Verity) layout(limit int64) error {
	shift := bits.TrailingZeros64(uint64(v.perBlock()))
	for n := v.DataBlocks; n > 1; {
		n = (n + v.perBlock() - 1) >> shift
		v.levels = append(v.levels, verityLevel{blocks: n})
	}
	at := v.tree
	for i := len(v.levels) - 1; i >= 0; i-- {
		v.levels[i].offset = at
		at += v.levels[i].blocks * v.HashBlockSize
	}
	if at > limit {
		return fmt.Errorf("the hash tree of %d data blocks ends at byte %d, behind the partition's end at %d", v.DataBlocks, at, limit)
	}
	return nil
}

// TreeSize is the length of the tree in bytes, without a superblock.
func (v *Verity) TreeSize() int64 {
	size := int64(0)
	for _, l := range v.levels {
		size += l.blocks * v.HashBlockSize
	}
	return size
}

// newHash is a hash of the tree's algorithm.
func (v *Verity) newHash() hash.Hash {
	if v.Algorithm == "sha512" {
		return sha512.New()
	}
	return sha256.New()
}

// digest appends the digest of a block to dst. h is the worker's own newHash.
func (v *Verity) digest(dst, block []byte, h hash.Hash) []byte {
	h.Reset()
	if v.HashType == 1 {
		h.Write(v.Salt)
		h.Write(block)
	} else {
		h.Write(block)
		h.Write(v.Salt)
	}
	return h.Sum(dst)
}

// VerityReport is the result of a check of every block.
type VerityReport struct {
	// RootHash is what the tree leads to.
	RootHash []byte
	// BadData are the numbers of the first data blocks that their digest does
	// not confirm, ascending, at most 100; BadDataCount counts all.
	BadData      []int64
	BadDataCount int64
	// BadTree are byte offsets, from the start of the disk, of the first hash
	// blocks that the level above does not confirm, at most 100.
	BadTree      []int64
	BadTreeCount int64
}

// Holds reports whether every block leads to the expected root hash.
func (r *VerityReport) Holds(root []byte) bool {
	return bytes.Equal(r.RootHash, root) && r.BadDataCount == 0 && r.BadTreeCount == 0
}

// Verify recomputes the whole tree over the data at a byte offset of the disk.
// Holes are not read. Only the caller knows which root hash to expect.
func (v *Verity) Verify(ctx context.Context, dataOffset int64) (*VerityReport, error) {
	if dataOffset < 0 || dataOffset+v.DataBlocks*v.DataBlockSize > v.disk.size {
		return nil, fmt.Errorf("verify verity: %d data blocks at byte %d lie outside the disk of %d bytes", v.DataBlocks, dataOffset, v.disk.size)
	}
	extents, err := v.disk.Extents()
	if err != nil {
		return nil, fmt.Errorf("verify verity: %w", err)
	}
	c := &verityCheck{Verity: v, ctx: ctx, extents: extents}
	c.zero = v.digest(nil, make([]byte, v.DataBlockSize), v.newHash())
	if len(v.levels) == 0 { // one data block, whose digest is the root hash
		block := make([]byte, v.DataBlockSize)
		if _, err := v.disk.ReadAt(block, dataOffset); err != nil {
			return nil, fmt.Errorf("verify verity: read data: %w", err)
		}
		c.report.RootHash = v.digest(nil, block, v.newHash())
		return &c.report, nil
	}
	if c.report.RootHash, _, err = v.RootHash(); err != nil {
		return nil, fmt.Errorf("verify verity: %w", err)
	}
	for i := len(v.levels) - 2; i >= 0; i-- {
		lower := verityArea{v.levels[i].offset, v.levels[i].blocks, v.HashBlockSize, false}
		if err := c.level(v.levels[i+1], lower); err != nil {
			return nil, fmt.Errorf("verify verity: %w", err)
		}
	}
	if err := c.level(v.levels[0], verityArea{dataOffset, v.DataBlocks, v.DataBlockSize, true}); err != nil {
		return nil, fmt.Errorf("verify verity: %w", err)
	}
	return &c.report, nil
}

// verityArea is a run of blocks that a level confirms.
type verityArea struct {
	offset, blocks, blockSize int64
	data                      bool
}

type verityCheck struct {
	*Verity
	ctx     context.Context
	extents []Extent
	zero    []byte // digest of a data block of zeros

	mu     sync.Mutex
	report VerityReport
}

// level compares the digests in upper with the blocks of lower. Workers take
// one block of upper at a time, so that memory does not depend on the size.
func (c *verityCheck) level(upper verityLevel, lower verityArea) error {
	group, ctx := errgroup.WithContext(c.ctx)
	next := make(chan int64)
	group.Go(func() error {
		defer close(next)
		for i := range upper.blocks {
			select {
			case next <- i:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range runtime.GOMAXPROCS(0) {
		group.Go(func() error {
			w := verityWorker{check: c, hashes: make([]byte, c.HashBlockSize), hash: c.newHash()}
			for i := range next {
				if err := w.block(upper.offset+i*c.HashBlockSize, i*c.perBlock(), lower); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// verityWorker has the buffers of one goroutine.
type verityWorker struct {
	check  *verityCheck
	hashes []byte
	blocks []byte
	hash   hash.Hash
	sum    []byte
}

// verityRead is how much a worker reads at once, in bytes.
const verityRead = 512 << 10

// block compares the digests in the hash block at a byte offset with the blocks
// of lower from first on.
func (w *verityWorker) block(offset, first int64, lower verityArea) error {
	c := w.check
	if _, err := c.disk.ReadAt(w.hashes, offset); err != nil {
		return fmt.Errorf("read hash tree: %w", err)
	}
	size := c.digestSize()
	end := min(first+c.perBlock(), lower.blocks)
	step := max(verityRead/lower.blockSize, 1)
	for at := first; at < end; at += step {
		n := min(step, end-at)
		begin := lower.offset + at*lower.blockSize
		hole := lower.data && c.hole(begin, n*lower.blockSize)
		if !hole {
			w.blocks = slices.Grow(w.blocks[:0], int(n*lower.blockSize))[:n*lower.blockSize]
			if m, err := c.disk.ReadAt(w.blocks, begin); int64(m) < n*lower.blockSize {
				if errors.Is(err, io.EOF) {
					err = io.ErrUnexpectedEOF
				}
				return fmt.Errorf("read block %d: %w", at, err)
			}
		}
		for i := range n {
			w.sum = append(w.sum[:0], c.zero...)
			if !hole {
				w.sum = c.digest(w.sum[:0], w.blocks[i*lower.blockSize:(i+1)*lower.blockSize], w.hash)
			}
			want := w.hashes[(at-first+i)*size:][:size]
			if !bytes.Equal(w.sum, want) {
				c.bad(lower, at+i)
			}
		}
	}
	return nil
}

// hole reports whether nothing is stored between two places of the disk.
func (c *verityCheck) hole(offset, length int64) bool {
	i, _ := slices.BinarySearchFunc(c.extents, offset, func(e Extent, off int64) int {
		if e.Offset+e.Length <= off {
			return -1
		}
		return 1
	})
	return i == len(c.extents) || c.extents[i].Offset >= offset+length
}

func (c *verityCheck) bad(lower verityArea, block int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if lower.data {
		c.report.BadDataCount++
		c.report.BadData = keepLowest(c.report.BadData, block)
		return
	}
	c.report.BadTreeCount++
	c.report.BadTree = keepLowest(c.report.BadTree, lower.offset+block*lower.blockSize)
}

// keepLowest inserts n into an ascending list of at most verityMaxReported.
func keepLowest(list []int64, n int64) []int64 {
	at, _ := slices.BinarySearch(list, n)
	list = slices.Insert(list, at, n)
	return list[:min(len(list), verityMaxReported)]
}

// String describes the tree for people.
func (v *Verity) String() string {
	return fmt.Sprintf("%s, %d blocks of %d bytes, salt %s", v.Algorithm, v.DataBlocks, v.DataBlockSize, hex.EncodeToString(v.Salt))
}

// RootHash is what the topmost block of the tree leads to; no other block is
// read. ok is false for a tree over one data block, which has no block of its
// own: that block's digest is the root hash.
func (v *Verity) RootHash() (root []byte, ok bool, err error) {
	if len(v.levels) == 0 {
		return nil, false, nil
	}
	block := make([]byte, v.HashBlockSize)
	if _, err := v.disk.ReadAt(block, v.levels[len(v.levels)-1].offset); err != nil {
		return nil, false, fmt.Errorf("read hash tree: %w", err)
	}
	return v.digest(nil, block, v.newHash()), true, nil
}

// Tree is where the tree lies, without the superblock: bytes from the start of
// the disk.
func (v *Verity) Tree() Extent { return Extent{v.tree, v.TreeSize()} }
