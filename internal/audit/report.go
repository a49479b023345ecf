package audit

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"

	"github.com/org/attestable-image-action/internal/strictjson"
)

// Severity says how bad a finding is.
type Severity int

// The severities, in ascending order.
const (
	// Info is what a user of the image has to know, and no weakness.
	Info Severity = iota
	// Low is a missed hardening that opens nothing by itself.
	Low
	// Medium opens a door together with something else.
	Medium
	// High opens a door to somebody whom no PCR shows.
	High
	// Critical makes the measurements worthless.
	Critical
)

var severityNames = []string{"info", "low", "medium", "high", "critical"}

// String is the lower-case name.
func (s Severity) String() string { return severityNames[s] }

// MarshalText writes the lower-case name.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the lower-case name.
func (s *Severity) UnmarshalText(b []byte) error {
	parsed, err := ParseSeverity(string(b))
	*s = parsed
	return err
}

// ParseSeverity reads a severity's lower-case name.
func ParseSeverity(name string) (Severity, error) {
	if i := slices.Index(severityNames, name); i >= 0 {
		return Severity(i), nil
	}
	return 0, fmt.Errorf("there is no severity %q: it is one of %s", name, strings.Join(severityNames, ", "))
}

// Finding is a weakness, or what could not be looked at.
type Finding struct {
	// ID names the rule, in lower case with hyphens. It does not change from
	// version to version.
	ID       string   `json:"id"`
	Severity Severity `json:"severity"`
	// Partition is the number of the partition, 0 for the disk as a whole.
	Partition int `json:"partition,omitempty"`
	// Path is the file on that partition; "FILE#.section" inside a unified
	// kernel image, "FILE#.initrd/PATH" in its initrd.
	Path string `json:"path,omitempty"`
	// Line in the file, from 1; 0 when the finding is about the file.
	Line   int    `json:"line,omitempty"`
	Detail string `json:"detail"` // what was found there
	Why    string `json:"why"`    // why it matters
	Fix    string `json:"fix"`    // how to close it
}

// Where is the place for people.
func (f Finding) Where() string {
	switch {
	case f.Partition == 0:
		return "the disk"
	case f.Path == "":
		return fmt.Sprintf("partition %d", f.Partition)
	case f.Line > 0:
		return fmt.Sprintf("partition %d, %s:%d", f.Partition, f.Path, f.Line)
	}
	return fmt.Sprintf("partition %d, %s", f.Partition, f.Path)
}

// ReportVersion is the version of the report's form.
const ReportVersion = 1

// Report is what an audit found: the predicate of the audit attestation.
type Report struct {
	SchemaVersion int       `json:"schemaVersion"` // ReportVersion
	SecureBoot    bool      `json:"secureBoot"`    // whether it was assumed to be on
	Audited       []Audited `json:"audited"`       // what was looked at
	Findings      []Finding `json:"findings"`      // the worst first
	// HostileBoot is what boot --hostile found, where it was asked.
	HostileBoot *HostileBoot `json:"hostileBoot,omitempty"`
}

// Audited is something that was looked at.
type Audited struct {
	Partition int    `json:"partition"`
	Path      string `json:"path,omitempty"`
	Kind      string `json:"kind"`  // "erofs", "squashfs", "ext4", "FAT", "UKI" or "initrd"
	Files     int    `json:"files"` // that were seen
}

// Worst is the highest severity among the findings; ok is false without any.
func (r *Report) Worst() (worst Severity, ok bool) {
	for _, f := range r.Findings {
		worst, ok = max(worst, f.Severity), true
	}
	return worst, ok
}

// AtLeast returns the findings of a severity or above, the worst first.
func (r *Report) AtLeast(s Severity) []Finding {
	var found []Finding
	for _, f := range r.Findings {
		if f.Severity >= s {
			found = append(found, f)
		}
	}
	return found
}

// Count is the number of findings of each severity.
func (r *Report) Count() map[Severity]int {
	count := map[Severity]int{}
	for _, f := range r.Findings {
		count[f.Severity]++
	}
	return count
}

// Marshal is the report as indented JSON and a newline. The same disk always
// gives the same bytes.
func (r *Report) Marshal() ([]byte, error) {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write audit report: %w", err)
	}
	return append(b, '\n'), nil
}

// ParseReport reads a report that Marshal wrote. Members that it does not know
// are passed over; a report of a newer form is refused.
func ParseReport(b []byte) (*Report, error) {
	var r Report
	if err := strictjson.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("read audit report: %w", err)
	}
	switch {
	case r.SchemaVersion < 1 || r.Audited == nil || r.Findings == nil:
		return nil, errors.New("read audit report: it lacks schemaVersion, audited or findings: it is no report")
	case r.SchemaVersion > ReportVersion:
		return nil, fmt.Errorf("read audit report: it is of version %d, this program knows up to %d: use a newer one", r.SchemaVersion, ReportVersion)
	}
	for _, f := range r.Findings {
		if f.ID == "" {
			return nil, errors.New("read audit report: a finding has no id")
		}
	}
	return &r, nil
}

// sort puts the worst first, then by rule and place, and drops duplicates.
func (r *Report) sort() {
	slices.SortStableFunc(r.Findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(b.Severity, a.Severity), cmp.Compare(a.ID, b.ID), cmp.Compare(a.Partition, b.Partition),
			cmp.Compare(a.Path, b.Path), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Detail, b.Detail))
	})
	r.Findings = slices.Compact(r.Findings)
}

// tableWidth is the width of the table for people, in characters.
const tableWidth = 80

// tableMerge is how many findings of one rule are shown in full.
const tableMerge = 5

// WriteTable writes the report for people, 80 characters wide: the findings by
// severity, each rule once with its places, then why it matters and how to close
// it.
func (r *Report) WriteTable(w io.Writer) error {
	var b strings.Builder
	if len(r.Findings) == 0 {
		b.WriteString("No findings.\n")
	}
	for rest := r.Findings; len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n].ID == rest[0].ID {
			n++
		}
		first := rest[0]
		fmt.Fprintf(&b, "%-9s%s\n", strings.ToUpper(first.Severity.String()), first.ID)
		for i, f := range rest[:n] {
			if i == tableMerge && n > tableMerge+1 {
				fmt.Fprintf(&b, "%9sand %d more; the JSON report has all\n", "", n-i)
				break
			}
			wrap(&b, "         ", clean(f.Where()+": "+f.Detail))
		}
		wrap(&b, "         Why: ", first.Why)
		wrap(&b, "         Fix: ", first.Fix)
		b.WriteByte('\n')
		rest = rest[n:]
	}
	count := r.Count()
	var parts []string
	for s := Critical; s >= Info; s-- {
		if count[s] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", count[s], s))
		}
	}
	if len(parts) > 0 {
		fmt.Fprintf(&b, "%d findings: %s\n", len(r.Findings), strings.Join(parts, ", "))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// clean makes text from an image fit for a terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '�'
		}
		return r
	}, s)
}

// wrap writes words behind a prefix, lines as wide as the table; later lines are
// indented as the prefix is.
func wrap(b *strings.Builder, prefix, text string) {
	indent := strings.Repeat(" ", len(prefix))
	line, used := prefix, len(prefix)
	fresh := true
	for word := range strings.FieldsSeq(text) {
		runes := []rune(word)
		for {
			space := 1
			if fresh {
				space = 0
			}
			if used+space+len(runes) <= tableWidth {
				line += strings.Repeat(" ", space) + string(runes)
				used += space + len(runes)
				fresh = false
				break
			}
			if !fresh {
				b.WriteString(line + "\n")
				line, used, fresh = indent, len(indent), true
				continue
			}
			part := tableWidth - used // a word longer than a line
			line += string(runes[:part])
			runes = runes[part:]
			b.WriteString(line + "\n")
			line, used = indent, len(indent)
		}
	}
	b.WriteString(strings.TrimRight(line, " ") + "\n")
}
