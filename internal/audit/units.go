package audit

import (
	"errors"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/org/attestable-image-action/internal/lazyregexp"
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
	from    string // a unit's name; "" for what is no unit
	at      place  // of the link, or of the line that says so
	trigger bool   // it does so once it runs: a socket its service, a timer
}

// unitDirectories, in the order of precedence. What an image has in /run is
// hidden by the file system in memory that is mounted there: it stands last, and
// masks there do not count.
var unitDirectories = []string{
	"etc/systemd/system.control", "etc/systemd/system", "etc/systemd/system.attached", "usr/local/lib/systemd/system", "usr/lib/systemd/system",
	"lib/systemd/system", "run/systemd/system",
}

// isNull reports whether a symbolic link in a directory leads to /dev/null, which
// masks a unit.
func isNull(dir, target string) bool {
	if !strings.HasPrefix(target, "/") {
		target = "/" + dir + "/" + target
	}
	return path.Clean(target) == "/dev/null" && !strings.HasPrefix(dir, "run/")
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
		}
		if dir == "lib/systemd/system" && sameDirectory(root, dir, "usr/lib/systemd/system") {
			continue
		}
		for _, e := range entries {
			name, at := e.Name(), path.Join(dir, e.Name())
			switch {
			case strings.HasSuffix(name, ".wants"), strings.HasSuffix(name, ".requires"), strings.HasSuffix(name, ".upholds"):
				u.readPulls(root, at, strings.TrimSuffix(name, path.Ext(name)))
			case strings.HasSuffix(name, ".d"):
				dropins[strings.TrimSuffix(name, ".d")] = append(dropins[strings.TrimSuffix(name, ".d")], at)
			case !e.IsDir():
				u.readUnit(root, name, at)
			}
		}
	}
	u.readAllDropins(root, dropins)
	for name, file := range u.files {
		u.linePulls(root, name, file)
	}
	u.otherPulls(root)
	return u
}

// linePulls takes what a unit's lines pull in.
func (u *units) linePulls(root *rootAudit, name string, file unitFile) {
	base, kind, _ := cutLast(name, ".")
	named := false // another unit than the one of the same name
	for _, l := range file.lines {
		at := place{root.partition, l.path, l.number}
		trigger := false
		switch l.key {
		case "Wants", "Requires", "BindsTo", "Upholds":
		case "OnFailure", "OnSuccess":
			trigger = true
		case "Service", "Unit", "Sockets":
			named, trigger = named || l.key != "Sockets", true
		default:
			continue
		}
		for other := range strings.FieldsSeq(l.value) {
			u.pulled[other] = append(u.pulled[other], pull{name, at, trigger})
		}
	}
	targets := map[string][]string{
		"socket": {base + ".service", base + "@.service"}, "timer": {base + ".service"}, "path": {base + ".service"}, "automount": {base + ".mount"},
	}
	if !named && file.exists {
		for _, other := range targets[kind] {
			u.pulled[other] = append(u.pulled[other], pull{name, root.at(file.path), true})
		}
	}
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

var udevWants = lazyregexp.New(`SYSTEMD_WANTS\}\s*\+?=\s*"([^"]*)"`)

// otherPulls takes what pulls units in beside units: kernel command lines, rules
// of udev, and the presets of a first boot.
func (u *units) otherPulls(root *rootAudit) {
	for _, uki := range root.a.ukis {
		for _, w := range uki.wants {
			u.pulled[w.unit] = append(u.pulled[w.unit], pull{"", w.at, false})
		}
	}
	for _, file := range root.dropins("udev/rules.d", ".rules") {
		number := 0
		for line := range strings.Lines(string(root.optional(file))) {
			number++
			if line = strings.TrimSpace(line); strings.HasPrefix(line, "#") {
				continue
			}
			for _, found := range udevWants().FindAllStringSubmatch(line, -1) {
				for other := range strings.FieldsSeq(found[1]) {
					u.pulled[other] = append(u.pulled[other], pull{"", place{root.partition, file, number}, false})
				}
			}
		}
	}
	if root.firstBoot() {
		u.presets(root)
	}
}

// presets enables units as systemd does at a first boot (systemd.preset(5)): the
// first line that fits counts, and without one a unit is enabled.
func (u *units) presets(root *rootAudit) {
	type policy struct {
		enable  bool
		pattern string
		at      place
	}
	var policies []policy
	for _, file := range root.dropins("systemd/system-preset", ".preset") {
		number := 0
		for line := range strings.Lines(string(root.optional(file))) {
			number++
			fields := strings.Fields(line)
			if len(fields) >= 2 && (fields[0] == "enable" || fields[0] == "disable" || fields[0] == "ignore") {
				policies = append(policies, policy{fields[0] == "enable", fields[1], place{root.partition, file, number}})
			}
		}
	}
	for name, file := range u.files {
		installed := slices.ContainsFunc(file.lines, func(l unitLine) bool {
			return l.key == "WantedBy" || l.key == "RequiredBy" || l.key == "UpheldBy" || l.key == "Alias"
		})
		if !installed || file.masked {
			continue
		}
		chosen := policy{true, "*", root.at(file.path)}
		for _, p := range policies {
			if ok, err := path.Match(p.pattern, name); err == nil && ok {
				chosen = p
				break
			}
		}
		if chosen.enable {
			u.pulled[name] = append(u.pulled[name], pull{"", chosen.at, false})
		}
	}
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
	}
	for _, e := range entries {
		at := path.Join(dir, e.Name())
		if e.Type() == fs.ModeSymlink {
			target, err := root.fs.ReadLink(at)
			if err == nil && isNull(dir, target) {
				continue
			}
			// Older versions of systemd load what the link leads to, under the
			// link's name.
			if base := path.Base(target); err == nil && base != e.Name() {
				u.pulled[base] = append(u.pulled[base], pull{from, root.at(at), false})
			}
		}
		u.pulled[e.Name()] = append(u.pulled[e.Name()], pull{from, root.at(at), false})
	}
}

// readUnit reads a unit file, a mask, or an alias, as systemd's
// unit_file_build_name_map does.
func (u *units) readUnit(root *rootAudit, name, at string) {
	if _, known := u.files[name]; known {
		return
	}
	if _, known := u.aliases[name]; known {
		return
	}
	if _, ok := parseUnitName(name); !ok {
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
		if isNull(path.Dir(at), target) || root.leadsToNull(at) {
			u.files[name] = unitFile{path: at, exists: true, masked: true}
			return
		}
		// A link that stays inside of the unit directories is an alias, or nothing
		// when the names do not go together; one that leads out is the unit itself,
		// whatever the file is called.
		if aim := root.canonical(at, target); inUnitDirectory(aim) {
			if base := path.Base(aim); mayAlias(name, base) {
				u.aliases[name] = base
			}
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

func inUnitDirectory(name string) bool {
	return slices.ContainsFunc(unitDirectories, func(dir string) bool { return strings.HasPrefix(name, dir+"/") })
}

// canonical is the path that the target of a link leads to, with the links of its
// directories followed and the one at its end, if it is one, left.
func (r *rootAudit) canonical(link, target string) string {
	if !strings.HasPrefix(target, "/") {
		target = path.Dir(link) + "/" + target
	}
	rest := strings.Split(target, "/")
	at := ""
	for links := 0; len(rest) > 1; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = strings.TrimPrefix(path.Dir("/"+at), "/")
			continue
		}
		next := path.Join(at, part)
		inner, err := r.fs.ReadLink(next)
		if err != nil || links == maxLinks {
			at = next
			continue
		}
		links++
		if strings.HasPrefix(inner, "/") {
			at = ""
		}
		rest = append(strings.Split(inner, "/"), rest...)
	}
	return strings.TrimPrefix(path.Join("/", at, rest[0]), "/")
}

// maxLinks are the symbolic links that Linux follows in a path.
const maxLinks = 40

// leadsToNull reports whether a link leads to /dev/null, over any number of others
// outside of the unit directories.
func (r *rootAudit) leadsToNull(name string) bool {
	for range maxLinks {
		target, err := r.fs.ReadLink(name)
		if err != nil {
			return false
		}
		if isNull(path.Dir(name), target) {
			return true
		}
		if name = r.canonical(name, target); inUnitDirectory(name) {
			return false // an alias
		}
	}
	return false
}

// unitName is the name of a unit in its parts: prefix, instance and type.
type unitName struct {
	prefix, instance, kind string
	at                     bool // a template, or an instance of one
}

var unitNames = lazyregexp.New(`^([A-Za-z0-9:_.\\-]+)(@[A-Za-z0-9:_.\\@-]*)?\.(service|socket|target|device|mount|automount|swap|timer|path|slice|scope)$`)

// parseUnitName splits the name of a unit; ok is false where it is none.
func parseUnitName(name string) (unitName, bool) {
	parts := unitNames().FindStringSubmatch(name)
	if parts == nil || len(name) > 255 {
		return unitName{}, false
	}
	return unitName{parts[1], strings.TrimPrefix(parts[2], "@"), parts[3], parts[2] != ""}, true
}

// mayAlias reports whether systemd takes a link for an alias: both are units of the
// same type, which may have aliases, and an instance is an alias of the same
// instance or of a template.
func mayAlias(name, of string) bool {
	a, okA := parseUnitName(name)
	b, okB := parseUnitName(of)
	if !okA || !okB || name == of || a.kind != b.kind || a.at != b.at {
		return false
	}
	if a.instance != b.instance && (a.instance == "" || b.instance != "") {
		return false
	}
	return slices.Contains([]string{"service", "socket", "target", "device", "timer", "path"}, a.kind)
}

// dropinNames are the names whose drop-ins count for a unit, beside those of its
// aliases: its type's, those of what stands in front of each dash, its template's,
// and its own (systemd.unit(5)).
func dropinNames(name string) []string {
	n, ok := parseUnitName(name)
	if !ok {
		return []string{name}
	}
	names := []string{n.kind}
	for i := range len(n.prefix) - 1 {
		if n.prefix[i] == '-' {
			names = append(names, n.prefix[:i+1]+"."+n.kind)
			if n.at {
				names = append(names, n.prefix[:i+1]+"@"+n.instance+"."+n.kind)
			}
		}
	}
	if general, ok := template(name); ok {
		names = append(names, general)
	}
	return append(names, name)
}

// readAllDropins adds to each unit the lines of all the drop-ins that count for it,
// and keeps those of units that have no file of their own.
func (u *units) readAllDropins(root *rootAudit, dropins map[string][]string) {
	aliases := map[string][]string{}
	for alias := range u.aliases {
		name := alias
		for range len(u.aliases) {
			next, ok := u.aliases[name]
			if !ok {
				break
			}
			name = next
			aliases[name] = append(aliases[name], alias)
		}
	}
	names := slices.Collect(maps.Keys(u.files))
	names = slices.AppendSeq(names, maps.Keys(dropins))
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		count := dropinNames(name)
		for _, alias := range aliases[name] {
			count = append(count, dropinNames(alias)...)
		}
		slices.Sort(count)
		var dirs []string
		for _, other := range slices.Compact(count) {
			dirs = append(dirs, dropins[other]...)
		}
		if len(dirs) > 0 {
			u.readDropins(root, name, dirs)
		}
	}
}

// readDropins adds the lines of drop-ins to a unit. Of files of the same name
// the first directory's counts.
func (u *units) readDropins(root *rootAudit, unit string, dirs []string) {
	found := map[string]string{}
	for _, dir := range dirs {
		entries, err := root.fs.ReadDir(dir)
		if err != nil {
			root.notRead(dir, err)
		}
		for _, e := range entries {
			if _, known := found[e.Name()]; !known && strings.HasSuffix(e.Name(), ".conf") {
				found[e.Name()] = path.Join(dir, e.Name())
			}
		}
	}
	file := u.files[unit]
	for _, name := range slices.Sorted(maps.Keys(found)) {
		at := found[name]
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
// pulls a unit in counts. A socket or timer has to be started itself.
func (u *units) starts(name string) (by place, ok bool) {
	return u.startsBut(name, map[string]bool{})
}

// startsBut leaves out units that were asked for before, of which this one may be
// the reason.
func (u *units) startsBut(name string, asked map[string]bool) (by place, ok bool) {
	if asked[name] {
		return place{}, false
	}
	asked[name] = true
	if file, found := u.find(name); !found || file.masked {
		return place{}, false
	}
	names := []string{name}
	for i := 0; i < len(names); i++ { // aliases of aliases, too
		for alias, target := range u.aliases {
			if target == names[i] && !slices.Contains(names, alias) {
				names = append(names, alias)
			}
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
			if p.trigger {
				if _, started := u.startsBut(p.from, asked); !started {
					continue
				}
			}
			if p.from == "" || !u.masked(p.from) {
				return p.at, true
			}
		}
	}
	return place{}, false
}

// leadsTo reports whether a unit's name is an alias of another, over any number
// of links.
func (u *units) leadsTo(name, target string) bool {
	for range len(u.aliases) + 1 {
		other, ok := u.aliases[name]
		if !ok {
			return false
		}
		if other == target {
			return true
		}
		name = other
	}
	return false
}

// linkPlace is where the link of an alias is.
func (u *units) linkPlace(root *rootAudit, name string) place {
	for _, dir := range unitDirectories {
		if _, err := root.fs.Lstat(path.Join(dir, name)); err == nil {
			return root.at(path.Join(dir, name))
		}
	}
	return root.at(name)
}
