package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// OpenWritable opens the raw disk at path for reading and for ReplaceFile, and
// locks it against others that do the same.
func OpenWritable(path string) (*Disk, error) {
	d, err := Open(path) // for its checks
	if err != nil {
		return nil, err
	}
	_ = d.file.Close()
	flags := os.O_RDWR
	if info, err := os.Stat(path); err == nil && info.Mode()&os.ModeDevice != 0 {
		flags |= unix.O_EXCL // fails while a partition of it is mounted
	}
	if d.file, err = os.OpenFile(path, flags, 0); err != nil {
		return nil, fmt.Errorf("open disk for writing: %w", err)
	}
	if err := unix.Flock(int(d.file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = d.file.Close()
		return nil, fmt.Errorf("open disk %s for writing: another program has locked it: %w", path, err)
	}
	return d, nil
}

// ReplaceFile gives an existing file in a partition's FAT file system new
// content of size bytes. The disk must have been opened by OpenWritable.
//
// The new content is written beside the old, then one write of the directory
// entry puts it in place, and then the old content is freed and erased. A crash
// in between leaves either content, whole; at worst clusters stay in use that
// no file has, which fsck.vfat frees. All other files, names and times stay as
// they are, so the same change of the same disk gives the same bytes. When
// there is no room for both contents, or the file system is damaged, nothing is
// changed.
func (d *Disk) ReplaceFile(p *Partition, path string, content io.Reader, size int64) error {
	v := diskVolume{d, p.Offset, p.Size}
	if err := replaceFile(v, p.Size, path, content, size); err != nil {
		return fmt.Errorf("replace %s in partition %d of %s: %w", path, p.Number, d.Name(), err)
	}
	return nil
}

// volume is what a FAT file system is changed on.
type volume interface {
	io.ReaderAt
	io.WriterAt
	Sync() error // what was written before is stored before what is written after
	// Erase makes a range read as zeros.
	Erase(off, length int64) error
}

// diskVolume is a partition of a disk.
type diskVolume struct {
	disk         *Disk
	offset, size int64
}

func (v diskVolume) ReadAt(p []byte, off int64) (int, error) {
	return io.NewSectionReader(v.disk, v.offset, v.size).ReadAt(p, off)
}

func (v diskVolume) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > v.size {
		return 0, fmt.Errorf("write %d bytes at byte %d: they lie outside the partition of %d bytes", len(p), off, v.size)
	}
	return v.disk.file.WriteAt(p, v.offset+off)
}

func (v diskVolume) Sync() error { return v.disk.file.Sync() }

// Erase punches a hole, where the file system below can.
func (v diskVolume) Erase(off, length int64) error {
	if punchHole(v.disk.file, v.offset+off, length) == nil {
		return nil
	}
	zeros := make([]byte, 1<<20)
	for end := off + length; off < end; off += int64(len(zeros)) {
		if _, err := v.WriteAt(zeros[:min(int64(len(zeros)), end-off)], off); err != nil {
			return err
		}
	}
	return nil
}

// fatMaxTable bounds the FAT that is held in memory while it is changed, in
// bytes: that of a FAT32 file system of 8 GiB in clusters of 512 bytes.
const fatMaxTable = 64 << 20

// fatMaxFile is the longest file that a directory entry can describe, in bytes.
const fatMaxFile = 1<<32 - 1

const fatRepair = "repair it with fsck.vfat first"

// fatUpdate is a FAT file system that is being changed.
type fatUpdate struct {
	*FAT
	volume volume
	sector int64   // bytes
	copies []int64 // where the FATs lie that must be equal
	fsInfo int64   // where FAT32's FSInfo sector lies, 0 when there is none
	table  []byte  // the FAT
	dirty  map[int64]bool
}

func openFATUpdate(v volume, size int64) (*fatUpdate, error) {
	fat, err := OpenFAT(v, size)
	if err != nil {
		return nil, err
	}
	boot := make([]byte, 512)
	if n, err := v.ReadAt(boot, 0); n < len(boot) {
		return nil, fmt.Errorf("read FAT boot sector: %w", err)
	}
	le := binary.LittleEndian
	u := &fatUpdate{FAT: fat, volume: v, sector: int64(le.Uint16(boot[11:])), dirty: map[int64]bool{}}
	reserved := int64(le.Uint16(boot[14:]))
	u.copies = []int64{fat.fatOffset}
	stateAt := 37
	mirrored := true
	if fat.bits == 32 {
		stateAt = 65
		mirrored = le.Uint16(boot[40:])&0x80 == 0
		if n := int64(le.Uint16(boot[48:])); n > 0 && n < reserved {
			u.fsInfo = n * u.sector
		}
	}
	if boot[stateAt]&1 != 0 {
		return nil, errors.New("the file system is mounted somewhere, or was not unmounted: unmount it, or " + fatRepair)
	}
	if mirrored {
		for i := 1; i < int(boot[16]); i++ {
			u.copies = append(u.copies, fat.fatOffset+int64(i)*fat.fatSize)
		}
	}
	used := (int64(fat.clusters+2)*int64(fat.bits) + 7) / 8
	if used > fat.fatSize {
		return nil, fmt.Errorf("its FAT of %d bytes is too short for %d clusters", fat.fatSize, fat.clusters)
	}
	// Whole sectors, since that is what is written back.
	used = (used + u.sector - 1) / u.sector * u.sector
	if used > fatMaxTable {
		return nil, fmt.Errorf("its FAT of %d bytes is longer than the %d bytes that can be changed", used, fatMaxTable)
	}
	for i, offset := range u.copies {
		table := make([]byte, used)
		if n, err := v.ReadAt(table, offset); n < len(table) {
			return nil, fmt.Errorf("read FAT %d: %w", i+1, err)
		}
		if i == 0 {
			u.table = table
		} else if !bytes.Equal(u.table, table) {
			return nil, fmt.Errorf("FATs 1 and %d differ: "+fatRepair, i+1)
		}
	}
	return u, nil
}

// entry is the FAT entry of a cluster.
func (u *fatUpdate) entry(cluster uint32) uint32 {
	le := binary.LittleEndian
	switch u.bits {
	case 12:
		pair := uint32(le.Uint16(u.table[cluster+cluster/2:]))
		if cluster%2 == 1 {
			return pair >> 4
		}
		return pair & 0xfff
	case 16:
		return uint32(le.Uint16(u.table[2*cluster:]))
	}
	return le.Uint32(u.table[4*cluster:]) & 0x0fffffff
}

// setEntry changes the FAT entry of a cluster in memory.
func (u *fatUpdate) setEntry(cluster, value uint32) {
	le := binary.LittleEndian
	var off, width int64
	switch u.bits {
	case 12:
		off, width = int64(cluster+cluster/2), 2
		pair := le.Uint16(u.table[off:])
		if cluster%2 == 1 {
			pair = pair&0x000f | uint16(value)<<4
		} else {
			pair = pair&0xf000 | uint16(value)&0x0fff
		}
		le.PutUint16(u.table[off:], pair)
	case 16:
		off, width = int64(cluster)*2, 2
		le.PutUint16(u.table[off:], uint16(value))
	default:
		// The upper four bits are reserved and stay.
		off, width = int64(cluster)*4, 4
		le.PutUint32(u.table[off:], le.Uint32(u.table[off:])&0xf0000000|value&0x0fffffff)
	}
	u.dirty[off/u.sector] = true
	u.dirty[(off+width-1)/u.sector] = true
}

// flush writes the changed sectors of the FAT into every copy of it.
func (u *fatUpdate) flush() error {
	sectors := make([]int64, 0, len(u.dirty))
	for s := range u.dirty {
		sectors = append(sectors, s*u.sector)
	}
	slices.Sort(sectors)
	for _, copyAt := range u.copies {
		for i := 0; i < len(sectors); {
			n := 1
			for i+n < len(sectors) && sectors[i+n] == sectors[i]+int64(n)*u.sector {
				n++
			}
			from := sectors[i]
			if _, err := u.volume.WriteAt(u.table[from:from+int64(n)*u.sector], copyAt+from); err != nil {
				return fmt.Errorf("write FAT: %w", err)
			}
			i += n
		}
	}
	clear(u.dirty)
	return u.sync()
}

func (u *fatUpdate) sync() error {
	if err := u.volume.Sync(); err != nil {
		return fmt.Errorf("store what was written: %w", err)
	}
	return nil
}

func (u *fatUpdate) isEnd(entry uint32) bool { return u.endOfChain(entry) }

// clustersFrom lists a whole chain, and marks its clusters as claimed. A
// cluster that was claimed before belongs to two files.
func (u *fatUpdate) clustersFrom(first uint32, claimed []bool) ([]uint32, error) {
	var chain []uint32
	for cluster := first; ; {
		if cluster < 2 || cluster-2 >= u.clusters {
			return nil, fmt.Errorf("the cluster chain from %d does not end: "+fatRepair, first)
		}
		if claimed[cluster] {
			return nil, fmt.Errorf("cluster %d is part of two chains: "+fatRepair, cluster)
		}
		claimed[cluster] = true
		chain = append(chain, cluster)
		next := u.entry(cluster)
		if u.isEnd(next) {
			return chain, nil
		}
		cluster = next
	}
}

// fatMaxDepth bounds nested directories; firmware's paths are shorter.
const fatMaxDepth = 64

// claim walks all of the file system but the file whose entry lies at skip, and
// marks the clusters that it uses.
func (u *fatUpdate) claim(dir DirEntry, skip int64, claimed []bool, depth int) error {
	if depth > fatMaxDepth {
		return fmt.Errorf("directories are nested deeper than %d", fatMaxDepth)
	}
	entries, err := u.readDir(dir)
	if err == nil {
		err = sameDirectory(entries)
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.offset == skip || e.cluster == 0 {
			continue
		}
		if _, err := u.clustersFrom(e.cluster, claimed); err != nil {
			return fmt.Errorf("%s: %w", e.Name, err)
		}
		if e.IsDir {
			if err := u.claim(e, skip, claimed, depth+1); err != nil {
				return fmt.Errorf("%s: %w", e.Name, err)
			}
		}
	}
	return nil
}

// allocate chooses free clusters for size bytes: the first run that is long
// enough, else the first ones that there are.
func (u *fatUpdate) allocate(size int64) ([]uint32, error) {
	need := int((size + u.clusterSize - 1) / u.clusterSize)
	var free []uint32
	run := 0
	for cluster := uint32(2); cluster-2 < u.clusters; cluster++ {
		if u.entry(cluster) != 0 {
			run = 0
			continue
		}
		free = append(free, cluster)
		if run++; run == need {
			return free[len(free)-need:], nil
		}
	}
	if len(free) < need {
		return nil, fmt.Errorf("%d bytes are free, but the new content of %d bytes needs %d beside the old: make the partition larger (KIWI: efipartsize)",
			int64(len(free))*u.clusterSize, size, int64(need)*u.clusterSize)
	}
	return free[:need], nil
}

// runs are the bytes of clusters, coalesced.
func (u *fatUpdate) runs(clusters []uint32) []Extent {
	var runs []Extent
	for _, c := range clusters {
		offset := u.dataOffset + int64(c-2)*u.clusterSize
		if n := len(runs); n > 0 && runs[n-1].Offset+runs[n-1].Length == offset {
			runs[n-1].Length += u.clusterSize
			continue
		}
		runs = append(runs, Extent{offset, u.clusterSize})
	}
	return runs
}

func replaceFile(v volume, volumeSize int64, path string, content io.Reader, size int64) error {
	if size > fatMaxFile {
		return fmt.Errorf("the new content of %d bytes is longer than FAT allows", size)
	}
	u, err := openFATUpdate(v, volumeSize)
	if err != nil {
		return err
	}
	entry, _, err := u.lookup(path)
	if err != nil {
		return err
	}
	if entry.IsDir {
		return errors.New("it is a directory")
	}
	// Whatever is not in order is found before anything is written.
	claimed := make([]bool, u.clusters+2)
	if u.bits == 32 {
		if _, err := u.clustersFrom(u.rootCluster, claimed); err != nil {
			return fmt.Errorf("root directory: %w", err)
		}
	}
	if err := u.claim(u.root(), entry.offset, claimed, 0); err != nil {
		return err
	}
	var old []uint32
	if entry.cluster != 0 {
		if old, err = u.clustersFrom(entry.cluster, claimed); err != nil {
			return err
		}
	}
	fresh, err := u.allocate(size)
	if err != nil {
		return err
	}
	if err := u.writeContent(fresh, content, size); err != nil {
		for _, r := range u.runs(fresh) {
			err = errors.Join(err, v.Erase(r.Offset, r.Length)) // it is free space again
		}
		return err
	}
	for i, c := range fresh {
		next := uint32(0x0fffffff)
		if i+1 < len(fresh) {
			next = fresh[i+1]
		}
		u.setEntry(c, next)
	}
	if err := u.flush(); err != nil {
		return err
	}
	first := uint32(0)
	if len(fresh) > 0 {
		first = fresh[0]
	}
	if err := u.writeDirEntry(entry.offset, first, uint32(size)); err != nil {
		return err
	}
	for _, c := range old {
		u.setEntry(c, 0)
	}
	if err := u.flush(); err != nil {
		return err
	}
	for _, r := range u.runs(old) {
		if err := v.Erase(r.Offset, r.Length); err != nil {
			return fmt.Errorf("erase the old content: %w", err)
		}
	}
	return u.writeFSInfo(fresh)
}

// writeContent fills clusters that nothing refers to yet.
func (u *fatUpdate) writeContent(clusters []uint32, content io.Reader, size int64) error {
	buf := make([]byte, 1<<20)
	left := size
	for _, r := range u.runs(clusters) {
		for off := int64(0); off < r.Length; {
			block := buf[:min(int64(len(buf)), r.Length-off)]
			n := min(int64(len(block)), left)
			clear(block[n:])
			if _, err := io.ReadFull(content, block[:n]); err != nil {
				return fmt.Errorf("read the new content: %w", err)
			}
			if _, err := u.volume.WriteAt(block, r.Offset+off); err != nil {
				return fmt.Errorf("write the new content: %w", err)
			}
			left -= n
			off += int64(len(block))
		}
	}
	if n, err := io.ReadFull(content, buf[:1]); n > 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the new content: it does not end after %d bytes: %w", size, err)
	}
	return u.sync()
}

// writeDirEntry puts the new content in place: first cluster and size lie in
// one sector. The time between them stays.
func (u *fatUpdate) writeDirEntry(offset int64, cluster, size uint32) error {
	raw := make([]byte, 12)
	if n, err := u.volume.ReadAt(raw, offset+20); n < len(raw) {
		return fmt.Errorf("read directory entry: %w", err)
	}
	le := binary.LittleEndian
	le.PutUint16(raw, uint16(cluster>>16))
	le.PutUint16(raw[6:], uint16(cluster))
	le.PutUint32(raw[8:], size)
	if _, err := u.volume.WriteAt(raw, offset+20); err != nil {
		return fmt.Errorf("write directory entry: %w", err)
	}
	return u.sync()
}

// writeFSInfo brings FAT32's count of free clusters up to date (FAT
// specification 1.03, section "FAT32 FSInfo Sector Structure").
func (u *fatUpdate) writeFSInfo(fresh []uint32) error {
	if u.fsInfo == 0 {
		return u.sync()
	}
	info := make([]byte, 512)
	if n, err := u.volume.ReadAt(info, u.fsInfo); n < len(info) {
		return fmt.Errorf("read FSInfo: %w", err)
	}
	le := binary.LittleEndian
	if le.Uint32(info) != 0x41615252 || le.Uint32(info[484:]) != 0x61417272 {
		return u.sync()
	}
	const unknown = 0xffffffff
	if le.Uint32(info[488:]) != unknown {
		free := uint32(0)
		for cluster := uint32(2); cluster-2 < u.clusters; cluster++ {
			if u.entry(cluster) == 0 {
				free++
			}
		}
		le.PutUint32(info[488:], free)
	}
	if len(fresh) > 0 && le.Uint32(info[492:]) != unknown {
		le.PutUint32(info[492:], fresh[len(fresh)-1])
	}
	if _, err := u.volume.WriteAt(info[488:496], u.fsInfo+488); err != nil {
		return fmt.Errorf("write FSInfo: %w", err)
	}
	return u.sync()
}
