package audit

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/efi"
	"github.com/org/attestable-image-action/internal/measure"
)

// verityTarget is a root hash that a unified kernel image brings, and how the
// tree that it belongs to is opened.
type verityTarget struct {
	root    []byte
	options []string
	from    string // where it stands, for messages
	pcr     int    // that covers it
}

// findVerityTarget reads the root hash from the command line that the kernel gets,
// or from /etc/veritytab in the initrd of its image. It is nil when there is none,
// or when it is not used.
func findVerityTarget(image *efi.Image, kernelCommandLine string) (*verityTarget, error) {
	text, err := commandLine(image)
	if err != nil {
		return nil, fmt.Errorf("the unified kernel image: %w", err)
	}
	own := parseLine(text).systemd
	words := own
	if kernelCommandLine != "" {
		words = parseLine(kernelCommandLine).systemd
	}
	for _, name := range []string{"systemd.verity", "rd.systemd.verity"} {
		if on, present := isOn(words, name); present && !on {
			return nil, nil
		}
	}
	if text, ok := option(words, "roothash"); ok {
		pcr := 4
		if inside, _ := option(own, "roothash"); inside != text {
			pcr = 12 // an add-on or a boot entry brings it
		}
		options, _ := option(words, "systemd.verity_root_options")
		return newVerityTarget(text, options, "roothash= on the kernel command line", pcr)
	}
	section, ok := image.Section(".initrd")
	if !ok || section.VirtualSize > maxInitrd {
		return nil, nil
	}
	content := image.Content(section)
	rd, err := readInitrd(initrdPart{content, content.Size()})
	if err != nil {
		return nil, nil // the audit reports it
	}
	veritytab, err := rd.text("etc/veritytab")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read /etc/veritytab of the initrd: %w", err)
	}
	kiwi, _ := option(words, "rd.kiwi.verity_options")
	var found *verityTarget
	for line := range strings.Lines(string(veritytab)) {
		fields := strings.Fields(line)
		if len(fields) < 4 || strings.HasPrefix(fields[0], "#") || found != nil && fields[0] != "root" {
			continue
		}
		options := kiwi
		if len(fields) > 4 {
			options += "," + fields[4]
		}
		if found, err = newVerityTarget(fields[3], options, "/etc/veritytab of the initrd", 4); err != nil {
			return nil, err
		}
		if fields[0] == "root" {
			break
		}
	}
	return found, nil
}

func newVerityTarget(root, options, from string, pcr int) (*verityTarget, error) {
	want, err := hex.DecodeString(root)
	if err != nil || len(want) == 0 {
		return nil, fmt.Errorf("%s is %.150q, which is no root hash in hex", from, root)
	}
	return &verityTarget{want, strings.Split(options, ","), from, pcr}, nil
}

// option returns the last value of an option of verity.
func (v *verityTarget) option(name string) (value string, ok bool) {
	for _, o := range v.options {
		if text, found := strings.CutPrefix(o, name+"="); found {
			value, ok = text, true
		}
	}
	return value, ok
}

// number reads an option that is a number of bytes or blocks.
func (v *verityTarget) number(name string, otherwise int64) (int64, error) {
	text, ok := v.option(name)
	if !ok {
		return otherwise, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%s=%.100s in the options for %s is no number", name, text, v.from)
	}
	return n, nil
}

// open opens the tree that a partition has at the hash offset.
func (v *verityTarget) open(d *disk.Disk, p *disk.Partition, offset int64) (*disk.Verity, error) {
	device := disk.Extent{Offset: p.Offset, Length: p.Size}
	if text, ok := v.option("superblock"); !ok || text != "no" && text != "0" && text != "false" && text != "off" {
		return d.Verity(device, offset)
	}
	parameters := disk.VerityParameters{Algorithm: "sha256", HashType: 1}
	if text, ok := v.option("hash"); ok {
		parameters.Algorithm = text
	}
	if text, _ := v.option("salt"); text != "" && text != "-" {
		salt, err := hex.DecodeString(text)
		if err != nil {
			return nil, fmt.Errorf("salt=%.100s in the options for %s is not hex", text, v.from)
		}
		parameters.Salt = salt
	}
	format, err := v.number("format", 1)
	if err != nil {
		return nil, err
	}
	parameters.HashType = uint32(min(format, 2)) //nolint:gosec // 2 stands for every one that is not known
	for name, into := range map[string]*int64{"data-block-size": &parameters.DataBlockSize, "hash-block-size": &parameters.HashBlockSize} {
		if *into, err = v.number(name, 4096); err != nil {
			return nil, err
		}
	}
	if parameters.DataBlocks, err = v.number("data-blocks", 0); err != nil {
		return nil, err
	}
	return d.VerityTree(parameters, device, offset)
}

// root finds the partition whose tree leads to a root hash, and recomputes that.
func (c *coverage) root(ctx context.Context, target *verityTarget) error {
	v, p, offset, err := target.find(c.disk, c.gpt)
	if err != nil {
		return err
	}
	return c.tree(ctx, v, target, p, offset)
}

// find finds the partition whose tree leads to the root hash, as far as the
// topmost block of the tree tells.
func (v *verityTarget) find(d *disk.Disk, gpt *disk.GPT) (*disk.Verity, *disk.Partition, int64, error) {
	offset, err := v.number("hash-offset", 0)
	if err != nil {
		return nil, nil, 0, err
	}
	for i := range gpt.Partitions {
		p := &gpt.Partitions[i]
		if offset > p.Size {
			continue
		}
		tree, err := v.open(d, p, offset)
		if err != nil {
			continue // this partition has no tree there
		}
		if leads, err := tree.Leads(v.root); err != nil {
			return nil, nil, 0, err
		} else if !leads {
			continue
		}
		return tree, p, offset, nil
	}
	return nil, nil, 0, fmt.Errorf("%w: no partition has one at offset %d that leads to the root hash %x of %s", errNoTree, offset, v.root, v.from)
}

// RootVerity is how dm-verity guards the root file system.
type RootVerity struct {
	*disk.Verity

	RootHash      []byte
	From          string // where the root hash stands, for people
	HashPartition int    // number of the partition with the tree
	HashOffset    int64  // bytes from the start of that partition
}

// FindRootVerity finds the hash tree that the unified kernel image names, without
// checking a block of the data against it. It is nil when none is named.
func FindRootVerity(d *disk.Disk, chain *measure.BootChain) (*RootVerity, error) {
	var kernel *efi.Image
	for _, f := range chain.Files {
		if f.Addon {
			continue
		}
		var err error
		if kernel, err = efi.ParseImage(f.File, f.File.Size()); err != nil {
			return nil, fmt.Errorf("find the hash tree of the root file system: %s: %w", f.Path, err)
		}
	}
	if kernel == nil {
		return nil, nil
	}
	target, err := findVerityTarget(kernel, chain.CommandLine)
	if target == nil || err != nil {
		return nil, err
	}
	gpt, err := d.GPT()
	if err != nil {
		return nil, err
	}
	v, p, offset, err := target.find(d, gpt)
	if err != nil {
		return nil, err
	}
	return &RootVerity{v, target.root, target.from, p.Number, offset}, nil
}

// OpenRoot opens the root file system that the root hash of the unified kernel image
// covers, each block of it checked: as the kernel sees it, no longer than its hash
// tree, and of the kind that the command line says where it says one. number is the
// partition's. The file system is nil when the image has no root hash.
func OpenRoot(ctx context.Context, d *disk.Disk, chain *measure.BootChain) (f *disk.Filesystem, number int, err error) {
	v, err := FindRootVerity(d, chain)
	if v == nil || err != nil {
		return nil, 0, err
	}
	gpt, err := d.GPT()
	if err != nil {
		return nil, 0, err
	}
	report, data, err := verifyData(ctx, gpt, v.Verity, v.HashPartition, v.HashOffset)
	if err != nil {
		return nil, 0, err
	}
	if !report.Holds(v.RootHash) {
		return nil, 0, fmt.Errorf("partition %d: the hash tree in partition %d does not confirm its blocks for the root hash of %s: the kernel does not read them", data.Number, v.HashPartition, v.From)
	}
	size := v.DataBlocks * v.DataBlockSize
	f, err = disk.OpenFilesystem(io.NewSectionReader(d, data.Offset, size), size, ChainRootTypes(chain)...)
	if err != nil {
		return nil, 0, fmt.Errorf("partition %d, the root file system by the root hash of %s: %w", data.Number, v.From, err)
	}
	return f, data.Number, nil
}

// ChainRootTypes are RootTypes of the command line that the kernel gets.
func ChainRootTypes(chain *measure.BootChain) []string {
	text := chain.CommandLine
	for _, f := range slices.Backward(chain.Files) {
		if f.Addon || text != "" {
			continue
		}
		if image, err := efi.ParseImage(f.File, f.File.Size()); err == nil {
			text, _ = commandLine(image) // when it can't be read, it says nothing
		}
	}
	l := parseLine(text)
	return RootTypes(l.kernel, l.systemd)
}

// verifyData recomputes a tree over the partition with the data: its own when it
// begins behind the data, else the first whose blocks the tree confirms best.
func verifyData(ctx context.Context, gpt *disk.GPT, v *disk.Verity, hash int, hashOffset int64) (best *disk.VerityReport, data *disk.Partition, err error) {
	for i := range gpt.Partitions {
		p := &gpt.Partitions[i]
		room := p.Size
		if p.Number == hash {
			room = hashOffset
		}
		if (hashOffset > 0) != (p.Number == hash) || v.DataBlocks*v.DataBlockSize > room {
			continue
		}
		report, err := v.Verify(ctx, p.Offset)
		if err != nil {
			return nil, nil, err
		}
		if best == nil || report.BadDataCount < best.BadDataCount {
			best, data = report, p
		}
	}
	if best == nil {
		return nil, nil, fmt.Errorf("%w with its data: the one in partition %d speaks of %d blocks of %d bytes, and no partition has them", errNoTree, hash, v.DataBlocks, v.DataBlockSize)
	}
	return best, data, nil
}

// tree recomputes a tree that leads to the expected root hash.
func (c *coverage) tree(ctx context.Context, v *disk.Verity, target *verityTarget, hash *disk.Partition, hashOffset int64) error {
	best, data, err := verifyData(ctx, c.gpt, v, hash.Number, hashOffset)
	if err != nil {
		return err
	}
	c.verity = &VerityCoverage{
		RootHash: hex.EncodeToString(target.root), Partition: data.Number, HashPartition: hash.Number,
		Description: v.String(), Report: best, Holds: best.Holds(target.root),
	}
	if !c.verity.Holds {
		return nil // what the tree does not confirm is covered by nothing
	}
	blocks, tree := v.Data(data.Offset), v.Tree()
	file, nodes := fmt.Sprintf("partition %d, root file system", data.Number), fmt.Sprintf("partition %d, hash tree", hash.Number)
	if slices.Contains(target.options, "ignore-corruption") {
		const why = "a root hash stands for it, but verity's options say ignore-corruption: a changed block is used"
		c.steering(blocks.Offset, blocks.Length, file, why)
		c.steering(tree.Offset, tree.Length, nodes, why)
		return nil
	}
	why := "the root hash in the unified kernel image covers each block, and PCR 4 the image"
	if target.pcr == 12 {
		why = "the root hash on the command line covers each block, and PCR 12 the command line"
	}
	c.covered(blocks.Offset, blocks.Length, file, target.pcr, why)
	c.covered(tree.Offset, tree.Length, nodes, target.pcr, why)
	for _, a := range v.Superblock() {
		what := fmt.Sprintf("partition %d, verity superblock, %s", hash.Number, a.What)
		switch a.Binding {
		case disk.VerityBound:
			c.covered(a.Offset, a.Length, what, target.pcr, fmt.Sprintf("with another value no tree leads to the root hash, which PCR %d covers", target.pcr))
		case disk.VerityLoose:
			c.steering(a.Offset, a.Length, what, "with another value the tree may still lead to the root hash: the device then ends elsewhere, and no block differs")
		case disk.VerityUnused:
			c.inert(a.Offset, a.Length, what, "verity does not look at it")
		}
	}
	return nil
}
