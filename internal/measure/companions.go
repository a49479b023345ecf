package measure

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/org/attestable-image-action/internal/efi"
)

// Files beside a unified kernel image that systemd-stub picks up from the
// partition that it was loaded from (systemd-stub(7), section Companion Files):
// credentials, extension images and add-ons. It sorts each kind by name, wraps
// the first two into cpio archives for the kernel, and measures those as a
// whole; add-ons are PE images, which firmware loads.

// Versions of systemd-stub that changed what is picked up.
const (
	stubAddons           = 254 // add-ons with a command line
	stubConfexts         = 256 // *.confext.raw apart from other extension images
	stubInitrdAddons     = 257 // add-ons with an initrd or microcode; several add-ons measured at once
	stubGlobalExtensions = 258 // loader/extensions
)

// companion is a file beside a unified kernel image.
type companion struct {
	path string // on the EFI system partition
	name string // as the directory spells it, printable or not
}

// companionKind is a kind of files that become one archive.
type companionKind struct {
	what       string // for people
	global     bool   // in loader/, for every image; otherwise in the directory beside it
	directory  string // of loader/, when global
	accepts    func(name string) bool
	since      int // version of systemd-stub
	target     string
	dirMode    uint32
	accessMode uint32
	pcr        int
}

// Extension images are all *.raw until *.confext.raw became a kind of its own.
func isCredential(name string) bool { return hasSuffixFold(name, ".cred") }
func isExtension(name string) bool  { return hasSuffixFold(name, ".raw") }
func isConfext(name string) bool    { return hasSuffixFold(name, ".confext.raw") }
func isSysext(name string) bool     { return isExtension(name) && !isConfext(name) }
func isAddon(name string) bool      { return hasSuffixFold(name, ".addon.efi") }

func hasSuffixFold(name, suffix string) bool {
	return len(name) >= len(suffix) && strings.EqualFold(name[len(name)-len(suffix):], suffix)
}

// companionKinds are in the order in which systemd-stub measures them and hands
// them to the kernel.
var companionKinds = []companionKind{
	{"credentials", false, "", isCredential, 252, ".extra/credentials", 0o500, 0o400, 12},
	{"credentials for every image", true, "loader/credentials", isCredential, 252, ".extra/global_credentials", 0o500, 0o400, 12},
	{"system extensions", false, "", isSysext, 252, ".extra/sysext", 0o555, 0o444, 13},
	{"system extensions for every image", true, "loader/extensions", isSysext, stubGlobalExtensions, ".extra/global_sysext", 0o555, 0o444, 13},
	{"configuration extensions", false, "", isConfext, stubConfexts, ".extra/confext", 0o555, 0o444, 12},
	{"configuration extensions for every image", true, "loader/extensions", isConfext, stubGlobalExtensions, ".extra/global_confext", 0o555, 0o444, 12},
}

// archive is a kind of companions as the kernel gets it.
type archive struct {
	kind  *companionKind
	files []companion
}

// companions are all files that a version of systemd-stub picks up.
type companions struct {
	archives []archive
	addons   []companion // in the order in which they are loaded
}

// companionsOf lists what systemd-stub picks up for the image at a path.
func (p *prediction) companionsOf(uki string, stub int) (*companions, error) {
	found := &companions{}
	if p.fat == nil {
		return found, nil
	}
	beside := uki + ".extra.d"
	listed := map[string][]companion{}
	for _, dir := range []string{beside, "loader/credentials", "loader/extensions", "loader/addons"} {
		files, err := p.companionFiles(dir)
		if err != nil {
			return nil, err
		}
		listed[dir] = files
	}
	for i := range companionKinds {
		kind := &companionKinds[i]
		dir := beside
		if kind.global {
			dir = kind.directory
		}
		if stub < kind.since {
			continue
		}
		a := archive{kind: kind}
		for _, file := range listed[dir] {
			if kind.accepts(file.name) || kind.target == ".extra/sysext" && stub < stubConfexts && isExtension(file.name) {
				a.files = append(a.files, file)
			}
		}
		if len(a.files) > 0 {
			found.archives = append(found.archives, a)
		}
	}
	if stub >= stubAddons {
		for _, dir := range []string{"loader/addons", beside} {
			for _, file := range listed[dir] {
				if isAddon(file.name) {
					found.addons = append(found.addons, file)
				}
			}
		}
	}
	return found, nil
}

// companionFiles lists the files of a directory that systemd-stub looks at,
// sorted by name.
func (p *prediction) companionFiles(dir string) ([]companion, error) {
	entries, err := p.readDir(dir)
	if err != nil {
		return nil, err
	}
	var files []companion
	var total int64
	for _, e := range entries {
		// Clusters belong to one file: what says otherwise would be read without end.
		if total += e.Size; total > p.fat.Capacity() {
			return nil, fmt.Errorf("EFI system partition: the files of %s say that they have %d bytes, more than the file system holds", plain(dir), total)
		}
		const longest = 255 // characters
		if e.IsDir || strings.HasPrefix(e.Name, ".") || len(e.Name) > longest ||
			strings.IndexFunc(e.Name, func(r rune) bool { return r > 0x7f }) >= 0 {
			continue
		}
		if strings.ContainsAny(e.Name, `/\`) {
			return nil, fmt.Errorf("EFI system partition: %s has a file whose name %s is a path", plain(dir), plain(e.Name))
		}
		files = append(files, companion{dir + "/" + e.Name, e.Name})
	}
	slices.SortFunc(files, func(a, b companion) int { return strings.Compare(a.name, b.name) })
	for i := 1; i < len(files); i++ {
		if files[i].name == files[i-1].name {
			return nil, fmt.Errorf("EFI system partition: %s is there twice", plain(files[i].path))
		}
	}
	return files, nil
}

// measureCompanions adds the events of what is handed to the kernel as archives.
func (p *prediction) measureCompanions(found *companions) error {
	for _, a := range found.archives {
		for _, file := range a.files {
			p.result.Companions = append(p.result.Companions, Companion{file.path, a.kind.pcr})
		}
		if !slices.Contains(p.PCRs, a.kind.pcr) {
			continue
		}
		content, size, err := p.openArchive(a)
		if err != nil {
			return err
		}
		names := make([]string, 0, len(a.files))
		for _, file := range a.files {
			names = append(names, plain(file.path))
		}
		event := Event{PCR: a.kind.pcr, Type: EVIPL, Description: a.kind.what + ": " + strings.Join(names, ", ")}
		p.addHashed(event, content, size, "EFI system partition: read "+a.kind.what)
	}
	return nil
}

// openArchive returns an archive's content and its size in bytes.
func (p *prediction) openArchive(a archive) (io.Reader, int64, error) {
	var members []cpioMember
	for _, companion := range a.files {
		file, err := p.fat.Open(companion.path)
		if err != nil {
			return nil, 0, fmt.Errorf("EFI system partition: %w", err)
		}
		members = append(members, cpioMember{companion.name, file, file.Size()})
	}
	content, size := cpioArchive(a.kind.target, a.kind.dirMode, a.kind.accessMode, members...)
	return content, size, nil
}

// addon is a PE image whose sections systemd-stub adds to those of a unified
// kernel image.
type addon struct {
	name          string // of its file
	path          string
	image         *efi.Image
	commandLine   string
	initrd, ucode *efi.Section
}

// loadAddons adds the events of loading each add-on, and returns those that are
// not passed over.
func (p *prediction) loadAddons(u *unified) ([]addon, error) {
	if len(u.companions.addons) == 0 {
		return nil, nil
	}
	var uname []byte
	if section, ok := u.section(".uname"); ok {
		var err error
		if uname, err = smallSection(u.image, section); err != nil {
			return nil, fmt.Errorf("%s: %w", u.shown, err)
		}
	}
	var addons []addon
	for _, file := range u.companions.addons {
		a, err := p.loadAddon(file, u.stub)
		if err != nil {
			return nil, p.refuseAddon(file, err)
		}
		if section, ok := a.image.Section(".uname"); ok && uname != nil {
			wanted, err := smallSection(a.image, section)
			if err != nil {
				return nil, p.refuseAddon(file, err)
			}
			if !sameKernel(uname, wanted) {
				continue
			}
		}
		if a.commandLine != "" || a.initrd != nil || a.ucode != nil {
			addons = append(addons, *a)
		}
	}
	if len(addons) > 1 && u.stub < stubInitrdAddons {
		return nil, fmt.Errorf("PCR 12 cannot be predicted: releases of systemd-stub %d measure several add-ons in different ways (%s and %s): leave one", u.stub, plain(addons[0].path), plain(addons[1].path))
	}
	return addons, nil
}

// refuseAddon names the PCR that an add-on makes unpredictable.
func (p *prediction) refuseAddon(file companion, err error) error {
	for _, pcr := range []int{4, 7, 9, 12} {
		if slices.Contains(p.PCRs, pcr) {
			return fmt.Errorf("PCR %d cannot be predicted: add-on %s on the EFI system partition: %w", pcr, plain(file.path), err)
		}
	}
	return fmt.Errorf("add-on %s on the EFI system partition: %w", plain(file.path), err)
}

// smallSection reads a section of a few bytes that counts as a string.
func smallSection(image *efi.Image, section efi.Section) ([]byte, error) {
	const limit = 64 << 10
	if section.VirtualSize > limit {
		return nil, fmt.Errorf("section %s has %d bytes, more than the %d that are read", section.Name, section.VirtualSize, limit)
	}
	content := make([]byte, section.VirtualSize)
	if _, err := image.Content(section).ReadAt(content, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read section %s: %w", section.Name, err)
	}
	return content, nil
}

// sameKernel says whether an add-on is meant for a kernel: systemd-stub compares
// as many characters as the add-on has, up to a NUL.
func sameKernel(uname, wanted []byte) bool {
	for i, w := range wanted {
		var u byte
		if i < len(uname) {
			u = uname[i]
		}
		if u != w {
			return false
		}
		if u == 0 {
			return true
		}
	}
	return true
}

func (p *prediction) loadAddon(c companion, stub int) (*addon, error) {
	file, err := p.fat.Open(c.path)
	if err != nil {
		return nil, err
	}
	image, err := efi.ParseImage(file, file.Size())
	if err != nil {
		return nil, err
	}
	shown := plain(c.path)
	if err := p.checkArchitecture(shown, image); err != nil {
		return nil, err
	}
	for _, name := range []string{".linux", ".dtb", ".dtbauto", ".efifw", ".profile"} {
		if _, found := image.Section(name); found {
			return nil, fmt.Errorf("it has a section %s, and what systemd-stub makes of that is not predicted", name)
		}
	}
	a := &addon{name: c.name, path: c.path, image: image}
	for _, name := range []string{".cmdline", ".uname", ".initrd", ".ucode"} {
		n := countSections(image, name)
		if n == 0 {
			continue
		}
		section, _ := image.Section(name)
		if n > 1 || section.VirtualSize == 0 {
			return nil, fmt.Errorf("it has %d sections %s, or an empty one", n, name)
		}
		if err := checkPadding(shown, section); err != nil {
			return nil, err
		}
		switch name {
		case ".cmdline":
			if a.commandLine, err = commandLine(image, section); err != nil {
				return nil, err
			}
		case ".initrd":
			a.initrd = &section
		case ".ucode":
			a.ucode = &section
		}
	}
	if (a.initrd != nil || a.ucode != nil) && stub < stubInitrdAddons {
		return nil, fmt.Errorf("it has an initrd or microcode, which systemd-stub uses from %d on, and this is %d", stubInitrdAddons, stub)
	}
	err = p.loadImage(shown, image, 0, func(err error) error {
		if reason, ok := errors.AsType[deniedError](err); ok {
			err = fmt.Errorf("with these Secure Boot variables firmware does not let it run: %s", string(reason))
		}
		return p.refuseAddon(c, err)
	})
	if err != nil {
		return nil, err
	}
	p.result.Images[len(p.result.Images)-1].Addon = true
	return a, nil
}

// measureAddons adds the event of the command lines of all add-ons, which
// systemd-stub joins, and returns them.
func (p *prediction) measureAddons(addons []addon) string {
	var lines []string
	for _, a := range addons {
		if a.commandLine != "" {
			lines = append(lines, a.commandLine)
		}
	}
	joined := strings.Join(lines, " ")
	if joined != "" {
		p.passOptions(encodeUTF16(joined), "command line of add-ons")
	}
	return joined
}

// Tags of the events of add-ons (systemd, tpm2-pcr.h).
const (
	tagInitrdAddon = 0x49dffe0f
	tagUcodeAddon  = 0xdac08e1a
)

// measureAddonInitrds adds the events of microcode, in reverse since the kernel
// takes the first that it finds, and of initrds.
func (p *prediction) measureAddonInitrds(addons []addon) {
	if !slices.Contains(p.PCRs, 12) {
		return
	}
	add := func(a addon, section *efi.Section, tag uint32) {
		if section != nil {
			what := section.Name + " of " + plain(a.path)
			event := Event{PCR: 12, Type: EVEventTag, Description: what, Data: taggedEvent16(tag, a.name)}
			p.addHashed(event, a.image.Content(*section), int64(section.VirtualSize), "read "+what)
		}
	}
	for _, a := range slices.Backward(addons) {
		add(a, a.ucode, tagUcodeAddon)
	}
	for _, a := range addons {
		add(a, a.initrd, tagInitrdAddon)
	}
}
