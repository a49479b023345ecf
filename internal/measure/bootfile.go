package measure

import (
	"context"
	"fmt"
	"strings"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/efi"
)

// BootChain is what firmware, and a boot loader that it starts, load from a
// disk.
type BootChain struct {
	ESP         *disk.Partition
	Files       []BootFile // in the order in which they are loaded
	Companions  []Companion
	CommandLine string // that the kernel gets; empty when it cannot be told
}

// BootFile is a PE image of a boot chain.
type BootFile struct {
	Path  string // on the ESP
	File  *disk.File
	Stub  int  // version of systemd-stub, 0 when it has none
	Addon bool // of the unified kernel image before it
}

// FindBootChain finds the files that a boot of d loads, for the architecture
// ("x86_64" or "aarch64", or empty for the one that there is). It does not
// matter whether Secure Boot would let them run.
func FindBootChain(ctx context.Context, d *disk.Disk, arch string) (*BootChain, error) {
	_, esp, fat, err := openESP(d)
	if err != nil {
		return nil, err
	}
	path, file, err := findBootPath(fat, arch)
	if err != nil {
		return nil, err
	}
	first, err := efi.ParseImage(file, file.Size())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	_, hasKernel := first.Section(".linux")
	_, hasStub, err := first.StubVersion()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if _, isLoader := loaderVersion(first); !isLoader && (!hasKernel || !hasStub) {
		return nil, fmt.Errorf("%s, which firmware starts, is neither a unified kernel image (a .linux section with a systemd-stub before it) nor systemd-boot", path)
	}
	p, err := measureDisk(ctx, d, Options{PCRs: []int{7}, Arch: arch, NeededDigests: true})
	if err != nil {
		return nil, err
	}
	chain := &BootChain{ESP: esp, Companions: p.Companions, CommandLine: p.CommandLine}
	for _, image := range p.Images {
		if strings.Contains(image.Path, "#") {
			continue // inside of another one, whose signature covers it
		}
		file, err := fat.Open(image.Path)
		if err != nil {
			return nil, err
		}
		chain.Files = append(chain.Files, BootFile{image.Path, file, image.Stub, image.Addon})
	}
	return chain, nil
}
