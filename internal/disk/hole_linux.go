package disk

import (
	"os"

	"golang.org/x/sys/unix"
)

// punchHole gives a range's blocks back to the file system below, in bytes: it then
// reads as zeros. It fails where that file system knows no holes.
func punchHole(f *os.File, off, length int64) error {
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, length)
}
