package efi

import (
	"fmt"
	"strconv"
	"strings"
)

// MeasuredSections lists the sections of a unified kernel image that
// systemd-stub measures into PCR 11, in the order in which it does, as the UKI
// specification fixes it. A section is known only from the version of
// systemd-stub given here; an older stub passes over it.
var MeasuredSections = []struct {
	Name  string
	Since int // version of systemd-stub
}{
	{".linux", 252},
	{".osrel", 252},
	{".cmdline", 252},
	{".initrd", 252},
	{".ucode", 256},
	{".splash", 252},
	{".dtb", 252},
	{".uname", 254},
	{".sbat", 254},
	{".pcrpkey", 252},
	{".profile", 257},
	{".dtbauto", 257},
	{".hwids", 257},
	{".efifw", 258},
}

// StubVersion returns the major version of the systemd-stub that an image was
// made with, from its .sdmagic section ("#### LoaderInfo: systemd-stub
// 257.13-1 ####"). The stub of Amazon Linux 2023 for aarch64 has none: its
// .osrel then stands for version 252. ok is false when the image has no
// systemd-stub.
func (i *Image) StubVersion() (version int, ok bool, err error) {
	if magic, found := i.Section(".sdmagic"); found {
		content, err := i.sectionBytes(magic, 4096)
		if err != nil {
			return 0, false, err
		}
		_, rest, found := strings.Cut(string(content), "LoaderInfo: systemd-stub ")
		if !found {
			return 0, false, nil
		}
		digits := rest[:len(rest)-len(strings.TrimLeft(rest, "0123456789"))]
		version, err := strconv.Atoi(digits)
		if err != nil {
			return 0, false, fmt.Errorf("read version of systemd-stub from .sdmagic: %q has none", rest[:min(len(rest), 40)])
		}
		return version, true, nil
	}
	if _, found := i.Section(".linux"); !found {
		return 0, false, nil
	}
	osrel, found := i.Section(".osrel")
	if !found {
		return 0, false, nil
	}
	content, err := i.sectionBytes(osrel, 64<<10)
	if err != nil {
		return 0, false, err
	}
	fields := map[string]string{}
	for line := range strings.Lines(strings.TrimRight(string(content), "\x00")) {
		if key, value, found := strings.Cut(strings.TrimSpace(line), "="); found {
			fields[key] = strings.Trim(value, `"'`)
		}
	}
	if fields["NAME"] == "Amazon Linux" && fields["VERSION"] == "2023" && i.Machine == MachineAArch64 {
		return 252, true, nil
	}
	return 0, false, nil
}

// BootLoader returns what an image that is no unified kernel image calls itself
// in its .sdmagic section, such as "systemd-boot 257.13-1".
func (i *Image) BootLoader() (name string, ok bool) {
	magic, found := i.Section(".sdmagic")
	if !found {
		return "", false
	}
	content, err := i.sectionBytes(magic, 4096)
	if err != nil {
		return "", false
	}
	_, rest, found := strings.Cut(string(content), "LoaderInfo: ")
	name, _, _ = strings.Cut(rest, " ####")
	return name, found && !strings.HasPrefix(name, "systemd-stub")
}
