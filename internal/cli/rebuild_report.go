package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"github.com/org/attestable-image-action/internal/artifact"
	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/kiwi"
	"github.com/org/attestable-image-action/internal/measure"
)

// tellDifferences prints in what the disk that was built differs from the attested
// one, and ends with errDoesNotVerify. The attested disk is fetched into work.
func (a *app) tellDifferences(ctx context.Context, image *artifact.Artifact, attested, again *measure.Document, built *kiwi.Result, work string) error {
	lines := []string{
		fmt.Sprintf("disk: attested sha256:%s, %d bytes", attested.Disk.SHA256, attested.Disk.Size),
		fmt.Sprintf("      built    sha256:%s, %d bytes", again.Disk.SHA256, again.Disk.Size),
	}
	path := filepath.Join(work, "attested.raw")
	progress := a.newProgress("fetch the attested disk", attested.Disk.Size)
	fetched, err := artifact.Open(ctx, image.Reference, artifact.WithProgress(progress.add))
	if err == nil {
		err = fetched.RestoreDisk(ctx, path, attested.Disk.SHA256, attested.Disk.Size)
	}
	progress.finish()
	if err != nil {
		return fmt.Errorf("compare the disks: %w", err)
	}
	differences, err := compareDisks(ctx, path, built.Disk)
	if err != nil {
		return fmt.Errorf("compare the disks: %w", err)
	}
	lines = append(lines, differences...)
	lines = append(lines, compareBoots(attested, again)...)
	lines = append(lines, compareBuilders(attested.Builder, again.Builder)...)
	if attested.SecureBoot.Enabled {
		lines = append(lines, "the attested disk is signed for Secure Boot, and who builds it again does not have the key: the signature on the EFI system partition differs in any case")
	}
	for _, line := range lines {
		if _, err := fmt.Fprintln(a.stdout, printable(line)); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(a.stdout, "\nNOT reproduced: %s\n", image.Reference)
	return errors.Join(err, errDoesNotVerify)
}

// compareDisks tells for each area of a disk (the partitions, and what is around them)
// whether it differs in two disks, and where first: at which byte of the area.
func compareDisks(ctx context.Context, attestedPath, builtPath string) ([]string, error) {
	attested, err := disk.Open(attestedPath)
	if err != nil {
		return nil, err
	}
	defer attested.Close()
	built, err := disk.Open(builtPath)
	if err != nil {
		return nil, err
	}
	defer built.Close()
	table, err := attested.GPT()
	if err != nil {
		return nil, err
	}
	other, err := built.GPT()
	if err != nil {
		return nil, err
	}
	var lines []string
	for _, p := range table.Partitions {
		i := slices.IndexFunc(other.Partitions, func(o disk.Partition) bool { return o.Number == p.Number })
		if i < 0 {
			lines = append(lines, partitionName(p)+": it was not built")
			continue
		}
		o := other.Partitions[i]
		switch at, err := firstDifference(ctx, io.NewSectionReader(attested, p.Offset, p.Size), io.NewSectionReader(built, o.Offset, o.Size)); {
		case err != nil:
			return nil, err
		case at >= 0:
			lines = append(lines, fmt.Sprintf("%s: differs from byte %d of %d on", partitionName(p), at, p.Size))
		}
	}
	for _, o := range other.Partitions {
		if !slices.ContainsFunc(table.Partitions, func(p disk.Partition) bool { return o.Number == p.Number }) {
			lines = append(lines, partitionName(o)+": it is not attested")
		}
	}
	if len(lines) > 0 {
		return lines, nil
	}
	at, err := firstDifference(ctx, attested.Stream(), built.Stream())
	if err != nil {
		return nil, err
	}
	return []string{fmt.Sprintf("the partitions are the same; around them the disks differ from byte %d on", at)}, nil
}

// partitionName is what a partition is called in a report.
func partitionName(p disk.Partition) string {
	if p.Name == "" {
		return fmt.Sprintf("partition %d", p.Number)
	}
	return fmt.Sprintf("partition %d (%s)", p.Number, p.Name)
}

// firstDifference is the number of the first byte in which two streams differ, or that
// only one of them has; -1 when there is none.
func firstDifference(ctx context.Context, x, y io.Reader) (int64, error) {
	const chunk = 1 << 20
	a, b := make([]byte, chunk), make([]byte, chunk)
	for offset := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		n, err := readFull(x, a)
		if err != nil {
			return 0, err
		}
		m, err := readFull(y, b)
		if err != nil {
			return 0, err
		}
		if !bytes.Equal(a[:n], b[:m]) {
			i := 0
			for i < min(n, m) && a[i] == b[i] {
				i++
			}
			return offset + int64(i), nil
		}
		if n < chunk {
			return -1, nil
		}
		offset += chunk
	}
}

// readFull fills a buffer, as far as the stream goes.
func readFull(r io.Reader, b []byte) (int, error) {
	n, err := io.ReadFull(r, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return n, err
}

// compareBoots tells which PCRs differ, and the first event of each that does.
func compareBoots(attested, again *measure.Document) []string {
	var lines []string
	for _, d := range measure.Compare(attested, again) {
		var n int
		if _, err := fmt.Sscanf(d.Field, "PCR%d", &n); err != nil || attested.SecureBoot.Enabled && (n == 4 || n == 7) {
			continue // firmware that checks signatures measures more, and loads less
		}
		lines = append(lines, fmt.Sprintf("%s: attested %s, built %s", d.Field, d.Attested, d.Measured))
		was, is := eventsOf(attested, n), eventsOf(again, n)
		for i := range max(len(was), len(is)) {
			switch {
			case i >= len(is):
				lines = append(lines, fmt.Sprintf("  it lacks the event %s (%s)", was[i].Type, was[i].Description))
			case i >= len(was):
				lines = append(lines, fmt.Sprintf("  it has the event %s (%s), too", is[i].Type, is[i].Description))
			case was[i].Digest != is[i].Digest || was[i].Type != is[i].Type:
				lines = append(lines, fmt.Sprintf("  its first event that differs is %s (%s)", is[i].Type, is[i].Description))
			default:
				continue
			}
			break
		}
	}
	if attested.SecureBoot.Enabled {
		return append(lines, compareChains(attested, again)...)
	}
	if lines == nil {
		return []string{"the PCRs are the same"}
	}
	return lines
}

// compareChains tells which images of the boot chain are others but for their
// signatures, which Authenticode digests leave out.
func compareChains(attested, again *measure.Document) []string {
	var lines []string
	for _, image := range attested.BootChain {
		i := slices.IndexFunc(again.BootChain, func(other measure.ImageInfo) bool { return other.Path == image.Path })
		if i < 0 {
			lines = append(lines, image.Path+": it was not built")
			continue
		}
		bank := attested.Measurements.HashAlgorithm
		if was, is := image.Authenticode[bank], again.BootChain[i].Authenticode[bank]; was != is {
			lines = append(lines, fmt.Sprintf("%s: its Authenticode digest is attested as %s, built %s", image.Path, was, is))
		}
	}
	if lines == nil {
		return []string{"the images of the boot chain are the same but for signatures"}
	}
	return lines
}

// eventsOf are the events of a PCR.
func eventsOf(d *measure.Document, pcr int) []measure.EventInfo {
	var events []measure.EventInfo
	for _, e := range d.Events {
		if e.PCR == pcr {
			events = append(events, e)
		}
	}
	return events
}

// compareBuilders tells what was built with other tools, or of other packages.
func compareBuilders(attested, again *measure.BuilderInfo) []string {
	var lines []string
	if again.Inputs.PackagesSHA256 != attested.Inputs.PackagesSHA256 {
		lines = append(lines, "the image was built of other packages: give packages.lock of the attested build with --lock, and sources that have them with --package-source")
	}
	if again.PackagesSHA256 == attested.PackagesSHA256 {
		return lines
	}
	var changes []string
	was := make(map[string]string, len(attested.Packages))
	for _, p := range attested.Packages {
		was[p.Name] = p.Version
	}
	for _, p := range again.Packages {
		if version := was[p.Name]; version != p.Version {
			changes = append(changes, fmt.Sprintf("%s %s (attested: %s)", p.Name, p.Version, orNothing(version)))
		}
		delete(was, p.Name)
	}
	for _, p := range attested.Packages {
		if _, missing := was[p.Name]; missing {
			changes = append(changes, fmt.Sprintf("no %s (attested: %s)", p.Name, p.Version))
		}
	}
	return append(lines, "the builder has other packages: "+told(changes))
}

func orNothing(text string) string {
	if text == "" {
		return "nothing"
	}
	return text
}
