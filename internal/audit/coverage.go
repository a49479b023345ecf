// Package audit says what an image leaves open: the bytes of its disk that no
// measurement covers, and the doors that its root file system leaves open. It
// reads the raw disk only; nothing is mounted or run.
package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/efi"
	"github.com/org/attestable-image-action/internal/measure"
)

// Region is a run of bytes on the disk and what covers it.
type Region struct {
	Offset int64 // bytes from the start of the disk
	Length int64 // bytes
	What   string
	// PCR is the number of the PCR whose value changes with any of these bytes,
	// directly or over a digest that it covers; NoPCR, -1, when there is none.
	PCR int
	// Steers says of bytes that no PCR covers that they decide what is read
	// elsewhere: some changes of them show, since another image is then loaded or
	// nothing boots, and others do not. A change of bytes that neither steer nor
	// are covered never shows.
	Steers bool `json:",omitempty"`
	// Why says how the PCR covers the bytes, or what they could do when nothing
	// covers them.
	Why string
}

// NoPCR marks bytes that no PCR covers.
const NoPCR = -1

// Coverage says for every byte of a disk which PCR covers it.
type Coverage struct {
	Size    int64
	Regions []Region // ascending, without gaps or overlaps
	// Verity is nil when the boot chain names no root hash, or when its tree was
	// not found, which VerityProblem then says.
	Verity        *VerityCoverage
	VerityProblem string `json:",omitempty"`
}

// VerityCoverage is the hash tree of the root file system, recomputed.
type VerityCoverage struct {
	RootHash      string // hex, as the kernel command line in the UKI has it
	Partition     int    // that has the data
	HashPartition int    // that has the tree
	Description   string
	Report        *disk.VerityReport
	Holds         bool
}

// Covered is the number of bytes that a PCR covers, and all of them.
func (c *Coverage) Covered() (covered, total int64) {
	for _, r := range c.Regions {
		if r.PCR != NoPCR {
			covered += r.Length
		}
	}
	return covered, c.Size
}

// errNoTree means that the root hash is there and its tree was not found: all
// else can still be told.
var errNoTree = errors.New("the hash tree of the root file system was not found")

// MeasureCoverage finds out what covers each byte of a disk that boots on an
// architecture ("x86_64" or "aarch64", or empty for the one that there is).
// Every block of the root file system is read.
func MeasureCoverage(ctx context.Context, d *disk.Disk, arch string) (*Coverage, error) {
	c := &coverage{disk: d, images: map[string]*loadedImage{}, companions: map[string]int{}}
	if err := c.measure(ctx, arch); err != nil {
		return nil, fmt.Errorf("find what covers %s: %w", d.Name(), err)
	}
	c.fill()
	return &Coverage{Size: d.Size(), Regions: c.regions, Verity: c.verity, VerityProblem: c.problem}, nil
}

type coverage struct {
	disk   *disk.Disk
	images map[string]*loadedImage // by path, in lower case
	loader string                  // "systemd-boot 257" when one is in front

	companions map[string]int // files that systemd-stub measures: PCRs by path, in lower case
	gpt        *disk.GPT
	regions    []Region
	verity     *VerityCoverage
	problem    string
}

// covered adds bytes that a PCR covers, inert ones that nothing covers and that
// decide nothing, steering ones that do.
func (c *coverage) covered(offset, length int64, what string, pcr int, why string) {
	c.add(Region{offset, length, what, pcr, false, why})
}

func (c *coverage) inert(offset, length int64, what, why string) {
	c.add(Region{offset, length, what, NoPCR, false, why})
}

func (c *coverage) steering(offset, length int64, what, why string) {
	c.add(Region{offset, length, what, NoPCR, true, why})
}

func (c *coverage) add(r Region) {
	if r.Length > 0 {
		c.regions = append(c.regions, r)
	}
}

func (c *coverage) measure(ctx context.Context, arch string) error {
	chain, err := measure.FindBootChain(ctx, c.disk, arch)
	if err != nil {
		return err
	}
	if c.gpt, err = c.disk.GPT(); err != nil {
		return err
	}
	c.partitionTable()
	esp := chain.ESP
	fat, err := disk.OpenFAT(io.NewSectionReader(c.disk, esp.Offset, esp.Size), esp.Size)
	if err != nil {
		return err
	}
	var kernel *loadedImage // the unified kernel image
	for _, f := range chain.Files {
		image, err := c.loadImage(f.File.Path(), f.File)
		if err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
		if !f.Addon {
			kernel = image
		}
	}
	for _, companion := range chain.Companions {
		c.companions[strings.ToLower(companion.Path)] = companion.PCR
	}
	if err := c.esp(fat, esp); err != nil {
		return err
	}
	target, err := findVerityTarget(kernel.image, chain.CommandLine)
	if err != nil {
		return err
	}
	if target == nil {
		return nil
	}
	err = c.root(ctx, target)
	if errors.Is(err, errNoTree) {
		c.problem = err.Error()
		return nil
	}
	return err
}

// maxCommandLine bounds the kernel command line in a UKI, in bytes; the kernel
// takes 2,048 on x86_64 and on aarch64.
const maxCommandLine = 64 << 10

// commandLine reads a UKI's kernel command line, "" where it has none.
func commandLine(image *efi.Image) (string, error) {
	section, ok := image.Section(".cmdline")
	if !ok {
		return "", nil
	}
	return sectionText(image, section)
}

// fill sorts the regions and adds what lies between them.
func (c *coverage) fill() {
	slices.SortStableFunc(c.regions, func(a, b Region) int { return cmp.Compare(a.Offset, b.Offset) })
	var all []Region
	at := int64(0)
	for _, r := range c.regions {
		if end := r.Offset + r.Length; r.Offset < at { // sections that overlap
			r.Offset, r.Length = at, end-at
		}
		if r.Length <= 0 {
			continue
		}
		all = append(all, c.between(at, r.Offset)...)
		all = append(all, r)
		at = r.Offset + r.Length
	}
	all = append(all, c.between(at, c.disk.Size())...)
	c.regions = all
}

// between describes the bytes from one offset to another, which nothing covers,
// divided at the bounds of partitions.
func (c *coverage) between(from, to int64) []Region {
	var regions []Region
	add := func(end int64, what, why string) {
		end = min(end, to)
		if from < end {
			regions = append(regions, Region{from, end - from, what, NoPCR, false, why})
			from = end
		}
	}
	partitions := slices.Clone(c.gpt.Partitions)
	slices.SortFunc(partitions, func(a, b disk.Partition) int { return cmp.Compare(a.Offset, b.Offset) })
	const outside = "outside of partitions"
	const unused = "nothing reads it; a program in the running system could hide data here"
	for _, p := range partitions {
		add(p.Offset, outside, unused)
		add(p.Offset+p.Size, fmt.Sprintf("partition %d, %s", p.Number, partitionName(p)), "whatever the system reads from here, no PCR shows")
	}
	add(c.disk.Size(), outside, unused)
	return regions
}

func partitionName(p disk.Partition) string {
	if p.Name != "" {
		return strconv.Quote(p.Name)
	}
	return "type " + p.Type.String()
}
