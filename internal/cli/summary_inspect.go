package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
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
}

// inspectOpenings looks at the disk that a measurements document is about.
func inspectOpenings(ctx context.Context, path string, doc *measure.Document) (*openings, error) {
	d, err := disk.Open(path)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return findOpenings(ctx, d, doc)
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

// markdown is a section of the step summary.
func (o *openings) markdown() string {
	var b bytes.Buffer
	covered, total := o.coverage.Covered()
	fmt.Fprintf(&b, "\n### What it leaves open\n\nA PCR covers %s of the disk's %s (%.1f %%). ",
		formatBytes(covered), formatBytes(total), float64(covered)*100/float64(max(total, 1)))
	switch v := o.coverage.Verity; {
	case o.coverage.VerityProblem != "":
		fmt.Fprintf(&b, "**No PCR is known to cover the root file system**: %s\n", code(o.coverage.VerityProblem))
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
	b.WriteString("\n| severity | finding | where | how to close it |\n|---|---|---|---|\n")
	const shown = 50 // a summary has its limit, and a reader, too
	for i, f := range o.report.Findings {
		if i == shown {
			fmt.Fprintf(&b, "| | and %d more: `attestable-image inspect` shows all | | |\n", len(o.report.Findings)-shown)
			break
		}
		fmt.Fprintf(&b, "| %s | %s: %s | %s | %s |\n", f.Severity, code(f.ID), code(f.Detail), code(f.Where()), code(f.Fix))
	}
	return b.String()
}

// annotate warns on the run's page of what is worse than a missed hardening.
func (o *openings) annotate(w io.Writer) {
	counts := map[string]int{}
	for _, f := range o.report.AtLeast(audit.Medium) {
		counts[f.ID]++
	}
	for _, id := range slices.Sorted(maps.Keys(counts)) {
		for _, f := range o.report.Findings {
			if f.ID == id {
				gha.Warning(w, "attestable-image: "+id, printable(fmt.Sprintf("%s: %s. %s", f.Where(), f.Detail, f.Fix)))
				break
			}
		}
	}
}
