package vm

import "encoding/binary"

// Debian's and Ubuntu's AAVMF_VARS.fd is an empty flash of zeros, which the
// firmware formats at its first start. Variables that are to be there before
// that need the volume that it would make (edk2, VarStore.fdf.inc of ArmVirtPkg
// and VirtNorFlashDxe): the variable store, then as much again for the
// fault-tolerant write's work space and for its spare blocks, all erased.
const (
	blankBlock      = 256 << 10 // bytes of a block, and of each of the three areas
	blankVolume     = 3 * blankBlock
	volumeHeader    = 72
	volumeAttribute = 0x00000e36 // readable, writable, sticky, memory-mapped, erases to ones
)

// formatBlank formats a variable store that is an empty flash, in place. What
// is not empty is left as it is.
func formatBlank(flash []byte) {
	if len(flash) < blankVolume {
		return
	}
	for _, b := range flash {
		if b != flash[0] || b != 0 && b != 0xff {
			return
		}
	}
	le := binary.LittleEndian
	for i := range flash[:blankVolume] {
		flash[i] = 0xff
	}
	header := flash[:volumeHeader+storeHeaderSize]
	clear(header)
	copy(header[16:], nvDataVolume)
	le.PutUint64(header[volumeLengthAt:], blankVolume)
	copy(header[volumeSignatureAt:], "_FVH")
	le.PutUint32(header[44:], volumeAttribute)
	le.PutUint16(header[headerLengthAt:], volumeHeader)
	header[55] = 2                                           // revision
	le.PutUint32(header[56:], uint32(len(flash)/blankBlock)) // block map: the whole flash
	le.PutUint32(header[60:], blankBlock)
	var sum uint16 // of all 16-bit words, which must be zero
	for i := 0; i < volumeHeader; i += 2 {
		sum += le.Uint16(header[i:])
	}
	le.PutUint16(header[50:], -sum)
	store := header[volumeHeader:]
	copy(store, authenticatedStore)
	le.PutUint32(store[16:], blankBlock-volumeHeader)
	store[20], store[21] = storeFormatted, storeHealthy
}
