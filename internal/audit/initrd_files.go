package audit

import (
	"maps"
	"path"
	"slices"
	"strings"
)

// initrdFiles looks at the files of an initrd for what lets somebody in, and for
// what they add to the kernel command line.
func (a *auditor) initrdFiles(u *ukiAudit) {
	for _, name := range slices.Sorted(maps.Keys(u.initrd.files)) {
		file := u.initrd.files[name]
		at := u.in(".initrd/" + name)
		base, dir := path.Base(name), path.Dir(name)
		program, known := programs[base]
		switch {
		case known && program.remote() && (strings.HasSuffix(dir, "bin") || file.mode&0o111 != 0 && file.mode&0o170000 == 0o100000):
			a.add("initrd-remote-access", at, "it is there")
		case base == "authorized_keys" || base == "authorized_keys2":
			a.add("initrd-remote-access", at, "keys for logins")
		case inCredentialStore(dir) && loginCredential(base):
			a.add("login-credential", at, "systemd gives it to the service that it is for")
		case name == "etc/cmdline", strings.HasPrefix(name, "etc/cmdline.d/"):
			words := commandLineWords(string(file.content))
			u.initrdWords = append(u.initrdWords, words...)
			a.commandLine(at, u, words)
		case strings.Contains(name, "systemd/system/"):
			for _, l := range unitLines(at.path, file.content) {
				at.line = l.number
				a.unitLine(at, l)
			}
		}
	}
	for _, unit := range []string{"debug-shell.service", "emergency.service", "rescue.service"} {
		for _, name := range u.initrd.pulls(unit) {
			a.add("debug-shell-enabled", u.in(".initrd/"+name), "it starts %s in the initrd", unit)
		}
	}
}

// credentialStores are where systemd finds credentials by their names.
var credentialStores = []string{
	"etc/credstore", "etc/credstore.encrypted", "usr/lib/credstore", "usr/lib/credstore.encrypted", "usr/local/lib/credstore",
	"usr/local/lib/credstore.encrypted", "run/credstore", "run/credstore.encrypted", "run/credentials/@system", ".extra/credentials",
	".extra/system_credentials", ".extra/global_credentials",
}

func inCredentialStore(dir string) bool { return slices.Contains(credentialStores, dir) }
