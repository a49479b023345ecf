package imagediff

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"

	"github.com/org/attestable-image-action/internal/audit"
	"github.com/org/attestable-image-action/internal/disk"
)

// pair is a partition of A and the one of B that takes its place; either may be
// nil.
type pair struct{ a, b *disk.Partition }

// number is that in B, or in A when B lacks it.
func (p pair) number() int {
	if p.b != nil {
		return p.b.Number
	}
	return p.a.Number
}

// pairs finds the partitions that belong together: those of the same type whose
// name only they have; then, among the rest, those of the same number.
func pairs(a, b *disk.GPT) []pair {
	type identity struct {
		kind disk.GUID
		name string
	}
	single := func(g *disk.GPT) map[identity]*disk.Partition {
		found := map[identity]*disk.Partition{}
		for i := range g.Partitions {
			p := &g.Partitions[i]
			id := identity{p.Type, p.Name}
			if _, twice := found[id]; twice || p.Name == "" {
				found[id] = nil
				continue
			}
			found[id] = p
		}
		return found
	}
	named, byName := single(a), single(b)
	taken := map[int]bool{} // numbers in B
	match := map[int]*disk.Partition{}
	for id, p := range named {
		if other := byName[id]; p != nil && other != nil {
			match[p.Number] = other
			taken[other.Number] = true
		}
	}
	byNumber := map[int]*disk.Partition{}
	for i := range b.Partitions {
		if p := &b.Partitions[i]; !taken[p.Number] {
			byNumber[p.Number] = p
		}
	}
	var all []pair
	for i := range a.Partitions {
		p := &a.Partitions[i]
		other, ok := match[p.Number]
		if !ok {
			if other = byNumber[p.Number]; other != nil {
				taken[other.Number] = true
			}
		}
		all = append(all, pair{p, other})
	}
	for i := range b.Partitions {
		if p := &b.Partitions[i]; !taken[p.Number] {
			all = append(all, pair{nil, p})
		}
	}
	return all
}

// partitions compares the partition tables, and then what the partitions hold.
func (c *comparison) partitions() error {
	c.field(0, "sector size", fmt.Sprint(c.a.gpt.SectorSize), fmt.Sprint(c.b.gpt.SectorSize))
	c.field(0, "GUID", c.a.gpt.DiskGUID.String(), c.b.gpt.DiskGUID.String())
	c.field(0, "size", fmt.Sprint(c.a.disk.Size()), fmt.Sprint(c.b.disk.Size()))
	var esp []pair
	for _, p := range pairs(c.a.gpt, c.b.gpt) {
		switch {
		case p.b == nil:
			c.report.Partitions = append(c.report.Partitions, Partition{Number: p.a.Number, How: Removed, A: p.a.Name})
			continue
		case p.a == nil:
			c.report.Partitions = append(c.report.Partitions, Partition{Number: p.b.Number, How: Added, B: p.b.Name})
			continue
		}
		n := p.number()
		c.field(n, "number", strconv.Itoa(p.a.Number), strconv.Itoa(p.b.Number))
		c.field(n, "type", p.a.Type.String(), p.b.Type.String())
		c.field(n, "GUID", p.a.GUID.String(), p.b.GUID.String())
		c.field(n, "name", p.a.Name, p.b.Name)
		c.field(n, "attributes", gptAttributes(p.a), gptAttributes(p.b))
		c.field(n, "offset", fmt.Sprint(p.a.Offset), fmt.Sprint(p.b.Offset))
		c.field(n, "size", fmt.Sprint(p.a.Size), fmt.Sprint(p.b.Size))
		if isESP(p) {
			// The root file system tells which files of an initrd belong to packages.
			esp = append(esp, p)
			continue
		}
		if err := c.content(p); err != nil {
			return err
		}
	}
	for _, p := range esp {
		if err := c.content(p); err != nil {
			return err
		}
	}
	return nil
}

func isESP(p pair) bool { return p.a.Type == disk.ESPType && p.b.Type == disk.ESPType }

// gptAttributes are the attributes of a partition (UEFI 2.10, table 5-6), in hex.
func gptAttributes(p *disk.Partition) string {
	if len(p.Entry) < 56 {
		return ""
	}
	return fmt.Sprintf("%#x", binary.LittleEndian.Uint64(p.Entry[48:]))
}

func (c *comparison) field(number int, name, a, b string) {
	if a != b {
		c.report.Partitions = append(c.report.Partitions, Partition{number, Changed, name, bounded(a), bounded(b)})
	}
}

// filesystem is field for what a file system says of itself.
func (c *comparison) filesystem(number int, name, a, b string) {
	if a != b {
		c.report.Filesystems = append(c.report.Filesystems, Partition{number, Changed, name, bounded(a), bounded(b)})
	}
}

// content compares what two partitions hold.
func (c *comparison) content(p pair) error {
	same, err := c.sameBytes(p.a.Offset, p.b.Offset, p.a.Size, p.b.Size)
	if same || err != nil {
		return err
	}
	n := p.number()
	what := fmt.Sprintf("partition %d", n)
	before := c.report.weight()
	if isESP(p) {
		if err := c.esp(p); err != nil {
			return err
		}
		if c.report.weight() == before {
			c.report.Other = append(c.report.Other, Change{Name: what + ", EFI system partition: directory entries, times or unused space differ, and no file"})
		}
		return nil
	}
	a, errA := disk.OpenFilesystem(io.NewSectionReader(c.a.disk, p.a.Offset, p.a.Size), p.a.Size, audit.RootTypes(c.a.words)...)
	b, errB := disk.OpenFilesystem(io.NewSectionReader(c.b.disk, p.b.Offset, p.b.Size), p.b.Size, audit.RootTypes(c.b.words)...)
	for _, err := range []*error{&errA, &errB} {
		if errors.Is(*err, disk.ErrNoFilesystem) {
			*err = nil
		}
	}
	if c.either(what, errA, errB) {
		return nil
	}
	if a == nil || b == nil {
		c.filesystem(n, "kind", kind(a), kind(b))
		if a == nil && b == nil && !c.hashTree(c.a, p.a) && !c.hashTree(c.b, p.b) {
			c.report.Other = append(c.report.Other, Change{Name: what + ": its bytes differ, and what they are is not known"})
		}
		return nil
	}
	c.filesystem(n, "kind", a.Kind, b.Kind)
	c.filesystem(n, "UUID", a.UUID, b.UUID)
	c.filesystem(n, "label", a.Label, b.Label)
	if err := c.owners.read(a, b); err != nil {
		c.report.notCompared("files of packages in "+what, err)
	}
	if err := c.filesystems(n, a, b); err != nil {
		return err
	}
	if c.report.weight() != before {
		return nil
	}
	// No file differs. The end of the data, where the tree begins, tells whether the
	// file system does.
	endA, endB := dataEnd(c.a.verity, p.a), dataEnd(c.b.verity, p.b)
	same, err = c.sameBytes(p.a.Offset, p.b.Offset, endA, endB)
	if err == nil && (!same || len(c.report.Verity) == 0) {
		c.report.Other = append(c.report.Other, Change{Name: what + ": the " + b.Kind + " file system is laid out in another way, and no file differs"})
	}
	return err
}

func kind(f *disk.Filesystem) string {
	if f == nil {
		return "none"
	}
	return f.Kind
}

// weight grows with everything that the files of a partition bring into a report.
func (r *Report) weight() int {
	return len(r.Boot) + len(r.Files) + r.FilesHidden + r.FilesMore + len(r.Times) + len(r.Filesystems) + len(r.NotCompared)
}

// hashTree reports whether a partition has the hash tree of the root file system
// and nothing else: Verity says what changed there.
func (c *comparison) hashTree(s *side, p *disk.Partition) bool {
	return s.verity != nil && s.verity.HashPartition == p.Number && len(c.report.Verity) > 0
}

// dataEnd is where a partition's data end: where the hash tree begins, or the
// partition's size.
func dataEnd(v *audit.RootVerity, p *disk.Partition) int64 {
	if v != nil && v.HashPartition == p.Number && v.HashOffset > 0 {
		return min(v.HashOffset, p.Size)
	}
	return p.Size
}

// verity compares how dm-verity guards the root file systems.
func (c *comparison) verity() {
	if c.either("dm-verity", c.a.noVerity, c.b.noVerity) {
		return
	}
	a, b := verityFields(c.a.verity), verityFields(c.b.verity)
	for i := range a {
		if a[i][1] != b[i][1] {
			c.report.Verity = append(c.report.Verity, Change{a[i][0], bounded(a[i][1]), bounded(b[i][1])})
		}
	}
}

func verityFields(v *audit.RootVerity) [][2]string {
	fields := [][2]string{{"root hash"}, {"named by"}, {"algorithm"}, {"hash type"}, {"salt"}, {"UUID"}, {"data blocks"}, {"data block size"}, {"hash block size"}, {"partition of the tree"}, {"offset of the tree"}}
	if v == nil {
		return fields
	}
	for i, value := range []string{
		fmt.Sprintf("%x", v.RootHash), v.From, v.Algorithm, fmt.Sprint(v.HashType), fmt.Sprintf("%x", v.Salt), fmt.Sprintf("%x", v.UUID),
		fmt.Sprint(v.DataBlocks), fmt.Sprint(v.DataBlockSize), fmt.Sprint(v.HashBlockSize), fmt.Sprint(v.HashPartition), fmt.Sprint(v.HashOffset),
	} {
		fields[i][1] = value
	}
	return fields
}

// outside compares the bytes that are in no partition and in no table, where both
// disks have the same partitions.
func (c *comparison) outside() error {
	if c.a.disk.Size() != c.b.disk.Size() || len(c.a.gpt.Partitions) != len(c.b.gpt.Partitions) {
		return nil
	}
	var used []disk.Extent
	for i, p := range c.a.gpt.Partitions {
		if q := c.b.gpt.Partitions[i]; p.Offset != q.Offset || p.Size != q.Size {
			return nil
		}
		used = append(used, disk.Extent{Offset: p.Offset, Length: p.Size})
	}
	gaps := []disk.Extent{{Offset: 0, Length: bootCode}}
	at := c.a.gpt.TableEnd()
	slices.SortFunc(used, func(a, b disk.Extent) int { return cmp.Compare(a.Offset, b.Offset) })
	for _, u := range used {
		if u.Offset > at {
			gaps = append(gaps, disk.Extent{Offset: at, Length: u.Offset - at})
		}
		at = max(at, u.Offset+u.Length)
	}
	if end := c.a.gpt.UsableEnd(); end > at {
		gaps = append(gaps, disk.Extent{Offset: at, Length: end - at})
	}
	for _, g := range gaps {
		same, err := c.sameBytes(g.Offset, g.Offset, g.Length, g.Length)
		if err != nil {
			return err
		}
		if !same {
			c.report.Other = append(c.report.Other, Change{Name: fmt.Sprintf("bytes %d to %d of the disk, in no partition, differ", g.Offset, g.Offset+g.Length)})
		}
	}
	return nil
}

// bootCode is the part of the protective MBR, in bytes, that UEFI does not define
// (UEFI 2.10, table 5-3).
const bootCode = 446
