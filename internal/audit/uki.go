package audit

import (
	"cmp"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/efi"
)

// ukiAudit is what the audit of the root file system asks about the unified
// kernel image that starts it.
type ukiAudit struct {
	at     place   // of the image
	line   line    // its own and that of add-ons behind it
	initrd *initrd // nil when there is none
	parts  []place // of the initrd

	initrdWords []string // what the initrd adds to the command line

	verified               bool   // a root hash comes from the image
	verityData, verityHash string // device specifications, "" when they are not said
	serial                 bool   // there is a serial console
	wants                  []wanted
	sshListen              bool // systemd.ssh_listen=
}

// wanted is a unit that a kernel command line starts.
type wanted struct {
	unit string
	at   place
}

// in is the place of something inside the image.
func (u *ukiAudit) in(part string) place {
	return place{partition: u.at.partition, path: u.at.path + "#" + part}
}

// inInitrd is the place of a file of the initrd, in the part that it comes from.
func (u *ukiAudit) inInitrd(name string) place {
	at := u.parts[0]
	if file, ok := u.initrd.files[name]; ok {
		at = u.parts[file.part]
	} else if file, err := u.initrd.file(name); err == nil {
		at = u.parts[file.part]
	}
	at.path += "/" + name
	return at
}

// uki looks at a unified kernel image: every command line in it, and the initrd,
// of the profile that boots when nothing chooses another. What another profile
// would add is one finding.
func (a *auditor) uki(esp *disk.Partition, name string, image *efi.Image) {
	stub, _, err := image.StubVersion()
	if err != nil {
		a.add("file-not-read", place{partition: esp.Number, path: name}, "%v", err)
	}
	a.report.Audited = append(a.report.Audited, Audited{Partition: esp.Number, Path: name, Kind: "UKI"})
	sections, profiles := profileSections(image.Sections, stub, 0)
	u := &ukiAudit{at: place{partition: esp.Number, path: name}}
	a.ukis = append(a.ukis, u)
	from := len(a.report.Findings)
	a.profile(u, image, sections)
	usual := map[string]bool{}
	for _, f := range a.report.Findings[from:] {
		usual[f.ID] = true
	}
	for n := 1; n < profiles; n++ {
		other := &auditor{ctx: a.ctx, disk: a.disk, options: a.options, addons: a.addons, report: &Report{}}
		sections, _ := profileSections(image.Sections, stub, n)
		v := &ukiAudit{at: u.at}
		other.profile(v, image, sections)
		var more []string
		for _, f := range other.report.Findings {
			if !usual[f.ID] && !slices.Contains(more, f.ID) {
				more = append(more, f.ID)
			}
		}
		if u.verified && !v.verified {
			more = append(more, "root-not-verified")
		}
		detail := "it has the weaknesses of the first one"
		if len(more) > 0 {
			detail = "it would be reported for " + strings.Join(more, ", ")
		}
		a.add("uki-profile", u.in(fmt.Sprintf(".profile@%d", n)), "%s", detail)
	}
}

// stubProfiles is the version of systemd-stub that knows of several profiles.
const stubProfiles = 257

// maxProfiles bounds the profiles that are looked at.
const maxProfiles = 64

// profileSections are the sections that count in a profile, and how many profiles
// there are (UAPI group, UKI specification, "Multi-profile UKIs"): those before
// the first .profile section, each but replaced by those of the same name behind
// the profile's own. Several of one name stay.
func profileSections(all []efi.Section, stub, number int) (sections []efi.Section, profiles int) {
	if stub < stubProfiles {
		return all, 1
	}
	var base, own []efi.Section
	for _, s := range all {
		if s.Name == ".profile" {
			profiles++
		}
		switch profiles {
		case 0:
			base = append(base, s)
		case number + 1:
			own = append(own, s)
		}
	}
	for _, s := range base {
		if !slices.ContainsFunc(own, func(o efi.Section) bool { return o.Name == s.Name }) {
			sections = append(sections, s)
		}
	}
	return append(sections, own...), min(max(profiles, 1), maxProfiles)
}

// profile looks at a profile of a unified kernel image.
func (a *auditor) profile(u *ukiAudit, image *efi.Image, sections []efi.Section) {
	a.readInitrd(u, image, sections)
	found := false
	var texts []string
	for _, section := range sections {
		if section.Name != ".cmdline" {
			continue
		}
		found = true
		text, err := sectionText(image, section)
		if err != nil {
			a.add("file-not-read", u.in(".cmdline"), "%v", err)
			continue
		}
		texts = append(texts, text)
		l := parseLine(text)
		a.commandLine(u.in(".cmdline"), u, l.words)
		a.absent(u, l)
	}
	// An add-on's comes behind the image's own.
	for _, add := range a.addons {
		texts = append(texts, add.text)
		a.commandLine(add.in(".cmdline"), u, commandLineWords(add.text))
	}
	u.line = parseLine(strings.Join(texts, " "))
	if !found {
		a.add("command-line-not-in-uki", u.at, "it has no section .cmdline")
	}
	a.verityOptions(u)
}

// foundUKI is an image with a kernel on the EFI system partition.
type foundUKI struct {
	name  string
	image *efi.Image
}

// foundAddon is an add-on, whose command line and initrd come behind the image's
// own, and whose microcode in front of it.
type foundAddon struct {
	at    place
	image *efi.Image
	text  string // command line
}

func (f foundAddon) in(part string) place {
	return place{partition: f.at.partition, path: f.at.path + "#" + part}
}

// addon reads an add-on.
func (a *auditor) addon(at place, file *disk.File) {
	image, err := efi.ParseImage(file, file.Size())
	if err == nil {
		var text string
		if text, err = commandLine(image); err == nil {
			a.addons = append(a.addons, foundAddon{at, image, text})
			return
		}
	}
	a.add("file-not-read", at, "%v", err)
}

// sortAddons puts add-ons into the order in which systemd-stub takes them.
func (a *auditor) sortAddons() {
	key := func(f foundAddon) (int, string) {
		if strings.HasPrefix(strings.ToLower(f.at.path), "loader/") {
			return 0, path.Base(f.at.path)
		}
		return 1, path.Base(f.at.path)
	}
	slices.SortStableFunc(a.addons, func(x, y foundAddon) int {
		i, p := key(x)
		j, q := key(y)
		return cmp.Or(cmp.Compare(i, j), strings.Compare(p, q))
	})
}

func sectionText(image *efi.Image, section efi.Section) (string, error) {
	if section.VirtualSize > maxCommandLine {
		return "", fmt.Errorf("its command line has %d bytes", section.VirtualSize)
	}
	content := make([]byte, section.VirtualSize)
	if n, err := image.Content(section).ReadAt(content, 0); n < len(content) {
		return "", fmt.Errorf("read its command line: %w", err)
	}
	text, _, _ := strings.Cut(string(content), "\x00")
	return text, nil
}

// maxInitrd bounds the sections that an initrd is read from, in bytes.
const maxInitrd = 1 << 30

// readInitrd unpacks what the kernel gets as initrd, and looks at it: microcode of
// add-ons and of the image, which the kernel unpacks, too, then the image's initrd,
// then those of add-ons. What systemd-stub wraps for user space in between lies in
// a directory of its own, which it makes anew.
func (a *auditor) readInitrd(u *ukiAudit, image *efi.Image, sections []efi.Section) {
	var parts []initrdPart
	add := func(image *efi.Image, section efi.Section, at place) {
		if section.VirtualSize > maxInitrd {
			a.add("initrd-not-read", at, "it has %d bytes", section.VirtualSize)
			return
		}
		content := image.Content(section)
		parts, u.parts = append(parts, initrdPart{content, content.Size()}), append(u.parts, at)
	}
	own := func(image *efi.Image, sections []efi.Section, name string, at place) {
		for _, section := range sections {
			if section.Name == name {
				add(image, section, at)
			}
		}
	}
	for _, f := range slices.Backward(a.addons) {
		own(f.image, f.image.Sections, ".ucode", f.in(".ucode"))
	}
	own(image, sections, ".ucode", u.in(".ucode"))
	own(image, sections, ".initrd", u.in(".initrd"))
	for _, f := range a.addons {
		own(f.image, f.image.Sections, ".initrd", f.in(".initrd"))
	}
	if len(parts) == 0 {
		return
	}
	at := u.in(".initrd")
	rd, err := readInitrd(parts...)
	if err != nil {
		a.add("initrd-not-read", at, "%v", err)
	}
	u.initrd = rd
	if config, err := bootConfigWords(rd.config); err != nil {
		a.add("initrd-not-read", u.in(".initrd#BOOTCONFIG"), "%v", err)
	} else if len(config) > 0 {
		u.initrdWords = append(u.initrdWords, config...)
		a.commandLine(u.in(".initrd#BOOTCONFIG"), u, config)
	}
	a.report.Audited = append(a.report.Audited, Audited{Partition: u.at.partition, Path: at.path, Kind: "initrd", Files: rd.count()})
	tpm := "without libtss2, so that it will do nothing"
	for name := range rd.files {
		if strings.HasPrefix(path.Base(name), "libtss2-esys.so") {
			tpm = "with libtss2"
		}
	}
	for unit, id := range map[string]string{"systemd-pcrosseparator.service": "initrd-pcr-separator", "systemd-pcrphase-initrd.service": "initrd-pcr-phase"} {
		for _, name := range rd.pulls(unit) {
			a.add(id, u.inInitrd(name), "%s starts it, %s", path.Dir(name), tpm)
		}
	}
	a.initrdFiles(u)
	for _, name := range []string{"etc/shadow", "etc/passwd"} {
		content := a.initrdText(u, name, nil)
		for _, account := range accounts(content) {
			if account.open() || account.hash() {
				p := u.inInitrd(name)
				p.line = account.line
				a.add("initrd-password", p, "the account %.40q", account.name)
			}
		}
	}
}

// pulls returns the links in an initrd that start a unit and are no masks.
func (rd *initrd) pulls(unit string) []string {
	for _, dir := range unitDirectories {
		if file, ok := rd.files[path.Join(dir, unit)]; ok && string(file.content) == "/dev/null" {
			return nil
		}
	}
	var found []string
	for name := range rd.files {
		dir := path.Dir(name)
		if path.Base(name) == unit && (strings.HasSuffix(dir, ".wants") || strings.HasSuffix(dir, ".requires")) {
			found = append(found, name)
		}
	}
	rank := func(name string) int {
		if rd.files[name].alias {
			return 1
		}
		return 0
	}
	slices.SortFunc(found, func(x, y string) int { return cmp.Or(cmp.Compare(rank(x), rank(y)), strings.Compare(x, y)) })
	return found[:min(len(found), 1)]
}

// verityOptions finds out whether the image makes the kernel verify the root,
// from the command line or the initrd's veritytab, and how strictly.
func (a *auditor) verityOptions(u *ukiAudit) {
	type source struct {
		at      place
		options string
	}
	var sources []source
	if hash, ok := option(u.line.systemd, "roothash"); ok && hash != "" {
		on, present := isOn(u.line.systemd, "systemd.verity")
		rdOn, rdPresent := isOn(u.line.systemd, "rd.systemd.verity")
		if present && !on || rdPresent && !rdOn {
			a.add("root-not-verified", u.in(".cmdline"), "systemd.verity is off")
		} else {
			u.verified = true
			u.verityData, _ = option(u.line.systemd, "systemd.verity_root_data")
			u.verityHash, _ = option(u.line.systemd, "systemd.verity_root_hash")
			options, _ := option(u.line.systemd, "systemd.verity_root_options")
			sources = append(sources, source{u.in(".cmdline"), options})
		}
	}
	kiwi, _ := option(u.line.systemd, "rd.kiwi.verity_options")
	if u.initrd != nil {
		content := a.initrdText(u, "etc/veritytab", nil)
		number := 0
		for line := range strings.Lines(string(content)) {
			number++
			fields := strings.Fields(line)
			if len(fields) < 4 || strings.HasPrefix(fields[0], "#") {
				continue
			}
			at := u.inInitrd("etc/veritytab")
			at.line = number
			u.verified = true
			u.verityData, u.verityHash = fields[1], fields[2]
			options := kiwi
			if len(fields) > 4 {
				options += "," + fields[4]
			}
			sources = append(sources, source{at, options})
		}
	}
	// dracut reads what lies in the initrd before the command line.
	if root, ok := option(append(slices.Clone(u.initrdWords), u.line.systemd...), "root"); ok && u.verified && aroundVerity(root) {
		a.add("root-not-verified", u.in(".cmdline"), "root=%.100s does not name the device that verity makes", root)
	}
	if usr, ok := option(u.line.systemd, "mount.usr"); ok && aroundVerity(usr) {
		a.add("root-not-verified", u.in(".cmdline"), "mount.usr=%.100s does not name a device that verity makes", usr)
	}
	for _, s := range sources {
		options := strings.Split(s.options, ",")
		switch {
		case slices.Contains(options, "ignore-corruption"):
			a.add("verity-ignores-corruption", s.at, "verity's options are %q", s.options)
		case slices.Contains(options, "check-at-most-once"):
			a.add("verity-checks-once", s.at, "verity's options are %q", s.options)
		case !slices.Contains(options, "panic-on-corruption") && !slices.Contains(options, "restart-on-corruption"):
			a.add("verity-without-panic", s.at, "verity's options are %q", s.options)
		}
	}
}

// verity reports a root file system that nothing verifies.
func (a *auditor) verity(all []*partition) {
	roots := 0
	for _, p := range all {
		if p.root {
			roots++
		}
	}
	for _, p := range all {
		if !p.root {
			continue
		}
		covered := slices.ContainsFunc(a.ukis, func(u *ukiAudit) bool {
			return u.verified && (roots == 1 || namesPartition(u.verityData, p))
		})
		if !covered {
			a.add("root-not-verified", place{partition: p.Number},
				"no root hash on the kernel command line or in the initrd's veritytab stands for this %s file system", p.kind)
		}
		for _, u := range a.ukis {
			if covered && !u.verified && len(a.ukis) > 1 {
				a.add("root-not-verified", u.at, "this image on the EFI system partition starts the system without verity")
			}
		}
	}
}

// account is a line of passwd or shadow.
type account struct {
	name, password string
	uid            string // passwd only
	home           string
	line           int
}

// open reports whether no password is needed.
func (c account) open() bool { return c.password == "" }

// hash reports whether there is a password.
func (c account) hash() bool {
	return c.password != "" && c.password != "x" && !strings.HasPrefix(c.password, "!") && !strings.HasPrefix(c.password, "*")
}

// accounts reads passwd or shadow.
func accounts(content []byte) []account {
	var found []account
	number := 0
	for line := range strings.Lines(string(content)) {
		number++
		fields := strings.Split(strings.TrimRight(line, "\r\n"), ":")
		if len(fields) < 2 || fields[0] == "" || strings.HasPrefix(fields[0], "#") {
			continue
		}
		c := account{name: fields[0], password: fields[1], line: number}
		if len(fields) == 7 {
			c.uid, c.home = fields[2], fields[5]
		}
		found = append(found, c)
	}
	return found
}

// readLimited reads all of r, which must not have more than limit bytes.
func readLimited(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("it has more than the %d bytes expected", limit)
	}
	return b, err
}
