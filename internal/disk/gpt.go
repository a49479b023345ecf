package disk

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"unicode/utf16"
)

// GUID is an EFI_GUID as it lies on the disk: the first three fields are
// little-endian.
type GUID [16]byte

// String is the registry form, lower case.
func (g GUID) String() string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x",
		binary.LittleEndian.Uint32(g[0:]), binary.LittleEndian.Uint16(g[4:]),
		binary.LittleEndian.Uint16(g[6:]), g[8:10], g[10:])
}

// ESPType is the partition type of an EFI system partition,
// c12a7328-f81f-11d2-ba4b-00a0c93ec93b.
var ESPType = GUID{0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b}

// Partition is a used entry of a GUID partition table.
type Partition struct {
	Number int    // 1 for the first entry
	Type   GUID   // partition type
	GUID   GUID   // unique to this partition
	Offset int64  // bytes from the start of the disk
	Size   int64  // bytes
	Name   string // up to 36 characters
	Entry  []byte // the entry as it lies on the disk, for EV_EFI_GPT_EVENT
}

// GPT is a GUID partition table (UEFI 2.10, section 5.3).
type GPT struct {
	SectorSize int64       // bytes: 512 or 4096
	Header     []byte      // the 92 bytes of the primary header that UEFI defines, as on the disk
	DiskGUID   GUID        // unique to this disk
	Partitions []Partition // the used entries, in the order of the table
}

const (
	gptSignature  = "EFI PART"
	gptHeaderSize = 92
	// UEFI demands room for 128 entries of 128 bytes; real tables are no larger.
	// The bound keeps a lying header from making us read a gigabyte.
	gptMaxTable = 1 << 20
)

// errNoGPT is returned when the signature of the primary header is missing.
var errNoGPT = errors.New("there is no GUID partition table: no \"EFI PART\" at sector 1")

// GPT reads the primary GUID partition table and checks all that makes firmware
// pass over it: the protective MBR, both CRC-32s, partitions that overlap or lie
// outside the usable sectors. Sectors of 512 and 4096 bytes are tried in that
// order.
func (d *Disk) GPT() (*GPT, error) {
	g, err := ReadGPT(d, d.size)
	if err != nil {
		return nil, fmt.Errorf("read GPT of %s: %w", d.Name(), err)
	}
	return g, nil
}

// ReadGPT is GPT for a disk of size bytes of which r has at least the beginning:
// all up to the end of the table, which is the first MiB of usual disks.
func ReadGPT(r io.ReaderAt, size int64) (*GPT, error) {
	g, err := readGPT(r, size, 512)
	if errors.Is(err, errNoGPT) {
		if g4, err4 := readGPT(r, size, 4096); !errors.Is(err4, errNoGPT) {
			g, err = g4, err4
		}
	}
	if err == nil {
		err = checkProtectiveMBR(r)
	}
	if err != nil {
		return nil, err
	}
	return g, nil
}

// checkProtectiveMBR looks for the protective partition record in sector 0
// (UEFI 2.10, section 5.2.3), without which EDK II does not look for a GPT.
func checkProtectiveMBR(r io.ReaderAt) error {
	mbr := make([]byte, 512)
	if n, err := r.ReadAt(mbr, 0); n < len(mbr) {
		return fmt.Errorf("read protective MBR: %w", err)
	}
	for record := mbr[446:510]; len(record) >= 16; record = record[16:] {
		if record[0] == 0 && record[4] == 0xee && binary.LittleEndian.Uint32(record[8:]) == 1 {
			return nil
		}
	}
	return errors.New("there is no protective MBR (a partition of type 0xee at sector 1): firmware would pass over the GUID partition table")
}

func readGPT(r io.ReaderAt, size, sector int64) (*GPT, error) {
	header := make([]byte, 512)
	if size < sector+int64(len(header)) {
		return nil, errNoGPT
	}
	if n, err := r.ReadAt(header, sector); n < len(header) {
		return nil, err
	}
	if string(header[:8]) != gptSignature {
		return nil, errNoGPT
	}
	headerSize := binary.LittleEndian.Uint32(header[12:])
	if headerSize < gptHeaderSize || int64(headerSize) > int64(len(header)) {
		return nil, fmt.Errorf("header size %d is not between %d and %d", headerSize, gptHeaderSize, len(header))
	}
	header = header[:headerSize]
	sum := binary.LittleEndian.Uint32(header[16:])
	zeroed := bytes.Clone(header)
	clear(zeroed[16:20])
	if got := crc32.ChecksumIEEE(zeroed); got != sum {
		return nil, fmt.Errorf("header CRC-32 is %08x, but its content gives %08x: the table is damaged", sum, got)
	}
	if lba := binary.LittleEndian.Uint64(header[24:]); lba != 1 {
		return nil, fmt.Errorf("primary header says that it is at sector %d, not 1", lba)
	}
	tableLBA := binary.LittleEndian.Uint64(header[72:])
	count := binary.LittleEndian.Uint32(header[80:])
	entrySize := binary.LittleEndian.Uint32(header[84:])
	if entrySize < 128 || entrySize&(entrySize-1) != 0 {
		return nil, fmt.Errorf("entry size %d is not 128 times a power of two", entrySize)
	}
	tableSize := uint64(count) * uint64(entrySize)
	if tableSize > gptMaxTable {
		return nil, fmt.Errorf("table of %d entries of %d bytes is larger than the %d bytes that are read", count, entrySize, gptMaxTable)
	}
	if tableLBA > uint64(size/sector) || int64(tableLBA)*sector+int64(tableSize) > size {
		return nil, fmt.Errorf("table at sector %d lies outside the disk of %d bytes", tableLBA, size)
	}
	table := make([]byte, tableSize)
	if n, err := r.ReadAt(table, int64(tableLBA)*sector); n < len(table) {
		return nil, fmt.Errorf("read partition entries: %w", err)
	}
	if want, got := binary.LittleEndian.Uint32(header[88:]), crc32.ChecksumIEEE(table); want != got {
		return nil, fmt.Errorf("CRC-32 of the entries is %08x, but their content gives %08x: the table is damaged", want, got)
	}
	g := &GPT{SectorSize: sector, Header: header[:gptHeaderSize], DiskGUID: GUID(header[56:72])}
	usableFirst, usableLast := binary.LittleEndian.Uint64(header[40:]), binary.LittleEndian.Uint64(header[48:])
	for i := range int(count) {
		entry := table[i*int(entrySize) : (i+1)*int(entrySize)]
		if GUID(entry[:16]) == (GUID{}) {
			continue
		}
		first := binary.LittleEndian.Uint64(entry[32:])
		last := binary.LittleEndian.Uint64(entry[40:])
		if first > last || last >= uint64(size/sector) {
			return nil, fmt.Errorf("partition %d, sectors %d to %d, lies outside the disk of %d bytes", i+1, first, last, size)
		}
		if first < usableFirst || last > usableLast {
			return nil, fmt.Errorf("partition %d, sectors %d to %d, lies outside the usable sectors %d to %d: firmware would pass over it", i+1, first, last, usableFirst, usableLast)
		}
		g.Partitions = append(g.Partitions, Partition{
			Number: i + 1,
			Type:   GUID(entry[:16]),
			GUID:   GUID(entry[16:32]),
			Offset: int64(first) * sector,
			Size:   int64(last-first+1) * sector,
			Name:   decodeUTF16(entry[56:128]),
			Entry:  entry,
		})
	}
	return g, g.checkOverlaps()
}

// checkOverlaps refuses partitions that share sectors: firmware would pass over
// both.
func (g *GPT) checkOverlaps() error {
	sorted := slices.Clone(g.Partitions)
	slices.SortFunc(sorted, func(a, b Partition) int { return cmp.Compare(a.Offset, b.Offset) })
	for i := 1; i < len(sorted); i++ {
		if a, b := sorted[i-1], sorted[i]; b.Offset < a.Offset+a.Size {
			return fmt.Errorf("partitions %d and %d overlap: firmware would pass over them", min(a.Number, b.Number), max(a.Number, b.Number))
		}
	}
	return nil
}

// ESP returns the disk's one EFI system partition.
func (g *GPT) ESP() (*Partition, error) {
	var found []*Partition
	for i := range g.Partitions {
		if g.Partitions[i].Type == ESPType {
			found = append(found, &g.Partitions[i])
		}
	}
	switch len(found) {
	case 0:
		return nil, errors.New("there is no EFI system partition (type c12a7328-f81f-11d2-ba4b-00a0c93ec93b): the disk cannot boot with UEFI")
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("partitions %d and %d are both EFI system partitions: which one firmware boots from cannot be told", found[0].Number, found[1].Number)
}

// decodeUTF16 decodes little-endian UTF-16 up to its NUL.
func decodeUTF16(b []byte) string {
	var units []uint16
	for ; len(b) >= 2; b = b[2:] {
		u := binary.LittleEndian.Uint16(b)
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return string(utf16.Decode(units))
}
