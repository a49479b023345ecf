// Package audit says what an image leaves open: the bytes of its disk that no
// measurement covers, and the doors that its root file system leaves open. It
// reads the raw disk only; nothing is mounted or run.
package audit

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/efi"
)

// Region is a run of bytes on the disk and what covers it.
type Region struct {
	Offset int64 // bytes from the start of the disk
	Length int64 // bytes
	What   string
	// PCR is the number of the PCR whose value changes with any of these bytes,
	// directly or over a digest that it covers; NoPCR when there is none.
	PCR int
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

// errNoVerity means that the boot chain names no root hash: nothing vouches for
// the root file system.
var errNoVerity = errors.New("the kernel command line in the unified kernel image has no roothash=")

// errNoTree means that the root hash is there and its tree was not found: all
// else can still be told.
var errNoTree = errors.New("the hash tree of the root file system was not found")

// MeasureCoverage finds out what covers each byte of a disk. ukiPath is the
// path of the unified kernel image on the EFI system partition. Every block of
// the root file system is read.
func MeasureCoverage(ctx context.Context, d *disk.Disk, ukiPath string) (*Coverage, error) {
	c := &coverage{disk: d}
	if err := c.measure(ctx, ukiPath); err != nil {
		return nil, fmt.Errorf("find what covers %s: %w", d.Name(), err)
	}
	c.fill()
	return &Coverage{Size: d.Size(), Regions: c.regions, Verity: c.verity, VerityProblem: c.problem}, nil
}

type coverage struct {
	disk    *disk.Disk
	gpt     *disk.GPT
	regions []Region
	verity  *VerityCoverage
	problem string
}

func (c *coverage) add(offset, length int64, what string, pcr int, why string) {
	if length > 0 {
		c.regions = append(c.regions, Region{offset, length, what, pcr, why})
	}
}

func (c *coverage) measure(ctx context.Context, ukiPath string) error {
	var err error
	if c.gpt, err = c.disk.GPT(); err != nil {
		return err
	}
	c.partitionTable()
	esp, err := c.gpt.ESP()
	if err != nil {
		return err
	}
	fat, err := disk.OpenFAT(io.NewSectionReader(c.disk, esp.Offset, esp.Size), esp.Size)
	if err != nil {
		return err
	}
	uki, err := fat.Open(ukiPath)
	if err != nil {
		return err
	}
	image, err := efi.ParseImage(uki, uki.Size())
	if err != nil {
		return fmt.Errorf("%s: %w", ukiPath, err)
	}
	if err := c.espFiles(fat, esp, ukiPath, image); err != nil {
		return err
	}
	cmdline, err := commandLine(image)
	if err != nil {
		return fmt.Errorf("%s: %w", ukiPath, err)
	}
	switch err := c.root(ctx, cmdline); {
	case errors.Is(err, errNoVerity):
	case errors.Is(err, errNoTree):
		c.problem = err.Error()
	case err != nil:
		return err
	}
	return nil
}

// partitionTable adds what firmware measures of the partition table.
func (c *coverage) partitionTable() {
	const why = "the partition table is an event of PCR 5"
	c.add(c.gpt.SectorSize, int64(len(c.gpt.Header)), "GPT header", 5, why)
	for _, p := range c.gpt.Partitions {
		c.add(c.gpt.EntryOffset(p), int64(len(p.Entry)), fmt.Sprintf("GPT entry %d", p.Number), 5, why)
	}
}

// espFiles adds the files of the EFI system partition.
func (c *coverage) espFiles(fat *disk.FAT, esp *disk.Partition, ukiPath string, image *efi.Image) error {
	areas, err := fat.Areas(esp.Size)
	if err != nil {
		return err
	}
	for _, a := range areas {
		if a.Kind != disk.FATFile {
			continue
		}
		name := a.Path
		if strings.EqualFold(name, ukiPath) {
			c.uki(a, esp, name, image)
			continue
		}
		why := "no boot path leads to it"
		switch lower := strings.ToLower(name); {
		case strings.HasSuffix(lower, ".efi"):
			why = "firmware runs it only when a boot entry names it, which PCR 4 then shows"
		case strings.HasSuffix(lower, ".cred"), strings.HasSuffix(lower, ".raw"):
			why = "systemd-stub hands it to the system, and only PCR 12 or 13 shows it"
		case strings.HasSuffix(lower, "random-seed"):
			why = "it seeds the kernel's random numbers: who knows it learns nothing, as other sources are mixed in"
		}
		c.add(esp.Offset+a.Offset, a.Length, name, NoPCR, why)
	}
	return nil
}

// uki adds the unified kernel image: all that its Authenticode digest covers,
// and its certificate table, which it does not.
func (c *coverage) uki(a disk.FATArea, esp *disk.Partition, name string, image *efi.Image) {
	certificates, length := image.CertificateTable()
	covered := a.Length
	if length > 0 {
		covered = min(max(certificates-a.From, 0), a.Length)
	}
	c.add(esp.Offset+a.Offset, covered, name, 4, "its Authenticode digest is an event of PCR 4")
	c.add(esp.Offset+a.Offset+covered, a.Length-covered, name+", signatures", NoPCR,
		"the Authenticode digest leaves signatures out; with Secure Boot on, PCR 7 shows who signed")
}

// maxCommandLine bounds the kernel command line in a UKI, in bytes; the kernel
// takes 2,048 on x86_64 and on aarch64.
const maxCommandLine = 64 << 10

// commandLine reads the words of a UKI's kernel command line.
func commandLine(image *efi.Image) ([]string, error) {
	section, ok := image.Section(".cmdline")
	if !ok {
		return nil, nil
	}
	return sectionWords(image, section)
}

// option returns the last value of an option on a kernel command line.
func option(words []string, name string) (value string, ok bool) {
	for _, word := range words {
		if v, found := strings.CutPrefix(word, name+"="); found {
			value, ok = strings.Trim(v, `"`), true
		}
	}
	return value, ok
}

// root finds the partition that the root hash on the command line speaks of,
// and recomputes its tree.
func (c *coverage) root(ctx context.Context, cmdline []string) error {
	text, ok := option(cmdline, "roothash")
	if !ok {
		return errNoVerity
	}
	want, err := hex.DecodeString(text)
	if err != nil {
		return fmt.Errorf("roothash=%s on the kernel command line is not hex", text)
	}
	hashOffset := int64(0)
	options, _ := option(cmdline, "systemd.verity_root_options")
	for field := range strings.SplitSeq(options, ",") {
		if v, found := strings.CutPrefix(field, "hash-offset="); found {
			if hashOffset, err = strconv.ParseInt(v, 10, 64); err != nil || hashOffset < 0 {
				return fmt.Errorf("hash-offset=%s on the kernel command line is no offset", v)
			}
		}
	}
	for i := range c.gpt.Partitions {
		p := &c.gpt.Partitions[i]
		if hashOffset > p.Size {
			continue
		}
		v, err := c.disk.Verity(disk.Extent{Offset: p.Offset, Length: p.Size}, hashOffset)
		if err != nil {
			continue // this partition has no tree there
		}
		if leads, err := v.Leads(want); err != nil {
			return err
		} else if !leads {
			continue
		}
		return c.tree(ctx, v, want, p, hashOffset)
	}
	return fmt.Errorf("%w: no partition has one at offset %d that leads to the root hash %s of the kernel command line", errNoTree, hashOffset, text)
}

// tree recomputes a tree that leads to the expected root hash over the
// partition with the data: its own when it begins behind the data, else the
// first whose blocks the tree confirms best.
func (c *coverage) tree(ctx context.Context, v *disk.Verity, want []byte, hash *disk.Partition, hashOffset int64) error {
	var best *disk.VerityReport
	var data *disk.Partition
	for i := range c.gpt.Partitions {
		p := &c.gpt.Partitions[i]
		if (hashOffset > 0) != (p.Number == hash.Number) || v.DataBlocks*v.DataBlockSize > p.Size {
			continue
		}
		report, err := v.Verify(ctx, p.Offset)
		if err != nil {
			return err
		}
		if best == nil || report.BadDataCount < best.BadDataCount {
			best, data = report, p
		}
	}
	if best == nil {
		return fmt.Errorf("%w with its data: the one in partition %d speaks of %d blocks of %d bytes, and no partition has them", errNoTree, hash.Number, v.DataBlocks, v.DataBlockSize)
	}
	c.verity = &VerityCoverage{
		RootHash: hex.EncodeToString(want), Partition: data.Number, HashPartition: hash.Number,
		Description: v.String(), Report: best, Holds: best.Holds(want),
	}
	const why = "the root hash in the unified kernel image covers each block, and PCR 4 the image"
	if !c.verity.Holds {
		return nil // what the tree does not confirm is covered by nothing
	}
	c.add(data.Offset, v.DataBlocks*v.DataBlockSize, fmt.Sprintf("partition %d, root file system", data.Number), 4, why)
	tree := v.Tree()
	c.add(tree.Offset, tree.Length, fmt.Sprintf("partition %d, hash tree", hash.Number), 4, why)
	c.add(hash.Offset+hashOffset, tree.Offset-hash.Offset-hashOffset, fmt.Sprintf("partition %d, verity superblock", hash.Number), NoPCR,
		"a change of it makes the root hash fail, and the image does not boot")
	return nil
}

// fill sorts the regions and adds what lies between them.
func (c *coverage) fill() {
	slices.SortStableFunc(c.regions, func(a, b Region) int {
		return int(min(max(a.Offset-b.Offset, -1), 1))
	})
	var all []Region
	at := int64(0)
	for _, r := range c.regions {
		if end := r.Offset + r.Length; r.Offset < at { // two files share clusters: only the first counts
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
			regions = append(regions, Region{from, end - from, what, NoPCR, why})
			from = end
		}
	}
	add(c.gpt.SectorSize, "protective MBR", "UEFI firmware runs no code from it")
	partitions := slices.Clone(c.gpt.Partitions)
	slices.SortFunc(partitions, func(a, b disk.Partition) int { return int(min(max(a.Offset-b.Offset, -1), 1)) })
	const outside = "outside of partitions"
	const unused = "nothing reads it; a program in the running system could hide data here"
	for i, p := range partitions {
		before := outside
		if i == 0 && from < c.gpt.TableEnd() {
			add(min(c.gpt.TableEnd(), p.Offset), "unused entries of the GPT", "firmware takes no unused entry into account")
		}
		add(p.Offset, before, unused)
		if p.Type == disk.ESPType {
			add(p.Offset+p.Size, fmt.Sprintf("partition %d, FAT structures and free space", p.Number),
				"it decides which files there are: another boot image shows in PCR 4, a credential or add-on in PCR 12 only")
			continue
		}
		add(p.Offset+p.Size, fmt.Sprintf("partition %d, %s", p.Number, partitionName(p)), "whatever the system reads from here, no PCR shows")
	}
	add(c.disk.Size()-33*c.gpt.SectorSize, outside, unused)
	add(c.disk.Size(), "backup GPT", "firmware uses it when the first one is damaged")
	return regions
}

func partitionName(p disk.Partition) string {
	if p.Name != "" {
		return strconv.Quote(p.Name)
	}
	return "type " + p.Type.String()
}
