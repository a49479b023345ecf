package measure

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/org/attestable-image-action/internal/efi"
)

// unified is a unified kernel image as its systemd-stub sees it.
type unified struct {
	path       string // on the EFI system partition, printable or not
	shown      string // the same, printable
	image      *efi.Image
	stub       int // version of systemd-stub
	sections   []efi.Section
	ambiguous  error // why sections cannot be relied on, if so
	companions *companions
}

// stubProfiles is the version of systemd-stub that knows of several profiles in
// an image.
const stubProfiles = 257

// newUnified finds the sections that count.
func newUnified(path string, image *efi.Image, stub int) (*unified, error) {
	u := &unified{path: path, shown: plain(path), image: image, stub: stub}
	for _, name := range []string{".linux", ".sdmagic"} {
		if n := countSections(image, name); n > 1 {
			return nil, fmt.Errorf("%s has %d sections %s, and which one counts cannot be told", u.shown, n, name)
		}
	}
	for _, s := range image.Sections {
		if slices.Contains(unifiedSections, s.Name) {
			if err := checkPadding(u.shown, s); err != nil {
				return nil, err
			}
		}
	}
	u.sections, u.ambiguous = defaultProfile(image.Sections, stub)
	if _, ok := u.section(".linux"); !ok {
		return nil, fmt.Errorf("%s has its .linux section in a profile that nothing chooses: systemd-stub would start no kernel", u.shown)
	}
	return u, nil
}

// unifiedSections are the names of sections that have a meaning in a unified
// kernel image, measured or not.
var unifiedSections = func() []string {
	names := append(make([]string, 0, 1+len(efi.MeasuredSections)), ".pcrsig")
	for _, s := range efi.MeasuredSections {
		names = append(names, s.Name)
	}
	return names
}()

// defaultProfile picks the sections that count when nothing asks for another
// profile than the first (UAPI group, UKI specification, "Multi-profile UKIs"):
// those before the first .profile section, each replaced by one of the same name
// in the first profile. It says why not when two of a name compete.
func defaultProfile(sections []efi.Section, stub int) ([]efi.Section, error) {
	var chosen []efi.Section
	var ambiguous error
	part, start := 0, 0 // of the part that the loop is in, the place in chosen
	for _, s := range sections {
		if s.Name == ".profile" && stub >= stubProfiles {
			if part++; part > 1 {
				break
			}
			start = len(chosen)
		}
		if !slices.Contains(unifiedSections, s.Name) {
			continue
		}
		at := slices.IndexFunc(chosen, func(other efi.Section) bool { return other.Name == s.Name })
		switch {
		case at < 0:
			chosen = append(chosen, s)
		case at >= start:
			ambiguous = fmt.Errorf("it has several sections %s, of which systemd-stub chooses at boot", s.Name)
		default:
			// Of the base: the profile's takes its place, behind start.
			chosen = append(slices.Delete(chosen, at, at+1), s)
			start--
		}
	}
	return chosen, ambiguous
}

// section returns the section of a name that counts.
func (u *unified) section(name string) (efi.Section, bool) {
	for _, s := range u.sections {
		if s.Name == name {
			return s, true
		}
	}
	return efi.Section{}, false
}

// load adds the events of a PE image that is loaded through LoadImage, and, for
// the last one, of the unified kernel image in it. options are the load options
// that a boot loader hands over, UTF-16LE with a NUL; none when there are none.
func (p *prediction) load(path string, image *efi.Image, last bool, options []byte) error {
	shown := plain(path)
	version, isUKI, err := image.StubVersion()
	if err != nil {
		return fmt.Errorf("%s: %w", shown, err)
	}
	_, hasKernel := image.Section(".linux")
	isUKI = isUKI && hasKernel
	var u *unified
	if isUKI {
		if u, err = newUnified(path, image, version); err != nil {
			return err
		}
	}
	if last && !isUKI {
		return p.notUKI(shown, image, hasKernel)
	}
	if err := p.loadImage(shown, image, version, nil); err != nil {
		return err
	}
	if !last {
		return nil
	}
	return p.startUnified(u, options)
}

// startUnified adds the events of systemd-stub.
func (p *prediction) startUnified(u *unified, options []byte) error {
	for _, pcr := range []int{11, 12, 13} {
		if u.stub < 252 && slices.Contains(p.PCRs, pcr) {
			return fmt.Errorf("PCR %d cannot be predicted: systemd-stub %d in %s is older than 252, which was the first to extend it by the rules that are known", pcr, u.stub, u.shown)
		}
	}
	var err error
	if u.companions, err = p.companionsOf(u.path, u.stub); err != nil {
		return err
	}
	p.passOptions(options, "command line that the boot loader hands over")
	if slices.Contains(p.PCRs, 11) {
		if err := p.measureSections(u); err != nil {
			return err
		}
	}
	// systemd-stub measures the command line again when it uses it.
	if _, own := u.section(".cmdline"); own && p.SecureBoot.Enabled() {
		options = nil
	}
	p.passOptions(options, "command line that systemd-stub takes from the boot loader")
	addons, err := p.loadAddons(u)
	if err != nil {
		return err
	}
	appended := p.measureAddons(addons)
	if err := p.measureCompanions(u.companions); err != nil {
		return err
	}
	p.measureAddonInitrds(addons)
	if err := p.loadKernel(u); err != nil {
		return err
	}
	h := handedOver{options, appended, addons}
	if commandLine, err := u.loadOptions(h); err == nil && u.ambiguous == nil {
		p.result.CommandLine = commandLine
	}
	if slices.Contains(p.PCRs, 9) {
		if err := p.handOver(u, h); err != nil {
			return fmt.Errorf("PCR 9 cannot be predicted: %s: %w", u.shown, err)
		}
	}
	return nil
}

// loadKernel adds the event of the kernel inside a UKI where systemd-stub lets
// firmware load it: below version 252 always, from 252 to 257 with Secure Boot
// off. Since 258 it starts the kernel by itself.
func (p *prediction) loadKernel(u *unified) error {
	if u.stub >= 258 || u.stub >= 252 && p.SecureBoot.Enabled() {
		return nil
	}
	section, _ := u.section(".linux")
	content := u.image.Content(section)
	inner := u.shown + "#.linux"
	kernel, err := efi.ParseImage(content, content.Size())
	if err != nil {
		return fmt.Errorf("%s: %w", inner, err)
	}
	if err := p.checkArchitecture(inner, kernel); err != nil {
		return err
	}
	return p.loadImage(inner, kernel, 0, nil)
}

// maxPadding bounds the zeros, in bytes, by which a measured section may be
// longer in memory than in the file; tools pad to a page at most.
const maxPadding = 1 << 16

func checkPadding(path string, s efi.Section) error {
	if int64(s.VirtualSize) > int64(s.RawSize)+maxPadding {
		return fmt.Errorf("section %s of %s says that %d bytes in the file fill %d bytes in memory, which no tool writes", s.Name, path, s.RawSize, s.VirtualSize)
	}
	return nil
}

// measureSections adds systemd-stub's events: for each section that it
// measures, the name with its NUL, then the content.
func (p *prediction) measureSections(u *unified) error {
	if u.ambiguous != nil {
		return fmt.Errorf("PCR 11 cannot be predicted: %s: %w", u.shown, u.ambiguous)
	}
	var sections []efi.Section
	for _, measured := range efi.MeasuredSections {
		if u.stub < measured.Since {
			continue
		}
		section, ok := u.section(measured.Name)
		switch {
		case !ok:
			continue
		case measured.Name == ".dtbauto" || measured.Name == ".efifw":
			return fmt.Errorf("PCR 11 cannot be predicted: %s has a section %s, of which systemd-stub chooses by the machine", u.shown, measured.Name)
		case section.VirtualSize == 0:
			return fmt.Errorf("PCR 11 cannot be predicted: section %s of %s is empty, and versions of systemd-stub differ in what they do with it", measured.Name, u.shown)
		}
		sections = append(sections, section)
	}
	for _, section := range sections {
		p.add(dataEvent(p.Bank, 11, EVIPL, []byte(section.Name+"\x00"), "name of "+section.Name))
		event := Event{PCR: 11, Type: EVIPL, Description: section.Name + " (" + strconv.FormatUint(uint64(section.VirtualSize), 10) + " bytes)"}
		p.addHashed(event, u.image.Content(section), int64(section.VirtualSize), u.shown+": read section "+section.Name)
	}
	return nil
}
