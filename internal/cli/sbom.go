package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/org/attestable-image-action/internal/artifact"
	"github.com/org/attestable-image-action/internal/attest"
	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/sbom"
)

// sbomFlags are the flags of sbom.
type sbomFlags struct {
	format, output string
	packages       string
	name, version  string
}

func newSBOMCommand(a *app) *cobra.Command {
	var f sbomFlags
	cmd := &cobra.Command{
		Use:   "sbom DISK",
		Short: "List what is installed on a disk: a software bill of materials",
		Long: `List the packages that are installed on a raw disk, as SPDX 2.3 or CycloneDX 1.6
in JSON: with versions, package URLs, source packages and licences, beside the
digests of the disk and of the files that firmware loads.

The package databases of the root file system are read, dpkg's and rpm's (SQLite
and ndb), without mounting it. Licences are what the packages say in a form that a
program can read, the machine-readable copyright files of Debian and the licence
tag of rpm; else NOASSERTION. What came into the image without a package is not
listed. A database that cannot be read whole is an error, never a shorter list.

--packages compares with the list that KIWI wrote when it built the image, and
fails when the two differ.

The same disk always gives the same document: its time is SOURCE_DATE_EPOCH, or
else when the package database was last written.`,
		Example: `  attestable-image sbom image.raw > image.spdx.json
  attestable-image sbom --format cyclonedx --output image.cdx.json image.raw
  attestable-image sbom --packages image.packages --output image.spdx.json image.raw`,
		Args: oneArg("the raw disk to list"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.sbom(cmd.Context(), f, args[0])
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.format, "format", string(sbom.SPDX), "spdx (SPDX 2.3) or cyclonedx (CycloneDX 1.6)")
	flags.StringVar(&f.output, "output", "", "write to `FILE` instead of standard output")
	flags.StringVar(&f.packages, "packages", "", "compare with KIWI's list of packages in `FILE` (NAME.ARCH-VERSION.packages)")
	flags.StringVar(&f.name, "name", "", "name of the image (default: the disk's file name without .raw)")
	flags.StringVar(&f.version, "version", "", "version of the image (default: the disk's SHA-256)")
	return cmd
}

func (a *app) sbom(ctx context.Context, f sbomFlags, path string) error {
	format, err := sbom.ParseFormat(f.format)
	if err != nil {
		return usagef("--format: %w", err)
	}
	heading := sbom.Heading{Name: f.name, Version: f.version, Tool: thisBuild().version}
	if heading.Name == "" {
		heading.Name = strings.TrimSuffix(filepath.Base(path), ".raw")
	}
	if heading.Created, _, err = artifact.SourceDateEpoch(); err != nil {
		return err
	}
	d, err := disk.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	progress := a.newProgress("SHA-256 of "+filepath.Base(path), d.Size())
	inventory, err := sbom.Read(ctx, d, progress.add)
	progress.finish()
	if err != nil {
		return err
	}
	if f.packages != "" {
		list, err := readBounded(f.packages, sbom.MaxKiwiList)
		if err == nil {
			err = inventory.CheckKiwiList(list)
		}
		if err != nil {
			return fmt.Errorf("compare disk %s with %s: %w", path, f.packages, err)
		}
	}
	content, err := inventory.Document(format, heading)
	if err != nil {
		return err
	}
	if !a.quiet {
		fmt.Fprintf(a.stderr, "%d packages of %s%s\n", len(inventory.Packages), printable(inventory.OS.Label()),
			map[bool]string{true: ", as KIWI lists them"}[f.packages != ""])
		if len(content) > attest.MaxPredicate {
			fmt.Fprintf(a.stderr, "the document has %s, and an attestation holds at most %s\n", formatBytes(int64(len(content))), formatBytes(attest.MaxPredicate))
		}
	}
	if f.output == "" {
		_, err := a.stdout.Write(content)
		return err
	}
	if err := artifact.WriteFile(f.output, content); err != nil {
		return fmt.Errorf("write the bill of materials: %w", err)
	}
	return nil
}
