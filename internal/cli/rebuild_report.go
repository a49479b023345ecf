package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/org/attestable-image-action/internal/artifact"
	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/imagediff"
	"github.com/org/attestable-image-action/internal/kiwi"
	"github.com/org/attestable-image-action/internal/measure"
)

// tellDifferences prints in what the disk that was built differs from the attested
// one, and ends with errDoesNotVerify. The attested disk is fetched into work.
func (a *app) tellDifferences(ctx context.Context, image *artifact.Artifact, attested, again *measure.Document, built *kiwi.Result, work string) error {
	report, err := a.compareBuilt(ctx, image, attested, again, built, filepath.Join(work, "attested.raw"))
	if err != nil {
		return fmt.Errorf("compare the disk with the one that was built: %w", err)
	}
	var out strings.Builder
	out.WriteString(renderDiff(report, new(diffTable), false))
	for _, hint := range rebuildHints(report, attested) {
		fmt.Fprintf(&out, "\n%s\n", printable(hint))
	}
	_, err = fmt.Fprintf(a.stdout, "%s\nNOT reproduced: %s\n", out.String(), image.Reference)
	return errors.Join(err, errDoesNotVerify)
}

// compareBuilt compares the attested disk, which is written to path, with the one that
// was built. Both are measured with Secure Boot off, as again was: what was just built
// is not signed, and the digests that are measured leave signatures out.
func (a *app) compareBuilt(ctx context.Context, image *artifact.Artifact, attested, again *measure.Document, built *kiwi.Result, path string) (*imagediff.Report, error) {
	if err := a.restore(ctx, &diffImage{name: image.Reference.String(), document: attested, artifact: image}, path); err != nil {
		return nil, err
	}
	before, err := disk.Open(path)
	if err != nil {
		return nil, err
	}
	defer before.Close()
	after, err := disk.Open(built.Disk)
	if err != nil {
		return nil, err
	}
	defer after.Close()
	o := imagediff.Options{Measure: unsigned(attested), B: again}
	o.Measure.NeededDigests = true
	prediction, err := measure.Disk(ctx, before, unsigned(attested))
	if err != nil {
		return nil, err
	}
	o.A = prediction.Document()
	o.A.Disk, o.A.Builder = attested.Disk, attested.Builder
	report, err := imagediff.Disks(ctx, before, after, o)
	if err != nil {
		return nil, err
	}
	report.A.Name, report.B.Name = image.Reference.String()+" (attested)", "what was built again"
	return report, nil
}

// rebuildHints say what to do about differences, as far as that is known.
func rebuildHints(r *imagediff.Report, attested *measure.Document) []string {
	var hints []string
	if slices.ContainsFunc(r.Inputs, func(c imagediff.Change) bool { return c.Name == "packages of the image" }) {
		hints = append(hints, "The image was built of other packages: give packages.lock of the attested build with --lock, and sources that have them with --package-source.")
	}
	if len(r.BuilderPackages) > 0 {
		hints = append(hints, "The builder has other packages: name the attested one with --builder-image, if it is in a registry.")
	}
	if attested.SecureBoot.Enabled {
		hint := "The attested disk is signed for Secure Boot, and who builds it again does not have the key: the signature on the EFI system partition differs in any case."
		if len(r.PCRs) == 0 {
			hint += " But for signatures the images of the boot chain are the same."
		}
		hints = append(hints, hint)
	}
	return hints
}
