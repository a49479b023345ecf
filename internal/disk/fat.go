package disk

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// FAT is a FAT12, FAT16 or FAT32 file system. Its methods are safe for
// concurrent use as far as the reader below it is.
type FAT struct {
	r            io.ReaderAt
	bits         int   // of a FAT entry: 12, 16 or 32
	firstFAT     int64 // bytes from the start of the file system
	fatOffset    int64 // likewise, of the FAT in use
	fatSize      int64 // bytes
	dataOffset   int64 // bytes, of cluster 2
	clusterSize  int64 // bytes
	clusters     uint32
	rootOffset   int64 // FAT12 and FAT16: bytes
	rootEntries  int64 // FAT12 and FAT16
	rootCluster  uint32
	VolumeSerial uint32
}

const (
	// A FAT directory may hold 65,536 entries of 32 bytes.
	fatMaxDir = 65536 * fatEntrySize
	// A file in more pieces than this is no image that a tool wrote; the bound
	// keeps a hostile FAT from filling memory.
	fatMaxRuns = 1 << 17
)

// OpenFAT reads the boot sector of a FAT file system of size bytes. The width
// of FAT entries is told as EDK II's driver tells it: FAT32 when the 16-bit
// FAT size is zero, FAT12 below 4,085 clusters, FAT16 otherwise.
func OpenFAT(r io.ReaderAt, size int64) (*FAT, error) {
	boot := make([]byte, 512)
	if size < int64(len(boot)) {
		return nil, fmt.Errorf("it is no FAT file system: %d bytes have no room for a boot sector", size)
	}
	if n, err := r.ReadAt(boot, 0); n < len(boot) {
		return nil, fmt.Errorf("read FAT boot sector: %w", err)
	}
	le := binary.LittleEndian
	sector := int64(le.Uint16(boot[11:]))
	perCluster := int64(boot[13])
	reserved := int64(le.Uint16(boot[14:]))
	fats := int64(boot[16])
	rootEntries := int64(le.Uint16(boot[17:]))
	sectors := int64(le.Uint16(boot[19:]))
	if sectors == 0 {
		sectors = int64(le.Uint32(boot[32:]))
	}
	fatSectors := int64(le.Uint16(boot[22:]))
	fat32 := fatSectors == 0
	if fat32 {
		fatSectors = int64(le.Uint32(boot[36:]))
	}
	switch {
	case boot[0] != 0xeb && boot[0] != 0xe9:
		return nil, errors.New("it is no FAT file system: its first byte is not a jump")
	case sector != 512 && sector != 1024 && sector != 2048 && sector != 4096:
		return nil, fmt.Errorf("it is no FAT file system: sector size %d is not 512, 1024, 2048 or 4096", sector)
	case perCluster == 0 || perCluster&(perCluster-1) != 0:
		return nil, fmt.Errorf("FAT boot sector: %d sectors a cluster is not a power of two", perCluster)
	case reserved == 0 || fats == 0 || fats > 4 || fatSectors == 0:
		return nil, fmt.Errorf("FAT boot sector: %d reserved sectors, %d FATs of %d sectors", reserved, fats, fatSectors)
	case sectors*sector > size:
		return nil, fmt.Errorf("FAT boot sector: %d sectors of %d bytes are more than the partition's %d bytes", sectors, sector, size)
	}
	f := &FAT{
		r:           r,
		firstFAT:    reserved * sector,
		fatOffset:   reserved * sector,
		fatSize:     fatSectors * sector,
		clusterSize: perCluster * sector,
		rootOffset:  (reserved + fats*fatSectors) * sector,
		rootEntries: rootEntries,
	}
	f.dataOffset = f.rootOffset + (rootEntries*fatEntrySize+sector-1)/sector*sector
	data := sectors*sector - f.dataOffset
	if data < 0 {
		return nil, errors.New("FAT boot sector: the tables are larger than the file system")
	}
	clusters := data / f.clusterSize
	if clusters > 0x0ffffff5 {
		return nil, fmt.Errorf("FAT boot sector: %d clusters are more than FAT32 has", clusters)
	}
	f.clusters = uint32(clusters)
	switch {
	case fat32:
		f.bits = 32
		f.rootCluster = le.Uint32(boot[44:])
		f.VolumeSerial = le.Uint32(boot[67:])
		// With mirroring off, one FAT alone is in use.
		if flags := le.Uint16(boot[40:]); flags&0x80 != 0 {
			active := int64(flags & 0x0f)
			if active >= fats {
				return nil, fmt.Errorf("FAT boot sector: active FAT %d of %d", active, fats)
			}
			f.fatOffset += active * f.fatSize
		}
	case clusters < 4085:
		f.bits = 12
		f.VolumeSerial = le.Uint32(boot[39:])
	default:
		f.bits = 16
		f.VolumeSerial = le.Uint32(boot[39:])
	}
	return f, nil
}

// Capacity is what the clusters hold, in bytes.
func (f *FAT) Capacity() int64 { return int64(f.clusters) * f.clusterSize }

// run is a stretch of consecutive clusters, in bytes.
type run struct {
	start  int64 // from the start of the file
	offset int64 // from the start of the file system
	length int64
}

// chain follows the clusters from first until limit bytes are covered (or the
// chain ends, with a limit of -1), and returns them as coalesced runs.
func (f *FAT) chain(first uint32, limit int64) ([]run, error) {
	var runs []run
	var covered int64
	table := fatTable{fat: f}
	for cluster, steps := first, uint32(0); ; steps++ {
		if cluster < 2 || cluster-2 >= f.clusters {
			return nil, fmt.Errorf("cluster %d of the chain from %d lies outside the file system", cluster, first)
		}
		if steps >= f.clusters {
			return nil, fmt.Errorf("the cluster chain from %d runs in a circle", first)
		}
		offset := f.dataOffset + int64(cluster-2)*f.clusterSize
		if n := len(runs); n > 0 && runs[n-1].offset+runs[n-1].length == offset {
			runs[n-1].length += f.clusterSize
		} else {
			if n == fatMaxRuns {
				return nil, fmt.Errorf("the cluster chain from %d is in more than %d pieces", first, fatMaxRuns)
			}
			runs = append(runs, run{covered, offset, f.clusterSize})
		}
		covered += f.clusterSize
		if limit >= 0 && covered >= limit {
			return runs, checkRuns(runs, first)
		}
		if limit < 0 && covered > fatMaxDir {
			return nil, fmt.Errorf("the directory at cluster %d is longer than FAT allows", first)
		}
		next, err := table.next(cluster)
		if err != nil {
			return nil, err
		}
		if f.endOfChain(next) {
			if limit >= 0 {
				return nil, fmt.Errorf("the cluster chain from %d ends after %d of %d bytes", first, covered, limit)
			}
			return runs, checkRuns(runs, first)
		}
		cluster = next
	}
}

// checkRuns refuses a chain that uses a cluster twice, which nothing but a
// circle does.
func checkRuns(runs []run, first uint32) error {
	sorted := slices.Clone(runs)
	slices.SortFunc(sorted, func(a, b run) int { return cmp.Compare(a.offset, b.offset) })
	for i := 1; i < len(sorted); i++ {
		if sorted[i].offset < sorted[i-1].offset+sorted[i-1].length {
			return fmt.Errorf("the cluster chain from %d runs in a circle", first)
		}
	}
	return nil
}

func (f *FAT) endOfChain(entry uint32) bool {
	switch f.bits {
	case 12:
		return entry >= 0xff8
	case 16:
		return entry >= 0xfff8
	}
	return entry >= 0x0ffffff8
}

// fatTable reads FAT entries through a window of one block, since chains are
// mostly ascending.
type fatTable struct {
	fat   *FAT
	block [4096]byte
	start int64
	valid int
}

func (t *fatTable) byteAt(off int64) (byte, error) {
	if t.valid == 0 || off < t.start || off >= t.start+int64(t.valid) {
		t.start = off &^ (int64(len(t.block)) - 1)
		want := min(int64(len(t.block)), t.fat.fatSize-t.start)
		if want <= 0 {
			return 0, fmt.Errorf("FAT entry at byte %d lies outside the FAT of %d bytes", off, t.fat.fatSize)
		}
		n, err := t.fat.r.ReadAt(t.block[:want], t.fat.fatOffset+t.start)
		if int64(n) < want {
			return 0, fmt.Errorf("read FAT: %w", err)
		}
		t.valid = n
	}
	if off-t.start >= int64(t.valid) {
		return 0, fmt.Errorf("FAT entry at byte %d lies outside the FAT of %d bytes", off, t.fat.fatSize)
	}
	return t.block[off-t.start], nil
}

// next returns the FAT entry of a cluster.
func (t *fatTable) next(cluster uint32) (uint32, error) {
	var off int64
	width := 2
	switch t.fat.bits {
	case 12:
		off = int64(cluster) + int64(cluster/2)
	case 16:
		off = int64(cluster) * 2
	default:
		off, width = int64(cluster)*4, 4
	}
	var value uint32
	if at := off - t.start; at >= 0 && at+4 <= int64(t.valid) {
		// The usual case: it lies in the window.
		if value = binary.LittleEndian.Uint32(t.block[at:]); width == 2 {
			value &= 0xffff
		}
	} else {
		for i := range width {
			b, err := t.byteAt(off + int64(i))
			if err != nil {
				return 0, err
			}
			value |= uint32(b) << (8 * i)
		}
	}
	switch {
	case t.fat.bits == 12 && cluster%2 == 1:
		value >>= 4
	case t.fat.bits == 12:
		value &= 0xfff
	case t.fat.bits == 32:
		value &= 0x0fffffff
	}
	return value, nil
}

// File is an open file. It is an io.ReaderAt over its content.
type File struct {
	fat  *FAT
	path string
	size int64
	runs []run

	ReadOnly bool   // FAT's attribute
	Short    string // 8.3 name of the file, which leads to it, too
}

// Path is where the file is, as Walk has it.
func (f *File) Path() string { return f.path }

// Size is the file's size in bytes.
func (f *File) Size() int64 { return f.size }

// ReadAt reads from the file at a byte offset.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("read at a negative offset")
	}
	// The first run that ends behind off.
	next, _ := slices.BinarySearchFunc(f.runs, off, func(r run, off int64) int { return cmp.Compare(r.start+r.length, off+1) })
	total := 0
	for _, r := range f.runs[next:] {
		at := off + int64(total)
		if total == len(p) || at >= f.size {
			break
		}
		inRun := at - r.start
		n := min(int64(len(p)-total), r.length-inRun, f.size-at)
		got, err := f.fat.r.ReadAt(p[total:total+int(n)], r.offset+inRun)
		total += got
		if int64(got) < n {
			return total, fmt.Errorf("read %s: %w", f.path, err)
		}
	}
	if total < len(p) {
		return total, io.EOF
	}
	return total, nil
}
