package ami

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/org/attestable-image-action/internal/disk"
)

// ZeroBlocks says what happens to blocks of nothing but zeros. One that is not
// written reads as zero on an unencrypted volume, and as garbage on an encrypted
// one.
type ZeroBlocks int

// The ways to treat zero blocks, the safe one first.
const (
	// OutsidePartitions leaves out those that touch neither a partition nor a
	// partition table: nobody reads them.
	OutsidePartitions ZeroBlocks = iota
	// WriteZeros writes every block.
	WriteZeros
	// OmitZeros leaves out all of them, which is right on an unencrypted volume
	// only.
	OmitZeros
)

var zeroBlocksNames = []string{"outside-partitions", "write", "omit"}

func (z ZeroBlocks) String() string { return zeroBlocksNames[z] }

// ParseZeroBlocks reads outside-partitions, write or omit.
func ParseZeroBlocks(s string) (ZeroBlocks, error) {
	for i, name := range zeroBlocksNames {
		if s == name {
			return ZeroBlocks(i), nil
		}
	}
	return 0, fmt.Errorf("zero blocks cannot be treated as %q: give outside-partitions, write or omit", s)
}

// headSize is how much of a disk is looked at for its partition table, in
// bytes: usual tables end within 34 sectors.
const headSize = 2 << 20

// extent is a run of bytes of the disk.
type extent struct{ start, end int64 }

// zeroPolicy decides about one zero block.
type zeroPolicy struct {
	omitAll  bool
	writeAll bool
	kept     []extent // what must be written though it is zero
	// why tells in words which blocks are left out, for people.
	why string
}

// newZeroPolicy reads the partition table from the beginning of a disk of size
// bytes. Where there is none that can be read, every block is written.
func newZeroPolicy(z ZeroBlocks, head []byte, size int64) zeroPolicy {
	switch z {
	case WriteZeros:
		return zeroPolicy{writeAll: true, why: "every block is written, as asked for"}
	case OmitZeros:
		return zeroPolicy{omitAll: true, why: "all zero blocks, as asked for: they read as zero because the snapshot is not encrypted"}
	}
	gpt, err := disk.ReadGPT(beginning(head), size)
	if err != nil {
		return zeroPolicy{writeAll: true, why: fmt.Sprintf("every block is written, since no partition table tells which of them are read (%v)", err)}
	}
	p := zeroPolicy{why: "zero blocks that touch neither a partition nor a partition table: nothing reads them"}
	p.kept = append(p.kept, extent{0, gpt.TableEnd()}, extent{gpt.UsableEnd(), size})
	for _, partition := range gpt.Partitions {
		p.kept = append(p.kept, extent{partition.Offset, partition.Offset + partition.Size})
	}
	return p
}

// omits tells whether the zero block from start to end (bytes of the disk) may
// be left out.
func (p *zeroPolicy) omits(start, end int64) bool {
	if p.writeAll || p.omitAll {
		return p.omitAll
	}
	for _, e := range p.kept {
		if start < e.end && e.start < end {
			return false
		}
	}
	return true
}

// beginning is a disk of which only the first bytes are known.
type beginning []byte

var errBeyond = errors.New("the partition table does not lie at the beginning of the disk")

func (b beginning) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(b)) {
		return 0, errBeyond
	}
	return copy(p, b[off:]), nil
}

var _ io.ReaderAt = beginning(nil)

// zeroBlock is a block of zeros, and never written to.
var zeroBlock [BlockSize]byte

func isZero(b []byte) bool { return bytes.Equal(b, zeroBlock[:len(b)]) }
