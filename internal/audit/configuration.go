package audit

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/org/attestable-image-action/internal/lazyregexp"
	"github.com/org/attestable-image-action/internal/strictjson"
)

// configurationRoots are where programs of systemd and others look for the pieces
// of their configuration, in the order of precedence.
var configurationRoots = []string{"etc", "usr/local/lib", "usr/lib", "lib"}

// dropins lists the files of a directory of configuration, "systemd/system-preset",
// say, by their suffix: in the order of their names; of files of the same name the
// first root's counts.
func (r *rootAudit) dropins(dir, suffix string) []string {
	found := map[string]string{}
	var names []string
	for _, root := range configurationRoots {
		at := path.Join(root, dir)
		if root == "lib" && sameDirectory(r, at, path.Join("usr", at)) {
			continue
		}
		for _, name := range r.names(at) {
			if _, known := found[name]; !known && strings.HasSuffix(name, suffix) {
				found[name] = path.Join(at, name)
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	for i, name := range names {
		names[i] = found[name]
	}
	return names
}

// eachLine calls look for every line of a file that is no comment.
func (r *rootAudit) eachLine(name string, look func(at place, line string)) {
	number := 0
	for line := range strings.Lines(string(r.optional(name))) {
		number++
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' && line[0] != ';' {
			look(place{r.partition, name, number}, line)
		}
	}
}

// configuration looks at files that make something at boot that is not there yet,
// and at settings that open something.
func (r *rootAudit) configuration() {
	for _, file := range r.dropins("tmpfiles.d", ".conf") {
		r.eachLine(file, r.tmpfile)
	}
	for _, file := range r.dropins("sysusers.d", ".conf") {
		r.eachLine(file, r.sysuser)
	}
	r.sysctls()
	r.userRecords()
	r.managerSettings()
	r.generators()
	r.pam()
	r.oldStarters()
	for _, name := range append(r.in("etc/doas.d"), "etc/doas.conf", "usr/local/etc/doas.conf") {
		r.eachLine(name, func(at place, line string) {
			if fields := strings.Fields(line); fields[0] == "permit" && slices.Contains(fields, "nopass") {
				r.report("sudo-without-password", at, "%.100q", line)
			}
		})
	}
}

// in lists a directory by the paths of what it has.
func (r *rootAudit) in(dir string) []string {
	names := r.names(dir)
	for i, name := range names {
		names[i] = path.Join(dir, name)
	}
	return names
}

// sensitive are files of which each new one may let somebody in.
var sensitive = lazyregexp.New(`/\.ssh/authorized_keys|^/etc/(passwd|shadow|group|gshadow|sudoers|ld\.so\.preload|crontab)$` +
	`|^/etc/ssh/(sshd_config|ssh_host_|authorized_keys)|^/etc/(sudoers\.d|pam\.d|cron\.[a-z]+|userdb|credstore|systemd/system|systemd/system-generators)/.` +
	`|^/run/(userdb|credstore|systemd/system|systemd/generator[a-z.]*)/.|^/var/spool/cron/.`)

// tmpfile looks at a line of tmpfiles.d(5).
func (r *rootAudit) tmpfile(at place, line string) {
	fields := strings.Fields(line)
	if len(fields) < 2 {
		return
	}
	kind, name := fields[0], path.Clean(strings.Trim(fields[1], `"'`))
	// What comes from a credential, the rule for credentials tells of.
	if strings.Contains(kind, "^") {
		return
	}
	if strings.ContainsAny(kind[:1], "fFwCL") && sensitive().MatchString(name) {
		r.report("tmpfiles-opens", at, "%.150q", line)
	}
	inMemory := strings.HasPrefix(name, "/dev/") || strings.HasPrefix(name, "/proc/") || strings.HasPrefix(name, "/sys/")
	if strings.ContainsAny(kind[:1], "fFzZmCw") && len(fields) > 2 && !inMemory {
		mode, err := strconv.ParseUint(strings.TrimLeft(fields[2], "~:"), 8, 16)
		if err == nil && (mode&0o4000 != 0 || mode&0o002 != 0 && mode&0o1000 == 0) {
			r.report("tmpfiles-opens", at, "%.150q", line)
		}
	}
}

// sysuser looks at a line of sysusers.d(5).
func (r *rootAudit) sysuser(at place, line string) {
	fields := strings.Fields(line)
	if len(fields) < 3 || !strings.HasPrefix(fields[0], "u") || strings.Trim(fields[1], `"'`) == "root" {
		return
	}
	if id, _, _ := strings.Cut(strings.Trim(fields[2], `"'`), ":"); id == "0" {
		r.report("uid-zero-account", at, "%.100q", line)
	}
}

// sysctls looks at the settings that are in force in the end: files are read in
// the order of their names, and the last line counts.
func (r *rootAudit) sysctls() {
	type setting struct {
		at          place
		name, value string
	}
	last := map[string]int{}
	var all []setting
	for _, file := range append(r.dropins("sysctl.d", ".conf"), "etc/sysctl.conf") {
		r.eachLine(file, func(at place, line string) {
			name, value, ok := strings.Cut(strings.TrimLeft(line, "-"), "=")
			if !ok {
				return
			}
			name = strings.ReplaceAll(strings.TrimSpace(name), "/", ".")
			last[name] = len(all)
			all = append(all, setting{at, name, strings.TrimSpace(value)})
		})
	}
	for i, s := range all {
		if last[s.name] == i {
			r.a.sysctl(s.at, s.name, s.value)
		}
	}
}

// userRecords looks at users of userdb (nss-systemd(8)) and of systemd-homed,
// which are JSON.
func (r *rootAudit) userRecords() {
	for _, dir := range []string{"etc/userdb", "run/userdb", "usr/local/lib/userdb", "usr/lib/userdb", "var/lib/systemd/home"} {
		for _, name := range r.in(dir) {
			if ext := path.Ext(name); ext == ".user" || ext == ".user-privileged" || ext == ".identity" {
				r.userRecord(name)
			}
		}
	}
}

// userSecrets are the members of a user record (JSON User Records of the UAPI
// group) that let somebody in.
type userSecrets struct {
	HashedPassword    []string `json:"hashedPassword"`
	SSHAuthorizedKeys []string `json:"sshAuthorizedKeys"`
}

func (r *rootAudit) userRecord(name string) {
	content := r.optional(name)
	if len(content) == 0 {
		return
	}
	var record struct {
		userSecrets

		UserName   string        `json:"userName"`
		UID        *int64        `json:"uid"`
		Privileged userSecrets   `json:"privileged"`
		PerMachine []userSecrets `json:"perMachine"`
	}
	if err := strictjson.Unmarshal(content, &record); err != nil {
		r.add(unreadRule(name), name, "it is no user record: %v", err)
		return
	}
	for _, p := range append(record.PerMachine, record.userSecrets, record.Privileged) {
		for _, hash := range p.HashedPassword {
			switch c := (account{password: hash}); {
			case c.open():
				r.add("empty-password", name, "the account %.40q", record.UserName)
			case c.hash():
				r.add("password-set", name, "the account %.40q", record.UserName)
			}
		}
		if len(p.SSHAuthorizedKeys) > 0 {
			r.add("authorized-keys", name, "keys of the account %.40q", record.UserName)
		}
	}
	if record.UID != nil && *record.UID == 0 && record.UserName != "root" {
		r.add("uid-zero-account", name, "the account %.40q", record.UserName)
	}
}

// managerSettings looks at systemd's own configuration (systemd-system.conf(5)).
func (r *rootAudit) managerSettings() {
	for _, name := range append(append(r.dropins("systemd/system.conf.d", ".conf"), "usr/lib/systemd/system.conf"), "etc/systemd/system.conf") {
		for _, l := range unitLines(name, r.optional(name)) {
			at := place{r.partition, name, l.number}
			switch {
			case (l.key == "CrashShell" || l.key == "ConfirmSpawn") && !isFalse(l.value):
				r.report("crash-shell", at, "%s=%s", l.key, l.value)
			case strings.HasSuffix(l.key, "Environment"):
				r.a.unitLine(at, l)
			}
		}
	}
}

// knownGenerators are generators whose units the audit knows by other signs.
var knownGenerators = lazyregexp.New(`^(systemd-[a-z0-9-]+-generator|cloud-init-generator|netplan|lvm2-activation-generator|lvm2|zram-generator|` +
	`ostree-system-generator|selinux-autorelabel-generator(\.sh)?|kdump-dep-generator(\.sh)?|snapd-generator|nfs-server-generator|rpc-pipefs-generator|` +
	`sshd-socket-generator|friendly-recovery|ds-identify|bootc-systemd-generator|rpm-ostree-fix-shadow-mode|dracut-rootfs-generator|apparmor|` +
	`netavark|podman-system-generator|postgresql-generator|openvpn-generator|gdm-generator|coreos-[a-z-]+-generator|ibft-rule-generator|kiwi-[a-z-]+-generator(\.sh)?)$`)

// generators looks for programs that make units at boot, of which nothing can be
// read from the image.
func (r *rootAudit) generators() {
	for _, name := range r.dropins("systemd/system-generators", "") {
		if base := path.Base(name); !knownGenerators().MatchString(base) {
			r.add("unknown-generator", name, "what units it makes is not known")
		}
	}
}

// pam looks for authentication that is no question (pam.d(5)).
func (r *rootAudit) pam() {
	for _, dir := range []string{"etc/pam.d", "usr/lib/pam.d", "usr/etc/pam.d"} {
		for _, name := range r.in(dir) {
			base := path.Base(name)
			first := true
			r.eachLine(name, func(at place, line string) {
				fields := strings.Fields(strings.TrimPrefix(line, "-"))
				if len(fields) < 3 || fields[0] != "auth" {
					return
				}
				control := fields[1]
				rest := fields[2:]
				if strings.HasPrefix(control, "[") { // as in [success=done default=ignore]
					end := slices.IndexFunc(fields[1:], func(f string) bool { return strings.HasSuffix(f, "]") })
					if end < 0 || end+2 >= len(fields) {
						return
					}
					control, rest = strings.Join(fields[1:end+2], " "), fields[end+2:]
				}
				module := path.Base(rest[0])
				// The usual last line, after one that refuses, is reached by success only.
				decides := control == "sufficient" || first || strings.Contains(control, "success=done")
				if module == "pam_permit.so" && decides && base != "other" && base != "su-l" {
					r.report("pam-permit", at, "%.100q", line)
				}
				if slices.Contains(rest, "nullok") || slices.Contains(rest, "nullok_secure") {
					r.report("pam-nullok", at, "%.100q", line)
				}
				first = false
			})
		}
	}
}

// oldStarters looks at what starts programs without units: rc.local, inetd,
// xinetd, OpenRC, runit, cron and at.
func (r *rootAudit) oldStarters() {
	for _, name := range []string{"etc/rc.local", "etc/rc.d/rc.local"} {
		if info, err := r.fs.Stat(name); err == nil && info.Mode().Perm()&0o111 != 0 {
			r.eachLine(name, r.command)
		}
	}
	inetd := func(at place, line string) {
		found := false
		mentions(line, func(name string, p program) {
			found = true
			r.report(p.enabled, at, "it starts %s: %.100s", path.Base(name), line)
		})
		fields := strings.Fields(line)
		if !found && len(fields) >= 6 && shells[path.Base(fields[len(fields)-1])] {
			r.report("remote-shell-enabled", at, "%.100s", line)
		}
	}
	r.eachLine("etc/inetd.conf", inetd)
	for _, name := range r.in("etc/inetd.d") {
		r.eachLine(name, inetd)
	}
	for _, name := range r.in("etc/xinetd.d") {
		disabled := false
		r.eachLine(name, func(_ place, line string) {
			key, value, _ := strings.Cut(line, "=")
			disabled = disabled || strings.TrimSpace(key) == "disable" && strings.TrimSpace(value) == "yes"
		})
		if !disabled {
			r.eachLine(name, func(at place, line string) {
				if key, value, ok := strings.Cut(line, "="); ok && strings.TrimSpace(key) == "server" {
					inetd(at, value)
				}
			})
		}
	}
	for _, dir := range []string{"etc/runlevels/default", "etc/runlevels/boot", "etc/runlevels/sysinit", "etc/service", "var/service", "etc/runit/runsvdir/default"} {
		for _, name := range r.in(dir) {
			if p, ok := programs[path.Base(name)]; ok {
				r.add(p.enabled, name, "it starts %s", path.Base(name))
			}
		}
	}
	r.cron()
}

// cron looks for jobs, where there is a program that runs them.
func (r *rootAudit) cron() {
	_, ok := r.first(sbins("cron", "crond", "fcron", "cronie", "anacron", "atd")...)
	if !ok {
		return
	}
	for _, dir := range []string{"etc/cron.d", "etc/cron.hourly", "etc/cron.daily", "etc/cron.weekly", "etc/cron.monthly", "var/spool/cron", "var/spool/cron/crontabs", "var/spool/at"} {
		for _, name := range r.in(dir) {
			if base := path.Base(name); base != ".placeholder" && base != "crontabs" && base != "atjobs" && base != "atspool" && base != ".SEQ" {
				r.add("cron-job", name, "it runs without a unit of its own")
				r.eachLine(name, r.command)
			}
		}
	}
	for _, name := range []string{"etc/crontab", "etc/anacrontab"} {
		r.eachLine(name, func(at place, line string) {
			if strings.ContainsAny(line[:1], "0123456789*@") && !strings.Contains(line, "run-parts") {
				r.report("cron-job", at, "%.100q", line)
				r.command(at, line)
			}
		})
	}
}
