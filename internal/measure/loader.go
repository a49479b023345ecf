package measure

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/efi"
)

// systemd-boot in front: it reads loader.conf, finds boot entries (UAPI group's
// Boot Loader Specification), loads the image of one of them, and may hand a
// command line over to it.

// loaderVersion is systemd-boot's version, from its .sdmagic section; ok is
// false when the image is something else.
func loaderVersion(image *efi.Image) (version int, ok bool) {
	name, found := image.BootLoader()
	rest, isSystemd := strings.CutPrefix(name, "systemd-boot ")
	if !found || !isSystemd {
		return 0, false
	}
	digits := rest[:len(rest)-len(strings.TrimLeft(rest, "0123456789"))]
	version, err := strconv.Atoi(digits)
	return version, err == nil
}

// xbootldr is the partition type of an extended boot loader partition, on which
// systemd-boot looks for entries, too: bc13c2ff-59e6-4262-a352-b275fd6f7172.
var xbootldr = disk.GUID{0xff, 0xc2, 0x13, 0xbc, 0xe6, 0x59, 0x62, 0x42, 0xa3, 0x52, 0xb2, 0x75, 0xfd, 0x6f, 0x71, 0x72}

// bootEntry is what systemd-boot starts.
type bootEntry struct {
	id      string // name of its file
	image   string // path on the ESP
	unified bool   // a UKI (type 2), not a kernel with its options (type 1)
	options string // of type 1
	initrds []string
}

// throughLoader adds the events of systemd-boot and of the only entry that it
// finds.
func (p *prediction) throughLoader(loaderPath string, loader *efi.Image, version int) error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("PCR %d cannot be predicted: %s is systemd-boot %d, and %s", p.first(), loaderPath, version, fmt.Sprintf(format, args...))
	}
	p.loader = version
	if version != 252 && version != 254 && version < 257 {
		return refuse("what it hands over is known for 252, 254, 257 and later only")
	}
	for _, part := range p.gpt.Partitions {
		if part.Type == xbootldr {
			return refuse("partition %d is another place where it looks for entries: keep them on the EFI system partition", part.Number)
		}
	}
	for _, dir := range []string{"EFI/systemd/drivers", "loader/keys"} {
		entries, err := p.readDir(dir)
		if err != nil {
			return err
		}
		if len(entries) > 0 {
			return refuse("%s/%s makes it load drivers or enrol keys: remove it", dir, plain(entries[0].Name))
		}
	}
	if err := p.loadImage(loaderPath, loader, 0, nil); err != nil {
		return err
	}
	if err := p.loaderConfiguration(version, refuse); err != nil {
		return err
	}
	entry, err := p.onlyEntry(refuse)
	if err != nil {
		return err
	}
	file, err := p.fat.Open(entry.image)
	if err != nil {
		return fmt.Errorf("%s of boot entry %s: %w", plain(entry.image), plain(entry.id), err)
	}
	shown := plain(entry.image)
	image, err := efi.ParseImage(file, file.Size())
	if err != nil {
		return fmt.Errorf("%s: %w", shown, err)
	}
	if err := p.checkArchitecture(shown, image); err != nil {
		return err
	}
	if !entry.unified {
		return p.startKernel(entry, image)
	}
	if version < stubProfiles && countSections(image, ".profile") > 0 {
		return refuse("%s has profiles, which it does not know", shown)
	}
	// Until 254 systemd-boot hands over the command line that it finds in the
	// UKI; later ones know that it is implied.
	var passed []byte
	if section, ok := image.Section(".cmdline"); ok && version <= 254 {
		options, err := commandLine(image, section)
		if err != nil {
			return refuse("%s: %v", shown, err)
		}
		passed = encodeUTF16(options)
	}
	return p.load(entry.image, image, true, passed)
}

// readDir lists a directory of the ESP; one that is not there is empty.
func (p *prediction) readDir(dir string) ([]disk.DirEntry, error) {
	entries, err := p.fat.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("EFI system partition: %w", err)
	}
	return entries, nil
}

// maxLoaderFile bounds loader.conf and type 1 entries, in bytes.
const maxLoaderFile = 64 << 10

// readFile reads a small file of the ESP; ok is false when it is not there.
func (p *prediction) readFile(name string) (content []byte, ok bool, err error) {
	file, err := p.fat.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("EFI system partition: %w", err)
	}
	if file.Size() > maxLoaderFile {
		return nil, false, fmt.Errorf("%s on the EFI system partition has %d bytes, more than the %d that are read", plain(name), file.Size(), maxLoaderFile)
	}
	content = make([]byte, file.Size())
	if _, err := file.ReadAt(content, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, false, fmt.Errorf("read %s on the EFI system partition: %w", plain(name), err)
	}
	return content, true, nil
}

// keyValues reads the lines of loader.conf or of an entry: a key, white space, a
// value; # begins a comment line.
func keyValues(content []byte) [][2]string {
	var pairs [][2]string
	for line := range strings.Lines(string(content)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		key, value := line, ""
		if at := strings.IndexAny(line, " \t"); at >= 0 {
			key, value = line[:at], strings.Trim(line[at+1:], " \t")
		}
		pairs = append(pairs, [2]string{key, value})
	}
	return pairs
}

// harmlessSettings of loader.conf do not change what is started when there is
// one entry.
var harmlessSettings = []string{
	"timeout", "editor", "auto-entries", "auto-firmware", "auto-poweroff", "auto-reboot", "beep",
	"console-mode", "random-seed-mode", "secure-boot-enroll", "default",
}

// loaderConfiguration adds the event of loader.conf, which systemd-boot
// measures from version 257 on in every build that is known.
func (p *prediction) loaderConfiguration(version int, refuse func(string, ...any) error) error {
	const name = "loader/loader.conf"
	content, ok, err := p.readFile(name)
	if err != nil || !ok {
		return err
	}
	for _, pair := range keyValues(content) {
		if !slices.Contains(harmlessSettings, pair[0]) {
			return refuse("%s sets %s, whose effect is not known", name, plain(pair[0]))
		}
		if pair[0] == "default" && strings.HasPrefix(pair[1], "@") {
			return refuse("%s makes the choice depend on an earlier boot: default %s", name, plain(pair[1]))
		}
		if pair[0] == "timeout" && strings.HasPrefix(pair[1], "menu") && pair[1] != "menu-hidden" {
			return refuse("%s makes it wait for somebody at the menu: timeout %s", name, plain(pair[1]))
		}
	}
	if version >= 257 {
		p.add(Event{
			PCR: 5, Type: EVEventTag, Description: name, Digest: p.Bank.digest(content),
			Data: taggedEvent16(tagLoaderConf, "loader.conf"),
		})
	}
	return nil
}

// onlyEntry finds the one boot entry; with several, counters or a default, what
// systemd-boot starts depends on more than the disk.
func (p *prediction) onlyEntry(refuse func(string, ...any) error) (*bootEntry, error) {
	var found []bootEntry
	unified, err := p.readDir("EFI/Linux")
	if err != nil {
		return nil, err
	}
	for _, e := range unified {
		if name := strings.ToLower(e.Name); !e.IsDir && strings.HasSuffix(name, ".efi") && !strings.HasPrefix(name, ".") {
			found = append(found, bootEntry{id: e.Name, image: "EFI/Linux/" + e.Name, unified: true})
		}
	}
	configured, err := p.readDir("loader/entries")
	if err != nil {
		return nil, err
	}
	for _, e := range configured {
		if name := strings.ToLower(e.Name); e.IsDir || !strings.HasSuffix(name, ".conf") || strings.HasPrefix(name, ".") {
			continue
		}
		entry, err := p.readEntry(e.Name, refuse)
		if err != nil {
			return nil, err
		}
		found = append(found, *entry)
	}
	switch {
	case len(found) == 0:
		return nil, refuse("the EFI system partition has no boot entry for it")
	case len(found) > 1:
		return nil, refuse("it has a choice: %s and %s", plain(found[0].id), plain(found[1].id))
	}
	stem := strings.TrimSuffix(found[0].id, path.Ext(found[0].id))
	if at := strings.LastIndexByte(stem, '+'); at >= 0 && strings.Trim(stem[at+1:], "0123456789-") == "" {
		return nil, refuse("%s counts its boots in its name, which makes a later boot differ: name it without +", plain(found[0].id))
	}
	return &found[0], nil
}

// readEntry reads a type 1 entry.
func (p *prediction) readEntry(name string, refuse func(string, ...any) error) (*bootEntry, error) {
	content, _, err := p.readFile("loader/entries/" + name)
	if err != nil {
		return nil, err
	}
	entry := &bootEntry{id: name}
	cleanPath := func(value string) (string, error) {
		if !strings.HasPrefix(value, "/") || path.Clean(value) != value || strings.IndexFunc(value, unprintable) >= 0 {
			return "", refuse("loader/entries/%s names the file %s by another form than an absolute path", plain(name), plain(value))
		}
		return value, nil
	}
	for _, pair := range keyValues(content) {
		switch key, value := pair[0], pair[1]; key {
		case "title", "sort-key", "version", "machine-id":
		case "linux":
			if entry.image, err = cleanPath(value); err != nil {
				return nil, err
			}
		case "initrd":
			initrd, err := cleanPath(value)
			if err != nil {
				return nil, err
			}
			entry.initrds = append(entry.initrds, initrd)
		case "options":
			if strings.IndexFunc(value, unprintable) >= 0 {
				return nil, refuse("loader/entries/%s has options with other characters than printable ASCII", plain(name))
			}
			entry.options = strings.TrimPrefix(entry.options+" "+value, " ")
		default:
			return nil, refuse("loader/entries/%s sets %s, whose effect is not predicted", plain(name), plain(key))
		}
	}
	if entry.image == "" {
		return nil, refuse("loader/entries/%s names no kernel", plain(name))
	}
	entry.image = strings.TrimPrefix(entry.image, "/")
	return entry, nil
}

func unprintable(r rune) bool { return r < ' ' || r > '~' }

// startKernel adds the events of a type 1 entry: the kernel, the options that
// systemd-boot hands over, and what the kernel's EFI stub makes of them.
func (p *prediction) startKernel(entry *bootEntry, image *efi.Image) error {
	if _, found := image.Section(".linux"); found {
		return fmt.Errorf("PCR 12 cannot be predicted: boot entry %s starts the unified kernel image %s as a kernel", plain(entry.id), entry.image)
	}
	if err := p.loadImage(entry.image, image, 0, nil); err != nil {
		return err
	}
	var words []string
	for _, initrd := range entry.initrds {
		words = append(words, "initrd="+strings.ReplaceAll(initrd, "/", `\`))
	}
	if entry.options != "" {
		words = append(words, entry.options)
	}
	p.result.CommandLine = strings.Join(words, " ")
	options := encodeUTF16(p.result.CommandLine)
	if len(words) == 0 {
		options = nil
	}
	p.passOptions(options, "options of "+entry.id)
	if !slices.Contains(p.PCRs, 9) {
		return nil
	}
	if options != nil {
		p.add(loadOptionsEvent(p.Bank, options))
	}
	return p.loadInitrds(entry)
}

// passOptions adds the event of a command line that is handed over.
func (p *prediction) passOptions(options []byte, description string) {
	if len(options) > 0 {
		p.add(dataEvent(p.Bank, 12, EVIPL, options, description))
	}
}

// loadInitrds adds the kernel's event of the initrds of a type 1 entry, which
// systemd-boot joins.
func (p *prediction) loadInitrds(entry *bootEntry) error {
	if len(entry.initrds) == 0 {
		return nil
	}
	if len(entry.initrds) > 1 {
		return fmt.Errorf("PCR 9 cannot be predicted: boot entry %s has several initrds, which versions of systemd-boot join differently", plain(entry.id))
	}
	file, err := p.fat.Open(strings.TrimPrefix(entry.initrds[0], "/"))
	if err != nil {
		return fmt.Errorf("initrd of boot entry %s: %w", plain(entry.id), err)
	}
	p.addHashed(initrdEvent, io.NewSectionReader(file, 0, file.Size()), file.Size(), "read initrd of boot entry "+plain(entry.id))
	return nil
}

func encodeUTF16(text string) []byte {
	var out []byte
	for _, unit := range append(utf16.Encode([]rune(text)), 0) {
		out = binary.LittleEndian.AppendUint16(out, unit)
	}
	return out
}

// decodeUTF16 is the text without its NUL.
func decodeUTF16(b []byte) string {
	var units []uint16
	for ; len(b) >= 2; b = b[2:] {
		units = append(units, binary.LittleEndian.Uint16(b))
	}
	return strings.TrimSuffix(string(utf16.Decode(units)), "\x00")
}
