package disk

import (
	"encoding/binary"
	"errors"
)

var errLZ4 = errors.New("the LZ4 data are damaged")

// lz4Block decodes a raw LZ4 block (the LZ4 Block Format, without a frame) into
// dst until dst is full or src ends, and returns how much it wrote. It stops in
// the middle of a sequence when dst is full, which erofs needs for physical
// clusters of which a file uses a part, and which other decoders take for an
// error.
func lz4Block(dst, src []byte) (int, error) {
	d, s := 0, 0
	length := func(n int) (int, bool) {
		if n != 15 {
			return n, true
		}
		for s < len(src) {
			b := src[s]
			s++
			if n += int(b); b != 255 {
				return n, true
			}
		}
		return 0, false
	}
	for s < len(src) {
		token := src[s]
		s++
		literals, ok := length(int(token >> 4))
		if !ok || literals > len(src)-s {
			return d, errLZ4
		}
		n := copy(dst[d:], src[s:s+literals])
		d += n
		s += literals
		if d == len(dst) || s == len(src) {
			return d, nil
		}
		if len(src)-s < 2 {
			return d, errLZ4
		}
		distance := int(binary.LittleEndian.Uint16(src[s:]))
		s += 2
		match, ok := length(int(token & 15))
		if !ok || distance == 0 || distance > d {
			return d, errLZ4
		}
		end := min(d+match+4, len(dst))
		for from := d - distance; d < end; {
			// What was copied in one go can be copied again in the next.
			d += copy(dst[d:end], dst[from:d])
		}
		if d == len(dst) {
			return d, nil
		}
	}
	return d, nil
}
