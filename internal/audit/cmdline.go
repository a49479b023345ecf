package audit

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/org/attestable-image-action/internal/lazyregexp"
)

// commandLineWords divides a kernel command line as the kernel and systemd do:
// quotes keep spaces. systemd takes single quotes, too.
func commandLineWords(text string) []string {
	quoted := rune(0)
	return strings.FieldsFunc(text, func(r rune) bool {
		switch {
		case quoted == 0 && (r == '"' || r == '\''):
			quoted = r
		case r == quoted:
			quoted = 0
		}
		return quoted == 0 && (r == ' ' || r == '\t' || r == '\n' || r == '\r')
	})
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
	for _, word := range words {
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
		case "single", "s", "S", "1", "rescue", "emergency", "_b", "__unit":
			if !assigned || bare == "__unit" && slices.Contains(rescueUnits, value) {
				a.add("rescue-target", at, "%s", word)
			}
		case "systemd.unit":
			u.wants = append(u.wants, wanted{value, at})
			if slices.Contains(rescueUnits, value) {
				a.add("rescue-target", at, "%s", word)
			}
		case "systemd.wants":
			u.wants = append(u.wants, wanted{value, at})
			if slices.Contains(rescueUnits, value) {
				a.add("debug-shell-enabled", at, "%s", word)
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
		if name, found := strings.CutPrefix(bare, "sysctl."); found {
			a.sysctl(at, name, value)
		}
	}
	for _, name := range []string{"systemd.debug_shell", "rd.systemd.debug_shell"} {
		if on, _ := isOn(words, name); on {
			a.add("debug-shell-enabled", at, "%s is on", name)
		}
	}
}

// absent looks for what should stand on a kernel command line and does not.
func (a *auditor) absent(u *ukiAudit, words []string) {
	at := u.in(".cmdline")
	lockdown, _ := option(words, "lockdown")
	modules, ordered := option(words, "lsm")
	switch {
	case lockdown != "integrity" && lockdown != "confidentiality":
		a.add("no-lockdown", at, "there is no lockdown=integrity or lockdown=confidentiality")
		if on, _ := isOn(words, "module.sig_enforce"); !on {
			a.add("modules-not-enforced", at, "there is neither module.sig_enforce=1 nor lockdown=")
		}
	case ordered && !slices.Contains(strings.Split(modules, ","), "lockdown"):
		a.add("no-lockdown", at, "lsm=%.100s leaves lockdown out", modules)
	}
	if on, present := isOn(words, "systemd.gpt_auto"); on || !present {
		a.add("gpt-auto", at, "there is no systemd.gpt_auto=0")
	}
	if on, present := isOn(words, "systemd.import_credentials"); on || !present {
		a.add("credentials-imported", at, "there is no systemd.import_credentials=no")
	}
	if u.initrd == nil {
		return
	}
	if u.initrd.has("usr/lib/dracut-lib.sh", "lib/dracut-lib.sh", "usr/lib/dracut", "usr/bin/dracut-emergency", "bin/dracut-emergency") {
		if on, present := isOn(words, "rd.shell"); on || !present {
			a.add("initrd-shell", at, "there is no rd.shell=0, and the initrd is dracut's")
		}
	}
	if u.initrd.has("scripts/functions") {
		if value, ok := option(words, "panic"); !ok || value == "" || value == "0" {
			a.add("initrd-shell", at, "there is no panic= with a number, and the initrd is initramfs-tools'")
		}
	}
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

// RootTypes are the file systems that the words of a kernel command line tell to
// mount as the root or as /usr.
func RootTypes(words []string) []string {
	var types []string
	for _, name := range []string{"rootfstype", "mount.usrfstype"} {
		if value, ok := option(words, name); ok {
			for kind := range strings.SplitSeq(value, ",") {
				if kind != "auto" && kind != "" {
					types = append(types, kind)
				}
			}
		}
	}
	return types
}
