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
	"github.com/org/attestable-image-action/internal/imagediff"
	"github.com/org/attestable-image-action/internal/lazyregexp"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/strictjson"
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
	if err := strictjson.Unmarshal(content, &p); err != nil {
		return nil, fmt.Errorf("read what to compare with: %w", err)
	}
	return &p, nil
}

// maxNamedChanges bounds the names in a line of changes, and the lines of a kind.
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
	r := imagediff.Documents(before, doc)
	same := r.A.SHA256 != "" && r.A.SHA256 == r.B.SHA256
	if same {
		b.WriteString("**The disk is the same, byte for byte.**\n")
	}
	for _, p := range r.PCRs {
		fmt.Fprintf(&b, "- **PCR %d** is another: %s\n", p.PCR, changedEvents(p))
	}
	var unchanged []string
	for _, n := range slices.Sorted(maps.Keys(doc.Measurements.PCRs)) {
		if before.PCR(n) == doc.PCR(n) && before.Measurements.HashAlgorithm == doc.Measurements.HashAlgorithm {
			unchanged = append(unchanged, fmt.Sprint(n))
		}
	}
	if len(unchanged) > 0 && !same {
		fmt.Fprintf(&b, "- PCR %s: as before\n", strings.Join(unchanged, ", "))
	}
	disk := []imagediff.Change{{A: r.A.SHA256, B: r.B.SHA256}, {Name: "size", A: formatBytes(r.A.Size), B: formatBytes(r.B.Size)}}
	if before.Disk == nil || doc.Disk == nil {
		disk = nil
	}
	for _, group := range []struct {
		what    string
		changes []imagediff.Change
	}{
		{"Kernel command line", r.CommandLine}, {"Secure Boot", r.SecureBoot}, {"Disk", disk},
		{"Builder", r.Builder}, {"Built from", r.Inputs}, {"Also", r.Other},
	} {
		lines := 0
		for _, c := range group.changes {
			if c.A == c.B && c.A != "" {
				continue // the disk's
			}
			if lines++; lines <= maxNamedChanges {
				fmt.Fprintf(&b, "- %s%s\n", group.what, changedValue(c))
			}
		}
		if lines > maxNamedChanges {
			fmt.Fprintf(&b, "- %s: and %d more\n", group.what, lines-maxNamedChanges)
		}
	}
	names := []string{}
	for _, p := range r.BuilderPackages {
		names = append(names, p.Name)
	}
	listed(&b, "Packages of the builder", names)
	names = names[:0]
	for _, f := range r.Source {
		names = append(names, f.Path)
	}
	listed(&b, "Files of the description", names)
	for i, problem := range r.NotCompared {
		if i == maxNamedChanges {
			break
		}
		fmt.Fprintf(&b, "- Not compared: %s\n", plain(shorten(problem, 200)))
	}
	return b.String()
}

// changedEvents are the things whose events make a PCR another, each once, and what
// changed in them.
func changedEvents(p imagediff.PCR) string {
	var names, texts []string
	for _, e := range p.Events {
		name := strings.TrimPrefix(sectionSize().ReplaceAllString(e.What, ""), "name of ")
		if slices.Contains(names, name) {
			continue
		}
		names = append(names, name)
		text := breakable(shorten(name, 120))
		if e.Because != "" {
			text += ": " + plain(shorten(e.Because, 200))
		}
		texts = append(texts, text)
	}
	if texts == nil {
		return "the order of its events"
	}
	return firstOf(texts)
}

// sectionSize is what the description of an event says of a section's size.
var sectionSize = lazyregexp.New(` \([0-9]+ bytes\)$`)

// changedValue is what stands behind the name of a group.
func changedValue(c imagediff.Change) string {
	text := ""
	if c.Name != "" {
		text = ", " + plain(shorten(c.Name, 120))
	}
	if c.A == "" && c.B == "" {
		return text
	}
	value := func(v string) string { return breakable(shorten(shortDigest(cmp.Or(v, "none")), 100)) }
	return text + ": " + value(c.A) + " → " + value(c.B)
}

// listed is a line that lists names from an image, or none.
func listed(b *strings.Builder, what string, names []string) {
	if len(names) == 0 {
		return
	}
	texts := make([]string, len(names))
	for i, name := range names {
		texts[i] = breakable(shorten(name, 120))
	}
	fmt.Fprintf(b, "- %s: %s\n", what, firstOf(texts))
}

// firstOf lists texts, the first of them.
func firstOf(texts []string) string {
	more := len(texts) - maxNamedChanges
	if more > 0 {
		texts = append(slices.Clone(texts[:maxNamedChanges]), fmt.Sprintf("and %d more", more))
	}
	return strings.Join(texts, ", ")
}
