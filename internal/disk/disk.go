// Package disk reads a raw disk image as a boot loader would: its sparse
// extents, its GUID partition table (UEFI 2.10, section 5), its EFI system
// partition and the FAT file system in it (UEFI 2.10, section 13.3, and
// Microsoft's FAT32 specification 1.03).
//
// It never mounts, never needs root, and reads only what it is asked for; it
// writes through ReplaceFile alone. Every byte on the disk is treated as
// hostile: sizes are checked against the disk before anything is allocated.
package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Disk is an open raw disk image, or a block device. Its methods are safe for
// concurrent use, except Stream's reader.
type Disk struct {
	file *os.File
	size int64
	read atomic.Int64
}

// Open opens the raw disk at path for reading.
func Open(path string) (*Disk, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open disk: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("open disk %s: %w", path, err)
	}
	if info.IsDir() {
		_ = f.Close()
		return nil, fmt.Errorf("open disk %s: it is a directory: give the raw disk image itself", path)
	}
	// Seeking to the end gives the size of a block device, too.
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("find the size of disk %s: %w", path, err)
	}
	return &Disk{file: f, size: size}, nil
}

// Size is the disk's size in bytes, holes included.
func (d *Disk) Size() int64 { return d.size }

// Name is the path that the disk was opened by.
func (d *Disk) Name() string { return d.file.Name() }

// BytesRead is the number of bytes read from the disk so far. Holes that
// Stream skips do not count.
func (d *Disk) BytesRead() int64 { return d.read.Load() }

// Close closes the disk.
func (d *Disk) Close() error { return d.file.Close() }

// ReadAt reads from the disk at a byte offset.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	n, err := d.file.ReadAt(p, off)
	d.read.Add(int64(n))
	return n, err
}

// Extent is a run of bytes that the file system stores; what lies between two
// extents is a hole, which reads as zero.
type Extent struct {
	Offset int64 // bytes from the start of the disk
	Length int64 // bytes
}

// Extents lists the disk's data in ascending order. On a file system that
// cannot tell, and on a block device, the whole disk is one extent.
func (d *Disk) Extents() ([]Extent, error) {
	if err := d.checkSize(); err != nil {
		return nil, err
	}
	var extents []Extent
	for off := int64(0); off < d.size; {
		data, err := d.seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return extents, nil // nothing but a hole up to the end
		}
		if err != nil {
			return wholeDisk(d.size), nil
		}
		hole, err := d.seek(data, unix.SEEK_HOLE)
		if err != nil {
			return wholeDisk(d.size), nil
		}
		if hole > d.size {
			hole = d.size
		}
		if data >= hole || data < off {
			return nil, fmt.Errorf("list extents of disk %s: it changed while it was read", d.Name())
		}
		extents = append(extents, Extent{Offset: data, Length: hole - data})
		off = hole
	}
	return extents, nil
}

// checkSize fails when the disk is no longer as long as it was when it was
// opened: what was cut off would look like a hole.
func (d *Disk) checkSize() error {
	size, err := d.seek(0, io.SeekEnd)
	if err == nil && size != d.size {
		err = fmt.Errorf("its size changed from %d to %d bytes since it was opened: stop what writes to it", d.size, size)
	}
	if err != nil {
		return fmt.Errorf("read disk %s: %w", d.Name(), err)
	}
	return nil
}

func wholeDisk(size int64) []Extent {
	return []Extent{{Length: size}}
}

func (d *Disk) seek(off int64, whence int) (int64, error) {
	return unix.Seek(int(d.file.Fd()), off, whence)
}

// Stream returns a reader over the whole disk in order. Holes yield zeros
// without being read. A disk whose size changes meanwhile is an error.
func (d *Disk) Stream() io.Reader {
	return &stream{disk: d}
}

type stream struct {
	disk    *Disk
	extents []Extent
	listed  bool
	off     int64
}

func (s *stream) Read(p []byte) (int, error) {
	if !s.listed {
		extents, err := s.disk.Extents()
		if err != nil {
			return 0, err
		}
		s.extents, s.listed = extents, true
	}
	if s.off >= s.disk.size {
		if err := s.disk.checkSize(); err != nil {
			return 0, err
		}
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	for len(s.extents) > 0 && s.off >= s.extents[0].Offset+s.extents[0].Length {
		s.extents = s.extents[1:]
	}
	end, hole := s.disk.size, true
	if len(s.extents) > 0 {
		if e := s.extents[0]; s.off >= e.Offset {
			end, hole = e.Offset+e.Length, false
		} else {
			end = e.Offset
		}
	}
	p = p[:min(int64(len(p)), end-s.off)]
	if hole {
		clear(p)
		s.off += int64(len(p))
		return len(p), nil
	}
	n, err := s.disk.ReadAt(p, s.off)
	s.off += int64(n)
	if errors.Is(err, io.EOF) && s.off < s.disk.size {
		err = fmt.Errorf("read disk %s: it ends at byte %d, but was %d bytes long when it was opened", s.disk.Name(), s.off, s.disk.size)
	} else if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}
