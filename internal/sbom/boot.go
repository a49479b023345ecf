package sbom

import (
	"context"
	"crypto/sha1" //nolint:gosec // SPDX 2.3 demands it of a file, beside others
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"strings"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/efi"
)

// BootFile is a file of the EFI system partition. No package has it as it is: a
// unified kernel image is put together while the image is built.
type BootFile struct {
	Path   string // on the partition, slash-separated, without a slash before it
	Size   int64  // bytes
	SHA1   string // lower-case hex
	SHA256 string // lower-case hex
	// Kernel is the version of the kernel in a unified kernel image (its section
	// .uname), empty when it does not say one.
	Kernel string
	UKI    bool
}

// maxBootFiles bounds the files of an EFI system partition.
const maxBootFiles = 10_000

func readBootFiles(ctx context.Context, d *disk.Disk, esp *disk.Partition) ([]BootFile, error) {
	fat, err := disk.OpenFAT(io.NewSectionReader(d, esp.Offset, esp.Size), esp.Size)
	if err != nil {
		return nil, err
	}
	var files []BootFile
	err = fat.Walk(func(name string, file *disk.File) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if len(files) == maxBootFiles {
			return fmt.Errorf("it has more than %d files", maxBootFiles)
		}
		b, err := readBootFile(name, file)
		if err != nil {
			return fmt.Errorf("read %s: %w", oneLine(name, 300), err)
		}
		files = append(files, b)
		return nil
	})
	return files, err
}

func readBootFile(name string, file *disk.File) (BootFile, error) {
	b := BootFile{Path: oneLine(name, 1000), Size: file.Size()}
	one, two := sha1.New(), sha256.New() //nolint:gosec // as above
	if _, err := io.Copy(io.MultiWriter(one, two), io.NewSectionReader(file, 0, file.Size())); err != nil {
		return b, err
	}
	b.SHA1, b.SHA256 = hex.EncodeToString(one.Sum(nil)), hex.EncodeToString(two.Sum(nil))
	image, err := efi.ParseImage(file, file.Size())
	if err != nil {
		return b, nil // it is no program, or one that no firmware starts
	}
	_, b.UKI = image.Section(".linux")
	if section, ok := image.Section(".uname"); ok && section.VirtualSize <= 4096 {
		text, err := io.ReadAll(image.Content(section))
		if err != nil {
			return b, err
		}
		b.Kernel = oneLine(strings.TrimRight(string(text), "\x00\n"), 200)
	}
	return b, nil
}
