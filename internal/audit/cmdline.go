package audit

import (
	"cmp"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/org/attestable-image-action/internal/lazyregexp"
)

// maxKernelLine is what the kernel takes of a command line, in bytes: COMMAND_LINE_SIZE
// of x86 and arm64, less the NUL.
const maxKernelLine = 2047

// line is a kernel command line. Who reads it divides it differently: the kernel and
// dracut know double quotes alone, and the kernel takes the byte a0 for a space; systemd
// knows single quotes, too (EXTRACT_UNQUOTE). What opens something counts for whoever
// would understand it, what closes something only for the one who is to heed it.
type line struct {
	kernel  []string // as the kernel has it, up to a --, behind which all is for init
	systemd []string
	words   []string // of both, in their order
	cut     bool     // it is longer than the kernel takes
}

func parseLine(text string) line {
	var l line
	if len(text) > maxKernelLine {
		text, l.cut = text[:maxKernelLine], true
	}
	kernel := spans(text, `"`, " \t\n\v\f\r\xa0")
	systemd := spans(text, `"'`, " \t\n\r")
	for _, s := range kernel {
		l.kernel = append(l.kernel, text[s.start:s.end])
	}
	if i := slices.Index(l.kernel, "--"); i >= 0 {
		l.kernel = l.kernel[:i]
	}
	for _, s := range systemd {
		l.systemd = append(l.systemd, text[s.start:s.end])
	}
	both := slices.Concat(kernel, systemd)
	slices.SortFunc(both, func(a, b span) int { return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.end, b.end)) })
	for _, s := range slices.Compact(both) {
		l.words = append(l.words, text[s.start:s.end])
	}
	return l
}

// commandLineWords are the words of whoever reads a command line.
func commandLineWords(text string) []string { return parseLine(text).words }

// span is a part of a text.
type span struct{ start, end int }

// spans divides a text at bytes that are spaces, where no quote is open.
func spans(text, quotes, spaces string) []span {
	var found []span
	start, quote := -1, byte(0)
	for i := range len(text) {
		c := text[i]
		if quote == 0 && strings.IndexByte(spaces, c) >= 0 {
			if start >= 0 {
				found = append(found, span{start, i})
			}
			start = -1
			continue
		}
		if start < 0 {
			start = i
		}
		switch {
		case c == quote:
			quote = 0
		case quote == 0 && strings.IndexByte(quotes, c) >= 0:
			quote = c
		}
	}
	if start >= 0 {
		found = append(found, span{start, len(text)})
	}
	return found
}

// kernelOptions returns the values of an option as the kernel reads it: a quote counts
// around a word or a value, nowhere else.
func (l line) kernelOptions(name string) []string {
	var values []string
	for _, word := range l.kernel {
		if rest, quoted := strings.CutPrefix(word, `"`); quoted {
			word = strings.TrimSuffix(rest, `"`)
		}
		key, value, _ := strings.Cut(word, "=")
		if strings.ReplaceAll(key, "-", "_") != name {
			continue
		}
		if rest, quoted := strings.CutPrefix(value, `"`); quoted {
			value = strings.TrimSuffix(rest, `"`)
		}
		values = append(values, value)
	}
	return values
}

var unquote = strings.NewReplacer(`"`, "", "'", "")

// keyValue divides a word of a command line. The kernel and systemd take - and _
// for the same in a key, which has _ here; quotes may stand anywhere.
func keyValue(word string) (key, value string, assigned bool) {
	key, value, assigned = strings.Cut(unquote.Replace(word), "=")
	return strings.ReplaceAll(key, "-", "_"), value, assigned
}

// option returns the last value of an option on a kernel command line.
func option(words []string, name string) (value string, ok bool) {
	for _, word := range words {
		if key, v, assigned := keyValue(word); assigned && key == strings.ReplaceAll(name, "-", "_") {
			value, ok = v, true
		}
	}
	return value, ok
}

// isOn reads a boolean option: present says that it is on the command line; a
// name without a value is true.
func isOn(words []string, name string) (on, present bool) {
	for _, word := range words {
		key, value, _ := keyValue(word)
		if key == strings.ReplaceAll(name, "-", "_") {
			present = true
			on = !isFalse(value)
		}
	}
	return on, present
}

// isFalse reads a boolean as systemd does.
func isFalse(value string) bool {
	return slices.Contains([]string{"0", "no", "n", "false", "f", "off"}, strings.ToLower(value))
}

// knownInits are programs that init= may name.
var knownInits = []string{"/sbin/init", "/usr/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd", "/bin/systemd"}

// rescueUnits are units that are a shell instead of the system.
var rescueUnits = []string{"rescue.target", "rescue.service", "emergency.target", "emergency.service", "runlevel1.target", "debug-shell.service"}

// screens are consoles that nobody reads from afar: the screen, and none.
var screens = lazyregexp.New(`^(tty[0-9]*|ttynull|null|)$`)

// mitigationSwitches turn something off by their names or by the values that they
// are given here.
var mitigationSwitches = map[string][]string{
	"nopti": nil, "nospectre_v1": nil, "nospectre_v2": nil, "nospectre_bhb": nil, "nospec_store_bypass_disable": nil,
	"nokaslr": nil, "nosmep": nil, "nosmap": nil, "norandmaps": nil, "arm64.nobti": nil, "arm64.nopauth": nil, "no_stf_barrier": nil,
	"mitigations": {"off"}, "spectre_v2": {"off"}, "spectre_v2_user": {"off"}, "spectre_bhi": {"off"}, "mds": {"off"}, "pti": {"off"},
	"l1tf": {"off"}, "tsx_async_abort": {"off"}, "mmio_stale_data": {"off"}, "retbleed": {"off"}, "srbds": {"off"},
	"spec_store_bypass_disable": {"off"}, "gather_data_sampling": {"off"}, "reg_file_data_sampling": {"off"}, "spec_rstack_overflow": {"off"},
	"indirect_target_selection": {"off"}, "tsa": {"off"}, "vmscape": {"off"}, "ssbd": {"force-off"}, "kpti": {"0", "off", "n", "no"},
	"noexec": {"off"}, "iomem": {"relaxed"}, "randomize_kstack_offset": {"off", "0", "n", "no"},
}

// commandLine looks at a kernel command line, or at what an initrd adds to it.
func (a *auditor) commandLine(at place, u *ukiAudit, words []string) {
	for i, word := range words {
		key, value, assigned := keyValue(word)
		bare := strings.TrimPrefix(key, "rd.") // what counts in the initrd alone
		switch bare {
		case "init":
			if assigned && !slices.Contains(knownInits, value) {
				a.add("init-override", at, "%s", word)
			}
		case "rdinit":
			if assigned && value != "/init" {
				a.add("init-override", at, "%s", word)
			}
		case "initrd", "dtb", "efivar_ssdt":
			if assigned && value != "" {
				a.add("unmeasured-kernel-input", at, "%s", word)
			}
		case "bootconfig":
			a.add("bootconfig", at, "%s", word)
		case "single", "s", "S", "1", "rescue", "emergency", "_b", "_s":
			if !assigned {
				a.add("rescue-target", at, "%s", word)
			}
		case "systemd.unit":
			u.wants = append(u.wants, wanted{value, at})
			if slices.Contains(rescueUnits, value) {
				a.add("rescue-target", at, "%s", word)
			}
		case "systemd.wants":
			unit := mangleUnit(value)
			u.wants = append(u.wants, wanted{unit, at})
			if slices.Contains(rescueUnits, unit) {
				a.add("debug-shell-enabled", at, "%s", word)
			}
		case "systemd.break", "cmdline":
			if bare != "cmdline" || value == "ask" {
				a.add("initrd-break", at, "%s", word)
			}
		case "systemd.pull":
			a.add("download-at-boot", at, "%.200s", word)
		case "systemd.early_core_pattern":
			if strings.HasPrefix(value, "|") {
				a.add("command-at-boot", at, "%s", word)
			}
		case "systemd.machine_id":
			a.add("machine-id-fixed", at, "%s", word)
		case "systemd.setenv":
			if name, _, _ := strings.Cut(value, "="); !harmlessVariable(name) {
				a.add("init-environment", at, "%s", word)
			}
		case "netroot", "rootfallback":
			if aroundVerity(value) {
				a.add("root-not-verified", at, "%s", word)
			}
		case "systemd.mask":
			a.add("unit-masked", at, "%s", word)
		case "systemd.run":
			a.add("command-at-boot", at, "%s", word)
		case "systemd.crash_shell", "systemd.confirm_spawn":
			if !isFalse(value) {
				a.add("crash-shell", at, "%s", word)
			}
		case "systemd.mount_extra":
			parts := strings.SplitN(value+":::", ":", 4)
			a.mount(at, parts[0], parts[1], parts[2], strings.TrimRight(parts[3], ":"), u.verified)
		case "systemd.swap_extra":
			a.add("swap-enabled", at, "%.100s", word)
		case "systemd.ssh_listen":
			u.sshListen = true
		case "root.overlay.write", "overlay", "live.overlay", "overlayroot":
			// Of KIWI, dracut (rd.overlay=LABEL=…) and overlayroot.
			if strings.Contains(value, "/dev/") || strings.Contains(value, "LABEL=") || strings.Contains(value, "UUID=") {
				a.add("writable-partition", at, "%s", word)
			}
		case "earlycon", "earlyprintk":
			u.serial = true
			a.add("serial-console", at, "%s", word)
		case "console":
			device, _, _ := strings.Cut(value, ",")
			if !screens().MatchString(device) {
				u.serial = true
				a.add("serial-console", at, "%s", word)
			}
		case "break", "rdbreak":
			a.add("initrd-break", at, "%s", word)
		case "kgdboc", "kgdbcon", "kgdbwait", "ekgdboc", "kgdbdbgp":
			a.add("kernel-debugger", at, "%s", word)
		case "sysrq_always_enabled":
			a.add("sysrq-enabled", at, "%s", word)
		case "enforcing", "selinux", "apparmor", "security", "ima_appraise":
			if isFalse(value) || value == "none" || value == "log" || value == "fix" {
				a.add("access-control-off", at, "%s", word)
			}
		case "resume":
			a.add("hibernation", at, "%s", word)
		case "systemd.set_credential", "systemd.set_credential_binary":
			if loginCredential(value) {
				a.add("login-credential", at, "%s", word)
			}
		case "verityroot", "kiwi.verityroot":
			if _, ok := option(words, "roothash"); !ok {
				a.add("verity-hash-unmeasured", at, "%s, and no roothash=", word)
			}
		}
		if off, known := mitigationSwitches[bare]; known && (off == nil && (!assigned || !isFalse(value)) || slices.Contains(off, value)) {
			a.add("mitigations-off", at, "%s", word)
		}
		if suloginForced().MatchString(unquote.Replace(word)) {
			a.add("sulogin-force", at, "%s", word)
		}
		// The kernel takes sysctl/ for sysctl. and looks for the name as it is spelt.
		if strings.HasPrefix(key, "sysctl.") || strings.HasPrefix(key, "sysctl/") {
			a.sysctl(at, key[len("sysctl."):], value)
		}
		a.initArgument(at, word, words[i+1:])
	}
	for _, name := range []string{"systemd.debug_shell", "rd.systemd.debug_shell"} {
		if on, _ := isOn(words, name); on {
			a.add("debug-shell-enabled", at, "%s is on", name)
		}
	}
}

// initArgument looks at what the kernel hands to init: a word that it does not know is a
// variable of the environment when a value is assigned to it and its name has no dot, and
// an argument otherwise.
func (a *auditor) initArgument(at place, word string, behind []string) {
	name, value, assigned := strings.Cut(unquote.Replace(word), "=")
	if option, long := strings.CutPrefix(name, "--"); long && option != "" {
		if !assigned && len(behind) > 0 {
			value = unquote.Replace(behind[0])
		}
		switch {
		case abbreviates(option, "unit", 1) && slices.Contains(rescueUnits, value):
			a.add("rescue-target", at, "%s", word)
		case (abbreviates(option, "crash-shell", len("crash-s")) || abbreviates(option, "confirm-spawn", len("conf"))) && (!assigned || !isFalse(value)):
			a.add("crash-shell", at, "%s", word)
		}
		return
	}
	inside := strings.Contains(at.path, "#.initrd/") || strings.Contains(at.path, "#.ucode/") // for dracut alone
	if !inside && assigned && !strings.Contains(name, ".") && !lowerCase().MatchString(name) && !harmlessVariable(name) {
		a.add("init-environment", at, "%.200s", word)
	}
}

// abbreviates reports whether getopt_long takes a word for an option: the beginning of
// one is enough, of a length that no other begins with.
func abbreviates(word, option string, least int) bool {
	return len(word) >= least && strings.HasPrefix(option, word)
}

// lowerCase are names of the kernel's own options and of dracut's. The loader, the C
// library, systemd and shells have their variables in capitals.
var lowerCase = lazyregexp.New(`^[a-z0-9_-]+$`)

// harmlessVariable reports whether a variable of init's environment steers no program.
// All others may: LD_PRELOAD, SYSTEMD_UNIT_PATH, BASH_ENV, and what is invented next.
func harmlessVariable(name string) bool {
	return slices.Contains([]string{"BOOT_IMAGE", "BOOTIF", "TERM", "LANG", "TZ", "COLUMNS", "LINES", "NO_COLOR", "SYSTEMD_COLORS", "SYSTEMD_LOG_LEVEL", "SYSFONT", "KEYTABLE", "KEYMAP"}, name) ||
		strings.HasPrefix(name, "LC_")
}

// unitSuffixes are the kinds of units (systemd.unit(5)).
var unitSuffixes = []string{".service", ".socket", ".target", ".device", ".mount", ".automount", ".swap", ".timer", ".path", ".slice", ".scope"}

// mangleUnit makes the name of a unit of what systemd.wants= and systemd.mask= say, as
// systemd's unit_name_mangle does: a service's name needs no suffix.
func mangleUnit(name string) string {
	if slices.Contains(unitSuffixes, path.Ext(name)) || strings.HasPrefix(name, "/") {
		return name
	}
	return name + ".service"
}

// absent looks for what should stand on a kernel command line and does not.
func (a *auditor) absent(u *ukiAudit, l line) {
	at := u.in(".cmdline")
	modules := l.kernelOptions("lsm")
	locked := l.lockdown()
	switch {
	case !locked:
		a.add("no-lockdown", at, "there is no lockdown=integrity or lockdown=confidentiality")
		if !slices.ContainsFunc(l.kernelOptions("module.sig_enforce"), func(v string) bool { return v == "" || kernelTrue(v) }) {
			a.add("modules-not-enforced", at, "there is neither module.sig_enforce=1 nor lockdown=")
		}
	case len(modules) > 0 && !slices.Contains(strings.Split(modules[len(modules)-1], ","), "lockdown"):
		a.add("no-lockdown", at, "lsm=%.100s leaves lockdown out", modules[len(modules)-1])
	}
	for name, id := range map[string]string{"systemd.gpt_auto": "gpt-auto", "systemd.import_credentials": "credentials-imported"} {
		if on, present := isOn(l.systemd, name); on || !present {
			a.add(id, at, "there is no %s=0", name)
		} else if on, present := isOn(l.systemd, "rd."+name); on && present {
			a.add(id, at, "rd.%s is on", name)
		}
	}
	if l.cut {
		a.add("command-line-cut", at, "it is longer than %d bytes", maxKernelLine)
	}
	if u.initrd == nil {
		return
	}
	if u.initrd.has("usr/lib/dracut-lib.sh", "lib/dracut-lib.sh", "usr/lib/dracut", "usr/bin/dracut-emergency", "bin/dracut-emergency") {
		// dracut takes no other word for false, and a name without a value for true.
		value := ""
		for _, word := range l.words {
			if key, v, _ := keyValue(word); key == "rd.shell" || key == "rdshell" {
				value = v
			}
		}
		if value != "0" && value != "no" && value != "off" {
			a.add("initrd-shell", at, "there is no rd.shell=0, and the initrd is dracut's")
		}
	}
	if u.initrd.has("scripts/functions") {
		if value, ok := option(l.words, "panic"); !ok || value == "" || value == "0" {
			a.add("initrd-shell", at, "there is no panic= with a number, and the initrd is initramfs-tools'")
		}
	}
}

// lockdown reports whether the kernel is told to lock itself down. Once it is, no later
// word takes it back.
func (l line) lockdown() bool {
	return slices.ContainsFunc(l.kernelOptions("lockdown"), func(v string) bool { return v == "integrity" || v == "confidentiality" })
}

// kernelTrue reads a boolean as the kernel does (kstrtobool).
func kernelTrue(value string) bool {
	return value != "" && strings.ContainsRune("1yYtT", rune(value[0])) || strings.EqualFold(value[:min(2, len(value))], "on")
}

// suloginForced is an assignment that opens the rescue shell without a password;
// systemd takes every word for true.
var suloginForced = lazyregexp.New(`SYSTEMD_SULOGIN_FORCE=(1|y|yes|t|true|on|Y|YES|Yes|T|TRUE|True|ON|On)\b`)

// loginCredential reports whether the name of a credential, which value begins
// with, is one that lets somebody in or runs something
// (systemd.system-credentials(7)).
func loginCredential(value string) bool {
	name, _, _ := strings.Cut(value, ":")
	for _, prefix := range []string{
		"passwd.", "ssh.", "login.", "agetty.", "getty.", "systemd.extra-unit.", "systemd.unit-dropin.", "sysusers.extra", "tmpfiles.extra",
		"userdb.", "home.", "fstab.extra", "import.pull", "udev.", "modules-load.", "sysctl.extra", "crypttab.extra",
	} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// aroundVerity reports whether root= leads, or may lead, elsewhere than to a
// device that verity makes: to a partition itself, to the network, to an image in
// a file. A file system's UUID and label are the same on both.
func aroundVerity(root string) bool {
	root = strings.TrimPrefix(strings.TrimPrefix(root, "overlay:"), "block:")
	for _, device := range []string{"/dev/mapper/", "/dev/dm-", "/dev/gpt-auto-root", "/dev/disk/by-id/dm-", "MAPPER=", "gpt-auto", "tmpfs"} {
		if strings.HasPrefix(root, device) {
			return path.Clean(root) != root // "/dev/mapper/../vda2"
		}
	}
	return root != ""
}

// weakSysctls are settings, and the values that open something.
var weakSysctls = map[string][]string{
	"kernel.randomize_va_space": {"0", "1"}, "kernel.kptr_restrict": {"0"}, "kernel.dmesg_restrict": {"0"},
	"kernel.unprivileged_bpf_disabled": {"0"}, "kernel.yama.ptrace_scope": {"0"}, "kernel.kexec_load_disabled": {"0"},
	"fs.protected_symlinks": {"0"}, "fs.protected_hardlinks": {"0"}, "fs.suid_dumpable": {"1", "2"}, "vm.mmap_min_addr": {"0"},
	"net.core.bpf_jit_harden": {"0"}, "kernel.perf_event_paranoid": {"-1", "0"},
}

// sysctl looks at a setting of sysctl.d(5), or on the kernel command line.
func (a *auditor) sysctl(at place, name, value string) {
	name = strings.ReplaceAll(strings.ReplaceAll(name, "/", "."), "-", "_")
	switch {
	case name == "kernel.sysrq":
		const dumps, signals = 8, 64
		if n, err := strconv.ParseUint(value, 0, 32); err != nil || n == 1 || n&(dumps|signals) != 0 {
			a.add("sysrq-enabled", at, "kernel.sysrq=%.20s", value)
		}
	case slices.Contains(weakSysctls[name], value):
		a.add("sysctl-weakened", at, "%s=%s", name, value)
	}
}

// RootTypes are the file systems that a kernel command line tells to mount as the
// root or as /usr, in each of the ways to divide it into words.
func RootTypes(ways ...[]string) []string {
	var types []string
	for _, words := range ways {
		for _, name := range []string{"rootfstype", "mount.usrfstype"} {
			value, _ := option(words, name)
			for kind := range strings.SplitSeq(value, ",") {
				if kind != "auto" && kind != "" && !slices.Contains(types, kind) {
					types = append(types, kind)
				}
			}
		}
	}
	return types
}
