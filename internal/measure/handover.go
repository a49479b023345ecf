package measure

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
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

// handOver adds the events of PCR 9. options are the load options that a boot
// loader handed over; none means those of the image itself.
func (p *prediction) handOver(ctx context.Context, path string, image *efi.Image, stub int, options []byte) error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("PCR 9 cannot be predicted: %s: %s", path, fmt.Sprintf(format, args...))
	}
	if stub < 252 || stub > 257 {
		return refuse("what systemd-stub %d hands to the kernel is known for 252 to 257 only", stub)
	}
	for _, name := range []string{".linux", ".cmdline", ".initrd", ".ucode", ".osrel", ".pcrsig", ".pcrpkey", ".profile"} {
		n := 0
		for _, s := range image.Sections {
			if s.Name == name {
				n++
			}
		}
		if n > 1 || n == 1 && name == ".profile" && stub >= 257 {
			return refuse("it has %d sections %s, of which systemd-stub chooses at boot", n, name)
		}
	}
	if len(options) == 0 {
		var err error
		if options, err = loadOptions(image); err != nil {
			return refuse("%v", err)
		}
	}
	p.add(loadOptionsEvent(p.Bank, options))
	initrd, err := initrdReader(image, stub)
	if err != nil {
		return refuse("%v", err)
	}
	if initrd == nil {
		return refuse("it has no .initrd")
	}
	h := cancelled(ctx, p.Bank.Hash().New())
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, initrd, make([]byte, 128<<10)); err != nil {
		return fmt.Errorf("%s: read initrd: %w", path, err)
	}
	p.add(initrdEvent(h.Sum(nil)))
	return nil
}

func loadOptionsEvent(bank Bank, options []byte) Event {
	return Event{
		PCR: 9, Type: EVEventTag, Description: "load options", Digest: bank.digest(options),
		Data: taggedEvent(tagLoadOptions, "LOADED_IMAGE::LoadOptions"),
	}
}

func initrdEvent(digest []byte) Event {
	return Event{PCR: 9, Type: EVEventTag, Description: "initrd", Digest: digest, Data: taggedEvent(tagInitrd, "Linux initrd")}
}

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

// loadOptions is the command line in UTF-16LE with its NUL, as systemd-stub
// hands it over. Versions differ in how they treat other characters and space
// at either end.
func loadOptions(image *efi.Image) ([]byte, error) {
	text := ""
	if section, ok := image.Section(".cmdline"); ok {
		const limit = 64 << 10
		if section.VirtualSize > limit {
			return nil, fmt.Errorf("its command line has %d bytes", section.VirtualSize)
		}
		content := make([]byte, section.VirtualSize)
		if _, err := image.Content(section).ReadAt(content, 0); err != nil && err != io.EOF {
			return nil, fmt.Errorf("read its command line: %w", err)
		}
		text, _, _ = strings.Cut(string(content), "\x00")
	}
	if text == "" || strings.TrimSpace(text) != text || strings.IndexFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) >= 0 {
		return nil, fmt.Errorf("its command line is empty, begins or ends with space, or has other characters than printable ASCII, which versions of systemd-stub treat differently")
	}
	return encodeUTF16(text), nil
}

// initrdReader returns the initrd as systemd-stub puts it together: microcode
// first, the initrd, then what it wraps for user space, each padded to four
// bytes when there is more than one. It is nil when there is nothing.
func initrdReader(image *efi.Image, stub int) (io.Reader, error) {
	type part struct {
		r    io.Reader
		size int64
	}
	var parts []part
	addSection := func(name string) {
		if section, ok := image.Section(name); ok {
			parts = append(parts, part{image.Content(section), int64(section.VirtualSize)})
		}
	}
	if stub >= 256 {
		addSection(".ucode")
	}
	addSection(".initrd")
	wrapped := []struct {
		section, file string
		since         int
	}{
		{".pcrsig", "tpm2-pcr-signature.json", 252},
		{".pcrpkey", "tpm2-pcr-public-key.pem", 252},
		{".osrel", "os-release", 257},
	}
	for _, w := range wrapped {
		section, ok := image.Section(w.section)
		if !ok || stub < w.since {
			continue
		}
		const limit = 1 << 20
		if section.VirtualSize > limit {
			return nil, fmt.Errorf("its section %s has %d bytes, more than the %d that are read", w.section, section.VirtualSize, limit)
		}
		content := make([]byte, section.VirtualSize)
		if _, err := image.Content(section).ReadAt(content, 0); err != nil && err != io.EOF {
			return nil, fmt.Errorf("read section %s: %w", w.section, err)
		}
		archive := extraArchive(w.file, content)
		parts = append(parts, part{strings.NewReader(archive), int64(len(archive))})
	}
	if len(parts) == 0 {
		return nil, nil
	}
	if len(parts) == 1 {
		return parts[0].r, nil
	}
	var readers []io.Reader
	for _, p := range parts {
		readers = append(readers, p.r, strings.NewReader("\x00\x00\x00"[:(4-p.size%4)%4]))
	}
	return io.MultiReader(readers...), nil
}

// extraArchive is the cpio archive (newc) of /.extra with one file in it.
func extraArchive(file string, content []byte) string {
	var b strings.Builder
	entry := func(inode, mode uint32, name string, data []byte) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
		b.WriteString("\x00\x00\x00"[:(4-b.Len()%4)%4])
		b.Write(data)
		b.WriteString("\x00\x00\x00"[:(4-b.Len()%4)%4])
	}
	entry(1, 0o040555, ".extra", nil)
	entry(2, 0o100444, ".extra/"+file, content)
	b.WriteString("070701" + strings.Repeat("0", 32) + "00000001" + strings.Repeat("0", 48) + "0000000B" + "00000000" + "TRAILER!!!\x00\x00\x00\x00")
	return b.String()
}
