package audit

import (
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// units is what systemd will find on a root file system: unit files, links that
// pull units in, and masks (systemd.unit(5)).
type units struct {
	files   map[string]unitFile // by name; the first directory wins
	pulled  map[string][]pull   // by the name of the unit that is pulled in
	aliases map[string]string   // an alias's name to the unit's
}

// unitFile is a unit's file and its drop-ins.
type unitFile struct {
	path   string
	exists bool // there are not only drop-ins
	masked bool
	lines  []unitLine // of the file, then of its drop-ins
}

// unitLine is an assignment in a unit file.
type unitLine struct {
	path       string
	number     int // from 1
	key, value string
}

// pull says what pulls a unit in.
type pull struct {
	from string // a unit's name
	path string // of the link, or of the file that says so
}

// unitDirectories, in the order of precedence.
var unitDirectories = []string{
	"etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system", "lib/systemd/system",
}

// readUnits reads the unit directories of a root file system. What cannot be
// read is reported and passed over.
func (a *auditor) readUnits(root *rootAudit) *units {
	u := &units{files: map[string]unitFile{}, pulled: map[string][]pull{}, aliases: map[string]string{}}
	dropins := map[string][]string{}
	for _, dir := range unitDirectories {
		entries, err := root.fs.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			root.notRead(dir, err)
			continue
		}
		if dir == "lib/systemd/system" && sameDirectory(root, dir, "usr/lib/systemd/system") {
			continue
		}
		for _, e := range entries {
			name, at := e.Name(), path.Join(dir, e.Name())
			switch {
			case strings.HasSuffix(name, ".wants"), strings.HasSuffix(name, ".requires"), strings.HasSuffix(name, ".upholds"):
				u.readPulls(root, at, strings.TrimSuffix(name, path.Ext(name)))
			case strings.HasSuffix(name, ".d") && e.IsDir():
				dropins[strings.TrimSuffix(name, ".d")] = append(dropins[strings.TrimSuffix(name, ".d")], at)
			case !e.IsDir():
				u.readUnit(root, name, at)
			}
		}
	}
	for unit, dirs := range dropins {
		u.readDropins(root, unit, dirs)
	}
	for name, file := range u.files {
		for _, l := range file.lines {
			if l.key == "Wants" || l.key == "Requires" || l.key == "BindsTo" || l.key == "Upholds" {
				for other := range strings.FieldsSeq(l.value) {
					u.pulled[other] = append(u.pulled[other], pull{name, l.path})
				}
			}
		}
	}
	return u
}

func sameDirectory(root *rootAudit, a, b string) bool {
	x, errX := root.fs.Stat(a)
	y, errY := root.fs.Stat(b)
	return errX == nil && errY == nil && statOf(x).Inode == statOf(y).Inode
}

// readPulls reads a directory of links that pull units in.
func (u *units) readPulls(root *rootAudit, dir, from string) {
	entries, err := root.fs.ReadDir(dir)
	if err != nil {
		root.notRead(dir, err)
		return
	}
	for _, e := range entries {
		at := path.Join(dir, e.Name())
		if e.Type() == fs.ModeSymlink {
			if target, err := root.fs.ReadLink(at); err == nil && target == "/dev/null" {
				continue
			}
		}
		u.pulled[e.Name()] = append(u.pulled[e.Name()], pull{from, at})
	}
}

// readUnit reads a unit file, a mask, or an alias.
func (u *units) readUnit(root *rootAudit, name, at string) {
	if _, known := u.files[name]; known {
		return
	}
	if _, known := u.aliases[name]; known {
		return
	}
	info, err := root.fs.Lstat(at)
	if err != nil {
		root.notRead(at, err)
		return
	}
	if info.Mode().Type() == fs.ModeSymlink {
		target, err := root.fs.ReadLink(at)
		if err != nil {
			root.notRead(at, err)
			return
		}
		if target == "/dev/null" {
			u.files[name] = unitFile{path: at, exists: true, masked: true}
			return
		}
		if base := path.Base(target); base != name {
			u.aliases[name] = base
			return
		}
	}
	content, err := root.read(at)
	if errors.Is(err, fs.ErrNotExist) {
		return // a link that leads nowhere is no unit
	}
	if err != nil {
		root.notRead(at, err)
		return
	}
	u.files[name] = unitFile{path: at, exists: true, masked: len(content) == 0, lines: unitLines(at, content)}
}

// readDropins adds the lines of drop-ins to a unit. Of files of the same name
// the first directory's counts.
func (u *units) readDropins(root *rootAudit, unit string, dirs []string) {
	found := map[string]string{}
	for _, dir := range dirs {
		entries, err := root.fs.ReadDir(dir)
		if err != nil {
			root.notRead(dir, err)
			continue
		}
		for _, e := range entries {
			if _, known := found[e.Name()]; !known && strings.HasSuffix(e.Name(), ".conf") {
				found[e.Name()] = path.Join(dir, e.Name())
			}
		}
	}
	file := u.files[unit]
	for _, at := range found {
		content, err := root.read(at)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			root.notRead(at, err)
			continue
		}
		file.lines = append(file.lines, unitLines(at, content)...)
	}
	if file.path == "" && len(file.lines) > 0 {
		file.path = file.lines[0].path
	}
	if file.path != "" {
		u.files[unit] = file
	}
}

// unitLines reads the assignments of a unit file; a line may go on after a
// backslash.
func unitLines(at string, content []byte) []unitLine {
	var lines []unitLine
	var pending string
	start, number := 0, 0
	for line := range strings.Lines(string(content)) {
		number++
		line = strings.TrimSpace(line)
		if pending == "" {
			start = number
			if line == "" || line[0] == '#' || line[0] == ';' || line[0] == '[' {
				continue
			}
		}
		if text, more := strings.CutSuffix(line, "\\"); more {
			pending += text + " "
			continue
		}
		if key, value, ok := strings.Cut(pending+line, "="); ok {
			lines = append(lines, unitLine{at, start, strings.TrimSpace(key), strings.TrimSpace(value)})
		}
		pending = ""
	}
	return lines
}

// template returns the name of the template of an instance, "getty@.service" for
// "getty@tty1.service".
func template(name string) (string, bool) {
	before, rest, ok := strings.Cut(name, "@")
	if !ok || strings.HasPrefix(rest, ".") {
		return "", false
	}
	return before + "@" + path.Ext(rest), true
}

// find returns the file of a unit, of what it is an alias of, or of its
// template.
func (u *units) find(name string) (unitFile, bool) {
	for range 5 {
		if file := u.files[name]; file.exists {
			return file, true
		}
		if other, ok := u.aliases[name]; ok {
			name = other
			continue
		}
		if general, ok := template(name); ok {
			name = general
			continue
		}
		break
	}
	return unitFile{}, false
}

// masked reports whether a unit, or its template, is masked.
func (u *units) masked(name string) bool {
	file, ok := u.find(name)
	return ok && file.masked
}

// starts reports whether something pulls a unit in at boot that is not masked
// itself, and says what. Whether a target is ever reached is not asked: what
// pulls a unit in counts.
func (u *units) starts(name string) (by string, ok bool) {
	if file, found := u.find(name); !found || file.masked {
		return "", false
	}
	names := []string{name}
	for alias, target := range u.aliases {
		if target == name {
			names = append(names, alias)
		}
	}
	for pulled := range u.pulled {
		if general, ok := template(pulled); ok && slices.Contains(names, general) {
			names = append(names, pulled)
		}
	}
	slices.Sort(names)
	for _, n := range names {
		if n != name && u.masked(n) {
			continue
		}
		for _, p := range u.pulled[n] {
			if !u.masked(p.from) {
				return p.path, true
			}
		}
	}
	return "", false
}
