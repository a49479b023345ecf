package kiwi

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/org/attestable-image-action/internal/untrusted"
)

// While it works KIWI holds an image's files three times in the output directory: as
// a tree, as the file system made of it, and on the disk, and this program stages the
// description once more. The template debian was seen to take half a GiB; four times that is
// asked for, since nobody knows which packages another description has.
const (
	baseSpace   = 2 << 30 // bytes
	copiesStage = 4
)

// checkSpace holds that the file system of the output directory has room for a build,
// so that it does not end without a word of it after minutes.
func (o *Options) checkSpace(output string) error {
	var files uint64
	dirs := []fs.FS{o.Description}
	if o.Overlay != "" {
		overlay, err := untrusted.Dir(o.Overlay)
		if err != nil {
			return fmt.Errorf("read the overlay: %w", err)
		}
		defer overlay.Close()
		dirs = append(dirs, overlay)
	}
	for _, dir := range dirs {
		size, err := sizeOf(dir)
		if err != nil {
			return fmt.Errorf("add up what the image takes: %w", err)
		}
		files += size
	}
	var volume unix.Statfs_t
	if err := unix.Statfs(output, &volume); err != nil {
		return fmt.Errorf("ask how much space %s has: %w", output, err)
	}
	return enough(output, baseSpace+copiesStage*files, volume.Bavail*uint64(volume.Bsize)) //nolint:gosec // a block size is positive
}

// enough compares the bytes that a build takes in a directory with those that are
// free.
func enough(dir string, need, free uint64) error {
	if free >= need {
		return nil
	}
	return fmt.Errorf("the build takes up to %.1f GiB in %s, and the file system there has %.1f GiB left: make room, or choose another directory for the output (on a runner, remove tools that the job does not use)",
		float64(need)/(1<<30), dir, float64(free)/(1<<30))
}

// sizeOf adds up the regular files of a directory, in bytes. A hole counts as what it
// stands for. What cannot be read is told when it is copied.
func sizeOf(dir fs.FS) (uint64, error) {
	var sum uint64
	err := fs.WalkDir(dir, ".", func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return nil //nolint:nilerr // see above
		}
		info, err := entry.Info()
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		}
		sum += uint64(max(info.Size(), 0))
		return nil
	})
	return sum, err
}
