package audit

import (
	"cmp"
	"errors"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
)

// initrdFiles looks at the files of an initrd for what lets somebody in, and for
// what they add to the kernel command line. A file counts once: by its own path
// rather than by that of a symbolic link, or by one through a symbolic link.
func (a *auditor) initrdFiles(u *ukiAudit) {
	rank := func(name string) int {
		switch file := u.initrd.files[name]; {
		case file.alias:
			return 2
		case file.mode&typeMask == typeLink:
			return 1
		}
		return 0
	}
	names := slices.SortedFunc(maps.Keys(u.initrd.files), func(x, y string) int {
		return cmp.Or(cmp.Compare(rank(x), rank(y)), strings.Compare(x, y))
	})
	seen := map[*rootfsNode]bool{}
	for _, name := range names {
		file := u.initrd.files[name]
		if !seen[file.node] && a.initrdFile(u, name, file, seen) {
			seen[file.node] = true
		}
	}
	for _, unit := range []string{"debug-shell.service", "emergency.service", "rescue.service"} {
		for _, name := range u.initrd.pulls(unit) {
			a.add("debug-shell-enabled", u.inInitrd(name), "it starts %s in the initrd", unit)
		}
	}
}

// initrdFile looks at a file, and reports whether its path is one that matters.
func (a *auditor) initrdFile(u *ukiAudit, name string, file initrdFile, seen map[*rootfsNode]bool) bool {
	at := u.inInitrd(name)
	base, dir := path.Base(name), path.Dir(name)
	program, known := programs[base]
	switch {
	case known && program.remote() && (strings.HasSuffix(dir, "bin") || file.mode&0o111 != 0 && file.mode&typeMask == typeRegular):
		a.add("initrd-remote-access", at, "it is there")
	case base == "authorized_keys" || base == "authorized_keys2":
		a.add("initrd-remote-access", at, "keys for logins")
	case inCredentialStore(dir) && loginCredential(base):
		a.add("login-credential", at, "systemd gives it to the service that it is for")
	case name == "etc/cmdline", strings.HasPrefix(name, "etc/cmdline.d/"):
		content := a.initrdText(u, name, seen)
		words := commandLineWords(string(content))
		u.initrdWords = append(u.initrdWords, words...)
		a.commandLine(at, u, words)
	case strings.Contains(name, "systemd/system/") && (strings.HasSuffix(name, ".service") || strings.HasSuffix(name, ".conf")):
		content := a.initrdText(u, name, seen)
		for _, l := range unitLines(at.path, content) {
			at.line = l.number
			a.unitLine(at, l)
		}
	default:
		return false
	}
	return true
}

// initrdText reads a file of the initrd that matters, behind symbolic links, unless
// it was seen. One that is there and cannot be read is a finding.
func (a *auditor) initrdText(u *ukiAudit, name string, seen map[*rootfsNode]bool) []byte {
	content, err := u.initrd.text(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errNotDirectory) {
		a.add("initrd-not-read", u.inInitrd(name), "%v", err)
	}
	if err != nil {
		return nil
	}
	if file, err := u.initrd.file(name); err == nil && seen != nil {
		if seen[file.node] {
			return nil
		}
		seen[file.node] = true
	}
	return content
}

// credentialStores are where systemd finds credentials by their names.
var credentialStores = []string{
	"etc/credstore", "etc/credstore.encrypted", "usr/lib/credstore", "usr/lib/credstore.encrypted", "usr/local/lib/credstore",
	"usr/local/lib/credstore.encrypted", "run/credstore", "run/credstore.encrypted", "run/credentials/@system", ".extra/credentials",
	".extra/system_credentials", ".extra/global_credentials",
}

func inCredentialStore(dir string) bool { return slices.Contains(credentialStores, dir) }
