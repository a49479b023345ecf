package disk

import "encoding/binary"

// EntryOffset is where the entry of a partition lies, in bytes from the start
// of the disk.
func (g *GPT) EntryOffset(p Partition) int64 {
	return g.tableOffset() + int64(p.Number-1)*int64(binary.LittleEndian.Uint32(g.Header[84:]))
}

// TableEnd is the end of the table of entries, in bytes from the start of the
// disk.
func (g *GPT) TableEnd() int64 {
	le := binary.LittleEndian
	return g.tableOffset() + int64(le.Uint32(g.Header[80:]))*int64(le.Uint32(g.Header[84:]))
}

// UsableEnd is the end of the sectors that partitions may have, in bytes from
// the start of the disk: behind it lies the backup of the table.
func (g *GPT) UsableEnd() int64 {
	last := binary.LittleEndian.Uint64(g.Header[48:])
	return int64(min(last, 1<<48)+1) * g.SectorSize
}

func (g *GPT) tableOffset() int64 {
	return int64(binary.LittleEndian.Uint64(g.Header[72:])) * g.SectorSize
}
