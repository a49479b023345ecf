package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/org/attestable-image-action/internal/artifact"
	"github.com/org/attestable-image-action/internal/audit"
	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/gha"
	"github.com/org/attestable-image-action/internal/measure"
)

func newInspectCommand(a *app) *cobra.Command {
	var predict predictFlags
	var format, failOn, auditOutput string
	cmd := &cobra.Command{
		Use:   "inspect DISK",
		Short: "Show what is on a disk, what a PCR covers, and what is open",
		Long: `Show the partitions and the boot chain of a raw disk, and for every byte of it
which PCR covers it: the unified kernel image by PCR 4, over the root hash inside
it each block of the root file system, whose hash tree is recomputed. What nothing
covers is listed with what it could do.

Then the doors that the image leaves open, read from its root file system, its
initrd and its kernel command line: remote access, consoles, passwords, writable
partitions, verity that does not stop the machine. Each finding has a severity
(critical, high, medium, low, info), says why it matters, and how to close it.

Nothing is mounted, and nothing is written. Exit status 1 says that a block is not
what the root hash says, that the hash tree of a root hash is missing, or that a
finding is as severe as --fail-on.`,
		Example: `  attestable-image inspect image.raw
  attestable-image inspect --fail-on medium image.raw
  attestable-image inspect --format sarif image.raw > findings.sarif`,
		Args: oneArg("the raw disk to inspect"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if format != "table" && format != "json" && format != "sarif" {
				return usagef("--format: there is no format %q: give table, json or sarif", format)
			}
			limit, err := failOnSeverity(failOn)
			if err != nil {
				return err
			}
			o, err := predict.options()
			if err != nil {
				return err
			}
			o.NeededDigests = format != "json"
			inspection, err := inspectDisk(cmd.Context(), args[0], o)
			if err != nil {
				return err
			}
			if err := inspection.write(a.stdout, format); err != nil {
				return err
			}
			if err := writeAudit(auditOutput, inspection.Audit); err != nil {
				return err
			}
			if v := inspection.Coverage.Verity; v != nil && !v.Holds || inspection.Coverage.VerityProblem != "" {
				return errDoesNotVerify
			}
			if limit != nil && len(inspection.Audit.AtLeast(*limit)) > 0 {
				return errDoesNotVerify
			}
			return nil
		},
	}
	predict.add(cmd)
	cmd.Flags().StringVar(&format, "format", "table", "table for people, json for programs, or sarif for GitHub's code scanning")
	cmd.Flags().StringVar(&auditOutput, "audit-output", "", "also write the findings to `FILE`, for attest --audit")
	cmd.Flags().StringVar(&failOn, "fail-on", "", "fail when a finding has this `SEVERITY` or a higher one")
	return cmd
}

// writeAudit writes the report that attest --audit takes.
func writeAudit(path string, report *audit.Report) error {
	if path == "" {
		return nil
	}
	content, err := report.Marshal()
	if err == nil {
		err = artifact.WriteFile(path, content)
	}
	if err != nil {
		return fmt.Errorf("write the audit report: %w", err)
	}
	return gha.SetOutput("audit-path", path)
}

// failOnSeverity reads --fail-on; nil means that no finding fails the command.
func failOnSeverity(name string) (*audit.Severity, error) {
	if name == "" {
		return nil, nil
	}
	severity, err := audit.ParseSeverity(name)
	if err != nil {
		return nil, usagef("--fail-on: %w", err)
	}
	return &severity, nil
}

// inspection is all that inspect shows.
type inspection struct {
	Measurements *measure.Document
	Partitions   []inspectedPartition
	Coverage     *audit.Coverage
	Audit        *audit.Report
}

type inspectedPartition struct {
	Number       int
	Type, GUID   string
	Name         string
	Offset, Size int64 // bytes
}

func inspectDisk(ctx context.Context, path string, o measure.Options) (*inspection, error) {
	d, err := disk.Open(path)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	p, err := measure.Disk(ctx, d, o)
	if err != nil {
		return nil, err
	}
	gpt, err := d.GPT()
	if err != nil {
		return nil, err
	}
	i := &inspection{Measurements: p.Document()}
	for _, part := range gpt.Partitions {
		i.Partitions = append(i.Partitions, inspectedPartition{
			part.Number, part.Type.String(), part.GUID.String(), part.Name, part.Offset, part.Size,
		})
	}
	open, err := findOpenings(ctx, d, i.Measurements)
	if err != nil {
		return nil, err
	}
	i.Coverage, i.Audit = open.coverage, open.report
	return i, nil
}

func (i *inspection) write(w io.Writer, format string) error {
	switch format {
	case "json":
		out, err := json.MarshalIndent(i, "", "  ")
		if err != nil {
			return fmt.Errorf("write the inspection: %w", err)
		}
		_, err = fmt.Fprintf(w, "%s\n", out)
		return err
	case "sarif":
		out, err := i.Audit.SARIF()
		if err != nil {
			return err
		}
		_, err = w.Write(out)
		return err
	}
	i.print(w)
	fmt.Fprintln(w, "\nFindings")
	var findings strings.Builder
	if err := i.Audit.WriteTable(&findings); err != nil {
		return err
	}
	// Indentation stays, and no line of it is a command to a runner.
	for line := range strings.Lines(findings.String()) {
		text := strings.TrimLeft(line, " ")
		fmt.Fprintf(w, "%s%s\n", line[:len(line)-len(text)], strings.TrimRight(printable(text), " "))
	}
	return nil
}

func (i *inspection) print(w io.Writer) {
	printMeasurements(w, i.Measurements)
	fmt.Fprintln(w, "\nPartitions")
	for _, p := range i.Partitions {
		fmt.Fprintf(w, "  %-3d %10s  %-20s %s\n", p.Number, formatBytes(p.Size), printable(p.Name), p.Type)
	}
	fmt.Fprintln(w, "\nCoverage")
	for _, r := range mergeRegions(i.Coverage.Regions) {
		covered := "none "
		if r.PCR != audit.NoPCR {
			covered = fmt.Sprintf("PCR%-2d", r.PCR)
		}
		fmt.Fprintf(w, "  %s %10s  %s\n", covered, formatBytes(r.Length), printable(r.What))
		if r.PCR == audit.NoPCR {
			for line := range strings.Lines(wrap(printable(r.Why), 56)) {
				fmt.Fprintf(w, "%20s%s\n", "", strings.TrimSpace(line))
			}
		}
	}
	covered, total := i.Coverage.Covered()
	fmt.Fprintf(w, "  %s of %s are covered (%.1f %%)\n", formatBytes(covered), formatBytes(total), float64(covered)*100/float64(max(total, 1)))
	printVerity(w, i.Coverage)
}

func printVerity(w io.Writer, c *audit.Coverage) {
	fmt.Fprintln(w, "\nRoot file system")
	v := c.Verity
	if c.VerityProblem != "" {
		fmt.Fprintf(w, "  %s: NO PCR is known to cover it\n", printable(c.VerityProblem))
		return
	}
	if v == nil {
		fmt.Fprintln(w, "  the kernel command line names no root hash: NO PCR covers the root file system")
		return
	}
	fmt.Fprintf(w, "  partition %d: %s\n  root hash %s\n", v.Partition, printable(v.Description), printable(v.RootHash))
	if v.Holds {
		fmt.Fprintln(w, "  every block is as the root hash says")
		return
	}
	fmt.Fprintf(w, "  NOT as the root hash says: %d data blocks and %d hash blocks differ\n", v.Report.BadDataCount, v.Report.BadTreeCount)
	for _, block := range v.Report.BadData {
		fmt.Fprintf(w, "    data block %d of partition %d\n", block, v.Partition)
	}
	for _, offset := range v.Report.BadTree {
		fmt.Fprintf(w, "    hash block at byte %d of the disk\n", offset)
	}
}

// mergeRegions joins neighbours that read the same, such as the pieces of a
// file, and used entries of the partition table.
func mergeRegions(regions []audit.Region) []audit.Region {
	var merged []audit.Region
	for _, r := range regions {
		if strings.HasPrefix(r.What, "GPT ") {
			r.What = "partition table"
		}
		at := -1
		for i, m := range merged {
			if m.What == r.What && m.PCR == r.PCR {
				at = i
			}
		}
		if at >= 0 {
			merged[at].Length += r.Length
			continue
		}
		merged = append(merged, r)
	}
	return merged
}

// wrap breaks text into lines of at most width characters.
func wrap(text string, width int) string {
	var b strings.Builder
	n := 0
	for word := range strings.FieldsSeq(text) {
		if n > 0 && n+1+len(word) > width {
			b.WriteByte('\n')
			n = 0
		} else if n > 0 {
			b.WriteByte(' ')
			n++
		}
		b.WriteString(word)
		n += len(word)
	}
	return b.String()
}
