package hostile

import (
	"bytes"
	"compress/flate"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"fmt"
	"math/big"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/efi"
)

// Vendors of variables.
var (
	// systemdVendor is that of systemd's service manager.
	systemdVendor = efi.MustGUID("8cf2644b-4b0b-428f-9387-6d876050dc67")
	// loaderVendor is that of the Boot Loader Interface (systemd.io/BOOT_LOADER_INTERFACE).
	loaderVendor = efi.MustGUID("4a67b082-0a4c-41cf-b6c7-440b29bb8c4f")
	// crashVendor is LINUX_EFI_CRASH_GUID, of the kernel's efi-pstore.
	crashVendor = efi.MustGUID("cfc8fc79-be2e-4ddc-97f0-9f98bfe298a0")
	// shimVendor is that of shim's variables.
	shimVendor = efi.MustGUID("605dab50-e046-4300-abb6-3dd810dd8b23")
	// capsuleVendor is gEfiCapsuleVendorGuid, presenceVendor that of Tcg2PhysicalPresence.
	capsuleVendor  = efi.MustGUID("711c703f-c285-4b10-a3b0-36ecbd3c8be2")
	presenceVendor = efi.MustGUID("aeb9c5c1-94f1-4d02-bfd9-4602db2d3c54")
)

// plain are variables whose effect would be another end of the boot or another PCR:
// they have no sign of their own.
var plain = []struct {
	name, about string
	vendor      efi.GUID
	data        []byte
}{
	{"LoaderEntryOneShot", "the entry to boot once", loaderVendor, efi.UTF16Text("hostile.efi")},
	{"LoaderEntryDefault", "the entry to boot", loaderVendor, efi.UTF16Text("hostile.efi")},
	{"LoaderEntrySelected", "what systemd takes for the entry that was booted", loaderVendor, efi.UTF16Text("hostile.efi")},
	{"LoaderConfigTimeout", "how long systemd-boot waits", loaderVendor, efi.UTF16Text("menu-force")},
	{"LoaderConfigTimeoutOneShot", "how long systemd-boot waits once", loaderVendor, efi.UTF16Text("menu-force")},
	{"LoaderSystemToken", "what goes into random seeds", loaderVendor, bytes.Repeat([]byte{0x5a}, 32)},
	{"LoaderBootCountPath", "the file that systemd-bless-boot renames", loaderVendor, efi.UTF16Text(`\EFI\Linux\hostile+3.efi`)},
	{"LoaderInfo", "which boot loader ran", loaderVendor, efi.UTF16Text("systemd-boot 999")},
	{"LoaderFeatures", "what the boot loader can do", loaderVendor, bytes.Repeat([]byte{0xff}, 8)},
	{"LoaderTpm2ActivePcrBanks", "which banks the TPM has", loaderVendor, efi.UTF16Text("0x00000000")},
	{"StubInfo", "which stub ran", loaderVendor, efi.UTF16Text("systemd-stub 999")},
	{"StubFeatures", "what the stub can do", loaderVendor, bytes.Repeat([]byte{0xff}, 8)},
	{"StubPcrKernelImage", "the PCR of the unified kernel image", loaderVendor, efi.UTF16Text("23")},
	{"StubPcrKernelParameters", "the PCR of the command line", loaderVendor, efi.UTF16Text("23")},
	{"StubPcrInitRDSysExts", "the PCR of extensions", loaderVendor, efi.UTF16Text("23")},
	{"StubProfile", "the profile that was booted", loaderVendor, efi.UTF16Text("hostile")},
	{"dbDefault", "the firmware's first db", efi.GlobalVariable, []byte("hostile")},
	{"OsIndications", "that an update of the firmware lies on the disk", efi.GlobalVariable, []byte{4, 0, 0, 0, 0, 0, 0, 0}},
	{"Timeout", "how long the firmware waits", efi.GlobalVariable, []byte{1, 0}},
	{"PlatformLang", "the firmware's language", efi.GlobalVariable, []byte("fr-FR\x00")},
	{"ConIn", "the firmware's keyboard", efi.GlobalVariable, []byte{0x7f, 0xff, 4, 0}},
	{"ConOut", "the firmware's console", efi.GlobalVariable, []byte{0x7f, 0xff, 4, 0}},
	{"MokListTrusted", "that the kernel trusts the machine owner's keys", shimVendor, []byte{1}},
	{"MokSBState", "that shim does not check", shimVendor, []byte{1}},
	{"MokSBStateRT", "that shim did not check", shimVendor, []byte{1}},
	{"SbatLevel", "which shims are revoked", shimVendor, []byte("sbat,1,2030010100\n")},
	{"CapsuleUpdateData", "where an update of the firmware lies", capsuleVendor, []byte{0, 0, 0, 0x10, 0, 0, 0, 0}},
	{"Tcg2PhysicalPresence", "that the TPM is to be cleared", presenceVendor, []byte{5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
}

func byVariables() []Input {
	inputs := []Input{
		{ID: "efi-systemd-options", Name: "EFI variable SystemdOptions, with systemd.run=", From: Registrar, put: func(s *setup) error {
			read, ran := s.shows(s.mark("read"), "systemd took kernel options from it"), s.shows(s.mark("ran"), "its command ran as root")
			s.variable(systemdVendor, "SystemdOptions", efi.UTF16Text(`systemd.setenv=HOSTILE=`+read+
				` systemd.run="/bin/sh -c 'echo `+quoted(ran)+` >/dev/console'" systemd.run_success_action=none systemd.run_failure_action=none`))
			return nil
		}},
		{ID: "efi-hibernate-location", Name: "EFI variable HibernateLocation, with a hibernated system on an attached disk", From: Registrar, put: func(s *setup) error {
			path, err := s.file(nil)
			if err != nil {
				return err
			}
			s.devices++
			pages := 1024 + s.devices
			if err := s.swap(path, "hibernated", pages, true); err != nil {
				return err
			}
			uuid := fmt.Sprintf("05711e00-%04x-0000-0000-0000%08x", swapped(uint16(s.input)), swapped32(uint32(pages)))
			s.variable(systemdVendor, "HibernateLocation", efi.UTF16Text(fmt.Sprintf(
				`{"uuid":%q,"offset":0,"kernelVersion":"6","osReleaseId":%q}`, uuid, s.shows(s.mark("read"), "systemd took the place of a hibernated system from it"))))
			return s.attach(path, "virtio-blk-pci", "the hibernated system")
		}},
		{ID: "efi-pstore", Name: "EFI variable dump-type0-…, a crash record", From: Registrar, put: func(s *setup) error {
			var record bytes.Buffer
			w, err := flate.NewWriter(&record, flate.BestCompression)
			if err != nil {
				return err
			}
			text := s.shows(s.mark("unpacked"), "the kernel took it for its own record of a crash")
			if _, err := fmt.Fprint(w, "Panic#1 Part1\n", strings.Repeat("<4>[    0.000000] "+text+"\n", 40)); err != nil {
				return err
			}
			if err := w.Close(); err != nil {
				return err
			}
			s.variable(crashVendor, "dump-type0-1-1-1700000000-C", record.Bytes())
			return nil
		}},
		{ID: "efi-db-certificate", Name: "EFI variable db without a platform key: a certificate for the kernel's key rings", From: Registrar, put: func(s *setup) error {
			if s.image.secureBoot {
				return notTried("with Secure Boot on, db belongs to the image and PCR 7 records it")
			}
			list, err := s.certificate()
			if err == nil {
				s.variable(efi.ImageSecurityDatabase, "db", list)
			}
			return err
		}},
		{ID: "efi-mok-list", Name: "EFI variable MokListRT: a machine owner's key for the kernel's key rings", From: Registrar, put: func(s *setup) error {
			list, err := s.certificate()
			if err == nil {
				s.variable(shimVendor, "MokListRT", list)
			}
			return err
		}},
		{ID: "efi-loader-device", Name: "EFI variable LoaderDevicePartUUID: which disk systemd searches for partitions", From: Registrar, Excludes: "attached partitions", put: func(s *setup) error {
			content, err := s.fileSystem("ext4", "loader-device")
			if err != nil {
				return err
			}
			path, err := s.file(nil)
			if err == nil {
				err = os.Truncate(path, 1<<20)
			}
			if err != nil {
				return err
			}
			fat, err := s.fileSystem("vfat", "LOADER")
			if err != nil {
				return err
			}
			guid := s.uuid()
			home := partition{"3b8f8425-20e0-4f3b-907f-1a25a76f98e8", "srv", content, s.input}
			esp := partition{disk.ESPType.String(), "ESP", fat, s.input}
			if err := s.addPartitions(path, []partition{esp, home}, "--clear"); err != nil {
				return err
			}
			sgdisk, err := tool("sgdisk", "gdisk")
			if err != nil {
				return err
			}
			if err := run(sgdisk, "--partition-guid=1:"+guid, path); err != nil {
				return err
			}
			for _, name := range []string{"LoaderDevicePartUUID", "StubDevicePartUUID"} {
				s.variable(loaderVendor, name, efi.UTF16Text(guid))
			}
			s.arguments("-device", "virtio-blk-pci,drive="+s.drive(path))
			return nil
		}},
	}
	for _, v := range plain {
		inputs = append(inputs, Input{ID: "efi-" + hyphened(v.name), Name: "EFI variable " + v.name + ": " + v.about, From: Registrar, put: func(s *setup) error {
			s.variable(v.vendor, v.name, v.data)
			return nil
		}})
	}
	return append(inputs, byLoadOptions()...)
}

func swapped(v uint16) uint16   { return v<<8 | v>>8 }
func swapped32(v uint32) uint32 { return v<<24 | v>>24 | v<<8&0xff0000 | v>>8&0xff00 }

// hyphened is the name of a variable as a part of an ID.
func hyphened(name string) string {
	var b []byte
	for i, c := range []byte(name) {
		if c >= 'A' && c <= 'Z' {
			if i > 0 && name[i-1] >= 'a' {
				b = append(b, '-')
			}
			c += 'a' - 'A'
		}
		b = append(b, c)
	}
	return string(b)
}

// certificate is a signature list with a certificate whose name the kernel tells when
// it takes it into a key ring.
func (s *setup) certificate() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	name := s.mark("key")
	s.shows("Loaded X.509 cert '"+name, "the kernel put its certificate into a key ring")
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().AddDate(20, 0, 0), KeyUsage: x509.KeyUsageDigitalSignature, SubjectKeyId: []byte{1, 2, 3, 4},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	// EFI_SIGNATURE_LIST of one EFI_CERT_X509 (UEFI 2.10, section 32.4.1).
	le := binary.LittleEndian
	list := slices.Clone(efi.CertX509[:])
	list = le.AppendUint32(list, uint32(28+16+len(der)))
	list = le.AppendUint32(list, 0)
	list = le.AppendUint32(list, uint32(16+len(der)))
	return slices.Concat(list, systemdVendor[:], der), nil
}

// loadOption is one for a file on a partition.
func loadOption(p *disk.Partition, path, options string) []byte {
	const sector = 512
	var optional []byte
	if options != "" {
		optional = efi.UTF16Text(options)
	}
	device := efi.HardDriveFile(p.Number, uint64(p.Offset/sector), uint64(p.Size/sector), efi.GUID(p.GUID), path) //nolint:gosec // places on a disk
	return efi.LoadOption("hostile", device, optional)
}

// bootPath is the file that the firmware starts.
func (s *setup) bootPath() string {
	if s.x86() {
		return `\EFI\BOOT\BOOTX64.EFI`
	}
	return `\EFI\BOOT\BOOTAA64.EFI`
}

// byLoadOptions are variables that have the firmware start something, or start the
// image otherwise.
func byLoadOptions() []Input {
	program := func(id, name, variable, order string, subsystem uint16) Input {
		return Input{ID: id, Name: name, From: Registrar, Early: true, put: func(s *setup) error {
			esp, err := s.image.table.ESP()
			if err != nil {
				return err
			}
			s.esp = append(s.esp, espFile{"hostile.efi", minimalPE(s.x86(), subsystem)})
			s.variable(efi.GlobalVariable, variable, loadOption(esp, `\hostile.efi`, ""))
			s.variable(efi.GlobalVariable, order, []byte{0, 0})
			return nil
		}}
	}
	return []Input{
		{ID: "efi-boot-options", Name: "EFI variable Boot0000 with load options for the image", From: Registrar, Early: true, put: func(s *setup) error {
			esp, err := s.image.table.ESP()
			if err != nil {
				return err
			}
			s.variable(efi.GlobalVariable, "Boot0000", loadOption(esp, s.bootPath(), s.image.prediction.CommandLine+
				` systemd.run="/bin/sh -c 'echo `+quoted(s.shows(s.mark("ran"), "its command ran as root"))+` >/dev/console'"`))
			s.variable(efi.GlobalVariable, "BootOrder", []byte{0, 0})
			return nil
		}},
		program("efi-driver", "EFI variable Driver0000: a driver before the image", "Driver0000", "DriverOrder", subsystemDriver),
		program("efi-sysprep", "EFI variable SysPrep0000: a program before the image", "SysPrep0000", "SysPrepOrder", subsystemApplication),
		program("efi-boot-next", "EFI variable BootNext: another program first", "Boot0000", "BootNext", subsystemApplication),
	}
}

// Subsystems of a PE image (PE/COFF, section "Windows Subsystem").
const (
	subsystemApplication = 10
	subsystemDriver      = 11
)

// minimalPE is an EFI image that does nothing. A driver returns success; an application
// returns EFI_NOT_FOUND, or the firmware would show its menu instead of going on.
func minimalPE(x86 bool, subsystem uint16) []byte {
	le := binary.LittleEndian
	b := make([]byte, 0x400)
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 0x40)
	copy(b[0x40:], "PE\x00\x00")
	// mov rax, 0x800000000000000e; ret, and mov x0, #14; movk x0, #0x8000, lsl #48; ret
	machine, code := uint16(0x8664), []byte{0x48, 0xb8, 0x0e, 0, 0, 0, 0, 0, 0, 0x80, 0xc3}
	if !x86 {
		machine, code = 0xaa64, []byte{0xc0, 0x01, 0x80, 0xd2, 0x00, 0x00, 0xf0, 0xf2, 0xc0, 0x03, 0x5f, 0xd6}
	}
	if subsystem == subsystemDriver {
		code = []byte{0x31, 0xc0, 0xc3} // xor eax, eax; ret
		if !x86 {
			code = []byte{0x00, 0x00, 0x80, 0xd2, 0xc0, 0x03, 0x5f, 0xd6} // mov x0, #0; ret
		}
	}
	coff := b[0x44:]
	le.PutUint16(coff, machine)
	le.PutUint16(coff[2:], 1)       // sections
	le.PutUint16(coff[16:], 0xf0)   // size of the optional header
	le.PutUint16(coff[18:], 0x0206) // executable, no line numbers, no symbols
	o := b[0x58:]
	le.PutUint16(o, 0x20b) // PE32+
	le.PutUint32(o[4:], 0x200)
	le.PutUint32(o[16:], 0x1000) // entry
	le.PutUint32(o[20:], 0x1000) // base of code
	le.PutUint32(o[32:], 0x1000) // section alignment
	le.PutUint32(o[36:], 0x200)  // file alignment
	le.PutUint32(o[56:], 0x2000) // size of the image
	le.PutUint32(o[60:], 0x200)  // size of the headers
	le.PutUint16(o[68:], subsystem)
	le.PutUint32(o[108:], 16) // data directories
	section := b[0x58+0xf0:]
	copy(section, ".text")
	le.PutUint32(section[8:], 0x200)
	le.PutUint32(section[12:], 0x1000)
	le.PutUint32(section[16:], 0x200)
	le.PutUint32(section[20:], 0x200)
	le.PutUint32(section[36:], 0x60000020) // code, executable, readable
	copy(b[0x200:], code)
	return b
}
