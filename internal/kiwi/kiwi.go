package kiwi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Options say what to build. Description, Source and Output have to be given.
type Options struct {
	Description fs.FS    // KIWI's description directory
	Source      string   // what the description is called in messages
	Embedded    bool     // Description has no permissions: scripts are told by "#!"
	Overlay     string   // directory that is copied over the image's root
	Service     *Service // attestation service to put into the image, nil for none

	// Tracked and OverlayTracked are permissions of what git tracks in Description
	// and Overlay, by path: see Checkout.
	Tracked, OverlayTracked map[string]fs.FileMode

	// Epoch is the time of the image, in seconds since 1970: nothing in it is
	// younger. 0 is DefaultEpoch.
	Epoch int64
	// Lock has the packages that the image may have, nil for any. LockSource is what
	// it is called in messages.
	Lock       Lock
	LockSource string

	// DescriptionSHA256 is what the description has to be, as DigestFiles gives it; ""
	// for any. Nothing of another one runs.
	DescriptionSHA256 string

	// Recipe is what the result says of how to build it again, nil when that is not
	// known.
	Recipe *Recipe

	Name           string          // of the image; "" is the description's
	Version        string          // of the image; "" is the description's
	PackageSources []PackageSource // in place of the description's remote repositories

	BuilderImage string // container image with KIWI; "" makes one
	// Builder holds the Dockerfile and builder/ of the container image, for
	// descriptions without a Dockerfile of their own.
	Builder fs.FS

	Output string    // directory for the results: new, empty, or that of an earlier build
	Log    io.Writer // gets KIWI's log while it is written; nil discards it
}

// Result is what a build made. The files are in Options.Output.
type Result struct {
	Disk         string // path of the raw disk
	Packages     string // path of the list of packages in the image, "" when KIWI made none
	Log          string // path of KIWI's log
	BuilderImage string // container image that ran KIWI
	Builder      string // path of builder.json
	Used         Lock   // packages that the image is made of; nil when they are not known
}

// LogError is a build that failed while KIWI ran.
type LogError struct {
	Reason string // why, from KIWI's log
	Log    string // path of KIWI's log, "" when it wrote none
}

func (e *LogError) Error() string {
	if e.Log == "" {
		return e.Reason
	}
	return fmt.Sprintf("%s (KIWI's log: %s)", e.Reason, e.Log)
}

// Build builds an image. The results of an earlier build in Output are removed
// first. When ctx is done the container is killed, and what it held is released.
func Build(ctx context.Context, o Options) (*Result, error) {
	if o.Log == nil {
		o.Log = io.Discard
	}
	for _, check := range []struct {
		value string
		valid func(string) error
	}{{o.Name, ValidateName}, {o.Version, ValidateVersion}} {
		if check.value == "" {
			continue
		}
		if err := check.valid(check.value); err != nil {
			return nil, err
		}
	}
	// A description that is none is told before anything is made.
	if _, err := configFile(o.Description); err != nil {
		return nil, fmt.Errorf("read the KIWI description %s: %w", o.Source, err)
	}
	output, err := openOutput(o.Output)
	if err != nil {
		return nil, err
	}
	defer output.close()
	if o.Epoch == 0 {
		o.Epoch = DefaultEpoch
	}
	if err := checkEpoch(o.Epoch, time.Now()); err != nil {
		return nil, err
	}
	if err := o.checkSpace(output.path); err != nil {
		return nil, fmt.Errorf("build %s: %w", o.Source, err)
	}
	if o.Lock != nil && len(o.Lock[Architecture()]) == 0 {
		return nil, fmt.Errorf("%s has no packages for an image for %s: add them with --update-lock", o.LockSource, Architecture())
	}
	description := filepath.Join(output.scratch, "description")
	files, err := o.stage(description)
	if err != nil {
		return nil, err
	}
	digest := DigestFiles(files)
	if o.DescriptionSHA256 != "" && digest != o.DescriptionSHA256 {
		return nil, fmt.Errorf("build %s: it changed while it was compared with what was attested: its SHA-256 is %s now, and not %s", o.Source, digest, o.DescriptionSHA256)
	}
	snapshot, err := fromSnapshot(description)
	if err != nil {
		return nil, err
	}
	abilities, err := readHost(ctx)
	if err != nil {
		return nil, err
	}
	free, err := freeDevices(os.DirFS("/sys"))
	if err != nil {
		return nil, err
	}
	if !abilities.vfat {
		fmt.Fprintln(o.Log, "this machine's kernel has no vfat: the EFI system partition is staged with mtools")
	}
	e, err := findEngine(ctx)
	if err != nil {
		return nil, err
	}
	image, err := o.builderImage(ctx, e)
	if err != nil {
		return nil, err
	}
	c := container{
		engine: e, image: image, host: abilities, devices: free, log: o.Log,
		description: description,
		output:      filepath.Join(output.scratch, "output"),
		tools:       filepath.Join(output.scratch, "tools"),
		epoch:       o.Epoch,
		seed:        seed(digest, o.Epoch, Architecture()),
		// What a lock or a snapshot has does not become wrong with time.
		checkDates: o.Lock == nil && !snapshot,
	}
	for _, source := range o.PackageSources {
		c.repositories = append(c.repositories, source.local())
	}
	result, err := o.run(ctx, &c, output)
	if err != nil {
		return nil, err
	}
	builder, err := c.describe(ctx)
	if err != nil {
		return nil, errors.Join(err, c.clean())
	}
	builder.Inputs = Inputs{
		SourceDateEpoch: o.Epoch, DescriptionSHA256: digest,
		PackagesLocked: o.Lock != nil, PackagesSHA256: result.Used.digest(),
		Recipe: o.Recipe, Files: listed(files),
	}
	if result.Builder, err = output.write("builder.json", builder.format()); err != nil {
		return nil, err
	}
	if result.Used != nil {
		if _, err := output.write(LockName, result.Used.Format()); err != nil {
			return nil, err
		}
	}
	return result, nil
}

// run runs KIWI and moves its results to where they belong.
func (o *Options) run(ctx context.Context, c *container, output *outputDir) (*Result, error) {
	if err := c.prepare(o.Lock[Architecture()]); err != nil {
		return nil, err
	}
	runErr := c.build(ctx)
	log, logErr := output.keep(filepath.Join(c.output, "kiwi.log"), "kiwi.log")
	used, usedErr := c.used()
	if usedErr == nil && o.Lock != nil && ctx.Err() == nil {
		if changes := comparePackages(o.Lock[Architecture()], used, runErr != nil); len(changes) > 0 {
			return nil, errors.Join(fmt.Errorf("build %s: %w", o.Source, &LockError{Lock: o.LockSource, Changes: changes}), c.clean())
		}
	}
	if runErr != nil {
		reason := c.reason(log, logErr, runErr)
		cleanErr := c.clean()
		if ctx.Err() != nil {
			return nil, errors.Join(fmt.Errorf("build %s: the build was stopped: %w", o.Source, ctx.Err()), cleanErr)
		}
		return nil, errors.Join(fmt.Errorf("build %s with KIWI: %w", o.Source, reason), cleanErr)
	}
	if err := errors.Join(logErr, usedErr); err != nil {
		return nil, errors.Join(err, c.clean())
	}
	if used == nil && o.Lock != nil {
		return nil, errors.Join(fmt.Errorf("build %s: its packages cannot be locked: only those of apt can", o.Source), c.clean())
	}
	result := &Result{Log: log, BuilderImage: c.image}
	if used != nil {
		result.Used = Lock{Architecture(): used}
	}
	content, err := c.read("build/kiwi.result.json", maxResultBytes)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read KIWI's result file: %w", err), c.clean())
	}
	files, err := parseResult(content)
	if err != nil {
		return nil, errors.Join(err, c.clean())
	}
	disk, err := diskFile(files)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("build %s: %w", o.Source, err), c.clean())
	}
	for key, name := range files {
		path, err := output.keep(filepath.Join(c.output, "build", name), name)
		if errors.Is(err, fs.ErrNotExist) && name != disk {
			continue // KIWI lists some files that it did not write
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("build %s: %w", o.Source, err), c.clean())
		}
		switch key {
		case "disk_image":
			result.Disk = path
		case "image_packages":
			result.Packages = path
		}
	}
	info, err := output.root.Lstat(disk)
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the disk that KIWI made: %w", err)
	case !info.Mode().IsRegular() || info.Size() == 0:
		return nil, fmt.Errorf("read the disk that KIWI made: %s is empty", result.Disk)
	case info.Size() > maxDiskBytes:
		return nil, fmt.Errorf("read the disk that KIWI made: %s is larger than %d TiB, and no volume of EBS is", result.Disk, maxDiskBytes>>40)
	}
	return result, nil
}

// builderFiles returns what has the builder's Dockerfile: the description or its
// stand-in, nil when neither has one.
func (o *Options) builderFiles() fs.FS {
	if _, err := fs.Stat(o.Description, "Dockerfile"); err == nil {
		return o.Description
	}
	return o.Builder
}

// builderImage returns the container image to run KIWI in.
func (o *Options) builderImage(ctx context.Context, e *engine) (string, error) {
	b := builder{engine: e, log: o.Log}
	if o.BuilderImage != "" {
		if _, err := e.ask(ctx, "image", "inspect", "--format", "{{.Id}}", o.BuilderImage); err == nil {
			return o.BuilderImage, nil
		}
		if err := b.run(e.command(ctx, "pull", o.BuilderImage)); err != nil {
			return "", fmt.Errorf("pull the builder image %s: %w", o.BuilderImage, err)
		}
		return o.BuilderImage, nil
	}
	outline, err := o.outline()
	if err != nil {
		return "", fmt.Errorf("read the KIWI description %s: %w", o.Source, err)
	}
	if b.files = o.builderFiles(); b.files == nil {
		return "", fmt.Errorf("the KIWI description %s has no Dockerfile for its builder: name a builder image with --builder-image", o.Source)
	}
	if _, err := fs.Stat(o.Description, "Dockerfile"); err != nil && outline.packageManager != "apt" {
		return "", fmt.Errorf("the KIWI description %s has no Dockerfile for its builder, and its package manager is %q, while the builder of attestable-image has apt alone: put a Dockerfile beside it, or name a builder image with --builder-image", o.Source, outline.packageManager)
	}
	b.mirror = o.mirror(outline)
	if dir, err := os.UserCacheDir(); err == nil {
		b.cache = filepath.Join(dir, "attestable-image", "kiwi")
	}
	if dir := os.Getenv("ATTESTABLE_IMAGE_CACHE"); dir != "" {
		b.cache = filepath.Join(dir, "kiwi")
	}
	return b.image(ctx)
}

// mirror is the package source that a base of the builder can be made from, which
// is Debian's: "" when none is.
func (o *Options) mirror(outline *outline) string {
	model := outline.model()
	if model == nil || !outline.debian(model) {
		return ""
	}
	for _, source := range o.PackageSources {
		suite := source.Suite
		if suite == "" {
			suite = model.attribute("distribution")
		}
		if source.local() == "" && suite == defaultSuite {
			return source.URI
		}
	}
	return ""
}

// outputDir is the directory of the results. While a build runs it is locked, and
// holds a scratch directory.
type outputDir struct {
	path    string
	root    *os.Root // at path
	scratch string
	lock    *os.File
	made    []string // names of what a build keeps here
}

// manifestName is the file in an output directory that lists what a build made
// there, one name a line: the next build removes these files, and no others.
const manifestName = ".attestable-image-build"

const maxManifestBytes = 64 << 10

// maxDiskBytes bounds a disk: the largest volume of EBS.
const maxDiskBytes = 64 << 40

// openOutput makes the output directory, or empties that of an earlier build.
func openOutput(path string) (*outputDir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(path, 0o755); err != nil { //nolint:gosec // results are for everybody to read
		return nil, fmt.Errorf("make the output directory: %w", err)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("open the output directory: %w", err)
	}
	d := &outputDir{path: path, root: root}
	fail := func(err error) (*outputDir, error) {
		d.close()
		return nil, err
	}
	if d.lock, err = root.Open("."); err != nil {
		return fail(fmt.Errorf("open the output directory: %w", err))
	}
	if err := syscall.Flock(int(d.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil { //nolint:gosec // a descriptor fits
		return fail(fmt.Errorf("lock the output directory %s: another build is using it (%w)", path, err))
	}
	if err := d.empty(); err != nil {
		return fail(err)
	}
	if d.scratch, err = os.MkdirTemp(path, ".build-"); err != nil {
		return fail(fmt.Errorf("make a directory in the output directory: %w", err))
	}
	d.made = []string{filepath.Base(d.scratch)}
	if err := d.writeManifest(); err != nil {
		return fail(err)
	}
	return d, nil
}

// keep moves a result from a path below the output directory into it. The container made
// it, and may have made anything: what is no file, or lies behind a link, is refused, and
// nobody gets a program that runs with the rights of its owner.
func (d *outputDir) keep(from, name string) (string, error) {
	fail := func(err error) (string, error) { return "", fmt.Errorf("keep KIWI's result %s: %w", name, err) }
	rel, err := filepath.Rel(d.path, from)
	if err != nil {
		return fail(err)
	}
	for dir := filepath.Dir(rel); dir != "."; dir = filepath.Dir(dir) {
		if info, err := d.root.Lstat(dir); err != nil {
			return fail(err)
		} else if !info.IsDir() {
			return fail(fmt.Errorf("%s is not a directory", filepath.Base(dir)))
		}
	}
	if info, err := d.root.Lstat(rel); err != nil {
		return fail(err)
	} else if !info.Mode().IsRegular() {
		return fail(errors.New("it is not a file"))
	}
	if err := d.root.Chmod(rel, 0o644); err != nil {
		return fail(err)
	}
	d.made = append(d.made, name)
	if err := d.writeManifest(); err != nil {
		return "", err
	}
	if err := d.root.Rename(rel, name); err != nil {
		return fail(err)
	}
	// The container is gone, unless it could not be removed.
	if info, err := d.root.Lstat(name); err != nil || !info.Mode().IsRegular() {
		return fail(errors.Join(errors.New("it is not a file any more"), d.root.RemoveAll(name)))
	}
	return filepath.Join(d.path, name), nil
}

// write writes a result into the output directory.
func (d *outputDir) write(name string, content []byte) (string, error) {
	d.made = append(d.made, name)
	if err := d.writeManifest(); err != nil {
		return "", err
	}
	if err := d.root.WriteFile(name, content, 0o644); err != nil { // nothing secret
		return "", fmt.Errorf("write into the output directory: %w", err)
	}
	return filepath.Join(d.path, name), nil
}

// close removes the scratch directory and gives the output directory free.
func (d *outputDir) close() {
	_ = os.RemoveAll(d.scratch) // what is left in it is named in the manifest
	_ = d.root.Close()
	_ = d.lock.Close()
}
