package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/org/attestable-image-action/internal/artifact"
	"github.com/org/attestable-image-action/internal/attest"
	"github.com/org/attestable-image-action/internal/disk"
	"github.com/org/attestable-image-action/internal/kiwi"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/source"
)

// maxTold bounds the differences that one sentence tells.
const maxTold = 10

// rebuildFlags are the flags of rebuild.
type rebuildFlags struct {
	verify verifyFlags
	build  buildFlags // in place of what the artifact says of its build

	source      string // directory with the source
	sourceURL   string // of the repository that has the commit
	otherCommit bool

	measurements string // file for the document of what was built
}

func newRebuildCommand(a *app) *cobra.Command {
	var f rebuildFlags
	cmd := &cobra.Command{
		Use:   "rebuild REF",
		Short: "Build an artifact's disk again from its source, and compare",
		Long: `Verify an artifact as verify artifact does, check its source out at the commit that
the signer's certificate names, build the disk again, and compare. Exit status 0 says
that it is the same disk, byte for byte: that its source is what it is made of. Exit
status 1 says that something does not verify, or tells in what the disks differ.

The commit is fetched from the repository in the certificate, or from --source-url; or
--source names a directory that is checked out at it. Private repositories are not
fetched: check them out, and name the directory.

What to build (template or description, overlay, lock, name, version, time) stands in
the artifact, unless it was built outside of a checkout: then say it with the flags of
build. --description and --overlay are paths in the source. Before anything is built
the files are compared with those that are attested: one that is another is named. The
packages come from the sources of the description, or from --package-source, and those
that the lock names are the only ones taken; where the lock is not in the source, give
packages.lock of the attested build with --lock.

The programs of the source run in a container that may mount (CAP_SYS_ADMIN): the
scripts of the description, and the builder image that it names or that its Dockerfile
makes. Use a machine that you can throw away for a source that you do not trust.`,
		Example: `  attestable-image rebuild ghcr.io/owner/image:v1 --repo owner/image
  attestable-image rebuild ghcr.io/owner/image@sha256:... --repo owner/image --source . --measurements rebuilt.json
  attestable-image rebuild oci:layout --local-trust trust --source .`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("give the reference of the artifact to build again, and nothing else")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.rebuild(cmd.Context(), f, args[0])
		},
	}
	f.verify.format = "table"
	flags := cmd.Flags()
	f.verify.add(flags)
	flags.StringVar(&f.source, "source", "", "`DIR` that the source is checked out in (default: it is fetched)")
	flags.StringVar(&f.sourceURL, "source-url", "", "`URL` of a repository that has the commit, https: or file: (default: that in the certificate)")
	flags.BoolVar(&f.otherCommit, "other-commit", false, "take the source in --source whatever commit it is at; the files have to be the attested ones all the same")
	flags.StringVar(&f.build.template, "template", "", "`NAME` of the template that it was built from (default: as the artifact says)")
	flags.StringVar(&f.build.description, "description", "", "`PATH` of the KIWI description in the source (default: as the artifact says)")
	flags.StringVar(&f.build.overlay, "overlay", "", "`PATH` of the overlay in the source (default: as the artifact says)")
	flags.StringVar(&f.build.name, "name", "", "name that was asked for (default: as the artifact says)")
	flags.StringVar(&f.build.version, "version", "", "version that was asked for (default: as the artifact says)")
	flags.BoolVar(&f.build.serve, "serve", false, "the attestation service is in the image (default: as the artifact says)")
	flags.StringVar(&f.build.lock, "lock", "", "`FILE` with the packages of the image (default: that in the source)")
	flags.StringVar(&f.build.builderImage, "builder-image", "", "container `IMAGE` that runs KIWI NG (default: the attested one where it is in a registry, or else one made from the Dockerfile)")
	flags.StringArrayVar(&f.build.packageSources, "package-source", nil, "package repository in place of the description's remote ones, as for build; may be repeated")
	flags.StringVar(&f.build.output, "output", "", "`DIR` to keep the disk and KIWI's log in (default: they are thrown away)")
	flags.StringVar(&f.measurements, "measurements", "", "write the measurements of the new disk to `FILE`, when it is the same, for attest --rebuilt")
	return cmd
}

// validate checks what does not depend on the artifact.
func (f *rebuildFlags) validate() error {
	b := &f.build
	switch {
	case b.template != "" && b.description != "":
		return usagef("both --template and --description were given: keep one of them")
	case f.source != "" && f.sourceURL != "":
		return usagef("--source is a checkout already: leave out --source-url")
	case f.otherCommit && f.source == "":
		return usagef("--other-commit needs a directory to take the source from: give --source")
	case f.verify.localTrust != "" && f.sourceURL != "":
		return usagef("a local trust root names no commit to fetch: check the source out, and name the directory with --source")
	}
	for _, path := range []string{b.description, b.overlay} {
		if path != "" && !filepath.IsLocal(path) {
			return usagef("%s is no path in the source: give it relative to the top of the checkout", path)
		}
	}
	return nil
}

func (a *app) rebuild(ctx context.Context, f rebuildFlags, reference string) error {
	if err := f.validate(); err != nil {
		return err
	}
	image, verdict, err := f.verify.verify(ctx, reference)
	if err != nil {
		return err
	}
	if _, failed := verdict.Failed(); failed {
		return a.printVerification(f.verify.format, image.Reference, verdict)
	}
	fail := func(err error) error { return fmt.Errorf("rebuild %s: %w", image.Reference, err) }
	attested, err := measure.ParseDocument(verdict.Measurements)
	if err != nil {
		return fail(err)
	}
	if attested.Disk == nil || attested.Builder == nil {
		return fail(errors.New("the attested measurements do not say what the disk was built from: it has to be measured with --builder builder.json, as the action does"))
	}
	a.say("%s verifies: %d checks hold", image.Reference, len(verdict.Checks))
	work, err := os.MkdirTemp("", "attestable-image-")
	if err != nil {
		return fail(fmt.Errorf("make room for the source: %w", err))
	}
	defer os.RemoveAll(work)
	o, err := a.rebuildOptions(ctx, f, attested, verdict.Origin, work)
	if err != nil {
		if _, usage := errors.AsType[usageError](err); usage {
			return err
		}
		return fail(err)
	}
	built, err := a.runBuild(ctx, o)
	if err != nil {
		return fail(err)
	}
	again, err := a.measureAgain(ctx, attested, built)
	if err != nil {
		return fail(err)
	}
	if again.Disk.SHA256 != attested.Disk.SHA256 {
		return a.tellDifferences(ctx, image, attested, again, built, work)
	}
	if f.measurements != "" {
		content, err := again.Marshal()
		if err == nil {
			err = artifact.WriteFile(f.measurements, content)
		}
		if err != nil {
			return fail(fmt.Errorf("write the measurements: %w", err))
		}
	}
	origin := "the directory " + f.source
	if o := verdict.Origin; o.Commit != "" && !f.otherCommit {
		origin = o.Repository + " at " + o.Commit
	}
	_, err = fmt.Fprintf(a.stdout, "reproduced: %s\ndisk sha256:%s, %d bytes, built again from %s\n", image.Reference, again.Disk.SHA256, again.Disk.Size, printable(origin))
	return err
}

// say prints a line of progress.
func (a *app) say(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintln(a.stderr, printable(fmt.Sprintf(format, args...)))
	}
}

// rebuildOptions are the options of the attested build, with its source in work. When
// they cannot lead to the same disk that is an error, before anything is built.
func (a *app) rebuildOptions(ctx context.Context, f rebuildFlags, attested *measure.Document, origin attest.Origin, work string) (kiwi.Options, error) {
	inputs := &attested.Builder.Inputs
	if here := kiwi.Architecture(); attested.Architecture != here {
		return kiwi.Options{}, fmt.Errorf("it is an image for %s, and this machine builds those for %s", attested.Architecture, here)
	}
	b, err := f.recipe(inputs)
	if err != nil {
		return kiwi.Options{}, err
	}
	if b.description != "" || b.overlay != "" || b.lock != "" && f.build.lock == "" {
		top, err := a.checkout(ctx, f, origin, work)
		if err != nil {
			return kiwi.Options{}, err
		}
		if err := b.within(top, f.build.lock == ""); err != nil {
			return kiwi.Options{}, err
		}
	}
	if b.output == "" {
		b.output = filepath.Join(work, "output")
	}
	if b.builderImage == "" && attested.Builder.Digest != "" {
		b.builderImage = byDigest(attested.Builder)
	}
	o, err := a.options(b)
	if err != nil {
		return o, err
	}
	if _, err := b.source(ctx, &o); err != nil {
		return o, err
	}
	o.Epoch, o.Recipe = inputs.SourceDateEpoch, recipeOf(inputs.Recipe)
	if err := checkSource(o, inputs); err != nil {
		return o, err
	}
	o.DescriptionSHA256 = inputs.DescriptionSHA256 // also of what is built from in the end
	if inputs.PackagesLocked && o.Lock == nil {
		return o, usagef("the disk was built with a lock of its packages, and the source has none: give packages.lock of that build with --lock")
	}
	if found := o.Lock.ImageSHA256(); inputs.PackagesSHA256 != "" && o.Lock != nil && found != inputs.PackagesSHA256 {
		return o, fmt.Errorf("%s has other packages than the attested build used: its SHA-256 is %s and not %s", o.LockSource, found, inputs.PackagesSHA256)
	}
	return o, nil
}

// recipe is what to build: what the flags say, and the artifact where they do not.
func (f *rebuildFlags) recipe(inputs *measure.BuildInputs) (buildFlags, error) {
	b := f.build
	r := inputs.Recipe
	if r == nil {
		if b.template == "" && b.description == "" {
			return b, usagef("the artifact does not say what in its source it was built from: say it with --template or --description, and --overlay, --name, --version and --serve as it was built")
		}
		return b, nil
	}
	if b.template == "" && b.description == "" {
		b.template, b.description = r.Template, r.Description
	}
	for _, value := range []struct {
		into     *string
		recorded string
	}{{&b.overlay, r.Overlay}, {&b.lock, r.Lock}, {&b.name, r.Name}, {&b.version, r.Version}} {
		if *value.into == "" {
			*value.into = value.recorded
		}
	}
	b.serve = b.serve || r.Serve
	return b, nil
}

// recipeOf is a recipe as kiwi has it.
func recipeOf(r *measure.BuildRecipe) *kiwi.Recipe {
	if r == nil {
		return nil
	}
	recipe := kiwi.Recipe(*r)
	return &recipe
}

// checkout is the directory that the source is in, at the commit that it was built
// from.
func (a *app) checkout(ctx context.Context, f rebuildFlags, origin attest.Origin, work string) (string, error) {
	if f.source != "" {
		if f.otherCommit || origin.Commit == "" {
			return f.source, nil
		}
		head, err := source.Head(ctx, f.source)
		switch {
		case err != nil:
			return "", err
		case head == "":
			return "", fmt.Errorf("%s is no checkout of git, and the artifact was built from the commit %s: give --other-commit, if it has the same files", f.source, origin.Commit)
		case head != origin.Commit:
			return "", fmt.Errorf("%s is checked out at %s, and the artifact was built from the commit %s: check that out, or give --other-commit, if it has the same files", f.source, head, origin.Commit)
		}
		return f.source, nil
	}
	if origin.Commit == "" {
		return "", usagef("nobody certifies which commit it was built from: check the source out, and name the directory with --source")
	}
	repository := origin.Repository
	if f.sourceURL != "" {
		repository = f.sourceURL
	}
	dir := filepath.Join(work, "source")
	a.say("fetch %s at %s", repository, origin.Commit)
	if err := source.Fetch(ctx, repository, origin.Commit, dir); err != nil {
		return "", fmt.Errorf("%w; a checkout of your own is named with --source", err)
	}
	return dir, nil
}

// within makes the paths of the source those of the checkout at top. The source may
// not lead out of it with a symbolic link.
func (f *buildFlags) within(top string, lock bool) error {
	top, err := filepath.EvalSymlinks(top)
	if err == nil {
		top, err = filepath.Abs(top)
	}
	if err != nil {
		return fmt.Errorf("read the source: %w", err)
	}
	paths := []*string{&f.description, &f.overlay}
	if lock {
		paths = append(paths, &f.lock)
	}
	for _, path := range paths {
		if *path == "" {
			continue
		}
		full, err := filepath.EvalSymlinks(filepath.Join(top, filepath.FromSlash(*path)))
		if err != nil {
			return fmt.Errorf("read %s of the source: %w", *path, err)
		}
		if inside, err := filepath.Rel(top, full); err != nil || !filepath.IsLocal(inside) {
			return fmt.Errorf("read %s of the source: it leads out of it, to %s", *path, full)
		}
		*path = full
	}
	return nil
}

// byDigest names the builder image by what was attested of it.
func byDigest(b *measure.BuilderInfo) string {
	name, _, _ := strings.Cut(b.Image, "@")
	if slash, colon := strings.LastIndex(name, "/"), strings.LastIndex(name, ":"); colon > slash {
		name = name[:colon]
	}
	return name + "@" + b.Digest
}

// checkSource compares what would be built with what is attested.
func checkSource(o kiwi.Options, inputs *measure.BuildInputs) error {
	files, err := kiwi.Describe(o)
	if err != nil {
		return err
	}
	found := kiwi.DigestFiles(files)
	if found == inputs.DescriptionSHA256 {
		return nil
	}
	expected := make([]kiwi.File, len(inputs.Files))
	for i, file := range inputs.Files {
		expected[i] = kiwi.File(file)
	}
	differences := kiwi.CompareFiles(expected, files)
	if len(expected) == 0 || kiwi.DigestFiles(expected) != inputs.DescriptionSHA256 || len(differences) == 0 {
		return fmt.Errorf("the source is not what the disk was built from: the SHA-256 of %s is %s and not %s; the artifact lists no files, so that it cannot be said which is another", o.Source, found, inputs.DescriptionSHA256)
	}
	hint := ""
	if slices.ContainsFunc(differences, func(d string) bool { return strings.HasPrefix(d, "root/usr/bin/attestable-image ") }) {
		hint = "; use the release of attestable-image that built it"
	}
	return fmt.Errorf("the source is not what the disk was built from: in %s %s%s", o.Source, told(differences), hint)
}

// told are the first of some differences.
func told(differences []string) string {
	if more := len(differences) - maxTold; more > 0 {
		return strings.Join(differences[:maxTold], "; ") + fmt.Sprintf("; and %d more", more)
	}
	return strings.Join(differences, "; ")
}

// measureAgain measures a disk as the attested one was measured, but with Secure Boot
// off: a disk that was just built is not signed.
func (a *app) measureAgain(ctx context.Context, attested *measure.Document, built *kiwi.Result) (*measure.Document, error) {
	d, err := disk.Open(built.Disk)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	prediction, err := measure.Disk(ctx, d, unsigned(attested))
	if err != nil {
		return nil, err
	}
	doc := prediction.Document()
	if doc.Disk, err = a.diskInfo(ctx, d); err != nil {
		return nil, err
	}
	doc.Builder, err = readBuilder(built.Builder)
	return doc, err
}

// unsigned are the circumstances that an attested disk was measured under, but with
// Secure Boot off.
func unsigned(attested *measure.Document) measure.Options {
	return measure.Options{
		Bank: attested.Measurements.HashAlgorithm, Arch: attested.Architecture, PCRs: slices.Sorted(maps.Keys(attested.Measurements.PCRs)),
	}
}
