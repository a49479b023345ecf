package audit

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// placedFile looks at a file by its name, wherever it lies: programs that let
// somebody in, keys.
func (r *rootAudit) placedFile(name string, info fs.FileInfo) {
	base, mode := path.Base(name), info.Mode()
	executable := mode.IsRegular() && mode.Perm()&0o111 != 0
	if mode.Type() == fs.ModeSymlink && strings.HasSuffix(path.Dir(name), "bin") {
		// A program of busybox, mostly.
		target, err := r.fs.Stat(name)
		executable = err == nil && target.Mode().IsRegular() && target.Mode().Perm()&0o111 != 0
	}
	switch {
	case executable:
		if p, ok := programs[base]; ok && p.installed != "" && !r.found[p.enabled] {
			detail := notStarted
			if p.installed == p.enabled {
				detail = "it is there"
			}
			r.add(p.installed, name, "%s", detail)
		}
	case !mode.IsRegular():
	case strings.HasPrefix(base, "efivarfs.ko"):
		r.efivarfs = true
	case slices.Contains(assemblyRules, base) && strings.HasSuffix(path.Dir(name), "udev/rules.d"):
		r.add("auto-assembly", name, "it is there")
	case base == "authorized_keys" || base == "authorized_keys2":
		r.authorizedKeysIn(name)
	case strings.HasPrefix(base, "ssh_host_") && strings.HasSuffix(base, "_key"), strings.HasPrefix(base, "dropbear_") && strings.HasSuffix(base, "_host_key"):
		r.add("ssh-host-key", name, "it is there")
	case strings.HasPrefix(base, "amazon-ssm-agent_") && strings.HasSuffix(base, ".snap"):
		if !r.found["ssm-agent-enabled"] {
			r.add("ssm-agent-installed", name, "snapd starts what is in it")
		}
	}
}

// interpreter reports whether a program does what its caller says.
func interpreter(name string) bool {
	base := path.Base(name)
	return shells[base] && base != "sulogin" || interpreters().MatchString(base)
}

// rootCapabilities are those with which a program can become root: CAP_CHOWN,
// CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_SETGID, CAP_SETUID, CAP_SYS_MODULE,
// CAP_SYS_RAWIO, CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_SETFCAP (linux/capability.h).
const rootCapabilities = 1<<0 | 1<<1 | 1<<3 | 1<<6 | 1<<7 | 1<<16 | 1<<17 | 1<<19 | 1<<21 | 1<<31

// aclWriters reads an access list as it lies in the xattr of erofs and of ext4
// (version 2 with an identifier in each entry, version 1 where only named ones
// have it), and says whom else it lets write; "" for nobody.
func aclWriters(b []byte) string {
	const write, user, group, mask = 2, 0x02, 0x08, 0x10
	if len(b) < 4 {
		return ""
	}
	le := binary.LittleEndian
	type entry struct {
		tag, bits uint16
		id        uint32
	}
	var entries []entry
	masked := uint16(7)
	version := le.Uint32(b)
	for b = b[4:]; len(b) >= 4; {
		e := entry{tag: le.Uint16(b), bits: le.Uint16(b[2:])}
		b = b[4:]
		if version == 2 || e.tag == user || e.tag == group {
			if len(b) < 4 {
				return "an access list that is cut off"
			}
			e.id, b = le.Uint32(b), b[4:]
		}
		if e.tag == mask {
			masked = e.bits
		}
		entries = append(entries, e)
	}
	for _, e := range entries {
		if e.bits&masked&write == 0 {
			continue
		}
		switch {
		case e.tag == user && e.id != 0:
			return fmt.Sprintf("the user %d", e.id)
		case e.tag == group && e.id != 0:
			return fmt.Sprintf("the group %d", e.id)
		}
	}
	return ""
}
