package hostile

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/org/attestable-image-action/internal/vm"
)

// attachedDisk is an input that is a whole disk with a file system or another content.
func attachedDisk(id, name, device string, content func(s *setup) (path string, err error), more ...string) Input {
	return Input{ID: "attached-" + id, Name: name, From: Owner, put: func(s *setup) error {
		path, err := content(s)
		if err != nil {
			return err
		}
		s.arguments(more...)
		return s.attach(path, device, "the disk")
	}}
}

func of(kind, label string) func(s *setup) (string, error) {
	return func(s *setup) (string, error) { return s.fileSystem(kind, label) }
}

// byDisks are disks that somebody attaches.
func byDisks() []Input {
	// A USB controller that the firmware used, and no driver of the kernel takes over, may
	// write into memory that the kernel has given to others: it is tried apart.
	usb := attachedDisk("usb", "a USB stick: ext4", "usb-storage,bus=hostileusb.0", of("ext4", "usb"), "-device", "qemu-xhci,id=hostileusb")
	usb.Alone = true
	return []Input{
		usb,
		attachedDisk("label-root", "an attached disk: ext4 labelled root", "virtio-blk-pci", of("ext4", "root")),
		attachedDisk("label-data", "an attached disk: ext4 labelled data", "virtio-blk-pci", of("ext4", "data")),
		attachedDisk("swap-disk", "an attached disk: swap", "virtio-blk-pci", of("swap", "swap")),
		attachedDisk("nvme", "an attached NVMe disk: ext4", "nvme,serial=hostile", of("ext4", "nvme")),
		attachedDisk("hibernated", "an attached disk: a hibernated system", "virtio-blk-pci", func(s *setup) (string, error) {
			path, err := s.file(nil)
			if err != nil {
				return "", err
			}
			s.devices++
			return path, s.swap(path, "swap", 1024+s.devices, true)
		}),
		attachedDisk("raid", "an attached disk: a Linux RAID (md) array of one", "virtio-blk-pci", raid),
		attachedDisk("luks", "an attached disk: LUKS", "virtio-blk-pci", func(s *setup) (string, error) {
			cryptsetup, err := tool("cryptsetup", "cryptsetup-bin")
			if err != nil {
				return "", err
			}
			path, err := s.file(nil)
			if err == nil {
				err = os.Truncate(path, 32<<20)
			}
			if err != nil {
				return "", err
			}
			key, err := s.file([]byte("hostile"))
			if err != nil {
				return "", err
			}
			return path, run(cryptsetup, "luksFormat", "--batch-mode", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--label", "root", path, key)
		}),
		attachedDisk("btrfs", "an attached disk: btrfs labelled root", "virtio-blk-pci", func(s *setup) (string, error) {
			mkfs, err := tool("mkfs.btrfs", "btrfs-progs")
			if err != nil {
				return "", err
			}
			path, err := s.file(nil)
			if err == nil {
				err = os.Truncate(path, 128<<20)
			}
			if err != nil {
				return "", err
			}
			uuid := s.uuid()
			s.shows("first mount of filesystem "+uuid, "the kernel mounted it")
			return path, run(mkfs, "-q", "-L", "root", "-U", uuid, path)
		}),
		attachedDisk("nocloud", "an attached disk: cloud-init's NoCloud (label cidata) with a script", "virtio-blk-pci", func(s *setup) (string, error) {
			return s.fatWith("CIDATA", map[string]string{
				"meta-data": "instance-id: hostile\nlocal-hostname: hostile\n",
				"user-data": "#!/bin/sh\necho " + shellQuoted(s.shows(s.mark("ran"), "its script ran as root")) + " >/dev/console\n",
			})
		}),
		attachedDisk("config-drive", "an attached disk: OpenStack's config-2 with a script", "virtio-blk-pci", func(s *setup) (string, error) {
			return s.fatWith("CONFIG-2", map[string]string{
				"openstack/latest/meta_data.json": `{"uuid":"hostile","hostname":"hostile"}`,
				"openstack/latest/user_data":      "#!/bin/sh\necho " + shellQuoted(s.shows(s.mark("ran"), "its script ran as root")) + " >/dev/console\n",
			})
		}),
		attachedDisk("kickstart", "an attached disk: an installer's OEMDRV with a kickstart", "virtio-blk-pci", func(s *setup) (string, error) {
			return s.fatWith("OEMDRV", map[string]string{"ks.cfg": "%pre\necho " + shellQuoted(s.shows(s.mark("ran"), "its script ran as root")) + " >/dev/console\n%end\n"})
		}),
		attachedDisk("second-esp", "an attached disk: another EFI system partition with a boot path", "virtio-blk-pci", func(s *setup) (string, error) {
			return s.fatWith("EFI", map[string]string{
				strings.ReplaceAll(strings.TrimPrefix(s.bootPath(), `\`), `\`, "/"): string(minimalPE(s.x86(), subsystemApplication)),
				"loader/credentials/hostile.cred":                                   "hostile",
				"startup.nsh":                                                       "echo hostile\n",
			})
		}),
		{ID: "attached-same-identifiers", Name: "an attached disk: a copy of the one that boots, with another root", From: Owner, Alone: true, put: sameIdentifiers},
		{ID: "hot-plugged-disk", Name: "a disk plugged in while the image runs: ext4", From: Owner, put: func(s *setup) error {
			path, err := s.fileSystem("ext4", "hotplug")
			if err != nil {
				return err
			}
			return s.hotPlug("virtio-blk-pci,drive="+s.drive(path), func() error { return s.watch(path, "the disk", 0, partitionSize) })
		}},
	}
}

// shellQuoted is a text as a shell's word that does not hold it.
func shellQuoted(text string) string {
	i := strings.LastIndexByte(text, '-')
	return text[:i] + `"-"` + text[i+1:]
}

// fatWith is a whole disk with files in a FAT file system.
func (s *setup) fatWith(label string, files map[string]string) (string, error) {
	path, err := s.fileSystem("vfat", label)
	if err != nil {
		return "", err
	}
	for name, content := range files {
		if err := s.addFile(path, espFile{name, []byte(content)}); err != nil {
			return "", err
		}
	}
	return path, nil
}

// raid is a disk that is the only one of an array of level 1 (Linux,
// include/uapi/linux/raid/md_p.h, version 1.2: the superblock lies 4 KiB behind the
// start).
func raid(s *setup) (string, error) {
	le := binary.LittleEndian
	sb := make([]byte, 256+2*2)
	le.PutUint32(sb, 0xa92b4efc)
	le.PutUint32(sb[4:], 1)
	copy(sb[16:32], []byte{0x05, 0x71, 0x1e, 0x00, byte(s.input)}) // set_uuid
	copy(sb[32:64], fmt.Sprintf("hostile%d", s.input))
	le.PutUint64(sb[64:], uint64(time.Now().Unix())) //nolint:gosec // a time after 1970
	le.PutUint32(sb[72:], 1)                         // level
	le.PutUint64(sb[80:], (partitionSize-1<<20)/512)
	le.PutUint32(sb[92:], 1)                          // raid_disks
	le.PutUint64(sb[128:], 2048)                      // data_offset
	le.PutUint64(sb[136:], (partitionSize-1<<20)/512) // data_size
	le.PutUint64(sb[144:], 8)                         // super_offset
	copy(sb[168:184], []byte{0x05, 0x71, 0x1e, 0x01}) // device_uuid
	le.PutUint64(sb[192:], uint64(time.Now().Unix())) //nolint:gosec // likewise
	le.PutUint64(sb[200:], 1)                         // events
	le.PutUint64(sb[208:], ^uint64(0))                // resync_offset: in sync
	le.PutUint32(sb[220:], 2)                         // max_dev
	le.PutUint16(sb[256:], 0)                         // the device is number 0
	le.PutUint16(sb[258:], 0xffff)
	var sum uint64
	for i := 0; i < len(sb); i += 4 {
		sum += uint64(le.Uint32(sb[i:]))
	}
	le.PutUint32(sb[216:], uint32(sum)+uint32(sum>>32)) //nolint:gosec // the kernel's sum wraps
	s.shows("md/raid1:", "the kernel started the array")
	path, err := s.file(append(make([]byte, 4096), sb...))
	if err != nil {
		return "", err
	}
	return path, os.Truncate(path, partitionSize)
}

// sameIdentifiers attaches a copy of the disk whose partitions behind the first MiB are
// not what they were: every identifier is there twice.
func sameIdentifiers(s *setup) error {
	path, err := s.copyOfDisk()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	esp, err := s.image.table.ESP()
	if err != nil {
		return err
	}
	for _, p := range s.image.table.Partitions {
		if p.Number == esp.Number {
			continue
		}
		for off := p.Offset + 1<<20; off < p.Offset+p.Size; off += 1 << 20 {
			if _, err := f.WriteAt(bytes.Repeat([]byte("hostile!"), 512), off); err != nil {
				return err
			}
		}
	}
	// In front of the image's own on the bus, so that it is found first.
	s.arguments("-device", "virtio-blk-pci,addr=0x2,drive="+s.drive(path))
	return nil
}

// hotPlug plugs a device in after the hand-over, and again at intervals until it is
// there: a kernel that has not looked at the slot yet misses it.
func (s *setup) hotPlug(device string, watch func() error) error {
	s.devices++
	slot := fmt.Sprintf("slot%d", s.devices)
	s.arguments("-device", fmt.Sprintf("pcie-root-port,id=%s,chassis=%d", slot, 16+s.devices))
	driver, rest, _ := strings.Cut(device, ",")
	arguments := map[string]any{"driver": driver, "bus": slot}
	for field := range strings.SplitSeq(rest, ",") {
		if key, value, ok := strings.Cut(field, "="); ok {
			arguments[key] = value
		}
	}
	s.operate = append(s.operate, func(ctx context.Context, o *vm.Operator) error {
		if !waitFor(ctx, o.HandedOver, 20*time.Second) {
			return nil
		}
		return o.Command("device_add", arguments)
	})
	if watch == nil {
		return nil
	}
	return watch()
}

// waitFor waits for the hand-over and some time more, and says whether the boot still
// goes on.
func waitFor(ctx context.Context, handedOver <-chan struct{}, more time.Duration) bool {
	select {
	case <-handedOver:
	case <-ctx.Done():
		return false
	}
	return pause(ctx, more)
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// byConsoles are what somebody types, and further places to type at.
func byConsoles() []Input {
	return []Input{
		{ID: "serial-typing", Name: "serial console: commands, magic words and control characters while the image boots and runs", From: Owner, Excludes: "serial", put: func(s *setup) error {
			ran := s.shows(s.mark("ran"), "a shell ran what was typed")
			s.operate = append(s.operate, func(ctx context.Context, o *vm.Operator) error {
				for _, keys := range []string{"\r", "\x03", "root\r", "\x04", "echo " + shellQuoted(ran) + "\r", "\x1a", "\x1c", "\r", "c\r", "echo " + shellQuoted(ran) + "\r"} {
					if !waitFor(ctx, o.HandedOver, 3*time.Second) {
						return nil
					}
					if err := o.Type(keys); err != nil {
						return err
					}
				}
				return nil
			})
			return nil
		}},
		{ID: "serial-sysrq", Name: "serial console: break and SysRq keys", From: Owner, Excludes: "serial", put: func(s *setup) error {
			// Before an image's own setting holds, a kernel obeys what it was built to: often
			// what restarts it, which is no more than a power switch. Telling of its memory
			// is more.
			s.showsOnSerial("sysrq: Show Memory", "the kernel tells of its memory to who asks on the serial line")
			s.operate = append(s.operate, func(ctx context.Context, o *vm.Operator) error {
				for range 60 { // a kernel that answers is never idle
					if !waitFor(ctx, o.HandedOver, time.Second) {
						return nil
					}
					if err := o.Break(); err != nil {
						return err
					}
					if err := o.Type("m"); err != nil {
						return err
					}
				}
				return nil
			})
			return nil
		}},
		{ID: "serial-firmware-keys", Name: "serial console: keys for the firmware's and the boot loader's menus", From: Owner, Early: true, put: func(s *setup) error {
			s.operate = append(s.operate, func(ctx context.Context, o *vm.Operator) error {
				for i := range 40 {
					if err := o.Type([]string{"\x1b", "\x1bOQ", " ", "\x7f", "e", "\r"}[i%6]); err != nil {
						return err
					}
					select {
					case <-o.HandedOver:
						return nil
					default:
						if !pause(ctx, 500*time.Millisecond) {
							return nil
						}
					}
				}
				return nil
			})
			return nil
		}},
		{ID: "ctrl-alt-del", Name: "keyboard: Ctrl-Alt-Del while the image boots and runs", From: Owner, Alone: true, put: func(s *setup) error {
			s.operate = append(s.operate, func(ctx context.Context, o *vm.Operator) error {
				keys := make([]any, 0, 3)
				for _, key := range []string{"ctrl", "alt", "delete"} {
					keys = append(keys, map[string]any{"type": "qcode", "data": key})
				}
				for range 8 {
					if !waitFor(ctx, o.HandedOver, 10*time.Second) {
						return nil
					}
					if err := o.Command("send-key", map[string]any{"keys": keys}); err != nil {
						return err
					}
				}
				return nil
			})
			return nil
		}},
		{ID: "second-serial-port", Name: "a second serial port", From: Hypervisor, put: func(s *setup) error {
			if !s.x86() {
				return notTried("QEMU's machine for aarch64 has one serial port")
			}
			return s.listening("file", func(chardev string) []string { return []string{"-device", "isa-serial,index=1,chardev=" + chardev} })
		}},
		{ID: "virtio-console", Name: "a virtio console (hvc0)", From: Hypervisor, put: func(s *setup) error {
			return s.listening("file", func(chardev string) []string {
				return []string{"-device", "virtio-serial-pci", "-device", "virtconsole,chardev=" + chardev}
			})
		}},
		{ID: "display", Name: "a display with its virtual terminals", From: Hypervisor, put: func(s *setup) error {
			s.arguments("-device", "virtio-vga")
			if !s.x86() {
				return notTried("QEMU's machine for aarch64 has no VGA")
			}
			return nil
		}},
	}
}

// listening adds a line on which somebody listens: whatever the operating system says
// there is an effect. What the firmware says before is none of the image's.
func (s *setup) listening(kind string, device func(chardev string) []string) error {
	path := filepath.Join(s.dir, fmt.Sprintf("line-%d", s.input))
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	s.devices++
	chardev := fmt.Sprintf("line%d", s.devices)
	s.arguments("-chardev", kind+",id="+chardev+",path="+strings.ReplaceAll(path, ",", ",,"))
	s.arguments(device(chardev)...)
	if err := s.watch(path, "the line", 0, 1<<20); err != nil {
		return err
	}
	line := len(s.attached) - 1
	s.operate = append(s.operate, func(ctx context.Context, o *vm.Operator) (err error) {
		if waitFor(ctx, o.HandedOver, 0) {
			s.attached[line].sum, err = sumOf(path, 0, 1<<20)
		}
		return err
	})
	return nil
}

// byNetwork is what a network says to a machine.
func byNetwork() []Input {
	return []Input{
		{ID: "dhcp-options", Name: "DHCP: host name, domains, a boot file and its server", From: Network, put: func(s *setup) error {
			name := s.mark("host")
			s.shows("_HOSTNAME="+name, "the machine took its host name")
			s.arguments("-netdev", "user,id=hostiledhcp,restrict=on,hostname="+name+",dnssearch=hostile.example,domainname=hostile.example,tftp="+strings.ReplaceAll(s.dir, ",", ",,")+",bootfile=hostile.efi",
				"-device", "virtio-net-pci,netdev=hostiledhcp,romfile=")
			return nil
		}},
		{ID: "metadata-service", Name: "metadata service: user data with a script", From: Owner, put: func(s *setup) error {
			reply := "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n#!/bin/sh\necho " +
				shellQuoted(s.shows(s.mark("ran"), "its script ran as root")) + " >/dev/console\n"
			path, err := s.file([]byte(reply))
			if err != nil {
				return err
			}
			s.arguments("-netdev", "user,id=hostileimds,net=169.254.169.0/24,host=169.254.169.1,dns=169.254.169.3,dhcpstart=169.254.169.15,restrict=on,"+
				"guestfwd=tcp:169.254.169.254:80-cmd:cat "+strings.ReplaceAll(path, ",", ",,"),
				"-device", "virtio-net-pci,netdev=hostileimds,romfile=")
			return nil
		}},
		{ID: "hot-plugged-interface", Name: "a network interface plugged in while the image runs", From: Owner, put: func(s *setup) error {
			name := s.mark("host")
			s.shows("_HOSTNAME="+name, "the machine took its host name")
			s.arguments("-netdev", "user,id=hostilehot,restrict=on,hostname="+name)
			return s.hotPlug("virtio-net-pci,netdev=hostilehot,romfile=", nil)
		}},
		{ID: "vsock", Name: "a vsock device", From: Hypervisor, put: func(s *setup) error {
			if _, err := os.Stat("/dev/vhost-vsock"); err != nil {
				return notTried("this machine's kernel has no /dev/vhost-vsock")
			}
			s.arguments("-device", "vhost-vsock-pci,guest-cid=4711")
			s.shows("Listening on sshd-vsock.socket", "systemd listens for SSH on it")
			return nil
		}},
		{ID: "shared-directory", Name: "a shared directory (9p) with the tag root", From: Hypervisor, put: func(s *setup) error {
			dir := filepath.Join(s.dir, fmt.Sprintf("shared-%d", s.input))
			if err := os.Mkdir(dir, 0o700); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, s.shows(s.mark("mounted"), "the machine listed the directory")), nil, 0o600); err != nil {
				return err
			}
			s.arguments("-fsdev", "local,id=hostile9p,security_model=none,readonly=on,path="+strings.ReplaceAll(dir, ",", ",,"), "-device", "virtio-9p-pci,fsdev=hostile9p,mount_tag=root")
			return nil
		}},
	}
}

// byESP are files of the EFI system partition that no unified kernel image holds.
func byESP() []Input {
	file := func(id, name, path string, early bool) Input {
		return Input{ID: "esp-" + id, Name: "EFI system partition: " + name, From: SnapshotWriter, Early: early, put: func(s *setup) error {
			boot := strings.ReplaceAll(strings.TrimPrefix(s.bootPath(), `\`), `\`, "/")
			s.esp = append(s.esp, espFile{strings.ReplaceAll(path, "BOOT.EFI", boot), []byte("hostile " + s.mark("file") + "\n")})
			return nil
		}}
	}
	return []Input{
		file("credential", "a global credential", "loader/credentials/hostile.cred", true),
		file("image-credential", "a credential beside the image", "BOOT.EFI.extra.d/hostile.cred", true),
		file("extension", "a system extension beside the image", "BOOT.EFI.extra.d/hostile.raw", true),
		file("configuration-extension", "a configuration extension beside the image", "BOOT.EFI.extra.d/hostile.confext.raw", true),
		file("random-seed", "a random seed", "loader/random-seed", false),
		file("loader-configuration", "a configuration of systemd-boot", "loader/loader.conf", false),
		file("loader-entry", "a boot entry for systemd-boot", "loader/entries/hostile.conf", false),
		file("other-image", "another unified kernel image", "EFI/Linux/hostile.efi", false),
		file("driver", "a driver for systemd-boot", "EFI/systemd/drivers/hostilex64.efi", false),
		file("keys", "keys for systemd-boot to enrol", "loader/keys/auto/db.auth", false),
		file("shell-script", "a script for the firmware's shell", "startup.nsh", false),
		file("fallback", "a list for shim's fallback", "EFI/BOOT/BOOTX64.CSV", false),
		file("grub", "a configuration of GRUB", "EFI/BOOT/grub.cfg", false),
		file("capsule", "an update of the firmware", "EFI/UpdateCapsule/hostile.cap", false),
	}
}

// byMachine is what the hypervisor says of the machine itself.
func byMachine() []Input {
	line := func(s *setup) string {
		return ` systemd.run="/bin/sh -c 'echo ` + quoted(s.shows(s.mark("ran"), "its command ran as root")) + ` >/dev/console'"`
	}
	return []Input{
		{ID: "smbios-stub-command-line", Name: "SMBIOS type 11: io.systemd.stub.kernel-cmdline-extra", From: Hypervisor, Early: true, put: func(s *setup) error {
			s.smbios("io.systemd.stub.kernel-cmdline-extra=" + line(s))
			return nil
		}},
		{ID: "smbios-boot-command-line", Name: "SMBIOS type 11: io.systemd.boot.kernel-cmdline-extra", From: Hypervisor, Early: true, put: func(s *setup) error {
			s.smbios("io.systemd.boot.kernel-cmdline-extra=" + line(s))
			return nil
		}},
		{ID: "smbios-nocloud", Name: "SMBIOS type 1: a serial number that points cloud-init to a server", From: Hypervisor, put: func(s *setup) error {
			s.arguments("-smbios", "type=1,manufacturer=Amazon EC2,serial=ds=nocloud-net;;s=http://10.0.2.2/,product=hostile")
			return nil
		}},
		{ID: "fw-cfg-ovmf", Name: "QEMU fw_cfg: options of OVMF", From: Hypervisor, put: func(s *setup) error {
			s.arguments("-fw_cfg", "name=opt/org.tianocore/FirmwareSetupSupport,string=yes", "-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=y",
				"-fw_cfg", "name=opt/ovmf/X-PciMmio64Mb,string=65536")
			return nil
		}},
		{ID: "acpi-table", Name: "ACPI: a table (SSDT) with code that the kernel runs", From: Hypervisor, Inherent: true, put: func(s *setup) error {
			if !s.x86() {
				return notTried("its code writes to an I/O port, which aarch64 has not")
			}
			path, err := s.file(ssdt(s.showsOnSerial(s.mark("aml"), "the kernel ran its code")))
			s.arguments("-acpitable", "file="+path)
			return err
		}},
		{ID: "clock-past", Name: "clock: the year 2001", From: Hypervisor, Excludes: "clock", put: func(s *setup) error {
			s.arguments("-rtc", "base=2001-01-01T00:00:00")
			return nil
		}},
		{ID: "clock-future", Name: "clock: the year 2099", From: Hypervisor, Excludes: "clock", put: func(s *setup) error {
			s.arguments("-rtc", "base=2099-12-31T23:59:00")
			return nil
		}},
		{ID: "one-processor", Name: "one processor alone", From: Hypervisor, Alone: true, put: func(s *setup) error {
			s.options.CPUs = 1
			return nil
		}},
		{ID: "free-space", Name: "the disk's unused space is not zero", From: SnapshotWriter, put: func(s *setup) error {
			s.alter = append(s.alter, s.fillGaps)
			return nil
		}},
	}
}

// fillGaps writes into the disk's space that no partition has.
func (s *setup) fillGaps(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	const first = 34 * 512 // behind the table
	for _, p := range s.image.table.Partitions {
		if p.Offset > first+512 {
			if _, err := f.WriteAt(bytes.Repeat([]byte("hostile!"), 64), first+512); err != nil {
				return err
			}
			break
		}
	}
	return nil
}

// ssdt is an ACPI table whose code writes a text to the first serial port, byte by
// byte, when it is loaded (ACPI 6.5, section 20).
func ssdt(text string) []byte {
	// OperationRegion (HOSR, SystemIO, 0x3F8, 1), and a field of one byte in it.
	body := append(make([]byte, 0, 64+7*len(text)), 0x5b, 0x80, 'H', 'O', 'S', 'R', 0x01, 0x0b, 0xf8, 0x03, 0x0a, 0x01)
	body = append(body, 0x5b, 0x81, 0x0b, 'H', 'O', 'S', 'R', 0x01, 'H', 'O', 'S', 'B', 8)
	for _, c := range []byte("\r\n" + text + "\r\n") {
		body = append(body, 0x70, 0x0a, c, 'H', 'O', 'S', 'B') // Store (c, HOSB)
	}
	table := make([]byte, 36, 36+len(body))
	copy(table, "SSDT")
	binary.LittleEndian.PutUint32(table[4:], uint32(36+len(body))) //nolint:gosec // a text of this package's
	table[8] = 2
	copy(table[10:], "HOSTILHOSTILE ")
	table[24], table[32] = 1, 1
	copy(table[28:], "HOST")
	table = append(table, body...)
	var sum byte
	for _, b := range table {
		sum += b
	}
	table[9] = -sum
	return table
}
