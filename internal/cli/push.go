package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/org/attestable-image-action/internal/artifact"
	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/gha"
	"github.com/org/attestable-image-action/internal/measure"
)

// Bounds of the files that push reads, in bytes: what pull accepts.
const (
	maxMeasurements = 16 << 20
	maxUEFIData     = 1 << 20
)

// pushFlags are the flags of push.
type pushFlags struct {
	measurements, uefiData          string
	name, version, source, revision string
	tags                            []string
	predict                         predictFlags
}

func newPushCommand(a *app) *cobra.Command {
	var f pushFlags
	cmd := &cobra.Command{
		Use:   "push DISK REF",
		Short: "Store a disk and its measurements as an OCI artifact",
		Long: `Store a raw disk and its measurements as an OCI artifact, and print the
artifact's reference with its digest.

REF is HOST/REPOSITORY[:TAG] of a registry, or oci:DIR[:TAG] for an OCI layout.
The disk is read once: it is compressed with zstd and hashed while it is
uploaded, and its holes are not read. If its SHA-256 is not the one in the
measurements, no manifest is stored. Tags are set last.

Without --measurements the disk is measured first, as by the command measure.

Credentials come from the docker configuration (docker login); a job of GitHub
Actions that pushes to ghcr.io uses its own token, and needs the permission
packages: write.

The time in the artifact is that of the image, which the measurements have when they
were made with --builder; SOURCE_DATE_EPOCH goes before it, and without both it is
now. The same disk with the same measurements, name and annotations is then the same
artifact, whoever pushes it.`,
		Example: `  attestable-image push image.raw ghcr.io/owner/image:v1
  attestable-image push --measurements measurements.json --tag v1,latest image.raw ghcr.io/owner/image
  attestable-image push image.raw oci:layout`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usagef("give the raw disk and the reference to push it to, and nothing else")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			result, err := a.push(cmd.Context(), f, args[0], args[1])
			if err != nil {
				return err
			}
			a.stored = result.CompressedSize
			if err := gha.SetOutput("artifact", result.Reference.String()); err != nil {
				return err
			}
			if err := gha.SetOutput("digest", result.Reference.Digest.String()); err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.stdout, result.Reference)
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.measurements, "measurements", "", "`FILE` that measure --format json wrote for this disk (default: measure it now)")
	flags.StringVar(&f.uefiData, "uefi-data", "", "`FILE` with the variable store of a signed image, in AWS's form")
	flags.StringVar(&f.name, "name", "", "name of the image (default: the disk's file name without .raw)")
	flags.StringVar(&f.version, "version", "", "version of the image, for the manifest's annotations")
	flags.StringVar(&f.source, "source", "", "`URL` of the source repository, for the manifest's annotations")
	flags.StringVar(&f.revision, "revision", "", "commit that the image was built from, for the manifest's annotations")
	flags.StringArrayVar(&f.tags, "tag", nil, "tag to set; may be repeated, or a `LIST` separated by commas or new lines")
	f.predict.add(cmd)
	return cmd
}

func (a *app) push(ctx context.Context, f pushFlags, path, reference string) (*artifact.Result, error) {
	ref, err := artifact.ParseReference(reference)
	if err != nil {
		return nil, usageError{err}
	}
	if ref.HasDigest() {
		return nil, usagef("push to %s: the digest of what is pushed is not known before: leave out @%s", ref, ref.Digest)
	}
	tags, err := artifact.ParseTags(strings.Join(f.tags, "\n"))
	if err != nil {
		return nil, usagef("--tag: %w", err)
	}
	if f.name == "" {
		f.name = strings.TrimSuffix(filepath.Base(path), ".raw")
	}
	if err := artifact.CheckName(f.name); err != nil {
		return nil, usagef("name the image: %w; set it with --name", err)
	}
	d, err := disk.Open(path)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	doc, raw, err := a.pushMeasurements(ctx, f, d)
	if err != nil {
		return nil, err
	}
	content := artifact.Content{
		Name:         f.name,
		DiskSize:     d.Size(),
		OpenDisk:     func() (io.ReadCloser, error) { return io.NopCloser(d.Stream()), nil },
		Measurements: func(sha256 string, size int64) ([]byte, error) { return bindMeasurements(doc, raw, path, sha256, size) },
		PCRs:         map[string]string{},
		Annotations: map[string]string{
			artifact.AnnotationVersion:  f.version,
			artifact.AnnotationSource:   f.source,
			artifact.AnnotationRevision: f.revision,
		},
	}
	if doc.Builder != nil {
		// As old as what is in it: who pushes the same makes the same artifact.
		content.Created = time.Unix(doc.Builder.Inputs.SourceDateEpoch, 0)
	}
	for _, n := range measure.IdentityPCRs {
		content.PCRs["pcr"+strconv.Itoa(n)] = doc.PCR(n)
	}
	if f.uefiData != "" {
		if content.UEFIData, err = readBounded(f.uefiData, maxUEFIData); err != nil {
			return nil, fmt.Errorf("read UEFI variable store: %w", err)
		}
	}
	before := d.BytesRead() // of measuring
	progress := a.newProgress("push "+filepath.Base(path), d.Size())
	result, err := artifact.Push(ctx, ref, content, artifact.WithTags(tags...), artifact.WithProgress(progress.add))
	progress.finish()
	if err != nil {
		return nil, err
	}
	if !a.quiet {
		fmt.Fprintf(a.stderr, "pushed %s of disk as %s, read %s of it\n", formatBytes(result.DiskSize), formatBytes(result.CompressedSize), formatBytes(d.BytesRead()-before))
		for _, tag := range result.Tags {
			fmt.Fprintf(a.stderr, "tagged %s:%s\n", ref.Place(), tag)
		}
	}
	return result, nil
}

// pushMeasurements reads the measurements document, or measures the disk; raw
// is nil then. What can be checked before the disk is read is checked here.
func (a *app) pushMeasurements(ctx context.Context, f pushFlags, d *disk.Disk) (doc *measure.Document, raw []byte, err error) {
	if f.measurements == "" {
		o, err := f.predict.options()
		if err != nil {
			return nil, nil, err
		}
		p, err := measure.Disk(ctx, d, o)
		if err != nil {
			return nil, nil, err
		}
		doc = p.Document()
	} else {
		if raw, err = readBounded(f.measurements, maxMeasurements); err != nil {
			return nil, nil, fmt.Errorf("read measurements: %w", err)
		}
		if doc, err = measure.ParseDocument(raw); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", f.measurements, err)
		}
		if doc.Disk == nil {
			return nil, nil, fmt.Errorf("push %s: %s does not say which disk it measures: make it with measure --format json, without --disk-digest=false", d.Name(), f.measurements)
		}
		if doc.Disk.Size != d.Size() {
			return nil, nil, fmt.Errorf("push %s: %s measures another disk, of %d bytes instead of %d: measure this one", d.Name(), f.measurements, doc.Disk.Size, d.Size())
		}
	}
	for _, n := range measure.IdentityPCRs {
		if doc.PCR(n) == "" && !measure.MayLack(n) {
			return nil, nil, fmt.Errorf("push %s: the measurements have no PCR %d, and an artifact needs PCR 4, 7 and 12: measure with --pcr including %s", d.Name(), n, pcrList(doc))
		}
	}
	return doc, raw, nil
}

// pcrList lists the PCRs that the document has and those that it needs.
func pcrList(doc *measure.Document) string {
	numbers := slices.Concat(measure.IdentityPCRs, slices.Collect(maps.Keys(doc.Measurements.PCRs)))
	slices.Sort(numbers)
	numbers = slices.Compact(numbers)
	list := make([]string, 0, len(numbers))
	for _, n := range numbers {
		list = append(list, strconv.Itoa(n))
	}
	return strings.Join(list, ",")
}

// bindMeasurements returns the measurements document of the disk that was read,
// unless it is of another one.
func bindMeasurements(doc *measure.Document, raw []byte, path, sha256 string, size int64) ([]byte, error) {
	if raw == nil {
		doc.Disk = &measure.DiskInfo{SHA256: sha256, Size: size}
		return doc.Marshal()
	}
	if doc.Disk.SHA256 != sha256 || doc.Disk.Size != size {
		return nil, fmt.Errorf("push %s: the measurements are of another disk, with SHA-256 %s instead of %s: measure this one, and let nobody write to it", path, doc.Disk.SHA256, sha256)
	}
	return raw, nil
}
