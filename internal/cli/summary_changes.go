package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/org/attestable-image-action/internal/artifact"
	"github.com/org/attestable-image-action/internal/lazyregexp"
	"github.com/org/attestable-image-action/internal/measure"
)

// previous is the artifact that a step summary compares with, as one step of the action
// leaves it in a file for the last one. Nobody has verified it.
type previous struct {
	Reference    string          `json:"reference"`              // REPOSITORY@sha256:HEX
	Measurements json.RawMessage `json:"measurements,omitempty"` // what the artifact holds
	Problem      string          `json:"problem,omitempty"`      // why there are none
}

func newPreviousMeasurementsCommand(a *app) *cobra.Command {
	var output, tags string
	cmd := &cobra.Command{
		Use:    "previous-measurements REF",
		Short:  "Fetch the measurements of an earlier artifact, for the step summary",
		Hidden: true, // a part of action.yml
		Args:   oneArg("the artifact, or the repository whose tags are meant"),
		RunE: func(cmd *cobra.Command, args []string) error {
			p := fetchPrevious(cmd.Context(), args[0], tags)
			if p == nil {
				return nil
			}
			if p.Problem != "" {
				a.say("there is nothing to compare with: %s", p.Problem)
			}
			content, err := json.Marshal(p)
			if err == nil {
				err = artifact.WriteFile(output, content)
			}
			if err != nil {
				return fmt.Errorf("keep what to compare with: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&output, "output", "", "`FILE` to write")
	cmd.Flags().StringVar(&tags, "tags", "", "`LIST` of tags, of which the first that is there is taken")
	return cmd
}

// fetchPrevious fetches the measurements, and no more, of an artifact, or of the first of
// tags that there is. It returns nil when there is none of them; what was named and cannot
// be had is told.
func fetchPrevious(ctx context.Context, reference, tags string) *previous {
	ref, err := artifact.ParseReference(reference)
	if err != nil {
		return &previous{Reference: reference, Problem: err.Error()}
	}
	list, err := artifact.ParseTags(tags)
	if err != nil || tags != "" && len(list) == 0 {
		return nil // push tells
	}
	if tags == "" {
		image, err := artifact.Open(ctx, ref)
		if err != nil {
			return &previous{Reference: ref.String(), Problem: err.Error()}
		}
		return measurementsOf(ctx, image)
	}
	for _, tag := range list {
		tagged := ref
		tagged.Tag = tag
		if image, err := artifact.Open(ctx, tagged); err == nil {
			return measurementsOf(ctx, image)
		}
	}
	return nil
}

func measurementsOf(ctx context.Context, image *artifact.Artifact) *previous {
	p := &previous{Reference: image.Reference.String()}
	content, err := image.Measurements(ctx)
	if err == nil {
		_, err = measure.ParseDocument(content)
	}
	if err != nil {
		p.Problem = err.Error()
		return p
	}
	p.Measurements = content
	return p
}

// readPrevious reads what that step left; nil when it left nothing.
func readPrevious(path string) (*previous, error) {
	if path == "" {
		return nil, nil //nolint:nilnil // documented
	}
	content, err := readBounded(path, maxMeasurements)
	if err != nil {
		return nil, fmt.Errorf("read what to compare with: %w", err)
	}
	if len(bytes.TrimSpace(content)) == 0 {
		return nil, nil //nolint:nilnil // documented
	}
	var p previous
	if err := json.Unmarshal(content, &p); err != nil {
		return nil, fmt.Errorf("read what to compare with: %w", err)
	}
	return &p, nil
}

// maxNamedChanges bounds the names in a line of changes.
const maxNamedChanges = 8

// markdown is the section of the summary on what changed to doc, by the measurements of
// both.
func (p *previous) markdown(doc *measure.Document) string {
	place, digest, found := strings.Cut(p.Reference, "@")
	if found {
		place += "@" + digestStart(digest)
	}
	title := "### What changed\n\nAgainst " + code(shorten(place, 200))
	if p.Problem != "" {
		return title + " nothing can be told: " + plain(shorten(p.Problem, 500)) + "\n"
	}
	before, err := measure.ParseDocument(p.Measurements)
	if err != nil {
		return title + " nothing can be told: " + plain(shorten(err.Error(), 500)) + "\n"
	}
	var b strings.Builder
	b.WriteString(title + ", by what it says of itself; nobody has verified it here.\n\n")
	same := before.Disk != nil && doc.Disk != nil && *before.Disk == *doc.Disk
	if same {
		b.WriteString("**The disk is the same, byte for byte.**\n")
	}
	var unchanged []string
	for _, n := range slices.Sorted(maps.Keys(doc.Measurements.PCRs)) {
		switch {
		case before.PCR(n) == doc.PCR(n) && before.Measurements.HashAlgorithm == doc.Measurements.HashAlgorithm:
			unchanged = append(unchanged, fmt.Sprint(n))
		case before.PCR(n) == "":
			fmt.Fprintf(&b, "- **PCR %d** was not predicted before\n", n)
		default:
			fmt.Fprintf(&b, "- **PCR %d** is another: %s\n", n, namedChanges(changedEvents(before, doc, n)))
		}
	}
	if len(unchanged) > 0 && !same {
		fmt.Fprintf(&b, "- PCR %s: as before\n", strings.Join(unchanged, ", "))
	}
	for _, change := range changedValues(before, doc) {
		fmt.Fprintf(&b, "- %s: %s → %s\n", change[0], breakable(shorten(change[1], 100)), breakable(shorten(change[2], 100)))
	}
	if files := changedFiles(before, doc); len(files) > 0 {
		fmt.Fprintf(&b, "- Files of the description: %s\n", namedChanges(files))
	}
	return b.String()
}

// namedChanges lists names from an image, the first of them.
func namedChanges(names []string) string {
	var shown []string
	for i, name := range names {
		if i == maxNamedChanges {
			shown = append(shown, fmt.Sprintf("and %d more", len(names)-i))
			break
		}
		shown = append(shown, breakable(shorten(name, 120)))
	}
	if shown == nil {
		return "the order of its events"
	}
	return strings.Join(shown, ", ")
}

// sectionSize is what the description of an event says of a section's size.
var sectionSize = lazyregexp.New(` \([0-9]+ bytes\)$`)

// changedEvents are the names of a PCR's events that differ, each once, in the order of
// the new document.
func changedEvents(before, now *measure.Document, pcr int) []string {
	var names []string
	digests := func(d *measure.Document) map[string]string {
		found := map[string]string{}
		for _, e := range d.Events {
			if e.PCR != pcr {
				continue
			}
			name := strings.TrimPrefix(sectionSize().ReplaceAllString(e.Description, ""), "name of ")
			if !slices.Contains(names, name) && len(names) < 1000 {
				names = append(names, name)
			}
			found[name] += e.Type + e.Digest + "\n"
		}
		return found
	}
	b := digests(now)
	a := digests(before)
	return slices.DeleteFunc(names, func(name string) bool { return a[name] == b[name] })
}

// changedFiles are the files of the description that differ.
func changedFiles(before, now *measure.Document) []string {
	if before.Builder == nil || now.Builder == nil || before.Builder.Inputs.Files == nil || now.Builder.Inputs.Files == nil {
		return nil
	}
	files := func(d *measure.Document) map[string]measure.SourceFile {
		found := map[string]measure.SourceFile{}
		for _, f := range d.Builder.Inputs.Files {
			found[f.Path] = f
		}
		return found
	}
	a, b := files(before), files(now)
	changed := map[string]bool{}
	for name, f := range b {
		changed[name] = a[name] != f
	}
	for name := range a {
		if _, there := b[name]; !there {
			changed[name] = true
		}
	}
	maps.DeleteFunc(changed, func(_ string, differs bool) bool { return !differs })
	return slices.Sorted(maps.Keys(changed))
}

// changedValues are what differs, as a name, the value before and that now.
func changedValues(before, now *measure.Document) [][3]string {
	var rows [][3]string
	row := func(what, a, b string) {
		if a != b {
			rows = append(rows, [3]string{what, cmp.Or(a, "none"), cmp.Or(b, "none")})
		}
	}
	row("Architecture", before.Architecture, now.Architecture)
	row("Secure Boot", onOff(before.SecureBoot.Enabled), onOff(now.SecureBoot.Enabled))
	if before.Disk != nil && now.Disk != nil {
		row("Disk", digestStart(before.Disk.SHA256), digestStart(now.Disk.SHA256))
		row("Size", formatBytes(before.Disk.Size), formatBytes(now.Disk.Size))
	}
	a, b := before.Builder, now.Builder
	if a == nil || b == nil {
		return rows
	}
	row("KIWI NG", a.KIWI, b.KIWI)
	row("Builder", digestStart(a.Digest), digestStart(b.Digest))
	row("Packages of the builder", digestStart(a.PackagesSHA256), digestStart(b.PackagesSHA256))
	row("Description", digestStart(a.Inputs.DescriptionSHA256), digestStart(b.Inputs.DescriptionSHA256))
	row("Packages of the image", digestStart(a.Inputs.PackagesSHA256), digestStart(b.Inputs.PackagesSHA256))
	locked := map[bool]string{false: "not locked", true: "locked"}
	row("Lock of the packages", locked[a.Inputs.PackagesLocked], locked[b.Inputs.PackagesLocked])
	return rows
}
