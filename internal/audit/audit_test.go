package audit

import (
	"context"
	"encoding/json"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/testenv"
)

// A spoiler changes a fixture.
type spoiler func(f *fixture)

func file(name, content string) spoiler { return func(f *fixture) { f.root[name] = content } }
func mode(name string, m uint32) spoiler {
	return func(f *fixture) {
		f.root[name] += ""
		f.modes[strings.TrimSuffix(name, "/")] = modeOf(m)
	}
}
func arg(words string) spoiler { return func(f *fixture) { f.cmdline += " " + words } }
func without(word string) spoiler {
	return func(f *fixture) {
		f.cmdline = strings.Join(slices.DeleteFunc(strings.Fields(f.cmdline), func(w string) bool { return strings.HasPrefix(w, word) }), " ")
	}
}
func replace(old, new string) spoiler {
	return func(f *fixture) { f.cmdline = strings.ReplaceAll(f.cmdline, old, new) }
}
func initrdFileOf(name, content string) spoiler { return func(f *fixture) { f.initrd[name] = content } }
func espFileOf(name, content string) spoiler    { return func(f *fixture) { f.esp[name] = content } }

// addonWith is an add-on with a command line.
func addonWith(commandLine string) string {
	return string(testenv.PE(0x8664, testenv.PESection{Name: ".cmdline", Data: []byte(commandLine)}))
}

func part(name, content string) spoiler {
	return func(f *fixture) { f.extra = append(f.extra, extraPartition{name, []byte(content)}) }
}
func all(spoilers ...spoiler) spoiler {
	return func(f *fixture) {
		for _, s := range spoilers {
			s(f)
		}
	}
}

// unit adds a unit file, and starts it when pulled says so.
func unit(name string, pulled bool, content string) spoiler {
	return func(f *fixture) {
		f.root["usr/lib/systemd/system/"+name] = content
		if pulled {
			f.root["etc/systemd/system/multi-user.target.wants/"+name] = "-> /usr/lib/systemd/system/" + name
		}
	}
}

func mask(name string) spoiler { return file("etc/systemd/system/"+name, "-> /dev/null") }

// swapPartition is the beginning of a swap partition.
var swapPartition = strings.Repeat("\x00", 4086) + "SWAPSPACE2" + strings.Repeat("x", 8192)

// capability is CAP_NET_RAW as setcap(8) writes it.
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

var logind = unit("systemd-logind.service", true, service)

type auditCase struct {
	id       string
	weak     spoiler
	where    string // of the finding
	detail   string // a part of it
	harmless spoiler
}

// auditCases have for each rule what must be found, and what is close to it and
// must not.
var auditCases = []auditCase{
	{"sshd-enabled", unit("ssh.service", true, service), "partition 2, etc/systemd/system/multi-user.target.wants/ssh.service", "ssh.service", all(unit("ssh.service", true, service), mask("ssh.service"))},
	{"sshd-enabled", all(file("etc/rc3.d/S01ssh", "-> ../init.d/ssh"), file("etc/init.d/ssh", "#!/bin/sh")), "partition 2, etc/rc3.d/S01ssh", "ssh", file("etc/rc3.d/K01ssh", "-> ../init.d/ssh")},
	{"sshd-enabled", all(unit("ssh.socket", false, "[Socket]\n"), file("usr/lib/systemd/system/web.service", "[Unit]\nWants=a.service \\\n ssh.socket\n")), "partition 2, usr/lib/systemd/system/web.service:2", "ssh.socket", unit("ssh.socket", false, "[Socket]\n")},
	{"sshd-installed", all(file("usr/sbin/sshd", "a program"), unit("ssh.service", false, service)), "partition 2, usr/sbin/sshd", "", file("usr/bin/ssh", "the client")},
	{"ssm-agent-enabled", unit("amazon-ssm-agent.service", true, service), "partition 2, etc/systemd/system/multi-user.target.wants/amazon-ssm-agent.service", "", unit("amazon-ssm-agent.service", false, service)},
	{"ssm-agent-installed", file("usr/bin/amazon-ssm-agent", "a program"), "partition 2, usr/bin/amazon-ssm-agent", "", file("usr/bin/amazon-other-agent", "a program")},
	{"ec2-instance-connect-installed", file("opt/aws/bin/eic_run_authorized_keys", "a script"), "partition 2, opt/aws/bin/eic_run_authorized_keys", "", file("opt/aws/bin/cfn-init", "")},
	{"cloud-init-enabled", unit("cloud-init-local.service", true, service), "partition 2, etc/systemd/system/multi-user.target.wants/cloud-init-local.service", "", unit("cloud-init-local.service", false, service)},
	{"cloud-init-installed", file("usr/lib/systemd/system-generators/cloud-init-generator", ""), "partition 2, usr/lib/systemd/system-generators/cloud-init-generator", "", file("usr/lib/systemd/system-generators/other-generator", "")},
	{"remote-shell-installed", file("usr/sbin/dropbear", ""), "partition 2, usr/sbin/dropbear", "", file("usr/share/dropbear", "")},

	{"autologin", unit("console-getty.service", true, "[Service]\nExecStart=-/sbin/agetty --autologin root console\n"), "partition 2, usr/lib/systemd/system/console-getty.service:2", "--autologin root", unit("console-getty.service", true, "[Service]\nExecStart=-/sbin/agetty --keep-baud console\n")},
	{"autologin", all(unit("getty@.service", false, service), file("etc/systemd/system/getty@tty1.service.d/a.conf", "[Service]\nExecStart=\nExecStart=-/sbin/agetty -a root %I\n")), "partition 2, etc/systemd/system/getty@tty1.service.d/a.conf:3", "", all(mask("getty@.service"), file("etc/systemd/system/getty@tty1.service.d/a.conf", "[Service]\nExecStart=-/sbin/agetty -a root %I\n"))},
	{"getty-enabled", all(unit("getty@.service", false, service), file("etc/systemd/system/getty.target.wants/getty@tty1.service", "-> /usr/lib/systemd/system/getty@.service")), "partition 2, etc/systemd/system/getty.target.wants/getty@tty1.service", "", all(unit("getty@.service", false, service), file("etc/systemd/system/getty.target.wants/getty@tty1.service", "-> /usr/lib/systemd/system/getty@.service"), mask("getty.target"))},
	{"getty-enabled", all(arg("console=ttyS0,115200"), unit("serial-getty@.service", false, service), file("usr/lib/systemd/system-generators/systemd-getty-generator", "")), "partition 2, usr/lib/systemd/system-generators/systemd-getty-generator", "serial", all(arg("console=ttyS0,115200"), mask("serial-getty@.service"), file("usr/lib/systemd/system-generators/systemd-getty-generator", ""))},
	{"getty-enabled", all(logind, unit("getty@.service", false, service), file("usr/lib/systemd/system/autovt@.service", "-> getty@.service")), "partition 2, usr/lib/systemd/system/getty@.service", "autovt", all(logind, unit("getty@.service", false, service), mask("autovt@.service"))},
	{"getty-enabled", file("etc/inittab", "# x\n1:2345:respawn:/sbin/getty 38400 tty1\n"), "partition 2, etc/inittab:2", "", file("etc/inittab", "# 1:2345:respawn:/sbin/getty 38400 tty1\n")},
	{"debug-shell-enabled", unit("debug-shell.service", true, service), "partition 2, etc/systemd/system/multi-user.target.wants/debug-shell.service", "", unit("debug-shell.service", false, service)},
	{"debug-shell-enabled", arg("systemd.debug-shell"), "partition 1, EFI/BOOT/BOOTX64.EFI#.cmdline", "", arg("systemd.debug_shell=0")},
	{"rescue-shell", unit("emergency.service", false, service), "partition 2, usr/lib/systemd/system/emergency.service", "", all(unit("emergency.service", false, service), mask("emergency.service"))},
	{"sulogin-force", file("etc/systemd/system/emergency.service.d/x.conf", "[Service]\nEnvironment=SYSTEMD_SULOGIN_FORCE=1\n"), "partition 2, etc/systemd/system/emergency.service.d/x.conf:2", "", file("etc/systemd/system/emergency.service.d/x.conf", "[Service]\n#Environment=SYSTEMD_SULOGIN_FORCE=1\n")},
	{"firstboot-prompt", all(unit("systemd-firstboot.service", true, service), file("etc/machine-id", "uninitialized\n")), "partition 2, etc/systemd/system/multi-user.target.wants/systemd-firstboot.service", "", unit("systemd-firstboot.service", true, service)},

	{"empty-password", file("etc/shadow", "root:*:1:::::\nweb::20000::::::\n"), "partition 2, etc/shadow:2", `"web"`, file("etc/shadow", "root:!:1:::::\nweb:!!:20000::::::\n")},
	{"empty-password", file("etc/passwd", "root::0:0:root:/root:/bin/sh\n"), "partition 2, etc/passwd:1", `"root"`, nil},
	{"password-set", file("etc/shadow", "root:$y$j9T$abc$def:20000::::::\n"), "partition 2, etc/shadow:1", `"root"`, file("etc/shadow", "root:!$y$j9T$abc$def:20000::::::\n")},
	{"authorized-keys", file("root/.ssh/authorized_keys", "# mine\nssh-ed25519 AAAA me\n"), "partition 2, root/.ssh/authorized_keys:2", "", file("root/.ssh/authorized_keys", "# ssh-ed25519 AAAA me\n\n")},
	{"authorized-keys", file("srv/web/.ssh/authorized_keys2", "ssh-ed25519 AAAA me\n"), "partition 2, srv/web/.ssh/authorized_keys2:1", "", file("srv/web/.ssh/known_hosts", "ssh-ed25519 AAAA me\n")},
	{"uid-zero-account", file("etc/passwd", "root:x:0:0::/root:/bin/sh\ntoor:x:0:0::/root:/bin/sh\n"), "partition 2, etc/passwd:2", `"toor"`, file("etc/passwd", "root:x:0:0::/root:/bin/sh\ntoor:x:10:0::/root:/bin/sh\n")},
	{"ssh-host-key", file("etc/ssh/ssh_host_ed25519_key", "x"), "partition 2, etc/ssh/ssh_host_ed25519_key", "", file("etc/ssh/ssh_host_ed25519_key.pub", "x")},
	{"machine-id-fixed", file("etc/machine-id", "0123456789abcdef0123456789abcdef\n"), "partition 2, etc/machine-id", "0123456789abcdef", file("etc/machine-id", "uninitialized\n")},
	{"shadow-readable", mode("etc/shadow", 0o644), "partition 2, etc/shadow", "0644", mode("etc/shadow", 0o600)},
	{"sudo-without-password", file("etc/sudoers.d/web", "web ALL=(ALL) NOPASSWD: ALL\n"), "partition 2, etc/sudoers.d/web:1", "NOPASSWD", file("etc/sudoers.d/web", "# web ALL=(ALL) NOPASSWD: ALL\n")},
	{"login-credential", file("etc/credstore/passwd.hashed-password.root", "$y$"), "partition 2, etc/credstore/passwd.hashed-password.root", "", file("etc/credstore/web.key", "")},
	{"login-credential", arg("systemd.set_credential=passwd.plaintext-password.root:x"), "partition 1, EFI/BOOT/BOOTX64.EFI#.cmdline", "", arg("systemd.set_credential=web.key:x")},

	{"root-not-verified", without("roothash="), "partition 2", "erofs", nil},
	{"root-not-verified", arg("root=overlay:UUID=" + rootUUID), "partition 1, EFI/BOOT/BOOTX64.EFI#.cmdline", "does not name the device that verity makes", arg("root=overlay:MAPPER=root")},
	{"root-not-verified", arg("root=/dev/vda2"), "partition 1, EFI/BOOT/BOOTX64.EFI#.cmdline", "/dev/vda2", arg("root=/dev/mapper/root")},
	{"root-not-verified", arg("systemd.verity=no"), "partition 2", "", arg("systemd.verity=yes")},
	{"root-not-verified", espFileOf("EFI/Linux/other.efi", string(func() []byte { f := newFixture(); f.cmdline = "ro"; return f.makeUKI() }())), "partition 1, EFI/Linux/other.efi", "without verity", espFileOf("EFI/Linux/same.efi", string(newFixture().makeUKI()))},
	{"verity-ignores-corruption", replace("panic-on-corruption", "ignore-corruption"), "partition 1, EFI/BOOT/BOOTX64.EFI#.cmdline", "ignore-corruption", nil},
	{"verity-ignores-corruption", all(without("roothash="), initrdFileOf("etc/veritytab", "# x\nroot UUID="+rootUUID+" UUID="+rootUUID+" abcd panic-on-corruption,ignore-corruption\n")), "partition 1, EFI/BOOT/BOOTX64.EFI#.initrd/etc/veritytab:2", "", all(without("roothash="), initrdFileOf("etc/veritytab", "root UUID="+rootUUID+" UUID="+rootUUID+" abcd panic-on-corruption\n"))},
	{"verity-without-panic", replace(",panic-on-corruption", ""), "partition 1, EFI/BOOT/BOOTX64.EFI#.cmdline", "hash-offset", replace("panic-on-corruption", "restart-on-corruption")},
	{"verity-without-panic", all(without("roothash="), initrdFileOf("etc/veritytab", "root UUID="+rootUUID+" UUID="+rootUUID+" abcd\n")), "partition 1, EFI/BOOT/BOOTX64.EFI#.initrd/etc/veritytab:1", "", all(without("roothash="), arg("rd.kiwi.verity_options=panic-on-corruption"), initrdFileOf("etc/veritytab", "root UUID="+rootUUID+" UUID="+rootUUID+" abcd\n"))},
	{"verity-hash-unmeasured", all(without("roothash="), arg("verityroot=/dev/vda3")), "partition 1, EFI/BOOT/BOOTX64.EFI#.cmdline", "verityroot", nil},
	{"writable-partition", file("etc/fstab", "UUID=x / erofs ro 0 0\nLABEL=data /data ext4 defaults 0 2\n"), "partition 2, etc/fstab:2", "LABEL=data", file("etc/fstab", "LABEL=data /data ext4 nodev,ro 0 2\ntmpfs /tmp tmpfs defaults\n/a /b none bind\n/dev/mapper/root / auto defaults\n")},
	{"writable-partition", file("etc/fstab", "server:/x /data nfs defaults 0 0\n"), "partition 2, etc/fstab:1", "outside", nil},
	{"writable-partition", unit("data.mount", true, "[Mount]\nWhat=/dev/vda3\nWhere=/data\nType=ext4\n"), "partition 2, usr/lib/systemd/system/data.mount:2", "", unit("data.mount", true, "[Mount]\nWhat=/dev/vda3\nWhere=/data\nType=ext4\nOptions=ro\n")},
	{"writable-partition", part("p.lxrw", seed("ext4-extents")), "partition 3", "p.lxrw", part("data", seed("ext4-extents"))},
	{"unverified-partition", part("data", seed("ext4-extents")), "partition 3", "ext4", nil},
	{"unverified-partition", part("data", string(fatImage())), "partition 3", "FAT", nil},
	{"swap-enabled", part("swap", swapPartition), "partition 3", "", part("zeros", strings.Repeat("\x00", 8192))},
	{"swap-enabled", file("etc/fstab", "/swapfile none swap sw 0 0\n"), "partition 2, etc/fstab:1", "", nil},
	{"gpt-auto", without("systemd.gpt_auto"), "partition 1, EFI/BOOT/BOOTX64.EFI#.cmdline", "", replace("systemd.gpt_auto=0", "systemd.gpt_auto=no")},
	{"repart", file("usr/lib/repart.d/50-home.conf", "[Partition]\n"), "partition 2, usr/lib/repart.d/50-home.conf", "", file("usr/lib/repart.d/README", "")},

	{"command-line-not-in-uki", func(f *fixture) { f.noCmdline = true }, "partition 1, EFI/BOOT/BOOTX64.EFI", "", nil},
	{"command-line-override", nil, "the disk", "Secure Boot", func(f *fixture) { f.secureBoot = true }},
	{"init-override", arg("init=/bin/sh"), "partition 1, EFI/BOOT/BOOTX64.EFI#.cmdline", "init=/bin/sh", arg("init=/sbin/init rdinit=/init")},
	{"rescue-target", arg("systemd.unit=rescue.target"), "partition 1, EFI/BOOT/BOOTX64.EFI#.cmdline", "", arg("systemd.unit=multi-user.target")},
	{"rescue-target", arg("single"), "partition 1, EFI/BOOT/BOOTX64.EFI#.cmdline", "single", nil},
	{"serial-console", arg("console=ttyAMA0"), "partition 1, EFI/BOOT/BOOTX64.EFI#.cmdline", "ttyAMA0", arg("console=tty0")},
	{"no-lockdown", without("lockdown"), "partition 1, EFI/BOOT/BOOTX64.EFI#.cmdline", "", replace("lockdown=integrity", "lockdown=confidentiality")},
	{"modules-not-enforced", without("lockdown"), "partition 1, EFI/BOOT/BOOTX64.EFI#.cmdline", "", all(without("lockdown"), arg("module.sig_enforce"))},
	{"kernel-without-module-signing", file("boot/config-6.12", "CONFIG_MODULES=y\n# CONFIG_MODULE_SIG is not set\n"), "partition 2, boot/config-6.12", "", nil},
	{"initrd-shell", without("rd.shell"), "partition 1, EFI/BOOT/BOOTX64.EFI#.cmdline", "", all(without("rd.shell"), func(f *fixture) { delete(f.initrd, "usr/lib/dracut-lib.sh") })},
	{"initrd-break", arg("rd.break=pre-mount"), "partition 1, EFI/BOOT/BOOTX64.EFI#.cmdline", "rd.break", nil},
	{"credentials-imported", without("systemd.import_credentials"), "partition 1, EFI/BOOT/BOOTX64.EFI#.cmdline", "", nil},
	{"mitigations-off", arg("mitigations=off"), "partition 1, EFI/BOOT/BOOTX64.EFI#.cmdline", "", arg("mitigations=auto")},

	{"esp-credential", espFileOf("loader/credentials/a.cred", "x"), "partition 1, loader/credentials/a.cred", "", nil},
	{"esp-addon", espFileOf("loader/addons/a.addon.efi", "x"), "partition 1, loader/addons/a.addon.efi", "", nil},
	{"init-override", espFileOf("loader/addons/a.addon.efi", addonWith("quiet init=/bin/sh")), "partition 1, loader/addons/a.addon.efi#.cmdline", "init=/bin/sh", espFileOf("loader/addons/a.addon.efi", addonWith("quiet"))},
	{"verity-ignores-corruption", espFileOf("EFI/BOOT/BOOTX64.EFI.extra.d/a.addon.efi", addonWith("systemd.verity_root_options=ignore-corruption")), "partition 1, EFI/BOOT/BOOTX64.EFI#.cmdline", "ignore-corruption", nil},
	{"esp-nvpcr-anchor", espFileOf("loader/credentials/nvpcr-anchor.1234.cred", "x"), "partition 1, loader/credentials/nvpcr-anchor.1234.cred", "", espFileOf("loader/credentials/a.cred", "x")},
	{"esp-random-seed", espFileOf("loader/random-seed", "x"), "partition 1, loader/random-seed", "", nil},
	{"esp-boot-loader", espFileOf("loader/loader.conf", "timeout 0"), "partition 1, loader/loader.conf", "", nil},
	{"esp-boot-loader", espFileOf("EFI/systemd/systemd-bootx64.efi", string(bootLoader())), "partition 1, EFI/systemd/systemd-bootx64.efi", "systemd-boot 257", nil},
	{"esp-stray-file", espFileOf("notes.txt", "x"), "partition 1, notes.txt", "", nil},

	{"initrd-pcr-separator", initrdFileOf("usr/lib/systemd/system/sysinit.target.wants/systemd-pcrosseparator.service", "-> ../systemd-pcrosseparator.service"), "partition 1, EFI/BOOT/BOOTX64.EFI#.initrd/usr/lib/systemd/system/sysinit.target.wants/systemd-pcrosseparator.service", "", initrdFileOf("usr/lib/systemd/system/systemd-pcrosseparator.service", service)},
	{"initrd-pcr-phase", all(initrdFileOf("usr/lib/systemd/system/initrd.target.wants/systemd-pcrphase-initrd.service", "-> ../x"), initrdFileOf("usr/lib/x/libtss2-esys.so.0", "")), "partition 1, EFI/BOOT/BOOTX64.EFI#.initrd/usr/lib/systemd/system/initrd.target.wants/systemd-pcrphase-initrd.service", "with libtss2", all(initrdFileOf("usr/lib/systemd/system/initrd.target.wants/systemd-pcrphase-initrd.service", "-> ../x"), initrdFileOf("etc/systemd/system/systemd-pcrphase-initrd.service", "-> /dev/null"))},
	{"initrd-password", initrdFileOf("etc/shadow", "root:$6$x:1::::::\n"), "partition 1, EFI/BOOT/BOOTX64.EFI#.initrd/etc/shadow:1", `"root"`, initrdFileOf("etc/shadow", "root:!:1::::::\n")},
	{"initrd-remote-access", all(initrdFileOf("usr/sbin/dropbear", ""), initrdFileOf("sbin", "-> usr/sbin")), "partition 1, EFI/BOOT/BOOTX64.EFI#.initrd/usr/sbin/dropbear", "", nil},

	{"world-writable-setuid", all(file("usr/bin/x", ""), mode("usr/bin/x", 0o4777)), "partition 2, usr/bin/x", "4777", mode("usr/bin/x", 0o755)},
	{"world-writable", all(file("usr/bin/x", ""), mode("usr/bin/x", 0o666)), "partition 2, usr/bin/x", "0666", all(file("usr/bin/l", "-> x"))},
	{"world-writable", mode("srv/web/", 0o777), "partition 2, srv/web", "0777", mode("srv/web/", 0o1777)},
	{"setuid-file", all(file("usr/bin/x", ""), mode("usr/bin/x", 0o4755)), "partition 2, usr/bin/x", "4755", nil},
	{"setgid-file", all(file("usr/bin/x", ""), mode("usr/bin/x", 0o2755)), "partition 2, usr/bin/x", "2755", mode("srv/web/", 0o2755)},
	{"file-capabilities", func(f *fixture) { f.root["usr/bin/x"], f.xattrs["usr/bin/x"] = "", capability }, "partition 2, usr/bin/x", "0x2000", nil},
	{"device-file", func(f *fixture) { f.devices["srv/null"] = 0x103 }, "partition 2, srv/null", "0x103", func(f *fixture) { f.root["dev/"] = ""; f.devices["dev/null"] = 0x103; f.devices["srv/whiteout"] = 0 }},

	{"root-not-found", func(f *fixture) { f.root, f.modes = map[string]string{"data": ""}, nil }, "the disk", "", nil},
	{"nested-image", func(f *fixture) { f.root, f.modes = map[string]string{"LiveOS/squashfs.img": "x"}, nil }, "partition 2, LiveOS/squashfs.img", "", nil},
	{"partition-not-read", part("data", "XFSB"+strings.Repeat("x", 8192)), "partition 3", "XFS", nil},
	{"partition-not-read", func(f *fixture) { f.damage = func(b []byte) { b[1024+82] = 0xff } }, "partition 2", "features", nil},
	{"file-not-read", file("etc/sysctl.conf", strings.Repeat("# long\n", 200000)), "partition 2, etc/sysctl.conf", "more than the 1048576 bytes", nil},
	{"uki-not-found", func(f *fixture) { f.boot = "" }, "partition 1", "", nil},
	{"initrd-not-read", func(f *fixture) { f.rawInitrd = []byte("no archive at all") }, "partition 1, EFI/BOOT/BOOTX64.EFI#.initrd", "nothing known", nil},
	{"unknown-partition", part("data", strings.Repeat("strange", 1000)), "partition 3", `"data"`, part("tree", "verity\x00\x00"+strings.Repeat("x", 8192))},
}

// seed reads one of the small file systems that the tests of package disk have.
func seed(name string) string { //nolint:unparam // the name says more at the call
	b, err := os.ReadFile("../disk/testdata/filesystems/" + name + ".img")
	if err != nil {
		panic(err)
	}
	return string(b)
}

// fatImage is an empty FAT12 file system.
func fatImage() []byte {
	b := make([]byte, 16*512)
	copy(b, "\xeb\x00\x90")
	b[12], b[13], b[14], b[16], b[17], b[19], b[22] = 2, 1, 1, 1, 16, 16, 1
	return b
}

func bootLoader() []byte {
	return testenv.PE(0x8664, testenv.PESection{Name: ".sdmagic", Data: []byte("#### LoaderInfo: systemd-boot 257.13-1 ####\x00")})
}

func modeOf(m uint32) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	for bit, flag := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if m&bit != 0 {
			mode |= flag
		}
	}
	return mode
}

// ids lists the findings for messages.
func ids(r *Report) string {
	var lines []string
	for _, f := range r.Findings {
		lines = append(lines, f.ID+" at "+f.Where()+": "+f.Detail)
	}
	return strings.Join(lines, "\n")
}

func TestNothingToFind(t *testing.T) {
	for _, kind := range []string{"erofs", "squashfs", "ext4"} {
		f := newFixture()
		f.secureBoot, f.kind = true, kind
		r := f.audit(t)
		if len(r.Findings) != 0 {
			t.Errorf("%s: %s", kind, ids(r))
		}
		if len(r.Audited) != 4 || r.Audited[3].Kind != kind || r.Audited[3].Files < 20 {
			t.Errorf("%s: audited %+v", kind, r.Audited)
		}
	}
}

func TestFindings(t *testing.T) {
	t.Parallel()
	covered := map[string]bool{}
	for _, c := range slices.Concat(auditCases, evasions, readerCases) {
		covered[c.id] = true
		t.Run(c.id+" "+c.where, func(t *testing.T) {
			t.Parallel()
			f := newFixture()
			if c.weak != nil {
				c.weak(f)
			}
			r := f.audit(t)
			hit := slices.ContainsFunc(r.Findings, func(f Finding) bool {
				return f.ID == c.id && f.Where() == c.where && strings.Contains(f.Detail, c.detail)
			})
			if !hit {
				t.Errorf("it is not found:\n%s", ids(r))
			}
			f = newFixture()
			if c.harmless != nil {
				c.harmless(f)
			}
			if c.harmless == nil && c.weak == nil {
				t.Fatal("the case tests nothing")
			}
			r = f.audit(t)
			if slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.ID == c.id }) {
				t.Errorf("it is found in what is harmless:\n%s", ids(r))
			}
		})
	}
	for id := range rules {
		if !covered[id] {
			t.Errorf("rule %s has no case", id)
		}
	}
}

func TestRules(t *testing.T) {
	for id, r := range rules {
		if !regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`).MatchString(id) {
			t.Errorf("%s is not in kebab-case", id)
		}
		if r.title == "" || !strings.HasSuffix(r.why, ".") || !strings.HasSuffix(r.fix, ".") {
			t.Errorf("%s is not described in sentences: %+v", id, r)
		}
	}
}

// weakReport has a finding of every severity.
func weakReport(t *testing.T) *Report {
	t.Helper()
	f := newFixture()
	for i := range 9 {
		name := "usr/bin/" + strings.Repeat("x", i+1)
		f.root[name], f.modes[name] = "", 0o755|fs.ModeSetuid
	}
	f.root["etc/shadow"] = "root:$y$x:1::::::\n\x1b[31mred::1::::::\n"
	f.root["etc/sudoers.d/a b#?é"] = "a ALL = NOPASSWD: ALL\n"
	f.cmdline += " init=/" + strings.Repeat("long", 60)
	return f.audit(t)
}

func TestTable(t *testing.T) {
	r := weakReport(t)
	var b strings.Builder
	if err := r.WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(b.String()) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 {
			t.Errorf("a line is %d characters wide: %s", n, line)
		}
	}
	for _, want := range []string{"CRITICAL empty-password\n", "HIGH     password-set\n", "LOW      setuid-file\n", "and 4 more", "Why: Everybody who reaches", "14 findings: 1 critical"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "\x1b") {
		t.Error("the table has an escape sequence of the image")
	}
	if worst, ok := r.Worst(); !ok || worst != Critical {
		t.Errorf("the worst is %v", worst)
	}
	if high := r.AtLeast(High); len(high) != 3 {
		t.Errorf("%d findings are high or worse", len(high))
	}
}

func TestReportIsStable(t *testing.T) {
	f := newFixture()
	f.root["etc/fstab"] = "LABEL=a /a ext4 rw\nLABEL=b /b ext4 rw\n"
	f.extra = []extraPartition{{"x", []byte("strange")}}
	path := f.makeDisk(t)
	first, err := auditFile(t, path, Options{}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if again, err := auditFile(t, path, Options{}).Marshal(); err != nil || string(again) != string(first) {
			t.Fatalf("the report changed: %v\n%s\n%s", err, first, again)
		}
	}
	var back Report
	if err := json.Unmarshal(first, &back); err != nil {
		t.Fatal(err)
	}
	if again, err := back.Marshal(); err != nil || string(again) != string(first) {
		t.Errorf("the report is read back differently: %v", err)
	}
	if !strings.Contains(string(first), `"severity": "high"`) || back.SchemaVersion != 1 {
		t.Errorf("the report is %s", first)
	}
}

// TestSARIF checks what GitHub's documentation of code scanning asks of a SARIF
// file.
func TestSARIF(t *testing.T) {
	r := weakReport(t)
	b, err := r.SARIF()
	if err != nil {
		t.Fatal(err)
	}
	var log sarifLog
	if err := json.Unmarshal(b, &log); err != nil {
		t.Fatal(err)
	}
	if log.Version != "2.1.0" || len(log.Runs) != 1 || log.Runs[0].Tool.Driver.Name == "" || log.Runs[0].AutomationDetails.ID == "" {
		t.Fatalf("the log is %+v", log)
	}
	run := log.Runs[0]
	if len(run.Results) != len(r.Findings) || len(run.Tool.Driver.Rules) != len(rules) {
		t.Errorf("%d results of %d, %d rules of %d", len(run.Results), len(r.Findings), len(run.Tool.Driver.Rules), len(rules))
	}
	for _, rule := range run.Tool.Driver.Rules {
		if len(rule.Name) > 255 || rule.ShortDescription.Text == "" || len(rule.ShortDescription.Text) > 1024 || rule.FullDescription.Text == "" || rule.Help.Text == "" {
			t.Errorf("rule %+v", rule)
		}
		if rule.Default.Level == "" || !slices.Contains(rule.Properties.Tags, "security") {
			t.Errorf("rule %+v", rule)
		}
	}
	fingerprints := map[string]bool{}
	for i, result := range run.Results {
		if run.Tool.Driver.Rules[result.RuleIndex].ID != result.RuleID || result.RuleID != r.Findings[i].ID {
			t.Errorf("result %d is of rule %s", i, result.RuleID)
		}
		if !slices.Contains([]string{"note", "warning", "error"}, result.Level) || result.Message.Text == "" || len(result.Locations) != 1 {
			t.Errorf("result %+v", result)
		}
		location := result.Locations[0].Physical
		u, err := url.Parse(location.Artifact.URI)
		if err != nil || u.IsAbs() || u.Fragment != "" || u.RawQuery != "" || strings.HasPrefix(u.Path, "/") || location.Region.StartLine < 1 {
			t.Errorf("location %+v: %v", location, err)
		}
		if run.Artifacts[*location.Artifact.Index].Location.URI != location.Artifact.URI {
			t.Errorf("artifact %d", *location.Artifact.Index)
		}
		mark := result.Fingerprints["primaryLocationLineHash"]
		if mark == "" || fingerprints[mark] {
			t.Errorf("fingerprint %q of result %d", mark, i)
		}
		fingerprints[mark] = true
	}
	if strings.Contains(string(b), `\u001b`) {
		t.Error("SARIF has an escape sequence of the image")
	}
	if empty, err := (&Report{}).SARIF(); err != nil || !strings.Contains(string(empty), `"results": []`) {
		t.Errorf("an empty report: %v\n%s", err, empty)
	}
}

func TestParseSeverity(t *testing.T) {
	for _, name := range []string{"info", "low", "medium", "high", "critical"} {
		if s, err := ParseSeverity(name); err != nil || s.String() != name {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
	if _, err := ParseSeverity("bad"); err == nil || err.Error() != `there is no severity "bad": it is one of info, low, medium, high, critical` {
		t.Errorf("bad: %v", err)
	}
}

func TestDiskRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := disk.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	want := "audit " + path + ": read GPT of " + path + ": there is no GUID partition table"
	if _, err := Disk(context.Background(), d, Options{}); err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("a disk of zeros: %v", err)
	}
	good, err := disk.Open(newFixture().makeDisk(t))
	if err != nil {
		t.Fatal(err)
	}
	defer good.Close()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Disk(ctx, good, Options{}); err == nil || !strings.HasSuffix(err.Error(), "context canceled") {
		t.Errorf("a cancelled audit: %v", err)
	}
}

// TestDebianTemplate holds the template to its promise: nothing above "low".
func TestDebianTemplate(t *testing.T) {
	r := auditFile(t, testenv.DebianDisk(t), Options{})
	if found := r.AtLeast(Medium); len(found) > 0 {
		t.Errorf("the template debian has findings above low:\n%s", ids(&Report{Findings: found}))
	}
	if len(r.Audited) < 4 || r.Audited[3].Files < 5000 {
		t.Errorf("audited %+v", r.Audited)
	}
}

// TestWeakImage spoils an image in many ways at once: no finding hides another.
func TestWeakImage(t *testing.T) {
	f := newFixture()
	all(
		unit("ssh.service", true, service), file("usr/sbin/sshd", ""),
		unit("getty@.service", false, service), file("etc/systemd/system/getty.target.wants/getty@tty1.service", "-> /usr/lib/systemd/system/getty@.service"),
		file("etc/shadow", "root:$y$j9T$abc$def:20000::::::\n"),
		file("root/.ssh/authorized_keys", "ssh-ed25519 AAAA me\n"),
		file("etc/fstab", "LABEL=data /data ext4 defaults 0 2\n"), part("data", seed("ext4-extents")),
		replace("panic-on-corruption", "ignore-corruption"),
		unit("cloud-init.service", true, service), unit("amazon-ssm-agent.service", true, service),
		arg("systemd.debug_shell console=ttyS0"),
	)(f)
	r := f.audit(t)
	for _, id := range []string{
		"sshd-enabled", "getty-enabled", "password-set", "authorized-keys", "writable-partition", "unverified-partition",
		"verity-ignores-corruption", "cloud-init-enabled", "ssm-agent-enabled", "debug-shell-enabled", "serial-console",
	} {
		if !slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.ID == id }) {
			t.Errorf("%s is not found:\n%s", id, ids(r))
		}
	}
	if r.Findings[0].Severity != Critical {
		t.Errorf("the first finding is %+v", r.Findings[0])
	}
}
