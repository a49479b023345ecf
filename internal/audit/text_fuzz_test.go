package audit

import (
	"slices"
	"strings"
	"testing"
)

// FuzzText looks at lines as they stand in the configuration of an image that
// nobody made: command lines, units, tmpfiles.d and the like. Findings are of
// rules that there are, and as short as their bound.
func FuzzText(f *testing.F) {
	for _, c := range evasions {
		fixture := newFixture()
		if c.weak != nil {
			c.weak(fixture)
		}
		f.Add(fixture.cmdline, []byte{})
		for name, content := range fixture.root {
			if strings.HasPrefix(name, "etc/") || strings.Contains(name, ".d/") {
				f.Add(content, []byte(accessList(2, 500)))
			}
		}
	}
	f.Fuzz(func(t *testing.T, text string, acl []byte) {
		a := &auditor{report: &Report{}}
		u := &ukiAudit{}
		l := parseLine(text)
		a.commandLine(place{}, u, l.words)
		a.absent(u, l)
		r := &rootAudit{a: a, named: map[string]bool{}, found: map[string]bool{}}
		for line := range strings.Lines(text) {
			if line = strings.TrimSpace(line); line == "" {
				continue
			}
			r.tmpfile(place{}, line)
			r.sysuser(place{}, line)
			r.inittab(place{}, line)
			r.command(place{}, line)
		}
		file := unitFile{path: "x", exists: true, lines: unitLines("x", []byte(text))}
		for _, l := range file.lines {
			if l.number < 1 || l.number > strings.Count(text, "\n")+1 {
				t.Fatalf("line %d of %q", l.number, text)
			}
			a.unitLine(place{}, l)
		}
		r.startedUnit(file)
		for _, c := range accounts([]byte(text)) {
			_, _ = c.open(), c.hash()
		}
		_ = aclWriters(acl)
		for _, found := range a.report.Findings {
			if len([]rune(found.Detail)) > 501 || found.Why == "" {
				t.Fatalf("finding %+v", found)
			}
		}
	})
}

// FuzzLine divides command lines. Without quotes and with plain spaces everybody reads the
// same; nothing is lost, and no word has a space that no quote protects.
func FuzzLine(f *testing.F) {
	for _, text := range []string{
		"ro quiet", `a="b c" d`, `'a b' "c 'd" e'`, "a\v\xa0b", "x -- y=1", `"a=b" c"d e"f`, "\t\n", `'`, strings.Repeat("x ", 1100), "'" + strings.Repeat(`"a' `, 9),
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		l := parseLine(text)
		kept := text[:min(len(text), maxKernelLine)]
		if l.cut != (len(text) > maxKernelLine) {
			t.Fatalf("cut is %v for %d bytes", l.cut, len(text))
		}
		space := func(r rune) bool { return strings.ContainsRune(" \t\n\r", r) }
		if !strings.ContainsAny(kept, "'\"\v\f") && !strings.Contains(kept, "\xa0") {
			if want := strings.FieldsFunc(kept, space); !slices.Equal(l.systemd, want) || !slices.Equal(l.words, want) {
				t.Fatalf("%q is divided into %q and %q, not %q", kept, l.systemd, l.words, want)
			}
		}
		at := 0
		for _, word := range l.systemd {
			if word == "" || !strings.ContainsAny(word, `"'`) && strings.ContainsFunc(word, space) {
				t.Fatalf("%q has the word %q", kept, word)
			}
			i := strings.Index(kept[at:], word)
			if i < 0 || strings.ContainsFunc(kept[at:at+i], func(r rune) bool { return !space(r) }) {
				t.Fatalf("%q lost what stands before %q", kept, word)
			}
			at += i + len(word)
		}
		for _, word := range slices.Concat(l.kernel, l.systemd) {
			if !slices.Contains(l.words, word) {
				t.Fatalf("%q is missing in %q", word, l.words)
			}
		}
	})
}
