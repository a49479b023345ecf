package vm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/org/attestable-image-action/internal/strictjson"
)

// Firmware is UEFI firmware for QEMU: two raw flash images, code and the
// template of the variable store.
type Firmware struct {
	Code string
	Vars string
	// SMM says that the code protects its variables with system management
	// mode, for which the machine needs flash that only SMM may write.
	SMM bool
}

// descriptorDirs hold QEMU's firmware descriptors, the first one counts
// (docs/interop/firmware.json of QEMU).
var descriptorDirs = []string{"/etc/qemu/firmware", "/usr/share/qemu/firmware", "/usr/local/share/qemu/firmware"}

// wellKnown are the places of firmware in distributions whose packages have no
// descriptors, or whose descriptors name no raw image.
var wellKnown = map[string][]Firmware{
	"x86_64": {
		{"/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd", true},
		{"/usr/share/OVMF/OVMF_CODE.secboot.fd", "/usr/share/OVMF/OVMF_VARS.fd", true},
		{"/usr/share/edk2/ovmf/OVMF_CODE.secboot.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd", true},
		{"/usr/share/edk2/x64/OVMF_CODE.secboot.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd", true},
		{"/usr/share/qemu/ovmf-x86_64-smm-4m-code.bin", "/usr/share/qemu/ovmf-x86_64-smm-4m-vars.bin", true},
	},
	"aarch64": {
		{"/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd", false},
		{"/usr/share/edk2/aarch64/QEMU_EFI-pflash.raw", "/usr/share/edk2/aarch64/vars-template-pflash.raw", false},
		{"/usr/share/qemu/aavmf-aarch64-code.bin", "/usr/share/qemu/aavmf-aarch64-vars.bin", false},
	},
}

// descriptor is the part of a firmware descriptor that matters here.
type descriptor struct {
	Mapping struct {
		Device     string
		Executable struct{ Filename, Format string }
		Template   struct{ Filename, Format string } `json:"nvram-template"`
	}
	Targets  []struct{ Architecture string }
	Features []string
}

// findFirmware looks for firmware that can enforce Secure Boot and has no keys
// enrolled, so that the same firmware serves with and without it.
func findFirmware(arch string) (Firmware, error) {
	var fallback *Firmware
	for _, d := range descriptors(descriptorDirs) {
		firmware := Firmware{
			Code: d.Mapping.Executable.Filename, Vars: d.Mapping.Template.Filename,
			SMM: slices.Contains(d.Features, "requires-smm"),
		}
		right := slices.ContainsFunc(d.Targets, func(t struct{ Architecture string }) bool { return t.Architecture == arch })
		if !right || d.Mapping.Device != "flash" || d.Mapping.Executable.Format != "raw" || d.Mapping.Template.Format != "raw" ||
			slices.Contains(d.Features, "enrolled-keys") || !firmware.exists() {
			continue
		}
		if slices.Contains(d.Features, "secure-boot") {
			return firmware, nil
		}
		if fallback == nil {
			fallback = &firmware
		}
	}
	for _, firmware := range wellKnown[arch] {
		if firmware.exists() {
			return firmware, nil
		}
	}
	if fallback != nil {
		return *fallback, nil
	}
	return Firmware{}, fmt.Errorf("find UEFI firmware for %s: none is installed; install it (Debian and Ubuntu: %s; Fedora: %s), or name its two files",
		arch, map[string]string{"x86_64": "ovmf", "aarch64": "qemu-efi-aarch64"}[arch], map[string]string{"x86_64": "edk2-ovmf", "aarch64": "edk2-aarch64"}[arch])
}

// exists says whether both files are there.
func (f Firmware) exists() bool {
	for _, path := range []string{f.Code, f.Vars} {
		if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
			return false
		}
	}
	return true
}

// descriptors reads the firmware descriptors in QEMU's order: by file name,
// where a name in an earlier directory hides the same name in a later one. One
// that cannot be read is left out: it is the distribution's, not the user's.
func descriptors(dirs []string) []descriptor {
	byName := map[string]string{}
	for _, dir := range slices.Backward(dirs) {
		paths, _ := filepath.Glob(filepath.Join(dir, "*.json")) // the pattern is well-formed
		for _, path := range paths {
			byName[filepath.Base(path)] = path
		}
	}
	names := make([]string, 0, len(byName))
	for name := range byName {
		names = append(names, name)
	}
	slices.Sort(names)
	var all []descriptor
	for _, name := range names {
		content, err := os.ReadFile(byName[name])
		if err != nil {
			continue
		}
		var d descriptor
		if strictjson.Unmarshal(content, &d) == nil {
			all = append(all, d)
		}
	}
	return all
}

// check completes firmware that the user named.
func (f Firmware) check() (Firmware, error) {
	if (f.Code == "") != (f.Vars == "") {
		return f, errors.New("firmware needs both of its files: the code and the template of the variable store")
	}
	for _, path := range []string{f.Code, f.Vars} {
		if _, err := os.Stat(path); err != nil {
			return f, fmt.Errorf("open firmware: %w", err)
		}
	}
	name := filepath.Base(f.Code)
	f.SMM = strings.Contains(name, "secboot") || strings.Contains(name, "smm") || strings.Contains(name, ".ms.") || strings.Contains(name, "snakeoil")
	return f, nil
}
