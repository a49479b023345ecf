package measure

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/org/attestable-image-action/internal/efi"
)

// PCR 9 is extended by the kernel's EFI stub with what systemd-stub hands over:
// the load options, which are the command line, and the initrd, which
// systemd-stub puts together from sections of the UKI.

// Tags of the events (Linux, drivers/firmware/efi/libstub/efi-stub-helper.c).
const (
	tagInitrd      = 0x8f3b22ec
	tagLoadOptions = 0x8f3b22ed
	tagLoaderConf  = 0xf5bc582a // of systemd-boot
)

// handedOver is what the kernel gets beside the sections of the image.
type handedOver struct {
	options  []byte // command line of a boot loader, UTF-16LE with a NUL; none means the image's own
	appended string // command lines of add-ons
	addons   []addon
}

// Versions of systemd-stub whose hand-over depends on more than the disk.
const (
	stubMachine      = 261 // adds a secret of the machine to the initrd, and the firmware's console to the command line
	stubReadOnlySeed = 262 // leaves the secret out when the random seed is marked read-only
)

// handOver adds the events of PCR 9.
func (p *prediction) handOver(u *unified, h handedOver) error {
	if u.stub < 252 || u.stub > 257 && u.stub < stubReadOnlySeed {
		return fmt.Errorf("what systemd-stub %d hands to the kernel is known for 252 to 257, and from %d on", u.stub, stubReadOnlySeed)
	}
	if u.ambiguous != nil {
		return u.ambiguous
	}
	options, err := u.loadOptions(h)
	if err != nil {
		return err
	}
	if u.stub >= stubMachine {
		if err := p.independentOfMachine(u, options); err != nil {
			return err
		}
	}
	p.add(loadOptionsEvent(p.Bank, encodeUTF16(options)))
	parts, err := p.initrds(u, h.addons)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		return errors.New("it has no .initrd")
	}
	content, size := joinInitrds(parts)
	p.addHashed(initrdEvent, content, size, u.shown+": read initrd")
	return nil
}

// loadOptions is the command line that the kernel gets.
func (u *unified) loadOptions(h handedOver) (string, error) {
	options := decodeUTF16(h.options)
	if options == "" {
		if section, ok := u.section(".cmdline"); ok {
			var err error
			if options, err = commandLine(u.image, section); err != nil {
				return "", err
			}
		}
	}
	if options != "" && h.appended != "" {
		options += " "
	}
	if options += h.appended; options == "" {
		return "", errors.New("it has no command line, which versions of systemd-stub treat differently")
	}
	return options, nil
}

// independentOfMachine refuses what differs between machines, or between the
// first boot and a later one: systemd-stub makes a secret from the random seed
// that it keeps on the EFI system partition, and hands it to the initrd; and it
// adds the firmware's consoles to a command line that names none.
func (p *prediction) independentOfMachine(u *unified, options string) error {
	if !strings.HasPrefix(options, "console=") && !strings.Contains(options, " console=") {
		return fmt.Errorf("systemd-stub %d adds the consoles that the firmware has to the command line: put console= there", u.stub)
	}
	const seed = "loader/random-seed"
	if p.fat != nil {
		file, err := p.fat.Open(seed)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("EFI system partition: %w", err)
		}
		if err == nil && file.ReadOnly && (p.loader == 0 || p.loader >= stubReadOnlySeed) {
			return nil
		}
	}
	return fmt.Errorf("systemd-stub %d hands a secret of the machine to the initrd, unless the EFI system partition has a file %s with the read-only attribute", u.stub, seed)
}

func loadOptionsEvent(bank Bank, options []byte) Event {
	return Event{
		PCR: 9, Type: EVEventTag, Description: "load options", Digest: bank.digest(options),
		Data: taggedEvent(tagLoadOptions, "LOADED_IMAGE::LoadOptions"),
	}
}

// initrdEvent lacks the digest.
var initrdEvent = Event{PCR: 9, Type: EVEventTag, Description: "initrd", Data: taggedEvent(tagInitrd, "Linux initrd")}

// taggedEvent encodes TCG_PCClientTaggedEvent: the tag, the length of the data,
// and the data, here text with its NUL.
func taggedEvent(tag uint32, text string) []byte {
	data := binary.LittleEndian.AppendUint32(nil, tag)
	data = binary.LittleEndian.AppendUint32(data, uint32(len(text)+1))
	return append(append(data, text...), 0)
}

// taggedEvent16 is the same with text in UTF-16LE, as systemd-boot writes it.
func taggedEvent16(tag uint32, text string) []byte {
	encoded := encodeUTF16(text)
	data := binary.LittleEndian.AppendUint32(nil, tag)
	data = binary.LittleEndian.AppendUint32(data, uint32(len(encoded)))
	return append(data, encoded...)
}

// commandLine reads a section with a command line. Versions of systemd-stub
// differ in how they treat other characters, and space at either end.
func commandLine(image *efi.Image, section efi.Section) (string, error) {
	content, err := smallSection(image, section)
	if err != nil {
		return "", err
	}
	text, _, _ := strings.Cut(string(content), "\x00")
	if text == "" || strings.TrimSpace(text) != text || strings.IndexFunc(text, unprintable) >= 0 {
		return "", errors.New("its command line is empty, begins or ends with space, or has other characters than printable ASCII, which versions of systemd-stub treat differently")
	}
	return text, nil
}

// initrdPart is a piece of the initrd.
type initrdPart struct {
	r    io.Reader
	size int64 // bytes
}

// initrds returns the pieces that systemd-stub joins: microcode, of add-ons in
// reverse and of the image; the image's initrd; what it wraps for user space;
// and initrds of add-ons.
func (p *prediction) initrds(u *unified, addons []addon) ([]initrdPart, error) {
	var parts []initrdPart
	add := func(image *efi.Image, section efi.Section) {
		parts = append(parts, initrdPart{image.Content(section), int64(section.VirtualSize)})
	}
	own := func(name string) {
		if section, ok := u.section(name); ok {
			add(u.image, section)
		}
	}
	for _, a := range slices.Backward(addons) {
		if a.ucode != nil {
			add(a.image, *a.ucode)
		}
	}
	if u.stub >= 256 {
		own(".ucode")
	}
	own(".initrd")
	for _, a := range u.companions.archives {
		content, size, err := p.openArchive(a)
		if err != nil {
			return nil, err
		}
		parts = append(parts, initrdPart{content, size})
	}
	for _, w := range []struct {
		section, file string
		since         int
	}{
		{".pcrsig", "tpm2-pcr-signature.json", 252},
		{".pcrpkey", "tpm2-pcr-public-key.pem", 252},
		{".osrel", "os-release", 257},
		{".profile", "profile", stubProfiles},
	} {
		if section, ok := u.section(w.section); ok && u.stub >= w.since {
			content, size := cpioArchive(".extra", 0o555, 0o444, cpioMember{w.file, u.image.Content(section), int64(section.VirtualSize)})
			parts = append(parts, initrdPart{content, size})
		}
	}
	for _, a := range addons {
		if a.initrd != nil {
			add(a.image, *a.initrd)
		}
	}
	return parts, nil
}

// joinInitrds joins the pieces, each padded to four bytes when there is more
// than one, and returns the size in bytes.
func joinInitrds(parts []initrdPart) (io.Reader, int64) {
	if len(parts) == 1 {
		return parts[0].r, parts[0].size
	}
	readers := make([]io.Reader, 0, 2*len(parts))
	size := int64(0)
	for _, p := range parts {
		readers = append(readers, p.r, strings.NewReader("\x00\x00\x00"[:-p.size&3]))
		size += (p.size + 3) &^ 3
	}
	return io.MultiReader(readers...), size
}
