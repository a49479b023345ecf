package audit

import (
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
		words := commandLineWords(text)
		a.commandLine(place{}, u, words)
		a.absent(u, words)
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
