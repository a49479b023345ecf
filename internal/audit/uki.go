package audit

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/efi"
)

// ukiAudit is what the audit of the root file system asks about the unified
// kernel image that starts it.
type ukiAudit struct {
	at     place // of the image
	words  []string
	initrd *initrd // nil when it could not be read

	verified               bool   // a root hash comes from the image
	verityData, verityHash string // device specifications, "" when they are not said
	serial                 bool   // there is a serial console
}

// in is the place of something inside the image.
func (u *ukiAudit) in(part string) place {
	return place{partition: u.at.partition, path: u.at.path + "#" + part}
}

// uki looks at a unified kernel image: every command line in it, and the initrd.
func (a *auditor) uki(esp *disk.Partition, name string, image *efi.Image) {
	u := &ukiAudit{at: place{partition: esp.Number, path: name}}
	a.ukis = append(a.ukis, u)
	a.report.Audited = append(a.report.Audited, Audited{Partition: esp.Number, Path: name, Kind: "UKI"})
	a.readInitrd(u, image)
	found := false
	for _, section := range image.Sections {
		if section.Name != ".cmdline" {
			continue
		}
		found = true
		words, err := sectionWords(image, section)
		if err != nil {
			a.add("file-not-read", u.in(".cmdline"), "%v", err)
			continue
		}
		u.words = append(u.words, words...)
		a.commandLine(u, words)
	}
	if !found {
		a.add("command-line-not-in-uki", u.at, "it has no section .cmdline")
	}
	a.verityOptions(u)
}

func sectionWords(image *efi.Image, section efi.Section) ([]string, error) {
	if section.VirtualSize > maxCommandLine {
		return nil, fmt.Errorf("its command line has %d bytes", section.VirtualSize)
	}
	content := make([]byte, section.VirtualSize)
	if n, err := image.Content(section).ReadAt(content, 0); n < len(content) {
		return nil, fmt.Errorf("read its command line: %w", err)
	}
	text, _, _ := strings.Cut(string(content), "\x00")
	return commandLineWords(text), nil
}

// commandLineWords divides a kernel command line as the kernel does: double
// quotes keep spaces.
func commandLineWords(text string) []string {
	quoted := false
	return strings.FieldsFunc(text, func(r rune) bool {
		if r == '"' {
			quoted = !quoted
		}
		return !quoted && (r == ' ' || r == '\t' || r == '\n' || r == '\r')
	})
}

// isOn reads a boolean option: present says that it is on the command line; a
// name without a value is true.
func isOn(words []string, name string) (on, present bool) {
	for _, word := range words {
		key, value, _ := strings.Cut(strings.ReplaceAll(word, `"`, ""), "=")
		if strings.ReplaceAll(key, "-", "_") != strings.ReplaceAll(name, "-", "_") {
			continue
		}
		present = true
		on = !slices.Contains([]string{"0", "no", "n", "false", "f", "off"}, strings.ToLower(value))
	}
	return on, present
}

// knownInits are programs that init= may name.
var knownInits = []string{"/sbin/init", "/usr/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd", "/bin/systemd"}

// commandLine looks at a kernel command line.
func (a *auditor) commandLine(u *ukiAudit, words []string) {
	at := u.in(".cmdline")
	for _, word := range words {
		key, value, _ := strings.Cut(strings.ReplaceAll(word, `"`, ""), "=")
		switch key {
		case "init":
			if !slices.Contains(knownInits, value) {
				a.add("init-override", at, "%s", word)
			}
		case "rdinit":
			if value != "/init" {
				a.add("init-override", at, "%s", word)
			}
		case "single", "s", "S", "1", "rescue", "emergency", "rd.rescue", "-b":
			a.add("rescue-target", at, "%s", word)
		case "systemd.unit", "rd.systemd.unit":
			if strings.HasPrefix(value, "rescue.") || strings.HasPrefix(value, "emergency.") {
				a.add("rescue-target", at, "%s", word)
			}
		case "console":
			device, _, _ := strings.Cut(value, ",")
			if strings.HasPrefix(device, "ttyS") || strings.HasPrefix(device, "ttyAMA") || strings.HasPrefix(device, "hvc") || strings.HasPrefix(device, "ttyUSB") {
				u.serial = true
				a.add("serial-console", at, "%s", word)
			}
		case "rd.break":
			a.add("initrd-break", at, "%s", word)
		case "nopti", "nospectre_v1", "nospectre_v2", "nospec_store_bypass_disable":
			a.add("mitigations-off", at, "%s", word)
		case "mitigations", "spectre_v2", "mds", "pti", "l1tf":
			if value == "off" {
				a.add("mitigations-off", at, "%s", word)
			}
		case "systemd.set_credential", "systemd.set_credential_binary":
			if loginCredential(value) {
				a.add("login-credential", at, "%s", word)
			}
		case "verityroot", "rd.kiwi.verityroot":
			if _, ok := option(words, "roothash"); !ok {
				a.add("verity-hash-unmeasured", at, "%s, and no roothash=", word)
			}
		}
	}
	for _, name := range []string{"systemd.debug_shell", "rd.systemd.debug_shell"} {
		if on, _ := isOn(words, name); on {
			a.add("debug-shell-enabled", at, "%s is on", name)
		}
	}
	lockdown, _ := option(words, "lockdown")
	if lockdown != "integrity" && lockdown != "confidentiality" {
		a.add("no-lockdown", at, "there is no lockdown=integrity or lockdown=confidentiality")
		if on, _ := isOn(words, "module.sig_enforce"); !on {
			a.add("modules-not-enforced", at, "there is neither module.sig_enforce=1 nor lockdown=")
		}
	}
	if on, present := isOn(words, "systemd.gpt_auto"); on || !present {
		a.add("gpt-auto", at, "there is no systemd.gpt_auto=0")
	}
	if on, present := isOn(words, "systemd.import_credentials"); on || !present {
		a.add("credentials-imported", at, "there is no systemd.import_credentials=no")
	}
	if u.initrd != nil {
		if _, dracut := u.initrd.has("usr/lib/dracut-lib.sh", "lib/dracut-lib.sh", "usr/lib/dracut", "usr/bin/dracut-emergency", "bin/dracut-emergency"); dracut {
			if on, present := isOn(words, "rd.shell"); on || !present {
				a.add("initrd-shell", at, "there is no rd.shell=0, and the initrd is dracut's")
			}
		}
	}
}

// loginCredential reports whether the name of a credential, which value begins
// with, is one that lets somebody in (systemd.system-credentials(7)).
func loginCredential(value string) bool {
	name, _, _ := strings.Cut(value, ":")
	for _, prefix := range []string{"passwd.", "ssh.authorized_keys", "login.", "agetty.autologin", "getty.auto", "systemd.extra-unit.", "systemd.unit-dropin.", "sysusers.extra"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// maxInitrd bounds the sections that an initrd is read from, in bytes.
const maxInitrd = 1 << 30

// readInitrd reads the initrd and looks at it.
func (a *auditor) readInitrd(u *ukiAudit, image *efi.Image) {
	section, ok := image.Section(".initrd")
	if !ok {
		return
	}
	at := u.in(".initrd")
	if section.VirtualSize > maxInitrd {
		a.add("initrd-not-read", at, "it has %d bytes", section.VirtualSize)
		return
	}
	content := image.Content(section)
	rd, err := readInitrd(content, content.Size())
	if err != nil {
		a.add("initrd-not-read", at, "%v", err)
		return
	}
	u.initrd = rd
	a.report.Audited = append(a.report.Audited, Audited{Partition: u.at.partition, Path: at.path, Kind: "initrd", Files: len(rd.files)})
	tpm := "without libtss2, so that it will do nothing"
	for name := range rd.files {
		if strings.HasPrefix(path.Base(name), "libtss2-esys.so") {
			tpm = "with libtss2"
		}
	}
	for unit, id := range map[string]string{"systemd-pcrosseparator.service": "initrd-pcr-separator", "systemd-pcrphase-initrd.service": "initrd-pcr-phase"} {
		for _, name := range rd.pulls(unit) {
			a.add(id, u.in(".initrd/"+name), "%s starts it, %s", path.Dir(name), tpm)
		}
	}
	if name, found := rd.has("usr/sbin/sshd", "sbin/sshd", "usr/bin/sshd", "usr/sbin/dropbear", "bin/dropbear", "usr/bin/dropbear", "sbin/dropbear", "usr/sbin/telnetd"); found {
		a.add("initrd-remote-access", u.in(".initrd/"+name), "it is there")
	}
	for _, name := range []string{"etc/shadow", "etc/passwd"} {
		file, err := rd.file(name)
		if err != nil {
			continue
		}
		for _, account := range accounts(file.content) {
			if account.open() || account.hash() {
				p := u.in(".initrd/" + name)
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
	slices.Sort(found)
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
	if hash, ok := option(u.words, "roothash"); ok && hash != "" {
		on, present := isOn(u.words, "systemd.verity")
		rdOn, rdPresent := isOn(u.words, "rd.systemd.verity")
		if present && !on || rdPresent && !rdOn {
			a.add("root-not-verified", u.in(".cmdline"), "systemd.verity is off")
		} else {
			u.verified = true
			u.verityData, _ = option(u.words, "systemd.verity_root_data")
			u.verityHash, _ = option(u.words, "systemd.verity_root_hash")
			options, _ := option(u.words, "systemd.verity_root_options")
			sources = append(sources, source{u.in(".cmdline"), options})
		}
	}
	kiwi, _ := option(u.words, "rd.kiwi.verity_options")
	if u.initrd != nil {
		file, err := u.initrd.file("etc/veritytab")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			a.add("initrd-not-read", u.in(".initrd/etc/veritytab"), "%v", err)
		}
		number := 0
		for line := range strings.Lines(string(file.content)) {
			number++
			fields := strings.Fields(line)
			if len(fields) < 4 || strings.HasPrefix(fields[0], "#") {
				continue
			}
			at := u.in(".initrd/etc/veritytab")
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
	if root, ok := option(u.words, "root"); ok && u.verified && aroundVerity(root) {
		a.add("root-not-verified", u.in(".cmdline"), "root=%.100s does not name the device that verity makes", root)
	}
	for _, s := range sources {
		options := strings.Split(s.options, ",")
		switch {
		case slices.Contains(options, "ignore-corruption"):
			a.add("verity-ignores-corruption", s.at, "verity's options are %q", s.options)
		case !slices.Contains(options, "panic-on-corruption") && !slices.Contains(options, "restart-on-corruption"):
			a.add("verity-without-panic", s.at, "verity's options are %q", s.options)
		}
	}
}

// aroundVerity reports whether root= leads, or may lead, to a partition itself
// instead of the device that verity makes of it. The file system's UUID and label
// are the same on both.
func aroundVerity(root string) bool {
	root = strings.TrimPrefix(strings.TrimPrefix(root, "overlay:"), "block:")
	for _, device := range []string{"/dev/mapper/", "/dev/dm-", "/dev/gpt-auto-root", "/dev/disk/by-id/dm-"} {
		if strings.HasPrefix(root, device) {
			return false
		}
	}
	for _, partition := range []string{"/dev/", "UUID=", "LABEL=", "PARTUUID=", "PARTLABEL="} {
		if strings.HasPrefix(root, partition) {
			return true
		}
	}
	return false
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
