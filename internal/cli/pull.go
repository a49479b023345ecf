package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/org/attestable-image-action/internal/artifact"
	"github.com/org/attestable-image-action/internal/measure"
)

func newPullCommand(a *app) *cobra.Command {
	var output string
	var noDisk bool
	cmd := &cobra.Command{
		Use:   "pull REF",
		Short: "Restore disk and measurements from an OCI artifact",
		Long: `Restore the raw disk and measurements.json from an OCI artifact, and print their
paths, one a line.

REF is HOST/REPOSITORY[:TAG|@DIGEST] of a registry, or oci:DIR[:TAG|@DIGEST] for
an OCI layout. The disk is written with holes where it is zero. A file appears
under its name only when it is whole and its digest is the one in the manifest,
and the disk's also the one in the measurements.

Who made the artifact is not looked at: verify artifact does that.`,
		Example: `  attestable-image pull --output out ghcr.io/owner/image:v1
  attestable-image pull --no-disk oci:layout`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("give the reference of one artifact")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			paths, err := a.pull(cmd.Context(), args[0], output, !noDisk)
			for _, path := range paths {
				fmt.Fprintln(a.stdout, path)
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", ".", "`DIR` to write to; it is made if it does not exist")
	cmd.Flags().BoolVar(&noDisk, "no-disk", false, "leave the disk out")
	return cmd
}

// pull returns the paths of what it restored, which on an error is not all.
func (a *app) pull(ctx context.Context, reference, dir string, withDisk bool) ([]string, error) {
	ref, err := artifact.ParseReference(reference)
	if err != nil {
		return nil, usageError{err}
	}
	if dir == "" {
		dir = "."
	}
	var total int64 // bytes of disk, once they are known
	var bar *progress
	found, err := artifact.Open(ctx, ref, artifact.WithProgress(func(n int64) {
		if bar == nil {
			bar = a.newProgress("pull "+ref.String(), total)
		}
		bar.add(n)
	}))
	if err != nil {
		return nil, err
	}
	measurements, err := found.Measurements(ctx)
	if err != nil {
		return nil, err
	}
	uefiData, err := found.UEFIData(ctx)
	if err != nil {
		return nil, err
	}
	doc, err := measure.ParseDocument(measurements)
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", found.Reference, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // what is pulled is no secret
		return nil, fmt.Errorf("pull %s: %w", found.Reference, err)
	}
	var paths []string
	if withDisk {
		if doc.Disk == nil {
			return nil, fmt.Errorf("pull %s: the measurements do not say which disk they are of, so that it cannot be checked: use --no-disk, or push the artifact again", found.Reference)
		}
		total = doc.Disk.Size
		path := filepath.Join(dir, found.Name+".raw")
		err := found.RestoreDisk(ctx, path, doc.Disk.SHA256, doc.Disk.Size)
		if bar != nil {
			bar.finish()
		}
		if err != nil {
			return nil, err
		}
		paths = append(paths, path)
	}
	for _, file := range []struct {
		name string
		data []byte
	}{{"measurements.json", measurements}, {"uefi-data.aws", uefiData}} {
		if file.data == nil {
			continue
		}
		path := filepath.Join(dir, file.name)
		if err := artifact.WriteFile(path, file.data); err != nil {
			return paths, fmt.Errorf("pull %s: %w", found.Reference, err)
		}
		paths = append(paths, path)
	}
	return paths, nil
}
