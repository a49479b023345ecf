package audit

import (
	"errors"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/org/attestable-image-action/internal/disk"
)

// decisive are files and directories of a root file system that decide who gets
// in, by the rule that reports that one of them was not read: such a finding is as
// severe as what the file may hide.
var decisive = map[string][]string{
	// An account without a password, a shell on a console, a program that runs
	// first.
	"login-file-not-read": {
		"etc/passwd", "etc/shadow", "etc/gshadow", "etc/group", "etc/nsswitch.conf", "etc/inittab", "etc/ld.so.preload",
		"usr/lib/passwd", "usr/lib/shadow", "usr/etc/passwd", "usr/etc/shadow", "var/lib/extrausers", "etc/userdb", "usr/lib/userdb", "usr/local/lib/userdb",
		"etc/pam.d", "etc/pam.conf", "usr/lib/pam.d", "lib/pam.d", "usr/etc/pam.d", "etc/securetty", "etc/login.defs",
		"etc/systemd", "usr/lib/systemd", "usr/local/lib/systemd", "lib/systemd", "etc/init.d", "etc/rc.d", "etc/rc.local", "etc/rcS.d", "etc/rc2.d", "etc/rc3.d", "etc/rc4.d", "etc/rc5.d",
	},
	// A key, a way to more rights, a program or module in the place of another.
	"security-file-not-read": {
		"etc/ssh", "usr/etc/ssh", "root/.ssh", "etc/sudoers", "etc/sudoers.d", "usr/etc/sudoers.d", "etc/doas.conf", "etc/doas.d", "etc/polkit-1", "usr/share/polkit-1",
		"etc/security", "etc/ld.so.conf", "etc/ld.so.conf.d", "etc/ld.so.cache", "etc/environment", "etc/profile", "etc/profile.d",
		"etc/modules", "etc/modules-load.d", "usr/lib/modules-load.d", "etc/modprobe.d", "usr/lib/modprobe.d", "usr/lib/modules", "lib/modules",
		"etc/udev", "usr/lib/udev", "lib/udev", "etc/tmpfiles.d", "usr/lib/tmpfiles.d", "etc/sysusers.d", "usr/lib/sysusers.d", "etc/fstab", "etc/crypttab", "etc/veritytab",
		"etc/crontab", "etc/anacrontab", "etc/cron.d", "etc/cron.hourly", "etc/cron.daily", "etc/cron.weekly", "etc/cron.monthly", "var/spool/cron",
		"etc/credstore", "etc/credstore.encrypted", "usr/lib/credstore", "etc/cloud", "etc/selinux", "etc/apparmor.d", "etc/kernel",
		"bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin", "usr/local/sbin", "usr/libexec",
	},
}

// unreadRule is the rule that reports that a file or directory was not read.
func unreadRule(name string) string {
	for _, rule := range []string{"login-file-not-read", "security-file-not-read"} {
		for _, file := range decisive[rule] {
			// It is one, is in one, or one is in it.
			if name == "." || name == file || strings.HasPrefix(name, file+"/") || strings.HasPrefix(file, name+"/") {
				return rule
			}
		}
	}
	if base := path.Base(name); strings.HasPrefix(base, "authorized_keys") || base == ".ssh" {
		return "security-file-not-read"
	}
	return "file-not-read"
}

// notRead reports what could not be read, or what the kernel sees otherwise than a
// listing. A path that leads nowhere for the kernel, too, is nothing that was missed.
func (r *rootAudit) notRead(name string, err error) {
	if names, ok := errors.AsType[*disk.NamesError](err); ok {
		r.a.add("names-disagree", r.at(name), "%v", names)
		return
	}
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
		r.a.add(unreadRule(name), r.at(name), "%v", err)
	}
}
