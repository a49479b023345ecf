package imagediff

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/org/attestable-image-action/internal/audit"
	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/efi"
)

// esp compares the files of two EFI system partitions. Firmware does not tell upper
// case from lower case in their names.
func (c *comparison) esp(p pair) error {
	what := fmt.Sprintf("partition %d, EFI system partition", p.number())
	a, serialA, errA := espFiles(c.a.disk, p.a)
	b, serialB, errB := espFiles(c.b.disk, p.b)
	if c.either(what, errA, errB) {
		return nil
	}
	c.filesystem(p.number(), "serial number", fmt.Sprintf("%08x", serialA), fmt.Sprintf("%08x", serialB))
	keys := slices.Collect(maps.Keys(a))
	keys = slices.AppendSeq(keys, maps.Keys(b))
	slices.Sort(keys)
	for _, key := range slices.Compact(keys) {
		x, inA := a[key]
		y, inB := b[key]
		switch {
		case !inB:
			c.report.Boot = append(c.report.Boot, BootFile{Path: x.path, How: Removed, SizeA: x.Size()})
		case !inA:
			c.report.Boot = append(c.report.Boot, BootFile{Path: y.path, How: Added, SizeB: y.Size()})
		default:
			if err := c.bootFile(x, y); err != nil {
				if c.ctx.Err() != nil {
					return err
				}
				c.report.notCompared(what+", "+y.path, err)
			}
		}
	}
	return nil
}

// espFile is a file of an EFI system partition.
type espFile struct {
	*disk.File

	path string
}

// maxESPFiles bounds the files of an EFI system partition; real ones have a dozen.
const maxESPFiles = 1 << 16

// espFiles lists the files by their paths in lower case.
func espFiles(d *disk.Disk, p *disk.Partition) (files map[string]espFile, serial uint32, err error) {
	fat, err := disk.OpenFAT(io.NewSectionReader(d, p.Offset, p.Size), p.Size)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", d.Name(), err)
	}
	files = map[string]espFile{}
	err = fat.Walk(func(name string, file *disk.File) error {
		if len(files) == maxESPFiles {
			return fmt.Errorf("it has more than %d files", maxESPFiles)
		}
		files[strings.ToLower(name)] = espFile{file, name}
		return nil
	})
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", d.Name(), err)
	}
	return files, fat.VolumeSerial, nil
}

// bootFile compares a file that both have.
func (c *comparison) bootFile(a, b espFile) error {
	same := a.Size() == b.Size()
	if same {
		var err error
		same, err = c.sameContent(io.NewSectionReader(a, 0, a.Size()), io.NewSectionReader(b, 0, b.Size()), a.Size())
		if same || err != nil {
			return err
		}
	}
	file := BootFile{Path: b.path, How: Changed, SizeA: a.Size(), SizeB: b.Size()}
	x, errA := efi.ParseImage(a, a.Size())
	y, errB := efi.ParseImage(b, b.Size())
	if errA == nil && errB == nil {
		if err := c.image(&file, x, y, a, b); err != nil {
			return err
		}
	}
	c.report.Boot = append(c.report.Boot, file)
	return nil
}

// sectionKey tells sections of one name apart by their order.
type sectionKey struct {
	name  string
	index int
}

func sectionsOf(image *efi.Image) (order []sectionKey, sections map[sectionKey]efi.Section) {
	sections = map[sectionKey]efi.Section{}
	count := map[string]int{}
	for _, s := range image.Sections {
		key := sectionKey{s.Name, count[s.Name]}
		count[s.Name]++
		sections[key] = s
		order = append(order, key)
	}
	return order, sections
}

// image compares two PE images, and the files that they are, section by section.
func (c *comparison) image(file *BootFile, a, b *efi.Image, fileA, fileB io.ReaderAt) error {
	orderA, sectionsA := sectionsOf(a)
	orderB, sectionsB := sectionsOf(b)
	for _, key := range orderA {
		x := sectionsA[key]
		y, ok := sectionsB[key]
		if !ok {
			file.Sections = append(file.Sections, Section{Name: x.Name, How: Removed, SizeA: int64(x.VirtualSize)})
			continue
		}
		if x.VirtualSize == y.VirtualSize {
			// Sections may lie on one another, so that together they are longer than the
			// file.
			if c.left -= int64(x.VirtualSize); c.left < 0 {
				c.report.notCompared(file.Path+"#"+x.Name, errTooMuch)
				return nil
			}
			same, err := c.sameContent(a.Content(x), b.Content(y), int64(x.VirtualSize))
			if err != nil {
				return err
			}
			if same {
				continue
			}
		}
		section := Section{Name: x.Name, How: Changed, SizeA: int64(x.VirtualSize), SizeB: int64(y.VirtualSize)}
		c.section(file.Path, &section, a.Content(x), b.Content(y))
		file.Sections = append(file.Sections, section)
	}
	for _, key := range orderB {
		if _, ok := sectionsA[key]; !ok {
			s := sectionsB[key]
			file.Sections = append(file.Sections, Section{Name: s.Name, How: Added, SizeB: int64(s.VirtualSize)})
		}
	}
	offA, lenA := a.CertificateTable()
	offB, lenB := b.CertificateTable()
	same := lenA == lenB
	if same {
		var err error
		if same, err = c.sameContent(io.NewSectionReader(fileA, offA, lenA), io.NewSectionReader(fileB, offB, lenB), lenA); err != nil {
			return err
		}
	}
	file.Signatures = !same
	file.Headers = len(file.Sections) == 0 && !file.Signatures
	return nil
}

// maxSectionText bounds a section that is compared line by line, in bytes.
const maxSectionText = 64 << 10

// identifiersOnly is what differs on a command line where nothing is left of it that the
// report does not have in other places.
const identifiersOnly = "the root hash and identifiers"

// section says what differs in a section of a unified kernel image.
func (c *comparison) section(path string, s *Section, a, b *io.SectionReader) {
	switch s.Name {
	case ".cmdline":
		if x, y, ok := texts(a, b); ok {
			if s.Lines = c.compareCommandLines(words(x), words(y)); len(s.Lines) == 0 {
				s.Lines = []Change{{Name: identifiersOnly}}
			}
		}
	case ".osrel", ".sbat", ".uname", ".profile":
		if x, y, ok := texts(a, b); ok {
			s.Lines = compareWords(lines(x), lines(y))
		}
	case ".initrd":
		x, errA := audit.InitrdFiles(a, a.Size())
		y, errB := audit.InitrdFiles(b, b.Size())
		if !c.either(path+"#.initrd", errA, errB) {
			c.initrd(path, s, x, y)
		}
	}
}

// lines divides a text.
func lines(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' || r == 0 })
}

// texts reads two sections that are text.
func texts(a, b *io.SectionReader) (x, y string, ok bool) {
	var text [2]string
	for i, r := range []*io.SectionReader{a, b} {
		if r.Size() > maxSectionText {
			return "", "", false
		}
		content, err := io.ReadAll(r)
		if err != nil || !utf8.Valid(content) {
			return "", "", false
		}
		text[i] = string(content)
	}
	return text[0], text[1], true
}

// initrd compares the files of two initrds.
func (c *comparison) initrd(path string, s *Section, a, b map[string]audit.InitrdFile) {
	names := slices.Collect(maps.Keys(a))
	names = slices.AppendSeq(names, maps.Keys(b))
	slices.Sort(names)
	times := newTimes(path + "#" + s.Name)
	add := func(f File, special bool) {
		f.Package = c.owners.ofInitrd(f.Path)
		switch {
		case f.Package != "" && !special && !c.options.All && !strings.HasPrefix(f.Path, "etc/"):
			s.FilesHidden++
		case len(s.Files) == maxFileChanges:
			s.FilesMore++
		default:
			s.Files = append(s.Files, f)
		}
	}
	for _, name := range slices.Compact(names) {
		x, inA := a[name]
		y, inB := b[name]
		switch {
		case !inB:
			add(File{Path: name, How: Removed}, x.Mode&0o6000 != 0)
		case !inA:
			add(File{Path: name, How: Added}, y.Mode&0o6000 != 0)
		default:
			changes, special := initrdChanges(x, y)
			if len(changes) > 0 {
				add(File{Path: name, How: Changed, Changes: changes}, special)
			} else {
				times.add(x.ModTime, y.ModTime)
			}
		}
	}
	times.into(c.report)
}

// initrdChanges compares a file; special says that more than its content differs.
func initrdChanges(a, b audit.InitrdFile) (changes []Change, special bool) {
	change := func(name, a, b string) {
		if a != b {
			changes = append(changes, Change{name, a, b})
		}
	}
	const format = 0o170000
	change("type", fmt.Sprintf("%o", a.Mode&format), fmt.Sprintf("%o", b.Mode&format))
	change("mode", fmt.Sprintf("%04o", a.Mode&0o7777), fmt.Sprintf("%04o", b.Mode&0o7777))
	change("owner", fmt.Sprintf("%d:%d", a.UID, a.GID), fmt.Sprintf("%d:%d", b.UID, b.GID))
	change("device", device(a.Device), device(b.Device))
	special = len(changes) > 0
	if a.Size != b.Size {
		change("size", fmt.Sprint(a.Size), fmt.Sprint(b.Size))
	} else if a.SHA256 != b.SHA256 {
		change("content", fmt.Sprintf("%x", a.SHA256), fmt.Sprintf("%x", b.SHA256))
	}
	return changes, special
}
