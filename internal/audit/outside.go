package audit

import (
	"path"
	"slices"
	"strings"
)

// outside looks for what a running image takes from outside and no PCR records. roots are
// the audited root file systems.
func (a *auditor) outside(u *ukiAudit, roots []*rootAudit) {
	variables := u.readsVariables(roots)
	if variables && !a.options.SecureBoot && u.runs(roots, "systemd/systemd") {
		a.add("systemd-options", u.in(".cmdline"), "there is no efi=noruntime, and the kernel shows firmware's variables to systemd")
	}
	u.resume(a, variables)
	if u.initrd != nil {
		for _, rule := range assemblyRules {
			if u.initrd.has("usr/lib/udev/rules.d/"+rule, "lib/udev/rules.d/"+rule, "etc/udev/rules.d/"+rule) {
				a.add("auto-assembly", u.in(".initrd/usr/lib/udev/rules.d/"+rule), "in the initrd")
			}
		}
	}
}

// assemblyRules are rules of udev that make devices of the content of any disk: of mdadm
// and of lvm2.
var assemblyRules = []string{"64-md-raid-assembly.rules", "65-md-raid-assembly.rules", "65-md-incremental.rules", "69-dm-lvm.rules", "69-dm-lvm-metad.rules", "69-lvm.rules"}

// runs reports whether a program of systemd is in the initrd or in a root file system.
func (u *ukiAudit) runs(roots []*rootAudit, program string) bool {
	names := []string{"usr/lib/" + program, "lib/" + program}
	return u.initrd != nil && u.initrd.has(names...) || slices.ContainsFunc(roots, func(r *rootAudit) bool {
		_, ok := r.first(names...)
		return ok
	})
}

// readsVariables reports whether programs of the image can read firmware's variables.
// systemd reads them in efivarfs, which the kernel has built in, as a module or not at
// all, and which needs the runtime services of firmware.
func (u *ukiAudit) readsVariables(roots []*rootAudit) bool {
	runtime := true
	for _, word := range u.line.kernel {
		line := line{kernel: []string{word}}
		if len(line.kernelOptions("noefi")) > 0 {
			runtime = false
		}
		for _, value := range line.kernelOptions("efi") { // the kernel looks for both, in this order
			options := strings.Split(value, ",")
			if slices.Contains(options, "noruntime") {
				runtime = false
			}
			if slices.Contains(options, "runtime") {
				runtime = true
			}
		}
	}
	if !runtime {
		return false
	}
	listed := func(option, name string) bool {
		values := u.line.kernelOptions(option)
		return len(values) > 0 && slices.Contains(strings.Split(values[len(values)-1], ","), name)
	}
	const module = "efivarfs.ko"
	known, builtin, there := false, false, false
	lists := func(content string) {
		known = true
		for line := range strings.Lines(content) {
			builtin = builtin || path.Base(strings.TrimSpace(line)) == module
		}
	}
	for _, r := range roots {
		for _, dir := range []string{"usr/lib/modules", "lib/modules"} {
			for _, version := range r.names(dir) {
				if content := r.optional(path.Join(dir, version, "modules.builtin")); len(content) > 0 {
					lists(string(content))
				}
			}
		}
		there = there || r.efivarfs
	}
	if u.initrd != nil {
		for name, file := range u.initrd.files {
			switch base := path.Base(name); {
			case base == "modules.builtin":
				lists(string(file.content))
			case strings.HasPrefix(base, module):
				there = true
			}
		}
	}
	switch {
	case !known, builtin:
		return !listed("initcall_blacklist", "efivarfs_init")
	default:
		return there && !listed("module_blacklist", "efivarfs")
	}
}

// resume reports an image that lets a disk say what is in memory: the kernel takes a
// hibernation image for its own state, and verifies nothing of it.
func (u *ukiAudit) resume(a *auditor, variables bool) {
	if u.line.lockdown() || len(u.line.kernelOptions("noresume")) > 0 || len(u.line.kernelOptions("nohibernate")) > 0 {
		return
	}
	if device, ok := option(u.line.words, "resume"); ok {
		a.add("resume-open", u.in(".cmdline"), "resume=%.100s", device)
	}
	const generator = "systemd/system-generators/systemd-hibernate-resume-generator"
	if variables && u.initrd != nil && u.initrd.has("usr/lib/"+generator, "lib/"+generator) {
		a.add("resume-open", u.in(".initrd/usr/lib/"+generator), "it resumes from where the EFI variable HibernateLocation says (systemd 254 and later)")
	}
}
