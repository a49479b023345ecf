package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/org/attestable-image-action/internal/audit"
	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/gha"
	"github.com/org/attestable-image-action/internal/measure"
)

// openings is what the step summary tells of an image's disk: what no PCR
// covers, and which doors are open.
type openings struct {
	coverage *audit.Coverage
	report   *audit.Report
	placed   map[string]placedFinding // by rule: the first whose cause is known
}

// placedFinding is a finding whose cause stands in a file of the user's.
type placedFinding struct {
	audit.Finding
	at gha.Place
}

// inspectOpenings looks at the disk that a measurements document is about, and for the
// causes of what it finds in what the image is built from.
func inspectOpenings(ctx context.Context, path string, doc *measure.Document, source imageSource) (*openings, error) {
	d, err := disk.Open(path)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	o, err := findOpenings(ctx, d, doc)
	if err != nil {
		return nil, err
	}
	o.placed = map[string]placedFinding{}
	for _, f := range o.report.Findings {
		if _, known := o.placed[f.ID]; known {
			continue
		}
		if at := source.place(d, f); at.File != "" {
			o.placed[f.ID] = placedFinding{f, at}
		}
	}
	return o, nil
}

// findOpenings looks at an open disk.
func findOpenings(ctx context.Context, d *disk.Disk, doc *measure.Document) (_ *openings, err error) {
	// The one is bound by hashing on all processors, the other reads and decodes on
	// one.
	o := new(openings)
	var failed error
	ctx, cancel := context.WithCancel(ctx)
	var audited sync.WaitGroup
	audited.Go(func() { o.report, failed = audit.Disk(ctx, d, audit.Options{SecureBoot: doc.SecureBoot.Enabled}) })
	if o.coverage, err = audit.MeasureCoverage(ctx, d, doc.Architecture); err != nil {
		cancel() // nobody will read the report
	}
	audited.Wait()
	cancel()
	if err == nil {
		err = failed
	}
	return o, err
}

// Bounds of the table of findings: a summary has its limit, and a reader, too.
const (
	shownRules  = 40
	shownPlaces = 3
	shownBytes  = 200 << 10
)

// sentence says how many findings there are, the worst first.
func (o *openings) sentence() string {
	count := o.report.Count()
	var parts []string
	for severity := audit.Critical; severity >= audit.Info; severity-- {
		if n := count[severity]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, severity))
		}
	}
	if parts == nil {
		return "Nothing was found open."
	}
	text := "What it leaves open: " + strings.Join(parts, ", ") + "."
	if worst, _ := o.report.Worst(); worst >= audit.High {
		text = "**" + text + "**"
	}
	return text
}

// markdown is a section of the step summary. source says where a file of the source is
// to be seen.
func (o *openings) markdown(source func(gha.Place) string) string {
	var b strings.Builder
	covered, total := o.coverage.Covered()
	fmt.Fprintf(&b, "### What it leaves open\n\nA PCR covers %s of the disk's %s (%.1f %%). ",
		formatBytes(covered), formatBytes(total), float64(covered)*100/float64(max(total, 1)))
	switch v := o.coverage.Verity; {
	case o.coverage.VerityProblem != "":
		fmt.Fprintf(&b, "**No PCR is known to cover the root file system**: %s\n", plain(shorten(o.coverage.VerityProblem, 500)))
	case v == nil:
		b.WriteString("**No PCR covers the root file system**: the kernel command line names no root hash.\n")
	case v.Holds:
		b.WriteString("Every block of the root file system is as the root hash in the unified kernel image says.\n")
	default:
		fmt.Fprintf(&b, "**%d blocks of the root file system are not as the root hash says: the image will not run.**\n", v.Report.BadDataCount+v.Report.BadTreeCount)
	}
	if len(o.report.Findings) == 0 {
		b.WriteString("\nNo findings.\n")
		return b.String()
	}
	b.WriteString("\n| severity | finding, and how to close it |\n|---|---|\n")
	rules := 0
	for rest := o.report.Findings; len(rest) > 0; rules++ {
		n := 1
		for n < len(rest) && rest[n].ID == rest[0].ID {
			n++
		}
		if rules == shownRules || b.Len() > shownBytes {
			fmt.Fprintf(&b, "| | and %d more: `attestable-image inspect` shows all |\n", len(rest))
			break
		}
		place := ""
		if placed, ok := o.placed[rest[0].ID]; ok {
			place = source(placed.at)
		}
		b.WriteString(findingRow(rest[:n], place))
		rest = rest[n:]
	}
	return b.String()
}

// findingRow is the row of the findings of one rule; place, Markdown, says where the
// cause stands.
func findingRow(findings []audit.Finding, place string) string {
	var b strings.Builder
	first := findings[0]
	severity := first.Severity.String()
	if first.Severity >= audit.High {
		severity = "**" + severity + "**"
	}
	fmt.Fprintf(&b, "| %s | **%s** (`%s`)", severity, plain(cmp.Or(audit.Title(first.ID), first.ID)), strings.Trim(code(first.ID), "`"))
	for i, f := range findings {
		if i == shownPlaces && len(findings) > shownPlaces+1 {
			fmt.Fprintf(&b, "<br>and %d more", len(findings)-i)
			break
		}
		fmt.Fprintf(&b, "<br>%s: %s", breakable(shorten(f.Where(), 200)), plain(shorten(f.Detail, 300)))
	}
	if place != "" {
		b.WriteString("<br>*From:* " + place)
	}
	fmt.Fprintf(&b, "<br>*Fix:* %s |\n", plain(first.Fix))
	return b.String()
}

// annotate warns on the run's page of what is worse than a missed hardening, once a rule.
func (o *openings) annotate(w io.Writer) {
	told := map[string]bool{}
	for _, f := range o.report.AtLeast(audit.Medium) {
		if !told[f.ID] {
			told[f.ID] = true
			placed, known := o.placed[f.ID]
			if known {
				f = placed.Finding
			}
			gha.WarningAt(w, placed.at, "attestable-image: "+f.ID, printable(fmt.Sprintf("%s: %s. %s", f.Where(), f.Detail, f.Fix)))
		}
	}
}
