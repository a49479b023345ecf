package imagediff

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/org/attestable-image-action/internal/audit"
	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/sbom"
)

// Options say how to compare.
type Options struct {
	// Measure says under which circumstances both disks will boot.
	Measure measure.Options
	// All has the report name files that belong to a package that changed, too.
	All bool
	// A and B are measurements that go with the disks: their PCRs are compared, and not
	// those that would be predicted, and what they say of Secure Boot and of the builds.
	// Both or neither is nil.
	A, B *measure.Document
}

// Disks compares two raw disks. The error is for a disk that cannot be read at all;
// what else cannot be read is in the report.
func Disks(ctx context.Context, a, b *disk.Disk, o Options) (*Report, error) {
	c := &comparison{ctx: ctx, options: o, a: &side{disk: a}, b: &side{disk: b}, report: newReport(a.Name(), b.Name())}
	if err := c.compare(); err != nil {
		return nil, fmt.Errorf("compare %s with %s: %w", a.Name(), b.Name(), err)
	}
	return c.report, nil
}

// comparison is one in the making.
type comparison struct {
	ctx     context.Context
	options Options
	a, b    *side
	report  *Report
	// left are the bytes of files that may still be read from each side.
	left           int64
	owners         owners
	identifiers    *strings.Replacer // from those of A to those of B
	blockA, blockB []byte            // for sameContent
}

// side is what is known of one of the disks.
type side struct {
	disk *disk.Disk
	gpt  *disk.GPT

	inventory *sbom.Inventory
	noList    error // why there is no inventory
	document  *measure.Document
	words     []string // that the kernel gets
	noPCRs    error
	verity    *audit.RootVerity
	noVerity  error
	findings  []audit.Finding
	noAudit   error
}

func (c *comparison) compare() error {
	r := c.report
	r.A.Size, r.B.Size = c.a.disk.Size(), c.b.disk.Size()
	same, err := c.sameBytes(0, 0, r.A.Size, r.B.Size)
	if err != nil {
		return err
	}
	a, b := c.options.A, c.options.B
	both := a != nil && b != nil
	if both {
		r.Compared = comparedBoth
		r.circumstances(a, b)
	}
	if same {
		if both {
			r.measurements(a, b)
		}
		r.Identical = r.empty() && len(r.NotCompared) == 0
		return nil
	}
	for _, s := range []*side{c.a, c.b} {
		if s.gpt, err = s.disk.GPT(); err != nil {
			return err
		}
	}
	// A file of an image may be larger than the disk: compressed, or with holes.
	c.left = 64*max(r.A.Size, r.B.Size) + 1<<30
	if err := c.examine(); err != nil {
		return err
	}
	c.packages()
	c.identify()
	c.commandLine()
	c.verity()
	if err := c.partitions(); err != nil {
		return err
	}
	c.pcrs()
	c.audits()
	if err := c.outside(); err != nil {
		return err
	}
	if r.empty() {
		r.Other = append(r.Other, Change{Name: "bytes of the disk differ that mean nothing known"})
	}
	return nil
}

// examine finds out what can be told of each disk by itself.
func (c *comparison) examine() error {
	var wait sync.WaitGroup
	for _, s := range []*side{c.a, c.b} {
		wait.Go(func() { s.examine(c.ctx, c.options.Measure) })
	}
	wait.Wait()
	return c.ctx.Err()
}

func (s *side) examine(ctx context.Context, o measure.Options) {
	s.inventory, s.noList = sbom.List(ctx, s.disk)
	var p *measure.Prediction
	if p, s.noPCRs = measure.Disk(ctx, s.disk, o); s.noPCRs == nil {
		s.document, s.words = p.Document(), words(p.CommandLine)
	}
	chain, err := measure.FindBootChain(ctx, s.disk, o.Arch)
	if err != nil {
		s.noVerity = err
	} else {
		s.verity, s.noVerity = audit.FindRootVerity(s.disk, chain)
	}
	report, err := audit.Disk(ctx, s.disk, audit.Options{SecureBoot: o.SecureBoot.Enabled()})
	if s.noAudit = err; err == nil {
		s.findings = report.Findings
	}
}

// either notes that something could not be compared, and reports whether.
func (c *comparison) either(what string, a, b error) bool {
	switch {
	case a == nil && b == nil:
		return false
	case a != nil && b != nil && a.Error() == b.Error():
		c.report.notCompared(what, a)
		return true
	}
	if a != nil {
		c.report.notCompared(what+" (A)", a)
	}
	if b != nil {
		c.report.notCompared(what+" (B)", b)
	}
	return true
}

// words divides a kernel command line; quotes keep spaces.
func words(text string) []string {
	quoted := false
	return strings.FieldsFunc(text, func(r rune) bool {
		if r == '"' {
			quoted = !quoted
		}
		return !quoted && (r == ' ' || r == '\t' || r == '\n' || r == '\r' || r == 0)
	})
}

// commandLine compares what the kernel gets.
func (c *comparison) commandLine() {
	if c.a.noPCRs != nil || c.b.noPCRs != nil {
		return // pcrs says why
	}
	c.report.CommandLine = append(c.report.CommandLine, c.compareCommandLines(c.a.words, c.b.words)...)
}

// compareCommandLines compares words that a kernel gets, without those that differ only
// by the root hash or an identifier, which the report has in other places.
func (c *comparison) compareCommandLines(a, b []string) []Change {
	if c.a.verity != nil && c.b.verity != nil {
		a, b = withoutRootHash(a), withoutRootHash(b)
	}
	return slices.DeleteFunc(compareWords(a, b), func(w Change) bool {
		return w.Name == "" && w.A != "" && w.B != "" && strings.EqualFold(c.identifiers.Replace(w.A), w.B)
	})
}

// identify finds the identifiers that differ, of the disk, its partitions, file systems
// and hash trees.
func (c *comparison) identify() {
	var replace []string
	differ := func(format string, a, b any) {
		x, y := fmt.Sprintf(format, a), fmt.Sprintf(format, b)
		if x != y && x != "" && y != "" {
			replace = append(replace, x, y)
		}
	}
	differ("%s", c.a.gpt.DiskGUID, c.b.gpt.DiskGUID)
	for _, p := range pairs(c.a.gpt, c.b.gpt) {
		if p.a == nil || p.b == nil {
			continue
		}
		differ("%s", p.a.GUID, p.b.GUID)
		a, errA := disk.OpenFilesystem(io.NewSectionReader(c.a.disk, p.a.Offset, p.a.Size), p.a.Size, audit.RootTypes(c.a.words)...)
		b, errB := disk.OpenFilesystem(io.NewSectionReader(c.b.disk, p.b.Offset, p.b.Size), p.b.Size, audit.RootTypes(c.b.words)...)
		if errA == nil && errB == nil {
			differ("%s", a.UUID, b.UUID)
		}
	}
	if a, b := c.a.verity, c.b.verity; a != nil && b != nil {
		differ("hash-offset=%d", a.HashOffset, b.HashOffset)
	}
	c.identifiers = strings.NewReplacer(replace...)
}

// withoutRootHash leaves out the word that follows from the root file system.
func withoutRootHash(words []string) []string {
	var kept []string
	for _, w := range words {
		if !strings.HasPrefix(w, "roothash=") {
			kept = append(kept, w)
		}
	}
	return kept
}

// compareWords pairs what is only in a with what is only in b, by what stands
// before "=".
func compareWords(a, b []string) []Change {
	count := map[string]int{}
	for _, w := range b {
		count[w]++
	}
	var onlyA, onlyB []string
	for _, w := range a {
		if count[w]--; count[w] < 0 {
			onlyA = append(onlyA, w)
		}
	}
	for _, w := range b {
		if count[w] > 0 {
			count[w]--
			onlyB = append(onlyB, w)
		}
	}
	byKey := map[string][]string{}
	for _, w := range onlyB {
		key, _, _ := strings.Cut(w, "=")
		byKey[key] = append(byKey[key], w)
	}
	var changes []Change
	paired := map[string]int{}
	for _, w := range onlyA {
		key, _, _ := strings.Cut(w, "=")
		change := Change{A: bounded(w)}
		if others := byKey[key]; len(others) > 0 {
			change.B = bounded(others[0])
			byKey[key] = others[1:]
			paired[others[0]]++
		}
		changes = append(changes, change)
	}
	for _, w := range onlyB {
		if paired[w] > 0 {
			paired[w]--
			continue
		}
		changes = append(changes, Change{B: bounded(w)})
	}
	if len(changes) == 0 && strings.Join(a, "\x00") != strings.Join(b, "\x00") {
		changes = append(changes, Change{Name: "order", A: bounded(strings.Join(a, " ")), B: bounded(strings.Join(b, " "))})
	}
	return changes
}

// audits compares what the audits found. The line in a file does not count.
func (c *comparison) audits() {
	if c.either("findings", c.a.noAudit, c.b.noAudit) {
		return
	}
	key := func(f audit.Finding) audit.Finding {
		f.Line = 0
		return f
	}
	only := func(these, others []audit.Finding) []audit.Finding {
		known := map[audit.Finding]int{}
		for _, f := range others {
			known[key(f)]++
		}
		found := []audit.Finding{}
		for _, f := range these {
			if known[key(f)]--; known[key(f)] < 0 {
				found = append(found, f)
			}
		}
		return found
	}
	c.report.Appeared, c.report.Gone = only(c.b.findings, c.a.findings), only(c.a.findings, c.b.findings)
}

// compareBlock is how many bytes of a disk or file are compared at a time.
const compareBlock = 1 << 20

// sameBytes compares runs of bytes of the two disks.
func (c *comparison) sameBytes(offA, offB, sizeA, sizeB int64) (bool, error) {
	if sizeA != sizeB {
		return false, nil
	}
	return c.sameContent(io.NewSectionReader(c.a.disk, offA, sizeA), io.NewSectionReader(c.b.disk, offB, sizeB), sizeA)
}

// sameContent reads size bytes of both, or until they differ.
func (c *comparison) sameContent(a, b io.Reader, size int64) (bool, error) {
	if c.blockA == nil {
		c.blockA, c.blockB = make([]byte, compareBlock), make([]byte, compareBlock)
	}
	for size > 0 {
		if err := c.ctx.Err(); err != nil {
			return false, err
		}
		n := min(size, compareBlock)
		size -= n
		for _, half := range []struct {
			r     io.Reader
			block []byte
		}{{a, c.blockA}, {b, c.blockB}} {
			if _, err := io.ReadFull(half.r, half.block[:n]); err != nil {
				if errors.Is(err, io.EOF) {
					err = io.ErrUnexpectedEOF
				}
				return false, err
			}
		}
		if !bytes.Equal(c.blockA[:n], c.blockB[:n]) {
			return false, nil
		}
	}
	return true, nil
}
