package cli

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/org/attestable-image-action/internal/audit"
	"github.com/org/attestable-image-action/internal/imagediff"
)

func newDiffCommand(a *app) *cobra.Command {
	var predict predictFlags
	var format string
	var all, exitCode, disks bool
	cmd := &cobra.Command{
		Use:   "diff A B",
		Short: "Show what changed between two images",
		Long: `Show what changed from one image to another, by meaning. Each of them is a raw disk,
a measurements document, or an artifact: HOST/REPOSITORY[:TAG|@DIGEST] of a registry,
or oci:DIR for an OCI layout.

Of two disks: packages, the kernel command line, the files that firmware loads with
their sections and the files of the initrd, files of the root file system (content,
mode, owner, type, attributes), dm-verity, the partition table, the findings of
inspect, and the PCRs, each with the events that make it differ.

Of two measurements documents: the boot chain with the sections that PCR 11 records, the
kernel command line, the variables of Secure Boot entry by entry, the PCRs and why,
and what the disks were built with (builder, its packages) and from (time, lock, files
of the description). A disk beside a document is measured first, with the flags for
Secure Boot.

Of two artifacts: their measurements, whose digests are checked, and the packages by
the bills of materials that hang on them; --disks fetches both disks into TMPDIR and
compares them, too. Who made the artifacts is not looked at: verify artifact does that.

Files of packages whose version changed are counted and not named, unless they are
in /etc, their mode, owner, type or attributes changed, or they give rights (set-id
bits, capabilities); --all names them, too. What could not be compared is listed.
Images that differ in what was compared never give an empty report.

Nothing is mounted. Differences are no error; with --exit-code the exit status is 1 when
there are any.`,
		Example: `  attestable-image diff old.raw new.raw
  attestable-image diff --format markdown ghcr.io/owner/image:v1 ghcr.io/owner/image:v2 >> release-notes.md
  attestable-image diff --exit-code first/measurements.json second/measurements.json`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 || args[0] == "" || args[1] == "" {
				return usagef("give the two images to compare, the older one first")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if format != "table" && format != "json" && format != "markdown" {
				return usagef("--format: there is no format %q: give table, json or markdown", format)
			}
			o := imagediff.Options{All: all}
			var err error
			if o.Measure, err = predict.options(); err != nil {
				return err
			}
			o.Measure.NeededDigests = true
			report, err := a.diffImages(cmd.Context(), o, args[0], args[1], disks)
			if err != nil {
				return err
			}
			if err := writeDiff(a.stdout, report, format, all); err != nil {
				return err
			}
			if exitCode && !report.Identical {
				return errDoesNotVerify
			}
			return nil
		},
	}
	predict.add(cmd)
	cmd.Flags().StringVar(&format, "format", "table", "table for people, json for programs, or markdown for release notes")
	cmd.Flags().BoolVar(&all, "all", false, "also name files of packages that changed, and cut no list short")
	cmd.Flags().BoolVar(&disks, "disks", false, "compare the disks of artifacts, too: fetches both")
	cmd.Flags().BoolVar(&exitCode, "exit-code", false, "exit status 1 when the images differ")
	return cmd
}

func writeDiff(w io.Writer, r *imagediff.Report, format string, all bool) error {
	if format == "json" {
		out, err := r.Marshal()
		if err == nil {
			_, err = w.Write(out)
		}
		return err
	}
	var out diffWriter = new(diffTable)
	if format == "markdown" {
		out = new(diffMarkdown)
	}
	_, err := io.WriteString(w, renderDiff(r, out, all))
	return err
}

// diffWriter is a form of the report for people. Texts are not yet fit to print.
type diffWriter interface {
	// images names the images, and says in a sentence what differs.
	images(a, b, summary string)
	heading(title string)
	// line is one difference: how says what became of it, what names it as the image
	// does, detail in words of this program; a and b are its values. Each may be empty.
	line(depth int, how imagediff.How, what, detail, a, b string)
	// note is a sentence of this program.
	note(text string)
	String() string
}

// diffShown is how many lines of a list are shown without --all.
const diffShown = 40

// diffTimes is how many pairs of times are shown without --all.
const diffTimes = 5

// renderDiff writes a report.
func renderDiff(r *imagediff.Report, w diffWriter, all bool) string {
	switch {
	case r.Identical && (r.Compared == "disks" || r.A.SHA256 != ""):
		w.note(fmt.Sprintf("The images are the same, byte for byte (%s).", formatBytes(r.A.Size)))
		return w.String()
	case r.Identical:
		w.note("The measurements are the same. They do not say of which disk they are.")
		return w.String()
	}
	w.images(r.A.Name, r.B.Name, diffSummary(r))
	d := diffRenderer{w, r, all}
	if r.A.SHA256 != r.B.SHA256 {
		w.heading("Disk")
		w.line(0, imagediff.Changed, "", "SHA-256", r.A.SHA256, r.B.SHA256)
		if r.A.Size != r.B.Size {
			w.line(0, imagediff.Changed, "", "size", fmt.Sprintf("%d B", r.A.Size), fmt.Sprintf("%d B", r.B.Size))
		}
	}
	if len(r.Packages) > 0 || r.A.OS != r.B.OS {
		w.heading("Packages")
		if r.A.OS != r.B.OS {
			w.line(0, imagediff.Changed, "", "operating system", r.A.OS, r.B.OS)
		}
		list(d, r.Packages, d.pkg)
	}
	if len(r.CommandLine) > 0 {
		w.heading("Kernel command line")
		list(d, r.CommandLine, func(c imagediff.Change) { d.change(0, c) })
	}
	if len(r.Files)+r.FilesHidden+len(r.Times) > 0 {
		w.heading("Files")
		d.files(0, "/", r.Files, r.FilesMore, r.FilesHidden)
		more := r.TimesMore
		for i, t := range r.Times {
			if i >= diffTimes && !all {
				more += t.Files
				continue
			}
			w.line(0, imagediff.Changed, t.Where, "time of "+plural(t.Files, "file"), stamp(t.A), stamp(t.B))
		}
		if more > 0 {
			w.line(0, imagediff.Changed, "", "other times of "+plural(more, "more file"), "", "")
		}
	}
	if len(r.Boot) > 0 {
		w.heading("Boot chain")
		list(d, r.Boot, d.bootFile)
	}
	if len(r.Verity) > 0 {
		w.heading("dm-verity")
		list(d, r.Verity, func(c imagediff.Change) { d.change(0, c) })
	}
	if len(r.Partitions) > 0 {
		w.heading("Partitions")
		list(d, r.Partitions, func(p imagediff.Partition) {
			what := "disk"
			if p.Number > 0 {
				what = "partition " + strconv.Itoa(p.Number)
			}
			w.line(0, p.How, what, p.Field, p.A, p.B)
		})
	}
	if len(r.Filesystems) > 0 {
		w.heading("File systems")
		list(d, r.Filesystems, func(p imagediff.Partition) {
			w.line(0, p.How, "partition "+strconv.Itoa(p.Number), p.Field, p.A, p.B)
		})
	}
	if len(r.PCRs) > 0 {
		w.heading("PCRs")
		for _, p := range r.PCRs {
			d.pcr(p)
		}
	}
	changes := func(title string, changes []imagediff.Change) {
		if len(changes) > 0 {
			w.heading(title)
			list(d, changes, func(c imagediff.Change) { d.value(0, c) })
		}
	}
	changes("Secure Boot", r.SecureBoot)
	if len(r.Builder)+len(r.BuilderPackages) > 0 {
		changes("Builder", r.Builder)
		if len(r.Builder) == 0 {
			w.heading("Builder")
		}
		list(d, r.BuilderPackages, d.pkg)
	}
	changes("Built from", r.Inputs)
	if len(r.Source) > 0 {
		w.heading("Files of the description")
		d.files(0, "", r.Source, 0, 0)
	}
	if len(r.Appeared)+len(r.Gone) > 0 {
		w.heading("Findings")
		finding := func(how imagediff.How) func(audit.Finding) {
			return func(f audit.Finding) {
				w.line(0, how, f.ID, f.Severity.String(), "", "")
				w.line(1, "", f.Where()+": "+f.Detail, "", "", "")
			}
		}
		list(d, r.Appeared, finding(imagediff.Added))
		list(d, r.Gone, finding(imagediff.Removed))
	}
	if len(r.Other) > 0 {
		w.heading("Other bytes")
		list(d, r.Other, func(c imagediff.Change) { d.change(0, c) })
	}
	if len(r.NotCompared) > 0 {
		w.heading("Not compared")
		list(d, r.NotCompared, func(text string) { w.line(0, "", text, "", "", "") })
	}
	return w.String()
}

// diffSummary counts the differences.
func diffSummary(r *imagediff.Report) string {
	var parts []string
	count := func(n int, what string) {
		if n > 0 {
			parts = append(parts, plural(n, what))
		}
	}
	count(len(r.Packages), "package")
	count(len(r.CommandLine), "kernel option")
	count(len(r.Files)+r.FilesMore, "file")
	count(len(r.Boot), "boot file")
	count(len(r.PCRs), "PCR")
	count(len(r.SecureBoot), "value of Secure Boot")
	count(len(r.Builder)+len(r.BuilderPackages), "part of the builder")
	count(len(r.Source), "file of the description")
	count(len(r.Appeared), "new finding")
	count(len(r.Gone), "finding gone")
	switch {
	case len(parts) == 0 && r.Compared == "measurements" && r.A.SHA256 == r.B.SHA256:
		return "no package, kernel option or PCR differs"
	case len(parts) == 0:
		return "no package, file, kernel option or PCR differs, but bytes do"
	}
	return strings.NewReplacer("finding gones", "findings gone", "value of Secure Boots", "values of Secure Boot",
		"part of the builders", "parts of the builder", "file of the descriptions", "files of the description").Replace(strings.Join(parts, ", "))
}

func plural(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return strconv.Itoa(n) + " " + what
}

func stamp(t time.Time) string { return t.Format(time.RFC3339) }

// became says what happened to something that has a value, or none.
func became(a, b string) imagediff.How {
	switch {
	case a == "" && b != "":
		return imagediff.Added
	case b == "" && a != "":
		return imagediff.Removed
	}
	return imagediff.Changed
}

// diffRenderer turns parts of a report into lines.
type diffRenderer struct {
	w      diffWriter
	report *imagediff.Report
	all    bool
}

// list writes the entries of a list, and how many it leaves out.
func list[T any](d diffRenderer, entries []T, write func(T)) {
	for i, e := range entries {
		if i == diffShown && !d.all && len(entries) > diffShown+1 {
			d.w.line(0, "", "", fmt.Sprintf("and %d more (--all shows them)", len(entries)-i), "", "")
			return
		}
		write(e)
	}
}

func (d diffRenderer) pkg(p imagediff.Package) {
	name := p.Name
	if p.Arch != "" && p.Arch != "all" && p.Arch != "noarch" {
		name += ":" + p.Arch
	}
	d.w.line(0, became(p.A, p.B), name, "", p.A, p.B)
}

// value is a change of something that has a name in the documents.
func (d diffRenderer) value(depth int, c imagediff.Change) {
	d.w.line(depth, became(c.A, c.B), "", c.Name, shortDigest(c.A), shortDigest(c.B))
}

func (d diffRenderer) change(depth int, c imagediff.Change) {
	how := became(c.A, c.B)
	if c.A == "" && c.B == "" || c.Name != "" {
		how = imagediff.Changed
	}
	d.w.line(depth, how, "", c.Name, c.A, c.B)
}

func (d diffRenderer) files(depth int, root string, files []imagediff.File, more, hidden int) {
	list(d, files, func(f imagediff.File) {
		if f.Path == "." {
			f.Path = ""
		}
		what := root + f.Path
		if f.Package != "" {
			what += " (" + f.Package + ")"
		}
		if len(f.Changes) == 1 {
			c := f.Changes[0]
			d.w.line(depth, f.How, what, c.Name, shortDigest(c.A), shortDigest(c.B))
			return
		}
		d.w.line(depth, f.How, what, "", "", "")
		for _, c := range f.Changes {
			d.w.line(depth+1, imagediff.Changed, "", c.Name, shortDigest(c.A), shortDigest(c.B))
		}
	})
	if more > 0 {
		d.w.line(depth, "", "", "and "+plural(more, "more file")+", too many for a report", "", "")
	}
	if hidden > 0 {
		d.w.line(depth, "", "", plural(hidden, "file")+" of packages that changed (--all names them)", "", "")
	}
}

// shortDigest cuts a digest.
func shortDigest(value string) string {
	if len(value) >= 64 && strings.Trim(value, "0123456789abcdef") == "" {
		return value[:16] + "…"
	}
	return value
}

func (d diffRenderer) bootFile(f imagediff.BootFile) {
	sizes := func(how imagediff.How, a, b int64) (string, string) {
		switch {
		case how == imagediff.Added:
			return "", formatBytes(b)
		case how == imagediff.Removed:
			return formatBytes(a), ""
		case a == b:
			return "", ""
		}
		return fmt.Sprintf("%d B", a), fmt.Sprintf("%d B", b)
	}
	a, b := sizes(f.How, f.SizeA, f.SizeB)
	d.w.line(0, f.How, f.Path, "", a, b)
	for _, s := range f.Sections {
		a, b := sizes(s.How, s.SizeA, s.SizeB)
		d.w.line(1, s.How, s.Name, "", a, b)
		if s.Name == ".cmdline" && len(s.Lines) > 1 && slices.Equal(s.Lines, d.report.CommandLine) {
			d.w.line(2, imagediff.Changed, "", "the words above", "", "")
		} else {
			list(d, s.Lines, func(c imagediff.Change) { d.change(2, c) })
		}
		d.files(2, "", s.Files, s.FilesMore, s.FilesHidden)
	}
	for _, c := range f.Changes {
		d.value(1, c)
	}
	if f.Signatures {
		d.w.line(1, imagediff.Changed, "", "signatures", "", "")
	}
	if f.Headers {
		d.w.line(1, imagediff.Changed, "", "headers, or bytes behind the sections", "", "")
	}
}

func (d diffRenderer) pcr(p imagediff.PCR) {
	d.w.line(0, imagediff.Changed, "", "PCR "+strconv.Itoa(p.PCR), p.A, p.B)
	for _, e := range p.Events {
		text := e.What
		if e.Because != "" {
			text += ": " + e.Because
		}
		d.w.line(1, e.How, text, "", "", "")
	}
	if p.EventsMore > 0 {
		d.w.line(1, "", "", "and "+plural(p.EventsMore, "more event"), "", "")
	}
}

// diffTable is the report for a terminal of 80 characters.
type diffTable struct{ strings.Builder }

func (t *diffTable) images(a, b, summary string) {
	fmt.Fprintf(t, "A  %s\nB  %s\n%s\n", printable(a), printable(b), summary)
}

func (t *diffTable) heading(title string) { fmt.Fprintf(t, "\n%s\n", title) }
func (t *diffTable) note(text string)     { t.paragraph("", "", text) }

func (t *diffTable) line(depth int, how imagediff.How, what, detail, a, b string) {
	if what != "" && detail != "" {
		what += ", "
	}
	what += detail
	if len(a) > diffWidth && len(b) > diffWidth { // digests of SHA-384
		a, b = shortDigest(a), shortDigest(b)
	}
	mark := map[imagediff.How]string{imagediff.Added: "+ ", imagediff.Removed: "- ", imagediff.Changed: "~ ", "": ""}[how]
	indent := strings.Repeat("  ", depth+1)
	value := values(a, b, how)
	switch text := strings.TrimSpace(what + "  " + value); {
	case value == "" || what == "" || len(indent)+len(mark)+len([]rune(text)) <= diffWidth:
		t.paragraph(indent+mark, indent+strings.Repeat(" ", len(mark)), text)
	default:
		t.paragraph(indent+mark, indent+"    ", what)
		t.paragraph(indent+"    ", indent+"    ", value)
	}
}

// values writes what something was and is.
func values(a, b string, how imagediff.How) string {
	switch {
	case a == "" && b == "":
		return ""
	case how == imagediff.Added:
		return b
	case how == imagediff.Removed:
		return a
	case a == "":
		return "(none) -> " + b
	case b == "":
		return a + " -> (none)"
	}
	return a + " -> " + b
}

// diffWidth is the width of the table, in characters.
const diffWidth = 80

// paragraph writes text, later lines of it behind another prefix. A word longer than
// a line stands in one that is too long, so that it can be copied.
func (t *diffTable) paragraph(first, rest, text string) {
	prefix := first
	for line := range strings.Lines(wrap(printable(text), diffWidth-max(len(first), len(rest)))) {
		fmt.Fprintf(t, "%s%s\n", prefix, strings.TrimSuffix(line, "\n"))
		prefix = rest
	}
}

// diffMarkdown is the report as a section of release notes. What an image says stands
// in code spans.
type diffMarkdown struct{ strings.Builder }

func (m *diffMarkdown) images(a, b, summary string) {
	fmt.Fprintf(m, "From %s to %s: %s.\n", code(printable(a)), code(printable(b)), summary)
}

func (m *diffMarkdown) heading(title string) { fmt.Fprintf(m, "\n### %s\n\n", title) }
func (m *diffMarkdown) note(text string)     { fmt.Fprintf(m, "%s\n", text) }

func (m *diffMarkdown) line(depth int, how imagediff.How, what, detail, a, b string) {
	var parts []string
	if how == imagediff.Added || how == imagediff.Removed {
		parts = append(parts, string(how))
	}
	if what != "" {
		parts = append(parts, code(printable(what)))
	}
	switch {
	case strings.ContainsAny(detail, "`*_[]<>|!#@:\\~$&"): // it quotes the image, such as the name of an attribute
		parts = append(parts, code(printable(detail)))
	case detail != "":
		parts = append(parts, printable(detail))
	}
	switch {
	case a != "" && b != "":
		parts = append(parts, code(printable(a)), "→", code(printable(b)))
	case a != "" && how == imagediff.Changed:
		parts = append(parts, code(printable(a)), "→ none")
	case b != "" && how == imagediff.Changed:
		parts = append(parts, "none →", code(printable(b)))
	case a+b != "":
		parts = append(parts, code(printable(a+b)))
	}
	fmt.Fprintf(m, "%s- %s\n", strings.Repeat("  ", depth), strings.Join(parts, " "))
}
