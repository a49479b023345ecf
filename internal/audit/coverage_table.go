package audit

import (
	"encoding/binary"
	"fmt"
)

// partitionTable adds what lies outside of partitions and has a meaning: the
// protective MBR, the GUID partition table, and its backup.
func (c *coverage) partitionTable() {
	sector := c.gpt.SectorSize
	c.inert(0, 446, "boot code", "UEFI firmware runs no code from it")
	c.steering(446, 512-446, "protective MBR", "without it firmware passes over the GUID partition table, and the disk does not boot")
	c.inert(512, sector-512, "behind the protective MBR", "nothing reads it")

	const why = "the partition table is an event of PCR 5"
	le := binary.LittleEndian
	header := c.gpt.Header
	size, measured := int64(le.Uint32(header[12:])), int64(len(header))
	c.covered(sector, measured, "GPT header", 5, why)
	c.steering(sector+measured, size-measured, "GPT header, unknown fields", "its CRC-32 covers them; a CRC-32 can be mended")
	c.inert(sector+size, sector-size, "behind the GPT header", "nothing reads it")
	used := map[int64]int{}
	for _, p := range c.gpt.Partitions {
		used[c.gpt.EntryOffset(p)] = p.Number
	}
	entry := int64(le.Uint32(header[84:]))
	for at := c.gpt.TableEnd() - entry*int64(le.Uint32(header[80:])); at < c.gpt.TableEnd(); at += entry {
		if number, ok := used[at]; ok {
			c.covered(at, entry, fmt.Sprintf("GPT entry %d", number), 5, why)
			continue
		}
		// A run of unused entries is one region.
		if n := len(c.regions); c.regions[n-1].What == unusedEntries && c.regions[n-1].Offset+c.regions[n-1].Length == at {
			c.regions[n-1].Length += entry
			continue
		}
		c.steering(at, entry, unusedEntries, "PCR 5 has the used ones; a CRC-32 covers the others, and can be mended")
	}
	c.backupTable()
}

const unusedEntries = "unused entries of the GPT"

// backupTable adds the second table, where the first one says that it is.
func (c *coverage) backupTable() {
	le := binary.LittleEndian
	sector := c.gpt.SectorSize
	sectors := uint64(c.disk.Size() / sector)
	lastUsable := le.Uint64(c.gpt.Header[48:])
	at := le.Uint64(c.gpt.Header[32:])
	if at <= lastUsable || at >= sectors {
		return
	}
	header := make([]byte, 92)
	if _, err := c.disk.ReadAt(header, int64(at)*sector); err != nil || string(header[:8]) != "EFI PART" {
		return
	}
	const why = "firmware uses it when the first one is damaged"
	c.inert(int64(at)*sector, sector, "backup GPT", why)
	table, count, size := le.Uint64(header[72:]), uint64(le.Uint32(header[80:])), uint64(le.Uint32(header[84:]))
	if table <= lastUsable || table >= at || count*size > (at-table)*uint64(sector) {
		return
	}
	c.inert(int64(table)*sector, int64(count*size), "backup GPT", why)
}
