package imagediff

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/org/attestable-image-action/internal/measure"
)

// pcrs compares the predicted PCRs.
func (c *comparison) pcrs() {
	a, b := c.options.A, c.options.B
	if a == nil || b == nil {
		if c.either("PCRs", c.a.noPCRs, c.b.noPCRs) {
			return
		}
		a, b = c.a.document, c.b.document
	}
	c.report.measurements(a, b)
}

var errNoPCR = errors.New("the measurements do not have it")

// measurements compares the PCRs of two documents. Those that only one of them has are
// no difference: they were not asked for.
func (r *Report) measurements(a, b *measure.Document) {
	if x, y := a.Measurements.HashAlgorithm, b.Measurements.HashAlgorithm; x != y {
		r.notCompared("PCRs", fmt.Errorf("they are of the banks %s (A) and %s (B)", x, y))
		return
	}
	for _, side := range []struct {
		name      string
		has, want map[int]string
	}{{"A", a.Measurements.PCRs, b.Measurements.PCRs}, {"B", b.Measurements.PCRs, a.Measurements.PCRs}} {
		for _, n := range slices.Sorted(maps.Keys(side.want)) {
			if side.has[n] == "" {
				r.notCompared(fmt.Sprintf("PCR %d (%s)", n, side.name), errNoPCR)
			}
		}
	}
	r.PCRs = append(r.PCRs, comparePCRs(a, b, r.because)...)
}

// comparePCRs compares two predictions event by event. because says what changed in
// the thing that was measured, when that is known.
func comparePCRs(a, b *measure.Document, because func(measure.EventInfo) string) []PCR {
	var pcrs []PCR
	for _, n := range slices.Sorted(maps.Keys(a.Measurements.PCRs)) {
		p := PCR{PCR: n, A: a.PCR(n), B: b.PCR(n), Events: []Event{}}
		if p.A == p.B || p.B == "" {
			continue
		}
		for _, e := range compareEvents(eventsOf(a, n), eventsOf(b, n), because) {
			if len(p.Events) == maxEvents {
				p.EventsMore++
				continue
			}
			p.Events = append(p.Events, e)
		}
		pcrs = append(pcrs, p)
	}
	return pcrs
}

func eventsOf(d *measure.Document, pcr int) []measure.EventInfo {
	var events []measure.EventInfo
	for _, e := range d.Events {
		if e.PCR == pcr {
			events = append(events, e)
		}
	}
	return events
}

// measured is what an event stands for, without what changes with its content: the
// size behind the name of a section.
func measured(e measure.EventInfo) string {
	what, _, _ := strings.Cut(e.Description, " (")
	return e.Type + " " + what
}

// lookAhead is how many events are searched for one that both have.
const lookAhead = 64

// compareEvents lists the events that differ, in their order: one that stands for
// the same in both has changed, others came or went.
func compareEvents(a, b []measure.EventInfo, because func(measure.EventInfo) string) []Event {
	var events []Event
	for i, j := 0, 0; i < len(a) || j < len(b); {
		switch {
		case i < len(a) && j < len(b) && measured(a[i]) == measured(b[j]):
			if a[i].Digest != b[j].Digest {
				events = append(events, Event{Changed, b[j].Type, bounded(b[j].Description), a[i].Digest, b[j].Digest, because(b[j])})
			}
			i, j = i+1, j+1
		case j == len(b) || i < len(a) && !follows(b[j:], a[i]):
			events = append(events, Event{How: Removed, Type: a[i].Type, What: bounded(a[i].Description), DigestA: a[i].Digest})
			i++
		default:
			events = append(events, Event{How: Added, Type: b[j].Type, What: bounded(b[j].Description), DigestB: b[j].Digest})
			j++
		}
	}
	return events
}

// follows reports whether an event that stands for the same comes soon.
func follows(events []measure.EventInfo, e measure.EventInfo) bool {
	return slices.ContainsFunc(events[:min(len(events), lookAhead)], func(other measure.EventInfo) bool { return measured(other) == measured(e) })
}

// because says what changed in what an event measured.
func (r *Report) because(e measure.EventInfo) string {
	what, _, _ := strings.Cut(e.Description, " (")
	path, part, inside := strings.Cut(what, "#")
	switch {
	case e.Type == measure.EVEFIGPTEvent.String():
		return r.tableChanges()
	case e.Type == measure.EVEFIVariableDriverConfig.String():
		return r.variableChanges(e.Description)
	case strings.HasPrefix(what, "."): // PCR 11: a section of the unified kernel image
		return r.sectionChanges(what)
	case inside:
		return r.sectionChanges(part)
	}
	for _, f := range r.Boot {
		if !strings.EqualFold(f.Path, path) {
			continue
		}
		names := make([]string, 0, len(f.Sections))
		for _, s := range f.Sections {
			names = append(names, s.Name)
		}
		newStub := slices.ContainsFunc(f.Changes, func(c Change) bool { return c.Name == stubVersion })
		switch {
		case len(names) > 0 && newStub:
			return "systemd-stub, sections " + strings.Join(names, ", ")
		case newStub:
			return "systemd-stub"
		case len(names) > 0:
			return "sections " + strings.Join(names, ", ")
		case f.Headers:
			return "its headers, or bytes behind its sections"
		case f.Signatures:
			return "its signatures"
		}
	}
	return ""
}

// sectionChanges says what changed in a section of the one image that has it.
func (r *Report) sectionChanges(name string) string {
	var found *Section
	for i := range r.Boot {
		for j := range r.Boot[i].Sections {
			if s := &r.Boot[i].Sections[j]; s.Name == name {
				if found != nil {
					return "" // which one was measured is not known here
				}
				found = s
			}
		}
	}
	if found == nil {
		return ""
	}
	switch n := len(found.Files) + found.FilesHidden + found.FilesMore; {
	case n > 0:
		return counted(n, "of its files", "of its files")
	case len(found.Lines) == 1:
		l := found.Lines[0]
		if l.A == "" || l.B == "" {
			return strings.TrimSpace(l.Name + " " + l.A + l.B)
		}
		return strings.TrimSpace(l.Name + " " + l.A + " -> " + l.B)
	case len(found.Lines) > 1:
		return counted(len(found.Lines), "change", "changes")
	}
	return ""
}

func counted(n int, one, many string) string {
	if n == 1 {
		many = one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// tableChanges says what changed in the partition table.
func (r *Report) tableChanges() string {
	var parts []string
	for _, p := range r.Partitions {
		switch {
		case p.Number == 0:
			parts = append(parts, p.Field+" of the disk")
		case p.How == Changed:
			parts = append(parts, fmt.Sprintf("%s of partition %d", p.Field, p.Number))
		default:
			parts = append(parts, fmt.Sprintf("partition %d was %s", p.Number, p.How))
		}
	}
	return bounded(strings.Join(parts, ", "))
}

// variableChanges says what changed in a variable of Secure Boot.
func (r *Report) variableChanges(name string) string {
	var parts []string
	for _, c := range r.SecureBoot {
		if entry, ok := strings.CutPrefix(c.Name, name+", "); ok {
			parts = append(parts, string(became(c))+" "+entry)
		}
	}
	return bounded(strings.Join(parts, ", "))
}

// became says what happened to something that has a value, or none.
func became(c Change) How {
	switch {
	case c.A == "" && c.B != "":
		return Added
	case c.B == "" && c.A != "":
		return Removed
	}
	return Changed
}
