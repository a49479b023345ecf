package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/org/attestable-image-action/internal/disk"
)

// rootAudit is the audit of one root file system.
type rootAudit struct {
	a         *auditor
	partition int
	fs        *disk.Filesystem
	units     *units
	named     map[string]bool // units that were looked for by their names
	found     map[string]bool // rules that were reported
	efivarfs  bool            // there is a module of the kernel that shows firmware's variables
}

// maxConfig bounds a configuration file that is read, in bytes.
const maxConfig = 1 << 20

// read reads a configuration file.
func (r *rootAudit) read(name string) ([]byte, error) {
	f, err := r.fs.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readLimited(f, maxConfig)
}

// optional reads a configuration file that need not be there; when it cannot be
// read, that is a finding.
func (r *rootAudit) optional(name string) []byte {
	content, err := r.read(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.notRead(name, err)
	}
	return content
}

func (r *rootAudit) at(name string) place { return place{partition: r.partition, path: name} }

func (r *rootAudit) add(id, name, format string, args ...any) {
	r.report(id, r.at(name), format, args...)
}

func (r *rootAudit) report(id string, at place, format string, args ...any) {
	r.found[id] = true
	r.a.add(id, at, format, args...)
}

// first returns the first of the paths that exists.
func (r *rootAudit) first(names ...string) (string, bool) {
	for _, name := range names {
		_, err := r.fs.Stat(name)
		if err == nil {
			return name, true
		}
		r.notRead(name, err)
	}
	return "", false
}

// root looks at a root file system.
func (a *auditor) root(p *partition) (*rootAudit, error) {
	r := &rootAudit{a: a, partition: p.Number, fs: p.fs, named: map[string]bool{}, found: map[string]bool{}}
	r.units = a.readUnits(r)
	r.remote()
	r.consoles()
	r.startedUnits()
	r.configuration()
	r.accounts()
	r.mounts()
	r.kernel()
	files, err := r.files()
	a.report.Audited = append(a.report.Audited, Audited{Partition: p.Number, Kind: p.kind, Files: files})
	if err != nil {
		return nil, err
	}
	if nested := nestedImage(p.fs); nested != "" {
		r.add("nested-image", nested, "it may be the root file system that really runs")
	}
	return r, nil
}

// sbins returns the places where a program of the system may be.
func sbins(names ...string) []string {
	dirs := []string{"usr/sbin", "usr/bin", "sbin", "bin", "usr/local/sbin", "usr/local/bin", "usr/libexec", "usr/lib"}
	paths := make([]string, 0, len(names)*len(dirs))
	for _, name := range names {
		for _, dir := range dirs {
			paths = append(paths, path.Join(dir, name))
		}
	}
	return paths
}

const notStarted = "it is there, and no unit starts it at boot"

// service reports a service that starts at boot, or else that it is installed.
func (r *rootAudit) service(enabled, installed string, units, programs []string) {
	for _, unit := range units {
		r.named[unit] = true
	}
	for _, unit := range units {
		if by, ok := r.units.starts(unit); ok {
			r.report(enabled, by, "it starts %s", unit)
			return
		}
	}
	for _, unit := range units {
		base := strings.TrimSuffix(unit, path.Ext(unit))
		if by, ok := r.sysvinit(base); ok && !r.units.masked(unit) {
			r.add(enabled, by, "it starts %s", base)
			return
		}
	}
	if name, ok := r.first(programs...); ok {
		r.add(installed, name, notStarted)
	}
}

// sysvinit returns the link that starts a script of /etc/init.d, unless there is
// a unit of that name, which systemd prefers.
func (r *rootAudit) sysvinit(name string) (string, bool) {
	if _, native := r.units.find(name + ".service"); native {
		return "", false
	}
	for _, dir := range []string{"etc/rc2.d", "etc/rc3.d", "etc/rc4.d", "etc/rc5.d", "etc/rcS.d", "etc/rc.d/rc2.d", "etc/rc.d/rc3.d", "etc/rc.d/rc4.d", "etc/rc.d/rc5.d"} {
		entries, err := r.fs.ReadDir(dir)
		if err != nil {
			r.notRead(dir, err)
		}
		for _, e := range entries {
			if n := e.Name(); len(n) > 3 && n[0] == 'S' && n[3:] == name {
				return path.Join(dir, n), true
			}
		}
	}
	return "", false
}

func (r *rootAudit) remote() {
	r.service("sshd-enabled", "sshd-installed",
		[]string{"ssh.service", "sshd.service", "ssh.socket", "sshd.socket", "ssh@.service", "sshd@.service", "sshd-unix-local.socket", "sshd-vsock.socket"}, sbins("sshd"))
	r.sshGenerator()
	r.service("ssm-agent-enabled", "ssm-agent-installed",
		[]string{"amazon-ssm-agent.service", "snap.amazon-ssm-agent.amazon-ssm-agent.service"}, append(sbins("amazon-ssm-agent"), "snap/bin/amazon-ssm-agent"))
	r.cloudInit()
	if name, ok := r.first("opt/aws/bin/eic_run_authorized_keys", "usr/share/ec2-instance-connect/eic_run_authorized_keys", "usr/lib/systemd/system/ec2-instance-connect.service", "usr/bin/eic_run_authorized_keys"); ok {
		r.add("ec2-instance-connect-installed", name, "it is there")
	}
	for _, name := range []string{"dropbear", "in.telnetd", "telnetd", "in.rshd", "cockpit-ws", "ttyd", "gotty", "shellinaboxd", "xrdp"} {
		if at, ok := r.first(sbins(name)...); ok {
			r.add("remote-shell-installed", at, notStarted)
		}
	}
}

// sshGenerator looks for systemd-ssh-generator (systemd 256 and later), which
// makes sockets for an installed SSH server by itself, on AF_VSOCK and elsewhere.
func (r *rootAudit) sshGenerator() {
	generator, ok := r.first("usr/lib/systemd/system-generators/systemd-ssh-generator", "lib/systemd/system-generators/systemd-ssh-generator")
	server, installed := r.first(sbins("sshd")...)
	if !ok || !installed {
		return
	}
	off := len(r.a.ukis) > 0
	for _, u := range r.a.ukis {
		on, present := isOn(u.line.systemd, "systemd.ssh_auto")
		off = off && present && !on && !u.sshListen
	}
	if !off {
		r.add("sshd-enabled", generator, "it makes sockets for /%s", server)
	}
}

// cloudInit reports cloud-init, unless it was told not to run.
func (r *rootAudit) cloudInit() {
	names := []string{"cloud-init.service", "cloud-init-local.service", "cloud-init-main.service", "cloud-init-network.service", "cloud-config.service", "cloud-final.service", "cloud-init.target"}
	_, disabled := r.first("etc/cloud/cloud-init.disabled")
	for _, u := range r.a.ukis { // which goes before the file
		if value, ok := option(u.line.systemd, "cloud-init"); ok {
			disabled = value == "disabled"
		}
	}
	enabled := "cloud-init-enabled"
	if disabled {
		enabled = "cloud-init-installed"
	}
	const generator = "usr/lib/systemd/system-generators/cloud-init-generator"
	r.service(enabled, "cloud-init-installed", names, append(sbins("cloud-init"), generator, "etc/cloud/cloud.cfg"))
	if _, ok := r.first(generator); ok && !disabled && !r.found[enabled] {
		for _, unit := range names {
			if file, found := r.units.find(unit); found && !file.masked {
				r.add(enabled, generator, "it starts %s on EC2", unit)
				return
			}
		}
	}
}

// gettyUnits are units that put a login prompt on a console.
var gettyUnits = []string{"getty@.service", "serial-getty@.service", "console-getty.service", "container-getty@.service", "getty-static.service"}

func (r *rootAudit) consoles() {
	for _, unit := range gettyUnits {
		r.named[unit] = true
		if by, ok := r.units.starts(unit); ok {
			r.report("getty-enabled", by, "it starts %s", unit)
		}
	}
	if file, ok := r.units.find("autovt@.service"); ok && !file.masked {
		if logind, ok := r.units.find("systemd-logind.service"); ok && !logind.masked {
			r.add("getty-enabled", file.path, "systemd-logind starts autovt@.service on the consoles that somebody switches to")
		}
	}
	serial := slices.ContainsFunc(r.a.ukis, func(u *ukiAudit) bool {
		on, present := isOn(u.line.systemd, "systemd.getty_auto")
		return u.serial && (on || !present)
	})
	if name, ok := r.first("usr/lib/systemd/system-generators/systemd-getty-generator", "lib/systemd/system-generators/systemd-getty-generator"); ok && serial {
		if file, found := r.units.find("serial-getty@.service"); found && !file.masked && !r.units.masked("getty.target") {
			r.add("getty-enabled", name, "it starts serial-getty@.service on the serial console of the kernel command line")
		}
	}
	r.named["debug-shell.service"] = true
	if by, ok := r.units.starts("debug-shell.service"); ok {
		r.report("debug-shell-enabled", by, "it starts debug-shell.service")
	}
	for _, unit := range rescueUnits {
		r.named[unit] = true
		if r.units.leadsTo("default.target", unit) {
			r.report("rescue-target", r.units.linkPlace(r, "default.target"), "default.target is %s", unit)
		}
		for _, u := range r.a.ukis {
			for _, w := range u.wants {
				if r.units.leadsTo(w.unit, unit) {
					r.report("rescue-target", w.at, "%.100s is %s", w.unit, unit)
				}
			}
		}
	}
	for _, unit := range []string{"emergency.service", "rescue.service"} {
		if file, ok := r.units.find(unit); ok && !file.masked {
			r.add("rescue-shell", file.path, "%s is there", unit)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.units.files)) {
		r.consoleLines(name, r.units.files[name])
	}
	number := 0
	for line := range strings.Lines(string(r.optional("etc/inittab"))) {
		number++
		r.inittab(place{r.partition, "etc/inittab", number}, strings.TrimSpace(line))
	}
	if r.firstBoot() {
		if by, ok := r.units.starts("systemd-firstboot.service"); ok {
			r.report("firstboot-prompt", by, "it starts systemd-firstboot.service, and /etc/machine-id or the kernel command line says that the system never booted")
		}
	}
}

// firstBoot reports whether systemd will take the first boot of the image for a
// first boot.
func (r *rootAudit) firstBoot() bool {
	for _, u := range r.a.ukis {
		if on, present := isOn(u.line.systemd, "systemd.condition_first_boot"); present {
			return on
		}
	}
	id, err := r.read("etc/machine-id")
	return errors.Is(err, fs.ErrNotExist) || strings.HasPrefix(string(id), "uninitialized")
}

// inittab looks at a line of inittab(5), as sysvinit and busybox read it.
func (r *rootAudit) inittab(at place, line string) {
	fields := strings.SplitN(line, ":", 4)
	if strings.HasPrefix(line, "#") || len(fields) < 4 || fields[2] == "off" {
		return
	}
	command := strings.TrimLeft(fields[3], "-@")
	program, _, _ := strings.Cut(command, " ")
	switch {
	case strings.Contains(command, "getty") && autologin().MatchString(command):
		r.report("autologin", at, "%.100q", line)
	case strings.Contains(command, "getty"):
		r.report("getty-enabled", at, "%.100q", line)
	case shells[path.Base(program)] && (fields[2] == "respawn" || fields[2] == "askfirst") && !strings.Contains(command, "-c"):
		r.report("debug-shell-enabled", at, "%.100q", line)
	default:
		r.command(at, command)
	}
}

// consoleLines looks at the lines of a unit for what opens a console.
func (r *rootAudit) consoleLines(name string, file unitFile) {
	if file.masked || r.units.masked(name) {
		return
	}
	getty := slices.ContainsFunc(file.lines, func(l unitLine) bool { return strings.HasPrefix(l.key, "Exec") && strings.Contains(l.value, "getty") })
	for _, l := range file.lines {
		at := place{r.partition, l.path, l.number}
		r.a.unitLine(at, l)
		switch {
		case getty && l.key == "Environment" && autologin().MatchString(l.value):
			r.report("autologin", at, "%s", l.value)
		case l.key == "EnvironmentFile":
			name := strings.Trim(strings.TrimLeft(l.value, "-"), "/ ")
			if content := string(r.optional(name)); suloginForced().MatchString(content) {
				r.add("sulogin-force", name, "%s reads it", l.path)
			} else if getty && autologin().MatchString(content) {
				r.add("autologin", name, "%s reads it", l.path)
			}
		}
	}
}

// unitLine looks at a line of a unit, of the root file system or of an initrd,
// for what needs no other line.
func (a *auditor) unitLine(at place, l unitLine) {
	switch {
	case strings.HasPrefix(l.key, "Exec") && strings.Contains(l.value, "getty") &&
		(autologin().MatchString(l.value) || skipLogin().MatchString(l.value) || loginAs().MatchString(l.value)),
		strings.HasPrefix(l.key, "Exec") && strings.Contains(l.value, "bin/login") && loginAs().MatchString(l.value):
		a.add("autologin", at, "%s", l.value)
	case strings.HasSuffix(l.key, "Environment") && suloginForced().MatchString(l.value):
		a.add("sulogin-force", at, "%s", l.value)
	case strings.HasPrefix(l.key, "SetCredential") && loginCredential(l.value),
		strings.HasPrefix(l.key, "LoadCredential") && strings.Contains(l.value, ":") && loginCredential(l.value):
		a.add("login-credential", at, "%.100s", l.value)
	}
}

// accountFiles are those of the C library, of nss-altfiles, of images that keep
// /usr/etc, and of libnss-extrausers.
var accountFiles = []string{
	"etc/passwd", "etc/shadow", "usr/lib/passwd", "usr/lib/shadow", "usr/etc/passwd", "usr/etc/shadow", "var/lib/extrausers/passwd", "var/lib/extrausers/shadow",
}

func (r *rootAudit) accounts() {
	for _, name := range accountFiles {
		for _, c := range accounts(r.optional(name)) {
			at := place{r.partition, name, c.line}
			switch {
			case c.open():
				r.a.add("empty-password", at, "the account %.40q", c.name)
			case c.hash():
				r.a.add("password-set", at, "the account %.40q", c.name)
			}
			if c.uid == "0" && c.name != "root" {
				r.a.add("uid-zero-account", at, "the account %.40q", c.name)
			}
			if home := strings.Trim(path.Clean(c.home), "/"); c.home != "" && home != "" {
				r.authorizedKeys(path.Join(home, ".ssh"))
			}
		}
	}
	r.authorizedKeys("root/.ssh")
	r.authorizedKeys("etc/ssh")
	r.authorizedKeys("etc/ssh/authorized_keys.d")
	if info, err := r.fs.Stat("etc/shadow"); err == nil && info.Mode().Perm()&0o004 != 0 {
		r.add("shadow-readable", "etc/shadow", "its mode is %04o", info.Mode().Perm())
	}
	for _, name := range r.names("etc/ssh") {
		if strings.HasPrefix(name, "ssh_host_") && strings.HasSuffix(name, "_key") {
			r.add("ssh-host-key", path.Join("etc/ssh", name), "it is there")
		}
	}
	if id := strings.TrimSpace(string(r.optional("etc/machine-id"))); id != "" && id != "uninitialized" {
		r.add("machine-id-fixed", "etc/machine-id", "%.40q", id)
	}
	r.sudoers("etc/sudoers")
	for _, dir := range []string{"etc/sudoers.d", "usr/etc/sudoers.d"} {
		for _, name := range r.names(dir) {
			r.sudoers(path.Join(dir, name))
		}
	}
	for _, dir := range credentialStores {
		for _, name := range r.names(dir) {
			if loginCredential(name) {
				r.add("login-credential", path.Join(dir, name), "systemd gives it to the service that it is for")
			}
		}
	}
}

// names lists a directory that need not be there.
func (r *rootAudit) names(dir string) []string {
	entries, err := r.fs.ReadDir(dir)
	if err != nil {
		r.notRead(dir, err)
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// authorizedKeys looks for keys in a directory.
func (r *rootAudit) authorizedKeys(dir string) {
	for _, name := range r.names(dir) {
		if !strings.HasPrefix(name, "authorized_keys") && !strings.HasSuffix(dir, "authorized_keys.d") {
			continue
		}
		r.authorizedKeysIn(path.Join(dir, name))
	}
}

// authorizedKeysIn looks for keys in a file.
func (r *rootAudit) authorizedKeysIn(name string) {
	number := 0
	for line := range strings.Lines(string(r.optional(name))) {
		number++
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			r.report("authorized-keys", place{r.partition, name, number}, "a key")
		}
	}
}

// sudoers looks at a file of sudo, and at those that it includes.
func (r *rootAudit) sudoers(name string) { r.sudoersBut(name, map[string]bool{}) }

func (r *rootAudit) sudoersBut(name string, seen map[string]bool) {
	if name = strings.Trim(path.Clean("/"+name), "/"); seen[name] {
		return
	}
	seen[name] = true
	number := 0
	for line := range strings.Lines(string(r.optional(name))) {
		number++
		line = strings.TrimSpace(line)
		fields := strings.Fields(line)
		if len(fields) == 2 {
			switch fields[0] {
			case "#include", "@include":
				r.sudoersBut(fields[1], seen)
				continue
			case "#includedir", "@includedir":
				for _, other := range r.names(strings.Trim(path.Clean("/"+fields[1]), "/")) {
					r.sudoersBut(path.Join(fields[1], other), seen)
				}
				continue
			}
		}
		if !strings.HasPrefix(line, "#") && (strings.Contains(line, "NOPASSWD") || strings.Contains(line, "!authenticate")) {
			r.report("sudo-without-password", place{r.partition, name, number}, "%.100q", line)
		}
	}
}

// inMemory are file systems that keep nothing, and those that nobody can write.
var inMemory = []string{
	"tmpfs", "ramfs", "proc", "sysfs", "devtmpfs", "devpts", "securityfs", "debugfs", "tracefs", "cgroup", "cgroup2", "mqueue", "hugetlbfs", "bpf",
	"configfs", "fusectl", "efivarfs", "binfmt_misc", "autofs", "pstore", "selinuxfs", "rpc_pipefs", "nfsd", "overlay", "none", "erofs", "squashfs", "iso9660", "udf",
}

// mounts looks at fstab, at mount units, and at what partitions the disk.
func (r *rootAudit) mounts() {
	number := 0
	for line := range strings.Lines(string(r.optional("etc/fstab"))) {
		number++
		fields := strings.Fields(line)
		if len(fields) < 3 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		options := ""
		if len(fields) > 3 {
			options = fields[3]
		}
		r.a.mount(place{r.partition, "etc/fstab", number}, fields[0], fields[1], fields[2], options, r.verifiedRoot())
	}
	for _, name := range slices.Sorted(maps.Keys(r.units.files)) {
		file := r.units.files[name]
		swap := strings.HasSuffix(name, ".swap")
		if !swap && !strings.HasSuffix(name, ".mount") {
			continue
		}
		if _, ok := r.units.starts(name); !ok {
			continue
		}
		values := map[string]string{"Type": map[bool]string{true: "swap", false: "auto"}[swap]}
		at := r.at(file.path)
		for _, l := range file.lines {
			values[l.key] = l.value
			if l.key == "What" {
				at.line = l.number
			}
		}
		r.a.mount(at, values["What"], values["Where"], values["Type"], values["Options"], r.verifiedRoot())
	}
	for _, dir := range []string{"etc/repart.d", "usr/lib/repart.d", "usr/local/lib/repart.d"} {
		for _, name := range r.names(dir) {
			if strings.HasSuffix(name, ".conf") {
				r.add("repart", path.Join(dir, name), "systemd-repart reads it")
			}
		}
	}
}

// mount looks at a line of fstab, a mount unit, or an option of the kernel command
// line. verified says that the root is under verity.
func (a *auditor) mount(at place, what, where, kind, options string, verified bool) {
	list := strings.Split(options, ",")
	switch {
	case kind == "swap":
		a.add("swap-enabled", at, "%.100q", what)
	case slices.Contains(inMemory, kind) || slices.Contains(list, "bind") || slices.Contains(list, "rbind"):
	case slices.Contains(list, "ro") && !slices.Contains(list, "rw"):
	case where == "/" && verified:
		// verity lets nobody write, whatever fstab says.
	case strings.Contains(what, "=") || strings.HasPrefix(what, "/dev/"):
		a.add("writable-partition", at, "%.100q on %.100q (%.20s)", what, where, kind)
	default:
		a.add("writable-partition", at, "%.100q on %.100q (%.20s), from outside of the disk", what, where, kind)
	}
}

func (r *rootAudit) verifiedRoot() bool {
	return slices.ContainsFunc(r.a.ukis, func(u *ukiAudit) bool { return u.verified })
}

// kernel looks at the configuration of the kernels.
func (r *rootAudit) kernel() {
	configs := map[string]bool{}
	for _, name := range r.names("boot") {
		if strings.HasPrefix(name, "config-") {
			configs[path.Join("boot", name)] = true
		}
	}
	for _, version := range r.names("usr/lib/modules") {
		if name := path.Join("usr/lib/modules", version, "config"); true {
			if _, err := r.fs.Stat(name); err == nil {
				configs[name] = true
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(configs)) {
		signed := false
		for line := range strings.Lines(string(r.optional(name))) {
			signed = signed || strings.TrimSpace(line) == "CONFIG_MODULE_SIG=y"
		}
		if !signed {
			r.add("kernel-without-module-signing", name, "it has no CONFIG_MODULE_SIG=y")
		}
	}
}

// files looks at every file for what its mode and attributes open.
func (r *rootAudit) files() (count int, err error) {
	err = r.fs.Walk(func(name string, info fs.FileInfo, err error) error {
		if r.a.ctx.Err() != nil {
			return r.a.ctx.Err()
		}
		count++
		if err != nil {
			r.notRead(name, err)
			return nil
		}
		r.file(name, info)
		return nil
	})
	if err != nil && r.a.ctx.Err() == nil {
		r.add(unreadRule("."), ".", "the walk ended early: %v", err)
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("look at files: %w", err)
	}
	return count, err
}

func (r *rootAudit) file(name string, info fs.FileInfo) {
	mode, stat := info.Mode(), statOf(info)
	open := mode.Perm()&0o002 != 0 && mode.Type() != fs.ModeSymlink
	raised := mode.IsRegular() && mode&(fs.ModeSetuid|fs.ModeSetgid) != 0
	owner := fmt.Sprintf("mode %04o, owner %d:%d", unixBits(mode), stat.UID, stat.GID)
	switch {
	case open && raised:
		r.add("world-writable-setuid", name, "%s", owner)
	case mode.IsRegular() && mode&fs.ModeSetuid != 0:
		r.add("setuid-file", name, "%s", owner)
	case mode.IsRegular() && mode&fs.ModeSetgid != 0 && mode.Perm()&0o010 != 0:
		r.add("setgid-file", name, "%s", owner)
	case open && mode.IsDir() && mode&fs.ModeSticky == 0, open && mode.IsRegular():
		r.add("world-writable", name, "%s", owner)
	}
	if mode&fs.ModeDevice != 0 && !strings.HasPrefix(name, "dev/") && !whiteout(mode, stat) {
		r.add("device-file", name, "device %#x, %s", stat.Rdev, owner)
	}
	r.placedFile(name, info)
	if raised && mode&fs.ModeSetuid != 0 && interpreter(name) {
		r.add("setuid-interpreter", name, "%s", owner)
	}
	if acl, ok := stat.Xattrs["system.posix_acl_access"]; ok && (mode.IsRegular() || mode.IsDir()) {
		if who := aclWriters(acl); who != "" {
			r.add("acl-writable", name, "%s may write it", who)
		}
	}
	if value, ok := stat.Xattrs["security.capability"]; ok {
		if permitted, known := capabilities(value); known {
			r.add("file-capabilities", name, "capabilities %#x", permitted)
			if permitted&rootCapabilities != 0 && interpreter(name) {
				r.add("setuid-interpreter", name, "capabilities %#x", permitted)
			}
		} else {
			r.add("file-not-read", name, "its security.capability of %d bytes is not known", len(value))
		}
	}
}

// whiteout reports whether a file is overlayfs's mark of a deleted one.
func whiteout(mode fs.FileMode, stat *disk.Stat) bool {
	return mode&fs.ModeCharDevice != 0 && stat.Rdev == 0
}

// unixBits are the permission bits as chmod(1) takes them.
func unixBits(mode fs.FileMode) uint32 {
	bits := uint32(mode.Perm())
	for flag, bit := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if mode&flag != 0 {
			bits |= bit
		}
	}
	return bits
}
