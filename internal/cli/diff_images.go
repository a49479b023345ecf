package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/org/attestable-image-action/internal/artifact"
	"github.com/org/attestable-image-action/internal/attest"
	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/imagediff"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/sbom"
)

// diffImage is one of the two images that are compared: a raw disk, the measurements of
// one, or an artifact, which has both.
type diffImage struct {
	name     string
	disk     *disk.Disk         // nil until an artifact's is restored
	document *measure.Document  // nil for a raw disk
	artifact *artifact.Artifact // nil for a file
}

func (i *diffImage) close() {
	if i != nil && i.disk != nil {
		_ = i.disk.Close()
	}
}

// openDiffImage finds out what an argument names. A file that exists is never taken for
// a reference.
func openDiffImage(ctx context.Context, name string) (*diffImage, error) {
	info, err := os.Stat(name)
	switch {
	case err == nil && info.IsDir():
		return nil, usagef("%s is a directory: if it is an OCI layout, write oci:%s", name, name)
	case err == nil:
		return openDiffFile(name)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("read the image: %w", err)
	}
	reference, notReference := artifact.ParseReference(name)
	if notReference != nil {
		return nil, fmt.Errorf("%s is no file, and no reference of an artifact: %w", name, notReference)
	}
	image, err := artifact.Open(ctx, reference)
	if err != nil {
		return nil, err
	}
	content, err := image.Measurements(ctx)
	if err != nil {
		return nil, err
	}
	doc, err := measure.ParseDocument(content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", image.Reference, err)
	}
	return &diffImage{name: image.Reference.String(), document: doc, artifact: image}, nil
}

// openDiffFile opens a raw disk or a measurements document, which is told by the brace
// that it begins with: a disk with a partition table begins with boot code, or zeros.
func openDiffFile(name string) (*diffImage, error) {
	d, err := disk.Open(name)
	if err != nil {
		return nil, err
	}
	start := make([]byte, min(d.Size(), 512))
	if _, err := d.ReadAt(start, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, errors.Join(fmt.Errorf("read %s: %w", name, err), d.Close())
	}
	if !bytes.HasPrefix(bytes.TrimSpace(start), []byte("{")) {
		return &diffImage{name: d.Name(), disk: d}, nil
	}
	if err := d.Close(); err != nil {
		return nil, err
	}
	content, err := readBounded(name, maxMeasurements)
	if err != nil {
		return nil, fmt.Errorf("read measurements: %w", err)
	}
	doc, err := measure.ParseDocument(content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &diffImage{name: name, document: doc}, nil
}

// diffImages compares two images by what both have: their disks where that was asked
// for, or one of them is nothing else; or else their measurements.
func (a *app) diffImages(ctx context.Context, o imagediff.Options, nameA, nameB string, disks bool) (*imagediff.Report, error) {
	x, err := openDiffImage(ctx, nameA)
	if err != nil {
		return nil, err
	}
	defer x.close()
	y, err := openDiffImage(ctx, nameB)
	if err != nil {
		return nil, err
	}
	defer y.close()
	for _, pair := range [][2]*diffImage{{x, y}, {y, x}} {
		if onlyDocument := pair[0].disk == nil && pair[0].artifact == nil; onlyDocument && disks {
			return nil, usagef("%s has the measurements of a disk, and not the disk: leave out --disks", pair[0].name)
		}
	}
	switch {
	case x.disk != nil && y.disk != nil:
		return imagediff.Disks(ctx, x.disk, y.disk, o)
	case x.disk != nil && y.artifact != nil, x.artifact != nil && y.disk != nil, disks:
		return a.diffArtifacts(ctx, o, x, y)
	}
	for _, i := range []*diffImage{x, y} {
		if i.document == nil {
			if i.document, err = a.diffDocument(ctx, i.disk, o.Measure); err != nil {
				return nil, err
			}
		}
	}
	report := imagediff.Documents(x.document, y.document)
	report.A.Name, report.B.Name = x.name, y.name
	if x.artifact != nil && y.artifact != nil && report.A.SHA256 != report.B.SHA256 {
		if err := addAttachedPackages(ctx, report, x, y); err != nil {
			return nil, err
		}
	}
	return report, nil
}

// diffDocument measures a raw disk, to be compared with a document.
func (a *app) diffDocument(ctx context.Context, d *disk.Disk, o measure.Options) (*measure.Document, error) {
	o.NeededDigests = false
	prediction, err := measure.Disk(ctx, d, o)
	if err != nil {
		return nil, err
	}
	doc := prediction.Document()
	doc.Disk, err = a.diskInfo(ctx, d)
	return doc, err
}

// diffArtifacts compares the disks of two images, of which at least one is an artifact,
// and the measurements where both have them.
func (a *app) diffArtifacts(ctx context.Context, o imagediff.Options, x, y *diffImage) (*imagediff.Report, error) {
	both := x.document != nil && y.document != nil
	if both {
		if x.document.Disk != nil && y.document.Disk != nil && *x.document.Disk == *y.document.Disk {
			report := imagediff.Documents(x.document, y.document) // the disks are the same
			report.A.Name, report.B.Name = x.name, y.name
			return report, nil
		}
		o.A, o.B = x.document, y.document
	}
	work, err := os.MkdirTemp("", "attestable-image-")
	if err != nil {
		return nil, fmt.Errorf("make room for the disks: %w", err)
	}
	defer os.RemoveAll(work)
	for n, i := range []*diffImage{x, y} {
		if i.disk != nil {
			continue
		}
		path := filepath.Join(work, fmt.Sprintf("%d.raw", n))
		if err := a.restore(ctx, i, path); err != nil {
			return nil, err
		}
		if i.disk, err = disk.Open(path); err != nil {
			return nil, err
		}
	}
	report, err := imagediff.Disks(ctx, x.disk, y.disk, o)
	if err != nil {
		return nil, err
	}
	report.A.Name, report.B.Name = x.name, y.name
	return report, nil
}

// restore writes the disk of an artifact to a file. What its measurements say of the
// size is the word of whoever pushed it: where there is no room for so much, nothing is
// fetched.
func (a *app) restore(ctx context.Context, i *diffImage, path string) error {
	said := i.document.Disk
	if said == nil {
		return fmt.Errorf("fetch the disk of %s: its measurements do not say which disk they are of", i.name)
	}
	var volume unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(path), &volume); err != nil {
		return fmt.Errorf("ask how much space %s has: %w", filepath.Dir(path), err)
	}
	if free := volume.Bavail * uint64(volume.Bsize); uint64(said.Size) > free { //nolint:gosec // neither is negative
		return fmt.Errorf("fetch the disk of %s: it has %d bytes, and %s has room for %d: set TMPDIR to a directory with more", i.name, said.Size, filepath.Dir(path), free)
	}
	progress := a.newProgress("fetch "+i.name, said.Size)
	defer progress.finish()
	image, err := artifact.Open(ctx, i.artifact.Reference, artifact.WithProgress(progress.add))
	if err != nil {
		return err
	}
	return image.RestoreDisk(ctx, path, said.SHA256, said.Size)
}

// sbomPredicates are the types that bills of materials are attested with.
var sbomPredicates = []string{attest.PredicateCycloneDX, "https://spdx.dev/Document/v2.3"}

// addAttachedPackages compares the packages of two artifacts by the bills of materials
// that hang on them and say that they are about their disks.
func addAttachedPackages(ctx context.Context, report *imagediff.Report, x, y *diffImage) error {
	var lists [2][]sbom.Package
	for n, i := range []*diffImage{x, y} {
		side := string("AB"[n])
		found, err := attachedPackages(ctx, i)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			report.NotComparable("packages ("+side+")", err)
		}
		lists[n] = found
	}
	if lists[0] != nil && lists[1] != nil {
		report.AddPackages(lists[0], lists[1])
	}
	return nil
}

// attachedPackages are the packages that a bill of materials lists which hangs on an
// artifact. Who signed it is not looked at.
func attachedPackages(ctx context.Context, i *diffImage) ([]sbom.Package, error) {
	candidates, err := fetchReferrers(ctx, i.artifact.Reference, sbomPredicates)
	if err != nil {
		return nil, err
	}
	for _, c := range candidates {
		claimed, err := c.Claimed()
		if err != nil || !slices.Contains(sbomPredicates, claimed.PredicateType) || i.document.Disk == nil {
			continue
		}
		about, err := sbom.DiskDigest(claimed.Predicate)
		if err != nil || !strings.EqualFold(about, i.document.Disk.SHA256) {
			continue
		}
		packages, err := sbom.Packages(claimed.Predicate)
		if err != nil {
			return nil, err
		}
		if packages == nil {
			packages = []sbom.Package{}
		}
		return packages, nil
	}
	return nil, errors.New("no bill of materials of attestable-image that is about its disk hangs on it")
}
