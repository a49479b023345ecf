package audit

import (
	"encoding/binary"
	"slices"
	"strings"

	"github.com/org/attestable-image-action/internal/testenv"
)

const cmdline = "partition 1, EFI/BOOT/BOOTX64.EFI#.cmdline"

// executable adds a file that can be run.
func executable(name string) spoiler {
	return func(f *fixture) { f.root[name], f.modes[name] = "a program", 0o755 }
}

// kind makes the root another file system.
func kind(name string) spoiler { return func(f *fixture) { f.kind = name } }

// pulled starts a unit by a link in a directory.
func pulled(dir, name string) spoiler {
	return file(dir+"/multi-user.target.wants/"+name, "-> /usr/lib/systemd/system/"+name)
}

func xattr(name, attribute, value string) spoiler {
	return func(f *fixture) {
		f.root[name] += ""
		f.moreXattrs = append(f.moreXattrs, [3]string{name, attribute, value})
	}
}

// accessList is what setfacl -m u:ID:rw gives, as the kernel takes it from user
// space (struct posix_acl_xattr_header).
func accessList(tag uint16, id uint32) string {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, bits uint16
		id        uint32
	}{{1, 6, 0xffffffff}, {2, 6, 0}, {4, 4, 0xffffffff}, {8, 4, 0}, {16, 6, 0xffffffff}, {32, 4, 0xffffffff}} {
		if e.tag == 2 || e.tag == 8 {
			if e.tag != tag {
				continue
			}
			e.id, e.bits = id, 6
		}
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.bits)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return string(b)
}

// noVariables makes a module the only one that the kernel has built in.
func noVariables(module string) spoiler {
	return file("usr/lib/modules/6.12/modules.builtin", module+"\n")
}

var efivarfsModule = file("usr/lib/modules/6.12/kernel/fs/efivarfs/efivarfs.ko.xz", "")

const sshd = "[Service]\nExecStart=/usr/sbin/sshd -D\n"

// rawInitrd is an initrd of entries as they are, behind the usual one.
func rawInitrd(entries ...rawEntry) spoiler {
	return func(f *fixture) { f.rawInitrd = slices.Concat(cpio(f.initrd), rawCpio(append(entries, trailer)...)) }
}

// section adds a section to the unified kernel image.
func section(name string, content []byte) spoiler {
	return func(f *fixture) { f.sections = append(f.sections, testenv.PESection{Name: name, Data: content}) }
}

func directory(name string) rawEntry { return rawEntry{name: name, mode: typeDirectory | 0o755} }

func link(name, target string) rawEntry {
	return rawEntry{name: name, mode: typeLink | 0o777, content: target}
}

func text(name, content string) rawEntry {
	return rawEntry{name: name, mode: typeRegular | 0o644, content: content}
}

// addonOf is an add-on with sections.
func addonOf(name string, sections ...testenv.PESection) spoiler {
	return func(f *fixture) { f.esp[name] = string(testenv.PE(0x8664, sections...)) }
}

const inInitrd = "partition 1, EFI/BOOT/BOOTX64.EFI#.initrd/"

// breakAt is an archive with a command line for dracut.
var breakAt = rawCpio(directory("etc"), directory("etc/cmdline.d"), text("etc/cmdline.d/x.conf", "rd.break\n"), trailer)

// evasions are ways around rules that look in the usual places only, and what is
// close to them and harmless.
var evasions = []auditCase{
	// Remote access: units by other names, other directories, other triggers.
	{"sshd-enabled", unit("maintenance.service", true, sshd), "partition 2, usr/lib/systemd/system/maintenance.service:2", "sshd", unit("maintenance.service", false, sshd)},
	{"sshd-enabled", unit("maintenance.service", true, "[Service]\nExecStart=-@/bin/sh sh -c 'exec /opt/x/sshd -D'\n"), "partition 2, usr/lib/systemd/system/maintenance.service:2", "sshd", unit("maintenance.service", true, "[Service]\nExecStart=/usr/bin/x --sshd-like\n")},
	{"sshd-enabled", unit("x.service", true, "[Service]\nExecStart=/srv/sshd\n"), "partition 2, usr/lib/systemd/system/x.service:2", "sshd", all(unit("x.service", true, "[Service]\nExecStart=/usr/bin/mkdir -p /run/sshd /var/lib/sshd /etc/default/sshd\n"), file("var/lib/sshd/", ""), file("etc/default/sshd", "X=1\n"))},
	{"sshd-enabled", all(unit("ssh.service", false, service), pulled("usr/lib/systemd/system", "ssh.service")), "partition 2, usr/lib/systemd/system/multi-user.target.wants/ssh.service", "", nil},
	{"sshd-enabled", all(unit("ssh.service", false, service), pulled("run/systemd/system", "ssh.service")), "partition 2, run/systemd/system/multi-user.target.wants/ssh.service", "", nil},
	{"sshd-enabled", all(unit("ssh.service", true, service), file("run/systemd/system/ssh.service", "-> /dev/null")), "partition 2, etc/systemd/system/multi-user.target.wants/ssh.service", "", all(unit("ssh.service", true, service), file("etc/systemd/system/ssh.service", "-> ../../../dev/null"))},
	{"sshd-enabled", all(unit("ssh.service", false, service), file("etc/systemd/system/a.service", "-> b.service"), file("etc/systemd/system/b.service", "-> /usr/lib/systemd/system/ssh.service"),
		file("etc/systemd/system/multi-user.target.wants/a.service", "-> ../a.service")), "partition 2, etc/systemd/system/multi-user.target.wants/a.service", "", nil},
	{"sshd-enabled", all(unit("ssh.service", false, service), file("etc/systemd/system/multi-user.target.wants/innocent.service", "-> /usr/lib/systemd/system/ssh.service")), "partition 2, etc/systemd/system/multi-user.target.wants/innocent.service", "", nil},
	{"sshd-enabled", all(unit("x.socket", true, "[Socket]\nListenStream=22\nAccept=yes\n"), unit("x@.service", false, sshd)), "partition 2, usr/lib/systemd/system/x@.service:2", "sshd", all(unit("x.socket", false, "[Socket]\nListenStream=22\nAccept=yes\n"), unit("x@.service", false, sshd))},
	{"sshd-enabled", all(unit("x.timer", true, "[Timer]\nOnBootSec=1\nUnit=y.service\n"), unit("y.service", false, sshd)), "partition 2, usr/lib/systemd/system/y.service:2", "sshd", all(unit("x.timer", true, "[Timer]\nOnBootSec=1\nUnit=z.service\n"), unit("y.service", false, sshd))},
	{"sshd-enabled", all(unit("ssh.service", false, service), arg("systemd.wants=ssh.service")), cmdline, "ssh.service", all(unit("ssh.service", false, service), arg("systemd.wants=other.service"))},
	{"sshd-enabled", all(unit("y.service", false, sshd), arg("rd.systemd.wants=y.service 'systemd.wants=y.service'")), "partition 2, usr/lib/systemd/system/y.service:2", "", nil},
	{"sshd-enabled", all(unit("ssh.service", false, "[Service]\n[Install]\nWantedBy=multi-user.target\n"), file("etc/machine-id", "uninitialized\n")), "partition 2, usr/lib/systemd/system/ssh.service", "", all(unit("ssh.service", false, "[Service]\n[Install]\nWantedBy=multi-user.target\n"), file("etc/machine-id", "uninitialized\n"), file("usr/lib/systemd/system-preset/99.preset", "disable *\n"))},
	{"sshd-enabled", all(unit("ssh.service", false, "[Install]\nAlias=sshd.service\n"), arg("systemd.condition-first-boot"), file("etc/systemd/system-preset/10.preset", "# x\nenable ssh.*\n"), file("usr/lib/systemd/system-preset/99.preset", "disable *\n")), "partition 2, etc/systemd/system-preset/10.preset:2", "", nil},
	{"sshd-enabled", all(unit("ssh.service", false, service), file("usr/lib/udev/rules.d/9.rules", "SUBSYSTEM==\"net\", ENV{SYSTEMD_WANTS}+=\"ssh.service\"\n")), "partition 2, usr/lib/udev/rules.d/9.rules:1", "", all(unit("ssh.service", false, service), file("usr/lib/udev/rules.d/9.rules", "# ENV{SYSTEMD_WANTS}+=\"ssh.service\"\n"))},
	{"sshd-enabled", all(file("usr/sbin/sshd", ""), file("usr/lib/systemd/system-generators/systemd-ssh-generator", "")), "partition 2, usr/lib/systemd/system-generators/systemd-ssh-generator", "sockets", all(file("usr/sbin/sshd", ""), file("usr/lib/systemd/system-generators/systemd-ssh-generator", ""), arg("systemd.ssh_auto=no"))},
	{"sshd-enabled", all(file("usr/sbin/sshd", ""), file("usr/lib/systemd/system-generators/systemd-ssh-generator", ""), arg("systemd.ssh_auto=no systemd.ssh_listen=vsock::22")), "partition 2, usr/lib/systemd/system-generators/systemd-ssh-generator", "", nil},
	{"sshd-enabled", all(file("etc/rc.local", "#!/bin/sh\n/opt/sshd\n"), mode("etc/rc.local", 0o755)), "partition 2, etc/rc.local:2", "", file("etc/rc.local", "#!/bin/sh\n/opt/sshd\n")},
	{"sshd-enabled", file("etc/runlevels/default/sshd", "-> /etc/init.d/sshd"), "partition 2, etc/runlevels/default/sshd", "", nil},
	{"sshd-enabled", all(unit("ssh.service", true, service), kind("squashfs")), "partition 2, etc/systemd/system/multi-user.target.wants/ssh.service", "", nil},
	{"sshd-enabled", all(unit("ssh.service", true, service), kind("ext4")), "partition 2, etc/systemd/system/multi-user.target.wants/ssh.service", "", nil},
	{"sshd-enabled", all(file("lib", "-> usr/lib"), unit("ssh.service", true, service)), "partition 2, etc/systemd/system/multi-user.target.wants/ssh.service", "", nil},
	// A directory of units behind links that lead above the root and round.
	{"sshd-enabled", all(file("usr/local/lib/systemd/system", "-> ../../../../../../../opt/units"), file("opt/units/x.service", sshd), file("etc/systemd/system/multi-user.target.wants/x.service", "-> /loop/x.service"), file("loop", "-> /loop")), "partition 2, usr/local/lib/systemd/system/x.service:2", "", nil},
	{"sshd-installed", executable("opt/tools/bin/sshd"), "partition 2, opt/tools/bin/sshd", "", file("opt/tools/share/sshd", "no program")},
	{"ssm-agent-installed", file("var/lib/snapd/seed/snaps/amazon-ssm-agent_9565.snap", "x"), "partition 2, var/lib/snapd/seed/snaps/amazon-ssm-agent_9565.snap", "", file("var/lib/snapd/seed/snaps/core22_9565.snap", "x")},
	{"ssm-agent-enabled", unit("snap.amazon-ssm-agent.amazon-ssm-agent.service", true, "[Service]\nExecStart=/usr/bin/snap run amazon-ssm-agent\n"), "partition 2, etc/systemd/system/multi-user.target.wants/snap.amazon-ssm-agent.amazon-ssm-agent.service", "", nil},
	{"ssm-agent-enabled", unit("agent.service", true, "[Service]\nExecStart=/opt/agent/amazon-ssm-agent\n"), "partition 2, usr/lib/systemd/system/agent.service:2", "", nil},
	{"ec2-instance-connect-installed", executable("srv/eic_run_authorized_keys"), "partition 2, srv/eic_run_authorized_keys", "", nil},
	{"cloud-init-enabled", all(file("usr/lib/systemd/system-generators/cloud-init-generator", ""), unit("cloud-init.target", false, "[Unit]\n")), "partition 2, usr/lib/systemd/system-generators/cloud-init-generator", "EC2", all(file("usr/lib/systemd/system-generators/cloud-init-generator", ""), unit("cloud-init.target", false, "[Unit]\n"), file("etc/cloud/cloud-init.disabled", ""))},
	{"cloud-init-enabled", all(unit("cloud-init.service", true, service), file("etc/cloud/cloud-init.disabled", ""), arg("cloud-init=enabled")), "partition 2, etc/systemd/system/multi-user.target.wants/cloud-init.service", "", all(unit("cloud-init.service", true, service), arg("cloud-init=disabled"))},
	{"cloud-init-installed", all(unit("cloud-init.service", true, service), file("etc/cloud/cloud-init.disabled", "")), "partition 2, etc/systemd/system/multi-user.target.wants/cloud-init.service", "", nil},
	{"cloud-init-enabled", unit("ud.service", true, "[Service]\nExecStart=/usr/bin/coreos-cloudinit --from-ec2-metadata\n"), "partition 2, usr/lib/systemd/system/ud.service:2", "", nil},
	{"remote-shell-enabled", unit("x.service", true, "[Service]\nExecStart=/usr/bin/ttyd -p 80 bash\n"), "partition 2, usr/lib/systemd/system/x.service:2", "ttyd", unit("x.service", true, "[Service]\nExecStart=/usr/bin/web\n")},
	{"remote-shell-enabled", all(unit("x.socket", true, "[Socket]\nListenStream=4444\nAccept=yes\n"), unit("x@.service", false, "[Service]\nExecStart=-/bin/sh\nStandardInput=socket\n")), "partition 2, usr/lib/systemd/system/x@.service:2", "", nil},
	{"remote-shell-enabled", unit("x.service", true, "[Service]\nExecStart=/usr/bin/socat TCP-LISTEN:4,fork EXEC:/bin/sh\n"), "partition 2, usr/lib/systemd/system/x.service:2", "", unit("x.service", true, "[Service]\nExecStart=/usr/bin/socat TCP-LISTEN:4,fork TCP:localhost:5\n")},
	{"remote-shell-enabled", file("etc/inetd.conf", "telnet stream tcp nowait root /usr/sbin/tcpd /usr/sbin/in.telnetd\n"), "partition 2, etc/inetd.conf:1", "", file("etc/inetd.conf", "#telnet stream tcp nowait root /usr/sbin/tcpd /usr/sbin/in.telnetd\n")},
	{"remote-shell-enabled", file("etc/xinetd.d/t", "service telnet\n{\n server = /usr/sbin/in.telnetd\n}\n"), "partition 2, etc/xinetd.d/t:3", "", file("etc/xinetd.d/t", "service telnet\n{\n server = /usr/sbin/in.telnetd\n disable = yes\n}\n")},
	{"remote-shell-installed", all(executable("usr/bin/busybox"), file("usr/local/bin/telnetd", "-> /usr/bin/busybox")), "partition 2, usr/local/bin/telnetd", "", all(executable("usr/bin/busybox"), file("usr/bin/vi", "-> busybox"), file("usr/bin/telnetd", "-> nowhere"))},
	{"remote-shell-installed", executable("usr/libexec/tinysshd"), "partition 2, usr/libexec/tinysshd", "", nil},
	{"remote-management", unit("cd.service", true, "[Service]\nExecStart=/opt/codedeploy-agent/bin/codedeploy-agent start\n"), "partition 2, usr/lib/systemd/system/cd.service:2", "codedeploy-agent", unit("policy-routes@.service", true, "[Service]\nExecStart=/usr/bin/setup-policy-routes %i start\n")},
	{"self-update", unit("snapd.service", true, "[Service]\nExecStart=/usr/lib/snapd/snapd\n"), "partition 2, usr/lib/systemd/system/snapd.service:2", "", unit("snapd.service", false, "[Service]\nExecStart=/usr/lib/snapd/snapd\n")},
	{"unknown-generator", executable("etc/systemd/system-generators/mine"), "partition 2, etc/systemd/system-generators/mine", "", executable("usr/lib/systemd/system-generators/systemd-debug-generator")},

	// Consoles.
	{"getty-enabled", unit("x.service", true, "[Service]\nExecStart=/sbin/agetty 115200 ttyS0\n"), "partition 2, usr/lib/systemd/system/x.service:2", "agetty", nil},
	{"getty-enabled", all(unit("serial-getty@.service", false, service), arg("systemd.wants=serial-getty@ttyS0.service")), cmdline, "", nil},
	{"autologin", all(unit("getty@.service", false, service), file("etc/systemd/system/getty@.service.d/a.conf", "[Service]\nExecStart=-/sbin/agetty --autol=root - $TERM\n")), "partition 2, etc/systemd/system/getty@.service.d/a.conf:2", "", all(unit("getty@.service", false, service), file("etc/systemd/system/getty@.service.d/a.conf", "[Service]\nExecStart=-/sbin/agetty -o '-- \\\\u' --noreset --noclear --keep-baud 115200,57600 - $TERM\n"))},
	{"autologin", unit("x.service", true, "[Service]\nExecStart=-/sbin/agetty -o '-p -f root' --noclear tty1\n"), "partition 2, usr/lib/systemd/system/x.service:2", "", nil},
	{"autologin", unit("x.service", true, "[Service]\nExecStart=-/sbin/agetty -n -l /bin/sh tty1\n"), "partition 2, usr/lib/systemd/system/x.service:2", "", nil},
	{"autologin", unit("x.service", true, "[Service]\nExecStart=/bin/login -f root\n"), "partition 2, usr/lib/systemd/system/x.service:2", "", unit("x.service", true, "[Service]\nExecStart=/usr/bin/x -f login\n")},
	{"autologin", unit("x.service", true, "[Service]\nEnvironment=\"O=--autologin root\"\nExecStart=/sbin/agetty $O tty1\n"), "partition 2, usr/lib/systemd/system/x.service:2", "", nil},
	{"autologin", all(unit("x.service", true, "[Service]\nEnvironmentFile=-/etc/default/x\nExecStart=/sbin/agetty $O tty1\n"), file("etc/default/x", "O='--autologin root'\n")), "partition 2, etc/default/x", "", nil},
	{"debug-shell-enabled", unit("x.service", true, "[Service]\nExecStart=-/usr/bin/bash -l\nStandardInput=tty-force\nTTYPath=/dev/ttyS0\n"), "partition 2, usr/lib/systemd/system/x.service:2", "", unit("x.service", true, "[Service]\nExecStart=-/usr/bin/bash -c true\n")},
	{"debug-shell-enabled", all(unit("debug-shell.service", false, service), arg("systemd.wants=debug-shell.service")), cmdline, "debug-shell", arg("systemd.wants=web.service")},
	{"debug-shell-enabled", arg("rd.systemd.debug-shell=ttyS0"), cmdline, "", nil},
	{"debug-shell-enabled", arg("'systemd.debug_shell'"), cmdline, "", nil},
	{"debug-shell-enabled", file("etc/inittab", "::askfirst:-/bin/sh\n"), "partition 2, etc/inittab:1", "", file("etc/inittab", "::sysinit:/bin/sh /etc/init.d/rcS\n")},
	{"debug-shell-enabled", initrdFileOf("etc/systemd/system/sysinit.target.wants/debug-shell.service", "-> /usr/lib/systemd/system/debug-shell.service"), "partition 1, EFI/BOOT/BOOTX64.EFI#.initrd/etc/systemd/system/sysinit.target.wants/debug-shell.service", "", initrdFileOf("usr/lib/systemd/system/debug-shell.service", service)},
	{"sulogin-force", arg("systemd.setenv=SYSTEMD_SULOGIN_FORCE=1"), cmdline, "", arg("systemd.setenv=SYSTEMD_SULOGIN_FORCE=0")},
	{"sulogin-force", arg("SYSTEMD_SULOGIN_FORCE=yes"), cmdline, "", nil},
	{"sulogin-force", file("etc/systemd/system/service.d/x.conf", "[Service]\nEnvironment=A=b \"SYSTEMD_SULOGIN_FORCE=true\"\n"), "partition 2, etc/systemd/system/service.d/x.conf:2", "", nil},
	{"sulogin-force", file("etc/systemd/system.conf.d/x.conf", "[Manager]\nDefaultEnvironment=SYSTEMD_SULOGIN_FORCE=1\n"), "partition 2, etc/systemd/system.conf.d/x.conf:2", "", nil},
	{"sulogin-force", initrdFileOf("etc/systemd/system/emergency.service.d/x.conf", "[Service]\nEnvironment=SYSTEMD_SULOGIN_FORCE=1\n"), "partition 1, EFI/BOOT/BOOTX64.EFI#.initrd/etc/systemd/system/emergency.service.d/x.conf:2", "", nil},
	{"crash-shell", arg("systemd.crash-shell"), cmdline, "", arg("systemd.crash_shell=no")},
	{"crash-shell", file("etc/systemd/system.conf", "[Manager]\nCrashShell=yes\n"), "partition 2, etc/systemd/system.conf:2", "", file("etc/systemd/system.conf", "[Manager]\n#CrashShell=yes\nCrashShell=no\n")},
	{"sysrq-enabled", arg("sysrq_always_enabled"), cmdline, "", nil},
	{"sysrq-enabled", file("etc/sysctl.d/99-x.conf", "kernel/sysrq = 1\n"), "partition 2, etc/sysctl.d/99-x.conf:1", "", all(file("usr/lib/sysctl.d/50-default.conf", "kernel.sysrq = 1\n"), file("etc/sysctl.d/90-x.conf", "kernel.sysrq = 0\n"))},
	{"sysrq-enabled", arg("sysctl.kernel.sysrq=1"), cmdline, "", arg("sysctl.kernel.sysrq=16")},
	{"serial-console", arg("console=ttyO0,115200n8"), cmdline, "ttyO0", arg("console=ttynull")},
	{"rescue-target", file("etc/systemd/system/default.target", "-> /usr/lib/systemd/system/rescue.target"), "partition 2, etc/systemd/system/default.target", "rescue.target", file("etc/systemd/system/default.target", "-> /usr/lib/systemd/system/multi-user.target")},
	{"rescue-target", arg(`"systemd.unit=emergency.target"`), cmdline, "", nil},
	{"rescue-target", arg("rd.systemd.unit=runlevel1.target"), cmdline, "", nil},
	{"rescue-target", arg("-- --unit=rescue.target"), cmdline, "", nil},
	{"debug-shell-enabled", all(unit("debug-shell.service", false, service), unit("x.service", true, "[Unit]\nOnFailure=debug-shell.service\n")), "partition 2, usr/lib/systemd/system/x.service:2", "", nil},

	// What systemd, dracut and the kernel accept, whatever its spelling.
	{"debug-shell-enabled", arg("systemd.wants=debug-shell"), cmdline, "debug-shell", arg("systemd.wants=debug-shell.socket")},
	{"debug-shell-enabled", arg("rd.systemd.wants=emergency"), cmdline, "", nil},
	{"getty-enabled", all(unit("serial-getty@.service", false, service), arg("systemd.wants=serial-getty@ttyS0")), cmdline, "", nil},
	{"debug-shell-enabled", arg("' systemd.debug_shell '"), cmdline, "", arg("'quiet systemd.debug_shell_'")},
	{"rescue-target", all(file("etc/systemd/system/x.target", "-> /usr/lib/systemd/system/rescue.target"), arg("systemd.unit=x.target")), cmdline, "x.target is", arg("systemd.unit=x.target")},
	{"rescue-target", arg("-s"), cmdline, "", arg("3")},
	{"rescue-target", arg("rd.rescue"), cmdline, "", arg("rd.emergency=poweroff")},
	{"rescue-target", arg("-- --uni rescue.target"), cmdline, "--uni", arg("-- --unit multi-user.target")},
	{"crash-shell", arg("--crash-shell"), cmdline, "", arg("--crash-shell=no")},
	{"init-override", arg("' init=/bin/sh '"), cmdline, "init=/bin/sh", nil},
	{"init-override", arg("quiet\vinit=/bin/sh"), cmdline, "init=/bin/sh", nil},
	{"init-override", arg("quiet\xa0init=/bin/sh"), cmdline, "init=/bin/sh", nil},
	{"initrd-break", arg("rd.cmdline=ask"), cmdline, "ask", arg("rd.cmdline=no")},
	{"initrd-break", arg("rd.systemd.break=pre-mount"), cmdline, "", nil},
	{"initrd-shell", replace("rd.shell=0", "rd.shell=false"), cmdline, "dracut", replace("rd.shell=0", "rd.shell=off")},
	{"initrd-shell", arg("rd.shell"), cmdline, "dracut", arg("rd.shell=no")},
	{"initrd-shell", arg("rdshell="), cmdline, "dracut", nil},
	{"command-at-boot", arg("systemd.early-core-pattern=|/bin/x"), cmdline, "", arg("systemd.early_core_pattern=core")},
	{"machine-id-fixed", arg("systemd.machine_id=0123456789abcdef0123456789abcdef"), cmdline, "", nil},
	{"init-environment", arg("LD_PRELOAD=/usr/lib/x.so"), cmdline, "LD_PRELOAD", arg("LANG=C BOOT_IMAGE=/vmlinuz rd.TERM=x vga=0x317")},
	{"init-environment", arg("SYSTEMD_UNIT_PATH=/srv/units:"), cmdline, "SYSTEMD_UNIT_PATH", arg("systemd.setenv=LANG=C")},
	{"init-environment", arg(`"SYSTEMD_PROC_CMDLINE=systemd.run=/bin/x"`), cmdline, "", nil},
	{"init-environment", arg(`"BASH_FUNC_x%%=() { /bin/x; }"`), cmdline, "BASH_FUNC", nil},
	{"init-environment", arg("FOO=bar"), cmdline, "FOO", initrdFileOf("etc/cmdline.d/x.conf", "FOO=bar")},
	{"init-environment", arg("systemd.setenv=LD_LIBRARY_PATH=/srv"), cmdline, "", nil},
	{"unmeasured-kernel-input", arg(`initrd=\\x.img`), cmdline, "initrd", arg("initrd=")},
	{"unmeasured-kernel-input", arg("efivar_ssdt=X"), cmdline, "", nil},
	{"bootconfig", arg("bootconfig"), cmdline, "", nil},
	{"download-at-boot", arg("rd.systemd.pull=raw,verify=no:root:http://x/y.raw"), cmdline, "", nil},
	{"root-not-verified", arg("rootfallback=/dev/vda3"), cmdline, "rootfallback", arg("rootfallback=/dev/mapper/root")},
	{"root-not-verified", arg("netroot=nbd:10.0.0.1:x"), cmdline, "netroot", nil},
	{"serial-console", arg("earlyprintk=ttyS0"), cmdline, "", nil},
	{"sysrq-enabled", arg("sysctl/kernel/sysrq=1"), cmdline, "", nil},
	{"gpt-auto", arg("rd.systemd.gpt_auto"), cmdline, "rd.", arg("rd.systemd.gpt_auto=0")},
	{"credentials-imported", replace("systemd.import_credentials=no", "' systemd.import_credentials=no '"), cmdline, "", replace("systemd.import_credentials=no", "'systemd.import_credentials=no'")},
	// What closes something counts as the kernel reads it: before a --, and without quotes inside.
	{"no-lockdown", all(without("lockdown"), arg("-- lockdown=integrity")), cmdline, "", all(without("lockdown"), arg(`"lockdown=integrity"`))},
	{"no-lockdown", replace("lockdown=integrity", "'lockdown=integrity'"), cmdline, "", replace("lockdown=integrity", `lockdown="integrity" lockdown=none`)},
	{"modules-not-enforced", all(without("lockdown"), arg("module.sig_enforce=off")), cmdline, "", all(without("lockdown"), arg("module.sig-enforce=Yes"))},
	{"command-line-cut", arg(strings.Repeat("x", 2000) + " lockdown=integrity"), cmdline, "2047", arg(strings.Repeat("x", 1000))},
	{"no-lockdown", all(without("lockdown"), arg(strings.Repeat("x", 2000)+" lockdown=integrity")), cmdline, "", nil},

	// What comes from outside, and no PCR records.
	{"systemd-options", without("efi="), cmdline, "efi=noruntime", all(without("efi="), func(f *fixture) { f.secureBoot = true })},
	{"systemd-options", replace("efi=noruntime", "efi=noruntime,runtime"), cmdline, "", replace("efi=noruntime", "efi=debug,noruntime")},
	{"systemd-options", arg("efi=runtime"), cmdline, "", arg("noefi")},
	{"systemd-options", replace("efi=noruntime", "'efi=noruntime'"), cmdline, "", replace("efi=noruntime", "noefi")},
	{"systemd-options", all(without("efi="), arg("-- efi=noruntime")), cmdline, "", all(without("efi="), noVariables("kernel/fs/ext4/ext4.ko"))},
	{"systemd-options", all(without("efi="), noVariables("kernel/fs/ext4/ext4.ko"), efivarfsModule), cmdline, "", all(without("efi="), noVariables("kernel/fs/ext4/ext4.ko"), efivarfsModule, arg("module_blacklist=x,efivarfs"))},
	{"systemd-options", all(without("efi="), noVariables("kernel/fs/efivarfs/efivarfs.ko"), arg("module_blacklist=efivarfs")), cmdline, "", all(without("efi="), noVariables("kernel/fs/efivarfs/efivarfs.ko"), arg("initcall_blacklist=efivarfs_init"))},
	{"systemd-options", all(without("efi="), noVariables("kernel/fs/ext4/ext4.ko"), initrdFileOf("usr/lib/modules/6.12/kernel/fs/efivarfs/efivarfs.ko.xz", "")), cmdline, "", nil},
	{"systemd-options", all(without("efi="), file("usr/sbin/init", "busybox"), func(f *fixture) { delete(f.initrd, "usr/lib/systemd/systemd") }), cmdline, "",
		all(without("efi="), file("usr/sbin/init", "busybox"), func(f *fixture) {
			delete(f.initrd, "usr/lib/systemd/systemd")
			delete(f.root, "usr/lib/systemd/systemd")
		})},
	{"resume-open", all(without("lockdown"), arg("resume=/dev/vdb")), cmdline, "/dev/vdb", arg("resume=/dev/vdb")},
	{"resume-open", all(without("lockdown"), without("efi="), initrdFileOf("usr/lib/systemd/system-generators/systemd-hibernate-resume-generator", "")),
		"partition 1, EFI/BOOT/BOOTX64.EFI#.initrd/usr/lib/systemd/system-generators/systemd-hibernate-resume-generator", "HibernateLocation",
		all(without("lockdown"), arg("noresume"), without("efi="), initrdFileOf("usr/lib/systemd/system-generators/systemd-hibernate-resume-generator", ""))},
	{"auto-assembly", file("usr/lib/udev/rules.d/69-lvm.rules", ""), "partition 2, usr/lib/udev/rules.d/69-lvm.rules", "", file("usr/share/doc/69-lvm.rules", "")},
	{"auto-assembly", initrdFileOf("usr/lib/udev/rules.d/64-md-raid-assembly.rules", ""), "partition 1, EFI/BOOT/BOOTX64.EFI#.initrd/usr/lib/udev/rules.d/64-md-raid-assembly.rules", "", nil},

	// Accounts.
	{"password-set", file("etc/userdb/x.user", `{"userName":"x","uid":60100,"privileged":{"hashedPassword":["$y$j9T$a$b"]}}`), "partition 2, etc/userdb/x.user", `"x"`, file("etc/userdb/x.user", `{"userName":"x","uid":60100,"privileged":{"hashedPassword":["!*"]}}`)},
	{"password-set", file("var/lib/systemd/home/x.identity", `{"userName":"x","perMachine":[{"hashedPassword":["$y$j9T$a$b"]}]}`), "partition 2, var/lib/systemd/home/x.identity", "", nil},
	{"password-set", file("usr/etc/shadow", "root:$6$a$b:1::::::\n"), "partition 2, usr/etc/shadow:1", "", nil},
	{"empty-password", file("var/lib/extrausers/shadow", "x::1::::::\n"), "partition 2, var/lib/extrausers/shadow:1", "", nil},
	{"authorized-keys", file("usr/lib/userdb/x.user-privileged", `{"sshAuthorizedKeys":["ssh-ed25519 AAAA"]}`), "partition 2, usr/lib/userdb/x.user-privileged", "", nil},
	{"authorized-keys", file("etc/skel/.ssh/authorized_keys", "ssh-ed25519 AAAA me\n"), "partition 2, etc/skel/.ssh/authorized_keys:1", "", nil},
	{"authorized-keys", file("etc/dropbear/authorized_keys", "ssh-ed25519 AAAA me\n"), "partition 2, etc/dropbear/authorized_keys:1", "", nil},
	{"uid-zero-account", file("usr/lib/sysusers.d/x.conf", "u! toor 0:0 - /root\n"), "partition 2, usr/lib/sysusers.d/x.conf:1", "toor", file("usr/lib/sysusers.d/x.conf", "u root 0 \"Super User\" /root\nu web 500\n")},
	{"uid-zero-account", file("etc/userdb/t.user", `{"userName":"t","uid":0}`), "partition 2, etc/userdb/t.user", "", nil},
	{"ssh-host-key", file("etc/dropbear/dropbear_ed25519_host_key", "x"), "partition 2, etc/dropbear/dropbear_ed25519_host_key", "", nil},
	{"ssh-host-key", file("usr/etc/ssh/ssh_host_rsa_key", "x"), "partition 2, usr/etc/ssh/ssh_host_rsa_key", "", nil},
	{"tmpfiles-opens", file("usr/lib/tmpfiles.d/x.conf", "f+ /root/.ssh/authorized_keys 0600 - - - ssh-ed25519 AAAA\n"), "partition 2, usr/lib/tmpfiles.d/x.conf:1", "authorized_keys", file("usr/lib/tmpfiles.d/provision.conf", "f^ /root/.ssh/authorized_keys 600 root :root - ssh.authorized_keys.root\nz /dev/fuse 0666\nd /tmp 1777\n")},
	{"tmpfiles-opens", file("etc/tmpfiles.d/x.conf", "L+ /run/systemd/system/x.service - - - - /opt/x.service\n"), "partition 2, etc/tmpfiles.d/x.conf:1", "", nil},
	{"tmpfiles-opens", file("etc/tmpfiles.d/x.conf", "z /usr/bin/bash 4755 root root\n"), "partition 2, etc/tmpfiles.d/x.conf:1", "4755", file("etc/tmpfiles.d/x.conf", "z /usr/bin/bash 0755 root root\n")},
	{"sudo-without-password", all(file("etc/sudoers", "@includedir /opt/su\n"), file("opt/su/x", "x ALL=(ALL) NOPASSWD: ALL\n")), "partition 2, opt/su/x:1", "", all(file("etc/sudoers", "@includedir /opt/su\n"), file("opt/su/x", "@include /etc/sudoers\nx ALL=(ALL) ALL\n"))},
	{"sudo-without-password", file("etc/sudoers", "Defaults:x !authenticate\n"), "partition 2, etc/sudoers:1", "", nil},
	{"sudo-without-password", file("etc/doas.conf", "permit nopass :wheel\n"), "partition 2, etc/doas.conf:1", "", file("etc/doas.conf", "permit persist :wheel\n")},
	{"pam-permit", file("etc/pam.d/login", "auth sufficient pam_permit.so\nauth include common-auth\n"), "partition 2, etc/pam.d/login:1", "", file("etc/pam.d/common-auth", "auth [success=1 default=ignore] pam_unix.so\nauth requisite pam_deny.so\nauth required pam_permit.so\n")},
	{"pam-permit", file("etc/pam.d/sshd", "-auth [success=done new_authtok_reqd=done default=ignore] /usr/lib/security/pam_permit.so\n"), "partition 2, etc/pam.d/sshd:1", "", nil},
	{"pam-nullok", file("etc/pam.d/common-auth", "auth [success=1 default=ignore] pam_unix.so nullok\n"), "partition 2, etc/pam.d/common-auth:1", "", file("etc/pam.d/common-auth", "auth [success=1 default=ignore] pam_unix.so try_first_pass\n")},
	{"cron-job", all(executable("usr/sbin/cron"), file("var/spool/cron/crontabs/root", "@reboot /bin/x\n")), "partition 2, var/spool/cron/crontabs/root", "", file("var/spool/cron/crontabs/root", "@reboot /bin/x\n")},
	{"cron-job", all(executable("usr/sbin/crond"), file("etc/crontab", "SHELL=/bin/sh\n17 * * * * root run-parts /etc/cron.hourly\n@reboot root /bin/x\n")), "partition 2, etc/crontab:3", "", nil},
	{"sshd-enabled", all(executable("usr/sbin/cron"), file("etc/cron.d/x", "@reboot root /opt/sshd\n")), "partition 2, etc/cron.d/x:1", "", nil},
	{"login-credential", arg("systemd.set_credential_binary=ssh.authorized_keys.root:eA=="), cmdline, "", nil},
	{"login-credential", arg("systemd.set-credential=userdb.user.x:e30="), cmdline, "", nil},
	{"login-credential", file("usr/local/lib/credstore/ssh.authorized_keys.root", "x"), "partition 2, usr/local/lib/credstore/ssh.authorized_keys.root", "", nil},
	{"login-credential", initrdFileOf("etc/credstore/passwd.hashed-password.root", "x"), "partition 1, EFI/BOOT/BOOTX64.EFI#.initrd/etc/credstore/passwd.hashed-password.root", "", initrdFileOf("etc/credstore/web.key", "x")},
	{"login-credential", file("etc/systemd/system/systemd-sysusers.service.d/x.conf", "[Service]\nSetCredential=passwd.hashed-password.root:$y$\n"), "partition 2, etc/systemd/system/systemd-sysusers.service.d/x.conf:2", "", file("etc/systemd/system/systemd-sysusers.service.d/x.conf", "[Service]\nLoadCredential=passwd.hashed-password.root\n")},

	// Partitions and verity.
	{"root-not-verified", arg("root=live:/dev/sdb"), cmdline, "live:", nil},
	{"root-not-verified", arg("root=nfs:10.0.0.1:/x"), cmdline, "nfs", nil},
	{"root-not-verified", arg("root=/dev/mapper/../vda2"), cmdline, "..", nil},
	{"root-not-verified", arg("mount.usr=/dev/vda3"), cmdline, "mount.usr", arg("mount.usr=/dev/mapper/usr")},
	{"root-not-verified", arg(`"rd.systemd.verity=0"`), "partition 2", "", nil},
	{"root-not-verified", initrdFileOf("etc/cmdline.d/x.conf", "root=UUID="+rootUUID+"\n"), cmdline, "", nil},
	{"verity-checks-once", replace("panic-on-corruption", "panic-on-corruption,check-at-most-once"), cmdline, "check-at-most-once", nil},
	{"writable-partition", arg("systemd.mount-extra=/dev/vda3:/data:ext4:rw"), cmdline, "/data", arg("systemd.mount-extra=/dev/vda3:/data:ext4:ro")},
	{"writable-partition", arg("rd.root.overlay.write=/dev/vda3"), cmdline, "", nil},
	{"writable-partition", arg("rd.overlay=LABEL=data"), cmdline, "", arg("rd.overlay=1")},
	{"writable-partition", all(unit("data.automount", true, "[Automount]\nWhere=/data\n"), unit("data.mount", false, "[Mount]\nWhat=/dev/vda3\nWhere=/data\nType=ext4\n")), "partition 2, usr/lib/systemd/system/data.mount:2", "", unit("data.mount", false, "[Mount]\nWhat=/dev/vda3\nWhere=/data\nType=ext4\n")},
	{"swap-enabled", arg("systemd.swap_extra=/dev/vda3"), cmdline, "", nil},

	// Kernel.
	{"init-override", arg(`"init=/bin/sh"`), cmdline, "", nil},
	{"init-override", arg("init=/usr/lib/systemd/../../../bin/sh"), cmdline, "", nil},
	{"command-at-boot", arg(`systemd.run="/bin/sh -c x"`), cmdline, "systemd.run", nil},
	{"unit-masked", arg("systemd.mask=nftables.service"), cmdline, "", nil},
	{"kernel-debugger", arg("kgdboc=ttyS0,115200"), cmdline, "", nil},
	{"access-control-off", arg("selinux=0"), cmdline, "", arg("selinux=1 enforcing=1")},
	{"access-control-off", arg("apparmor=0"), cmdline, "", nil},
	{"hibernation", arg("resume=UUID=x"), cmdline, "", nil},
	{"hibernation", unit("hibinit-agent.service", true, "[Service]\nExecStart=/usr/bin/hibinit-agent -c /etc/x\n"), "partition 2, usr/lib/systemd/system/hibinit-agent.service:2", "", nil},
	{"kdump", unit("kdump.service", true, "[Service]\nExecStart=/usr/bin/kdumpctl start\n"), "partition 2, usr/lib/systemd/system/kdump.service:2", "", unit("kdump.service", false, "[Service]\nExecStart=/usr/bin/kdumpctl start\n")},
	{"sysctl-weakened", arg("sysctl.kernel.yama.ptrace_scope=0"), cmdline, "", nil},
	{"sysctl-weakened", file("etc/sysctl.conf", "kernel.kptr_restrict=0\n"), "partition 2, etc/sysctl.conf:1", "", file("etc/sysctl.conf", "kernel.kptr_restrict=0\nkernel.kptr_restrict=2\n")},
	{"no-lockdown", arg("lsm=capability,yama,apparmor"), cmdline, "lsm=", arg("lsm=lockdown,yama")},
	{"no-lockdown", replace("lockdown=integrity", "lockdown=none"), cmdline, "", nil},
	{"initrd-break", arg("break=premount"), cmdline, "", nil},
	{"initrd-break", initrdFileOf("etc/cmdline.d/99.conf", "rd.break=pre-pivot\n"), "partition 1, EFI/BOOT/BOOTX64.EFI#.initrd/etc/cmdline.d/99.conf", "", initrdFileOf("etc/cmdline.d/99.conf", "rd.neednet=1\n")},
	// Of the file system that the kernel unpacks, whatever the archives name.
	{"initrd-break", rawInitrd(link("x", "etc"), directory("x/cmdline.d"), text("x/cmdline.d/x.conf", "rd.break\n")), inInitrd + "etc/cmdline.d/x.conf", "", rawInitrd(link("x", "etc"), directory("y"), directory("y/cmdline.d"), text("y/cmdline.d/x.conf", "rd.break\n"))},
	{"initrd-break", rawInitrd(link("x", "/usr/../etc/."), directory("//x//cmdline.d/"), text("./x/cmdline.d/../cmdline.d/x.conf", "rd.break\n")), inInitrd + "etc/cmdline.d/x.conf", "", nil},
	{"initrd-break", rawInitrd(directory("opt"), text("opt/x.conf", "rd.break\n"), link("etc/cmdline.d", "../opt")), inInitrd + "etc/cmdline.d/x.conf", "", rawInitrd(directory("opt"), text("opt/x.conf", "rd.break\n"), link("etc/cmdline.d", "../op"))},
	{"initrd-break", rawInitrd(directory("etc/cmdline.d"), text("y", "rd.break\n"), link("etc/cmdline.d/x.conf", "../../y")), inInitrd + "etc/cmdline.d/x.conf", "", nil},
	{"initrd-break", rawInitrd(directory("etc/cmdline.d"), rawEntry{name: "y", mode: typeRegular | 0o644, ino: 7, links: 2, content: "rd.break\n"}, rawEntry{name: "etc/cmdline.d/x.conf", mode: typeRegular | 0o644, ino: 7, links: 2}), inInitrd + "etc/cmdline.d/x.conf", "", rawInitrd(directory("etc/cmdline.d"), rawEntry{name: "y", mode: typeRegular | 0o644, ino: 7, links: 2, content: "rd.break\n"}, rawEntry{name: "etc/cmdline.d/x.conf", mode: typeRegular | 0o644, ino: 8, links: 2})},
	// What would remove the file does not: a directory that is not empty stays.
	{"initrd-break", rawInitrd(directory("etc/cmdline.d"), text("etc/cmdline.d/x.conf", "rd.break\n"), link("etc/cmdline.d", "/nowhere"), text("etc", "")), inInitrd + "etc/cmdline.d/x.conf", "", rawInitrd(directory("etc/cmdline.d"), text("etc/cmdline.d/x.conf", "rd.break\n"), link("etc/cmdline.d/x.conf", "/nowhere"), link("etc/cmdline.d", "/nowhere"))},
	// What would replace it lies in a directory that is not there.
	{"initrd-break", rawInitrd(directory("etc/cmdline.d"), text("etc/cmdline.d/x.conf", "rd.break\n"), text("z/../etc/cmdline.d/x.conf", "")), inInitrd + "etc/cmdline.d/x.conf", "", rawInitrd(directory("z"), directory("etc/cmdline.d"), text("etc/cmdline.d/x.conf", "rd.break\n"), text("z/../etc/cmdline.d/x.conf", ""))},
	{"initrd-break", rawInitrd(text("etc/cmdline\x00.not", "rd.break\n")), inInitrd + "etc/cmdline", "", nil},
	{"initrd-break", section(".ucode", breakAt), "partition 1, EFI/BOOT/BOOTX64.EFI#.ucode/etc/cmdline.d/x.conf", "", section(".ucode", rawCpio(directory("kernel"), text("kernel/x", "rd.break\n"), trailer))},
	{"initrd-break", section(".ucode", compress(breakAt)), "partition 1, EFI/BOOT/BOOTX64.EFI#.ucode/etc/cmdline.d/x.conf", "", nil},
	{"initrd-break", addonOf("loader/addons/x.addon.efi", testenv.PESection{Name: ".initrd", Data: breakAt}), "partition 1, loader/addons/x.addon.efi#.initrd/etc/cmdline.d/x.conf", "", addonOf("loader/addons/x.addon.efi", testenv.PESection{Name: ".initrd", Data: rawCpio(trailer)})},
	{"initrd-break", addonOf("EFI/BOOT/BOOTX64.EFI.extra.d/x.addon.efi", testenv.PESection{Name: ".ucode", Data: breakAt}), "partition 1, EFI/BOOT/BOOTX64.EFI.extra.d/x.addon.efi#.ucode/etc/cmdline.d/x.conf", "", nil},
	{"initrd-break", func(f *fixture) {
		f.rawInitrd = slices.Concat(cpio(f.initrd), bootConfigOf("# x\nkernel {\n rd { break }\n}\ninit.systemd.unit = \"x\"\n"))
	}, "partition 1, EFI/BOOT/BOOTX64.EFI#.initrd#BOOTCONFIG", "rd.break", func(f *fixture) {
		f.rawInitrd = slices.Concat(cpio(f.initrd), bootConfigOf("user.rd.break\n"))
	}},
	{"rescue-target", func(f *fixture) {
		f.rawInitrd = slices.Concat(cpio(f.initrd), bootConfigOf("init { systemd.unit = emergency.target }\n"), make([]byte, 3))
	}, "partition 1, EFI/BOOT/BOOTX64.EFI#.initrd#BOOTCONFIG", "", nil},
	{"initrd-not-read", func(f *fixture) {
		f.rawInitrd = slices.Concat(cpio(f.initrd), bootConfigOf("kernel {\n"))
	}, "partition 1, EFI/BOOT/BOOTX64.EFI#.initrd#BOOTCONFIG", "", nil},
	// The profile that boots, and what another would do.
	{"initrd-break", all(section(".profile", []byte("ID=main\n")), section(".initrd", breakAt)), inInitrd + "etc/cmdline.d/x.conf", "", all(section(".profile", []byte("ID=main\n")), section(".profile", []byte("ID=debug\n")), section(".initrd", breakAt))},
	{"initrd-break", all(section(".profile", []byte("ID=main\n")), section(".ucode", breakAt)), "partition 1, EFI/BOOT/BOOTX64.EFI#.ucode/etc/cmdline.d/x.conf", "", nil},
	{"uki-profile", all(section(".profile", []byte("ID=main\n")), section(".profile", []byte("ID=debug\n")), section(".initrd", breakAt)), "partition 1, EFI/BOOT/BOOTX64.EFI#.profile@1", "initrd-break", section(".profile", []byte("ID=main\n"))},
	{"uki-profile", all(section(".profile", []byte("ID=main\n")), section(".profile", []byte("ID=debug\n")), section(".cmdline", []byte("root=/dev/vda2 init=/bin/sh"))), "partition 1, EFI/BOOT/BOOTX64.EFI#.profile@1", "init-override", nil},
	// The kernel stops, and what is behind it is not known; what came before counts.
	{"initrd-not-read", func(f *fixture) { f.rawInitrd = slices.Concat(cpio(f.initrd), []byte("rubbish")) }, "partition 1, EFI/BOOT/BOOTX64.EFI#.initrd", "nothing known", nil},
	{"initrd-break", func(f *fixture) {
		f.rawInitrd = slices.Concat(cpio(f.initrd), breakAt, []byte("rubbish!"), rawCpio(text("etc/cmdline.d/x.conf", ""), trailer))
	}, inInitrd + "etc/cmdline.d/x.conf", "", nil},
	{"initrd-not-read", rawInitrd(directory("etc/cmdline.d"), text("etc/cmdline.d/x.conf", "\x1f\x8b\nrd.break\n")), inInitrd + "etc/cmdline.d/x.conf", "was not read", nil},
	{"initrd-password", rawInitrd(directory("a"), text("a/shadow", "root::1::::::\n"), link("etc/shadow", "../a/shadow")), inInitrd + "etc/shadow:1", `"root"`, nil},
	{"verity-ignores-corruption", all(without("roothash="), rawInitrd(directory("a"), text("a/v", "root UUID="+rootUUID+" UUID="+rootUUID+" abcd panic-on-corruption,ignore-corruption\n"), link("e", "etc"), link("e/veritytab", "/a/v"))), inInitrd + "etc/veritytab:1", "", nil},
	{"sulogin-force", rawInitrd(directory("opt"), text("opt/x.service", "[Service]\nEnvironment=SYSTEMD_SULOGIN_FORCE=1\n"), directory("etc/systemd"), directory("etc/systemd/system"), link("etc/systemd/system/x.service", "/opt/x.service")), inInitrd + "etc/systemd/system/x.service:2", "", nil},
	{"debug-shell-enabled", rawInitrd(directory("opt"), link("opt/debug-shell.service", "/usr/lib/systemd/system/debug-shell.service"), directory("etc/systemd"), directory("etc/systemd/system"), link("etc/systemd/system/x.wants", "/opt")), inInitrd + "etc/systemd/system/x.wants/debug-shell.service", "", nil},
	{"initrd-shell", all(initrdFileOf("scripts/functions", ""), replace("panic=-1", "")), cmdline, "initramfs-tools", initrdFileOf("scripts/functions", "")},
	{"initrd-remote-access", initrdFileOf("opt/bin/tinysshd", "x"), "partition 1, EFI/BOOT/BOOTX64.EFI#.initrd/opt/bin/tinysshd", "", initrdFileOf("usr/share/doc/dropbear", "x")},
	{"initrd-remote-access", initrdFileOf("root/.ssh/authorized_keys", "x"), "partition 1, EFI/BOOT/BOOTX64.EFI#.initrd/root/.ssh/authorized_keys", "", nil},
	{"mitigations-off", arg("spectre_v2_user=off"), cmdline, "", arg("spectre_v2_user=on")},
	{"mitigations-off", arg("nokaslr"), cmdline, "", nil},

	// Files.
	{"setuid-interpreter", all(file("opt/x/python3.13", ""), mode("opt/x/python3.13", 0o4755)), "partition 2, opt/x/python3.13", "4755", all(file("usr/bin/passwd", ""), mode("usr/bin/passwd", 0o4755))},
	{"setuid-interpreter", func(f *fixture) {
		f.root["usr/bin/perl"], f.xattrs["usr/bin/perl"] = "", strings.Replace(capability, "\x00\x20", "\x80\x00", 1)
	}, "partition 2, usr/bin/perl", "0x80", func(f *fixture) { f.root["usr/bin/ping"], f.xattrs["usr/bin/ping"] = "", capability }},
	{"acl-writable", xattr("usr/bin/x", "system.posix_acl_access", accessList(2, 500)), "partition 2, usr/bin/x", "the user 500", xattr("usr/bin/x", "system.posix_acl_access", accessList(2, 0))},
	{"acl-writable", all(kind("ext4"), xattr("usr/bin/x", "system.posix_acl_access", accessList(8, 33))), "partition 2, usr/bin/x", "the group 33", nil},
}
