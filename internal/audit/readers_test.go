package audit

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"
)

// readerCases are root file systems on which the kernel or systemd sees what a
// simpler reader does not.
var readerCases = []auditCase{
	{"login-file-not-read", file("etc/shadow", strings.Repeat("# long\n", 200000)), "partition 2, etc/shadow", "more than the 1048576 bytes", nil},
	{"security-file-not-read", file("etc/fstab", strings.Repeat("# long\n", 200000)), "partition 2, etc/fstab", "more than the 1048576 bytes", nil},
	// The flag alone: the kernel reads the blocks.
	{"empty-password", all(ext4Root, file("etc/shadow", "root::20000::::::\n"), damage(inlineFlag(18))), "partition 2, etc/shadow:1", `"root"`, ext4Root},
	{"names-disagree", damage(unsorted), "partition 2, etc", `the kernel's lookup by name and a listing disagree: "systemd" is listed`, nil},
	{"login-file-not-read", all(ext4Root, damage(deleteInode(45))), "partition 2, etc/shadow", "it was deleted", ext4Root},
	{"root-ambiguous", damage(write(0, "hsqs")), "partition 2", "there are signatures of erofs and of squashfs", all(damage(write(0, "hsqs")), arg("rootfstype=erofs"))},
	{"root-ambiguous", damage(write(0, "XFSB")), "partition 2", "there are signatures of erofs and of XFS", arg("rootfstype=auto")},
	{"root-ambiguous", arg("rootfstype=vfat"), "partition 2", `to mount ["vfat"], and this was read as erofs`, all(ext4Root, arg("rootfstype=ext2"))},
	{"root-ambiguous", arg("mount.usrfstype=xfs"), "partition 2", `to mount ["xfs"]`, arg("mount.usrfstype=xfs,erofs")},

	// A link out of the unit directories is a unit, whatever the file is called.
	{"autologin", all(file("usr/share/doc/notes.txt", "[Service]\nExecStart=/usr/sbin/agetty --autologin root ttyS0\n"), file("etc/systemd/system/evil.service", "-> /usr/share/doc/notes.txt")),
		"partition 2, etc/systemd/system/evil.service:2", "--autologin root", nil},
	{"sshd-enabled", all(file("usr/share/doc/notes.txt", "[Service]\nExecStart=/usr/sbin/sshd -D\n"), file("etc/systemd/system/evil.service", "-> ../../../usr/share/doc/notes.txt"), startedBy("evil.service")),
		"partition 2, etc/systemd/system/evil.service:2", "sshd", nil},
	// A link that is no alias to systemd hides nothing.
	{"sshd-enabled", all(unit("quiet.service", true, "[Service]\nExecStart=/usr/sbin/sshd -D\n"), file("etc/systemd/system/quiet.service", "-> /usr/lib/systemd/system/README"), file("usr/lib/systemd/system/README", "text")),
		"partition 2, usr/lib/systemd/system/quiet.service:2", "sshd", all(unit("quiet.service", true, "[Service]\nExecStart=/usr/sbin/sshd -D\n"), file("etc/systemd/system/quiet.service", "-> ../../../opt/nothing"), file("opt/nothing", "-> /dev/null"))},
	// Drop-ins of an alias, of a prefix, of the type, and through a link.
	{"sshd-enabled", all(file("etc/systemd/system/other.service", "-> web.service"), file("etc/systemd/system/other.service.d/x.conf", "[Service]\nExecStartPre=/usr/sbin/sshd\n")),
		"partition 2, etc/systemd/system/other.service.d/x.conf:2", "sshd", nil},
	{"sshd-enabled", all(unit("web-front.service", true, service), file("etc/systemd/system/web-.service.d/x.conf", "[Service]\nExecStartPre=/usr/sbin/sshd\n")),
		"partition 2, etc/systemd/system/web-.service.d/x.conf:2", "sshd", nil},
	{"sshd-enabled", file("etc/systemd/system/service.d/x.conf", "[Service]\nExecStartPre=/usr/sbin/sshd\n"), "partition 2, etc/systemd/system/service.d/x.conf:2", "sshd", nil},
	{"sshd-enabled", all(file("opt/more/x.conf", "[Service]\nExecStartPre=/usr/sbin/sshd\n"), file("etc/systemd/system/web.service.d", "-> /opt/more")),
		"partition 2, etc/systemd/system/web.service.d/x.conf:2", "sshd", nil},
}

func ext4Root(f *fixture) { f.kind = "ext4" }

func damage(change func([]byte)) spoiler { return func(f *fixture) { f.damage = change } }

// write overwrites bytes.
func write(at int, text string) func([]byte) { return func(b []byte) { copy(b[at:], text) } }

// startedBy has multi-user.target start a unit.
func startedBy(name string) spoiler {
	return file("etc/systemd/system/multi-user.target.wants/"+name, "-> /etc/systemd/system/"+name)
}

// inodes calls change for every inode of a regular file of a size in an ext4 file
// system, from which the checksums are taken.
func inodes(b []byte, size uint32, change func(raw []byte)) {
	le := binary.LittleEndian
	b[1024+0x65] &^= 0x04 // RO_COMPAT_METADATA_CSUM
	block := 1024 << le.Uint32(b[1024+0x18:])
	table, length := int(le.Uint32(b[max(block, 2048)+8:]))*block, int(le.Uint16(b[1024+0x58:]))
	for i := range int(le.Uint32(b[1024+0x28:])) {
		raw := b[table+i*length:][:length]
		if le.Uint16(raw)&0xf000 == 0x8000 && le.Uint32(raw[4:]) == size {
			change(raw)
		}
	}
}

// inlineFlag sets INLINE_DATA of the files of a size, which have no such xattr.
func inlineFlag(size uint32) func([]byte) {
	return func(b []byte) {
		inodes(b, size, func(raw []byte) { raw[0x23] |= 0x10 })
	}
}

// deleteInode takes the links of the files of a size away.
func deleteInode(size uint32) func([]byte) {
	return func(b []byte) {
		inodes(b, size, func(raw []byte) { raw[0x1a], raw[0x1b] = 0, 0 })
	}
}

// unsorted gives a directory of erofs a name that bisection does not come to.
func unsorted(b []byte) {
	b[1024+8] &^= 1 // COMPAT_SB_CHKSUM
	copy(b, bytes.ReplaceAll(b, []byte("shadowsystemd"), []byte("thadowsystemd")))
}

// TestUnreadRule checks that a file that was not read counts as much as what it may
// hide.
func TestUnreadRule(t *testing.T) {
	for rule, names := range map[string][]string{
		"login-file-not-read":    {".", "etc", "etc/shadow", "etc/pam.d/login", "usr/lib/systemd/system/x.service", "usr", "usr/lib", "etc/systemd/system-generators/x"},
		"security-file-not-read": {"root/.ssh/authorized_keys", "home/web/.ssh/authorized_keys2", "etc/ssh/sshd_config", "usr/sbin/x", "root", "etc/sudoers.d/x", "usr/lib/modules/6.12/kernel/x.ko"},
		"file-not-read":          {"usr/share/doc/x", "etc/shadows", "srv/etc/shadow"},
	} {
		for _, name := range names {
			if got := unreadRule(name); got != rule {
				t.Errorf("%s: %s, want %s", name, got, rule)
			}
		}
	}
	if got := []Severity{rules["login-file-not-read"].severity, rules["security-file-not-read"].severity, rules["file-not-read"].severity}; !slices.Equal(got, []Severity{Critical, High, Medium}) {
		t.Errorf("severities %v", got)
	}
}

func TestMayAlias(t *testing.T) {
	for _, c := range []struct {
		name, of string
		want     bool
	}{
		{"a.service", "b.service", true}, {"a.service", "b.socket", false}, {"a@.service", "b@.service", true}, {"a@x.service", "b@.service", true},
		{"a@x.service", "b@x.service", true}, {"a@x.service", "b@y.service", false}, {"a@.service", "b@x.service", false}, {"a.service", "b@.service", false},
		{"a.mount", "b.mount", false}, {"a.service", "README", false}, {"a.service", "a.service", false}, {"a.service", "b.txt", false},
	} {
		if got := mayAlias(c.name, c.of); got != c.want {
			t.Errorf("%s for %s: %v", c.name, c.of, got)
		}
	}
}
