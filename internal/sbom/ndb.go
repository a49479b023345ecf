package sbom

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// rpm's ndb format (rpm, lib/backend/ndb/rpmpkg.c), little-endian throughout: a
// header of 32 bytes; then slots of 16 bytes up to the end of the slot pages, each
// of 4096 bytes, which the header's 32 bytes belong to; then blobs in blocks of 16
// bytes, each behind a header of 16 bytes.
const (
	ndbMagic     = "RpmP"
	ndbSlotMagic = "Slot"
	ndbBlobMagic = "BlbS"
	ndbPage      = 4096
	ndbUnit      = 16
)

// ndbBlobs returns the blobs of a database in the order of the slots.
func ndbBlobs(db []byte) ([][]byte, error) {
	if len(db) < ndbPage || string(db[:4]) != ndbMagic {
		return nil, errors.New("it does not begin as an ndb database does")
	}
	version, pages := binary.LittleEndian.Uint32(db[4:]), int64(binary.LittleEndian.Uint32(db[12:]))
	if version != 0 {
		return nil, fmt.Errorf("it is of version %d, and only 0 is known", version)
	}
	end := pages * ndbPage
	if pages == 0 || end > int64(len(db)) {
		return nil, fmt.Errorf("it speaks of %d pages of slots, and has %d bytes", pages, len(db))
	}
	var blobs [][]byte
	seen := map[uint32]bool{}
	total := 0
	for off := int64(2 * ndbUnit); off < end; off += ndbUnit {
		slot := db[off:]
		if string(slot[:4]) != ndbSlotMagic {
			return nil, fmt.Errorf("byte %d is no slot", off)
		}
		index := binary.LittleEndian.Uint32(slot[4:])
		if index == 0 {
			continue // free
		}
		if seen[index] {
			return nil, fmt.Errorf("it has two slots for package %d", index)
		}
		seen[index] = true
		start := int64(binary.LittleEndian.Uint32(slot[8:])) * ndbUnit
		if start < end || start+ndbUnit > int64(len(db)) {
			return nil, fmt.Errorf("package %d lies at byte %d, outside of the blobs", index, start)
		}
		blob := db[start:]
		length := int64(binary.LittleEndian.Uint32(blob[12:]))
		if string(blob[:4]) != ndbBlobMagic || binary.LittleEndian.Uint32(blob[4:]) != index {
			return nil, fmt.Errorf("byte %d is not the blob of package %d", start, index)
		}
		if length > int64(len(blob))-ndbUnit {
			return nil, fmt.Errorf("package %d has %d bytes, more than are left", index, length)
		}
		// Blobs that lie over each other could make much of a small file.
		if total += int(length); total > len(db) || len(blobs) == maxPackages {
			return nil, errors.New("its packages are longer than itself")
		}
		blobs = append(blobs, blob[ndbUnit:ndbUnit+length])
	}
	return blobs, nil
}
