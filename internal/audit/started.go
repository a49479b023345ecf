package audit

import (
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/org/attestable-image-action/internal/lazyregexp"
)

// startedUnits looks at what the units do that start at boot, whatever they are
// called.
func (r *rootAudit) startedUnits() {
	for _, name := range slices.Sorted(maps.Keys(r.units.files)) {
		file := r.units.files[name]
		if r.named[name] || file.masked || !file.exists {
			continue
		}
		if _, ok := r.units.starts(name); ok {
			r.startedUnit(file)
		}
	}
}

// bindsShell are commands that give whoever connects a shell.
var bindsShell = lazyregexp.New(`(?i)\bsocat\b.*(exec|system|shell):|\b(nc|ncat|netcat)\b.*\s-(-exec|-sh-exec|[a-z]*[ec])\s`)

func (r *rootAudit) startedUnit(file unitFile) {
	terminal, socket := false, false
	for _, l := range file.lines {
		if l.key == "StandardInput" {
			terminal, socket = onATerminal().MatchString(l.value), l.value == "socket"
		}
	}
	for _, l := range file.lines {
		if !strings.HasPrefix(l.key, "Exec") || l.key == "ExecStop" || l.key == "ExecStopPost" || l.key == "ExecCondition" {
			continue
		}
		at := place{r.partition, l.path, l.number}
		program := ""
		if fields := strings.Fields(strings.TrimLeft(l.value, "-@:+!|")); len(fields) > 0 {
			program = fields[0][strings.LastIndexByte(fields[0], '/')+1:]
		}
		switch {
		case shells[program] && terminal:
			r.report("debug-shell-enabled", at, "%.100s", l.value)
		case shells[program] && socket, bindsShell().MatchString(l.value):
			r.report("remote-shell-enabled", at, "%.100s", l.value)
		}
		r.command(at, l.value)
	}
}

// command looks at a command line that runs at boot, by the programs that it
// names.
func (r *rootAudit) command(at place, command string) {
	mentions(command, func(name string, p program) {
		if r.noProgram(name) {
			return
		}
		base := path.Base(name)
		switch p.enabled {
		case "cloud-init-enabled":
			if r.found["cloud-init-installed"] && !r.found["cloud-init-enabled"] {
				return // it was told not to run
			}
		case "getty-enabled":
			if base == "login" && !strings.Contains(command, "bin/login") {
				return // the word, not the program
			}
		}
		r.report(p.enabled, at, "it starts %s: %.100s", base, command)
	})
}

// noProgram reports whether a path cannot be the program that its name is: it is
// a directory, such as /run/sshd, or a file that cannot be run.
func (r *rootAudit) noProgram(name string) bool {
	if !strings.HasPrefix(name, "/") || r.fs == nil {
		return false
	}
	for _, dir := range []string{"/run/", "/var/run/", "/dev/"} {
		if strings.HasPrefix(name, dir) {
			return true // nothing of the image is there at boot
		}
	}
	info, err := r.fs.Stat(strings.Trim(path.Clean(name), "/"))
	return err == nil && (info.IsDir() || strings.HasPrefix(name, "/etc/") && info.Mode().Perm()&0o111 == 0)
}
