package measure

import (
	"fmt"
	"io"

	"github.com/org/attestable-image-action/internal/disk"
)

// BootFile is the file that firmware starts from a disk.
type BootFile struct {
	ESP  *disk.Partition
	Path string // on the ESP
	File *disk.File
}

// FindBootFile finds the one file that firmware starts from d by the
// removable-media boot path, for the architecture ("x86_64" or "aarch64", or
// empty for the one that there is).
func FindBootFile(d *disk.Disk, arch string) (*BootFile, error) {
	gpt, err := d.GPT()
	if err != nil {
		return nil, err
	}
	esp, err := gpt.ESP()
	if err != nil {
		return nil, err
	}
	fat, err := disk.OpenFAT(io.NewSectionReader(d, esp.Offset, esp.Size), esp.Size)
	if err != nil {
		return nil, fmt.Errorf("partition %d, the EFI system partition: %w", esp.Number, err)
	}
	path, file, err := findBootPath(fat, arch)
	if err != nil {
		return nil, err
	}
	return &BootFile{esp, path, file}, nil
}
