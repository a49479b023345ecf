package audit

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/efi"
)

// loadedImage is a PE image that the boot loads from the EFI system partition.
type loadedImage struct {
	image *efi.Image
	parts []imagePart // of the file, ascending, without gaps
}

// imagePart is a run of bytes of a PE image.
type imagePart struct {
	from, to int64 // bytes of the file
	Region         // without its place
}

// loadImage reads which bytes of a PE image its Authenticode digest covers.
func (c *coverage) loadImage(name string, file *disk.File) (*loadedImage, error) {
	image, err := efi.ParseImage(file, file.Size())
	if err != nil {
		return nil, err
	}
	spans, err := image.AuthenticodeSpans()
	if err != nil {
		return nil, err
	}
	if loader, ok := image.BootLoader(); ok && c.loader == "" {
		c.loader = loader
	}
	l := &loadedImage{image: image}
	at := int64(0)
	add := func(to int64, r Region) {
		if to = min(to, file.Size()); to > at {
			l.parts = append(l.parts, imagePart{at, to, r})
			at = to
		}
	}
	entry := image.CertificateEntry()
	signatures, length := image.CertificateTable()
	// What the digest leaves out, up to a place in the file.
	out := func(to int64) {
		rest := Region{What: name + ", outside of its digest", PCR: NoPCR, Why: "the Authenticode digest leaves it out, and nothing reads it"}
		if entry > 0 {
			add(min(to, entry), rest)
			add(min(to, entry+8), Region{What: name + ", place of the signatures", PCR: NoPCR, Steers: true,
				Why: "the Authenticode digest leaves it out; it decides where the digest ends and where the signatures are"})
		}
		if length > 0 {
			add(min(to, signatures), rest)
			add(min(to, signatures+length), Region{What: name + ", signatures", PCR: NoPCR, Steers: true,
				Why: "the Authenticode digest leaves signatures out; with Secure Boot on, PCR 7 shows who signed"})
		}
		add(to, rest)
	}
	slices.SortFunc(spans, func(a, b efi.Span) int { return cmp.Compare(a.Offset, b.Offset) })
	for _, s := range spans {
		out(s.Offset)
		add(s.Offset+s.Length, Region{What: name, PCR: 4, Why: "its Authenticode digest is an event of PCR 4"})
	}
	out(file.Size())
	c.images[strings.ToLower(name)] = l
	return l, nil
}

// esp adds the EFI system partition: its files, and its structures.
func (c *coverage) esp(fat *disk.FAT, esp *disk.Partition) error {
	areas, err := fat.Areas(esp.Size)
	if err != nil {
		return fmt.Errorf("partition %d, the EFI system partition: %w", esp.Number, err)
	}
	const decides = "it decides which files there are: another boot image shows in PCR 4, a credential or add-on in PCR 12 only"
	const nothing = "nothing reads it; a program in the running system could hide data here"
	for _, a := range areas {
		at := esp.Offset + a.Offset
		what := func(text string) string { return fmt.Sprintf("partition %d, %s", esp.Number, text) }
		switch a.Kind {
		case disk.FATBootSector:
			c.steering(at, a.Length, what("FAT boot sector"), decides)
		case disk.FATTable:
			c.steering(at, a.Length, what("file allocation table"), decides)
		case disk.FATDirectory:
			c.steering(at, a.Length, what("directories"), decides)
		case disk.FATTableCopy:
			c.inert(at, a.Length, what("copy of the file allocation table"), "firmware reads the first one")
		case disk.FATReserved:
			c.inert(at, a.Length, what("FAT reserved sectors"), "firmware reads no field here")
		case disk.FATDirectoryUnused:
			c.inert(at, a.Length, what("unused entries of directories"), nothing)
		case disk.FATFileSlack:
			c.inert(at, a.Length, what("behind the ends of files"), nothing)
		case disk.FATFree, disk.FATBehind:
			c.inert(at, a.Length, what("free space"), nothing)
		case disk.FATFile:
			c.espFile(at, a)
		}
	}
	return nil
}

// espFile adds a run of bytes of a file.
func (c *coverage) espFile(at int64, a disk.FATArea) {
	lower := strings.ToLower(a.Path)
	if l := c.images[lower]; l != nil {
		for _, p := range l.parts {
			from, to := max(p.from, a.From), min(p.to, a.From+a.Length)
			r := p.Region
			r.Offset, r.Length = at+from-a.From, to-from
			c.add(r)
		}
		return
	}
	measuresConfiguration := false
	if version, ok := strings.CutPrefix(c.loader, "systemd-boot "); ok {
		n := 0
		_, err := fmt.Sscanf(version, "%d", &n)
		measuresConfiguration = err == nil && n >= 257
	}
	pcr, companion := c.companions[lower]
	switch {
	case strings.HasSuffix(lower, "random-seed"):
		c.inert(at, a.Length, a.Path, "it seeds the kernel's random numbers: who knows it learns nothing, as other sources are mixed in")
	case companion:
		c.covered(at, a.Length, a.Path, pcr, fmt.Sprintf("systemd-stub hands it to the system and measures it into PCR %d", pcr))
	case lower == "loader/loader.conf" && measuresConfiguration:
		c.covered(at, a.Length, a.Path, 5, "systemd-boot measures it into PCR 5")
	case c.loader != "":
		c.steering(at, a.Length, a.Path, "the boot loader may read it: of what it then does, PCR 4, 9 and 12 show the images, initrds and options")
	case strings.HasSuffix(lower, ".efi"):
		c.inert(at, a.Length, a.Path, "firmware runs it only when a boot entry names it, which PCR 4 then shows")
	default:
		c.inert(at, a.Length, a.Path, "no boot path leads to it")
	}
}
