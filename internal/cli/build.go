package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/org/attestable-image-action/internal/artifact"
	"github.com/org/attestable-image-action/internal/gha"
	"github.com/org/attestable-image-action/internal/kiwi"
	"github.com/org/attestable-image-action/internal/source"
	"github.com/org/attestable-image-action/internal/untrusted"
)

// builderTemplate is the template whose Dockerfile makes the builder for
// descriptions without one.
const builderTemplate = "debian"

// serviceFiles is what --serve puts into the image, beside this program: a folder
// next to the templates.
const serviceFiles = "serve"

// buildFlags are the flags of build.
type buildFlags struct {
	template, description, overlay string
	name, version                  string
	builderImage                   string
	packageSources                 []string
	lock, output                   string
	serve, updateLock              bool
}

func newBuildCommand(a *app) *cobra.Command {
	var f buildFlags
	cmd := &cobra.Command{
		Use:   "build (--template NAME | --description DIR) --output DIR",
		Short: "Build a raw disk with KIWI NG in a container",
		Long: `Build a raw disk with KIWI NG in a container, from a template that comes with
attestable-image (al2023, debian, ubuntu) or from a KIWI description of your own, and
print its path.

The container engine is docker, or podman where docker is missing or does not
answer. The container gets CAP_SYS_ADMIN and some loop devices, never
--privileged. It runs the image of --builder-image, or one made from the
Dockerfile beside the description; a description for apt without a Dockerfile gets
the builder of the template debian. Where no container registry can be reached, a
base of Debian's for the builder is made with mmdebstrap.

KIWI's log is shown while it is written, and kept as kiwi.log in the output
directory. The directory has to be new, empty, or that of an earlier build, whose
files are removed.

The same description, packages, builder and time make the same disk, byte for byte.
The time of the image is SOURCE_DATE_EPOCH in the environment; without it that of
the commit which the description is checked out at (with --template: the overlay);
without a commit 2025-01-01. Identifiers are derived from the description.

A lock has each package's version and SHA-256. The build fails when it would use
another package, and tells the differences. It is packages.lock beside the
description, or --lock FILE; --update-lock writes it. Without a lock any package
of the sources is used. Either way packages.lock in the output directory has what
was used, and builder.json the tools and the inputs.

With --serve this program goes into the image, with units for systemd that answer
attestation requests on port 8443 (see serve and verify instance). A description of
your own has to make the group tss, as systemd-sysusers in its config.sh does.`,
		Example: `  attestable-image build --template debian --output out/image
  attestable-image build --description ./kiwi --overlay ./files --version 1.2.3 --output out/image
  attestable-image build --template debian --serve --output out/image
  attestable-image build --description ./kiwi --update-lock --output out/image
  attestable-image build --template debian --lock image/packages.lock --output out/image \
    --package-source "http://snapshot.debian.org/archive/debian/20261101T000000Z trixie main"
  attestable-image build --template al2023 --package-source 'https://cdn.amazonlinux.com/al2023/core/mirrors/2023.12.20260713/$basearch/mirror.list' --output out/image`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("build takes flags only, and %q is none", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			result, err := a.build(cmd.Context(), f)
			if err != nil {
				return placedError{err, newImageSource(f.description, f.overlay).errorPlace(err)}
			}
			if err := gha.SetOutput("image-path", result.Disk); err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.stdout, result.Disk)
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.template, "template", "", "`NAME` of a template that comes with attestable-image")
	flags.StringVar(&f.description, "description", "", "`DIR` with a KIWI description")
	flags.StringVar(&f.overlay, "overlay", "", "`DIR` whose content is copied over the image's root")
	flags.StringVar(&f.name, "name", "", "name of the image (default: the description's)")
	flags.StringVar(&f.version, "version", "", "version of the image, as major.minor.patch (default: the description's)")
	flags.StringVar(&f.builderImage, "builder-image", "", "container `IMAGE` that runs KIWI NG (default: one made from a Dockerfile)")
	flags.StringArrayVar(&f.packageSources, "package-source", nil, "package repository in place of the description's remote ones, as \"`URI` [SUITE [COMPONENT...]]\", or a URI alone for rpm packages; may be repeated, or have several lines")
	flags.StringVar(&f.lock, "lock", "", "`FILE` with the packages that the image may have (default: packages.lock beside the description, if there is one)")
	flags.BoolVar(&f.updateLock, "update-lock", false, "take the packages that the sources have now, and write them into the lock")
	flags.BoolVar(&f.serve, "serve", false, "put the attestation service into the image")
	flags.StringVar(&f.output, "output", "", "`DIR` for the disk and KIWI's log")
	return cmd
}

// options turns the flags of build into what to build.
func (a *app) options(f buildFlags) (kiwi.Options, error) {
	var o kiwi.Options
	switch {
	case f.template == "" && f.description == "":
		return o, usagef("neither --template nor --description was given: give --template debian, or --description with the directory of your KIWI description")
	case f.template != "" && f.description != "":
		return o, usagef("both --template and --description were given: keep one of them")
	case f.output == "":
		return o, usagef("--output is missing: give the directory for the disk")
	}
	var err error
	if f.template != "" {
		names, err := kiwi.Templates(a.templates)
		if err != nil {
			return o, err
		}
		if !slices.Contains(names, f.template) {
			return o, usagef("there is no template %q: there is %s", f.template, strings.Join(names, ", "))
		}
		o.Source, o.Embedded = "template "+f.template, true
		if o.Description, err = fs.Sub(a.templates, f.template); err != nil {
			return o, err
		}
	} else {
		info, err := os.Stat(f.description)
		if err != nil {
			return o, usagef("read the KIWI description: %w", err)
		}
		if !info.IsDir() {
			return o, usagef("read the KIWI description: %s is not a directory: give the directory that it lies in", f.description)
		}
		o.Source = f.description
		if o.Description, err = untrusted.Dir(f.description); err != nil {
			return o, fmt.Errorf("read the KIWI description: %w", err)
		}
	}
	if o.Builder, err = fs.Sub(a.templates, builderTemplate); err != nil {
		return o, err
	}
	if f.overlay != "" {
		if info, err := os.Stat(f.overlay); err != nil || !info.IsDir() {
			return o, usagef("the overlay %s is not a directory", f.overlay)
		}
	}
	if f.name != "" {
		if err := kiwi.ValidateName(f.name); err != nil {
			return o, usageError{err}
		}
	}
	if f.version != "" {
		if err := kiwi.ValidateVersion(f.version); err != nil {
			return o, usageError{err}
		}
	}
	if o.PackageSources, err = kiwi.ParsePackageSources(strings.Join(f.packageSources, "\n")); err != nil {
		return o, usageError{err}
	}
	o.Overlay, o.Name, o.Version = f.overlay, f.name, f.version
	o.BuilderImage, o.Output = f.builderImage, f.output
	if err := lockOptions(&o, f); err != nil {
		return o, err
	}
	if f.serve {
		o.Service = new(kiwi.Service)
		if o.Service.Files, err = fs.Sub(a.templates, serviceFiles); err != nil {
			return o, err
		}
		if o.Service.Program, err = os.Executable(); err != nil {
			return o, fmt.Errorf("find this program, to put it into the image: %w", err)
		}
	}
	return o, nil
}

// lockPath is the file that the lock is written to, "" when there is none.
func (f buildFlags) lockPath() string {
	if f.lock != "" || f.description == "" {
		return f.lock
	}
	return filepath.Join(f.description, kiwi.LockName)
}

// lockOptions reads the lock, if there is one.
func lockOptions(o *kiwi.Options, f buildFlags) error {
	if f.updateLock {
		if f.lockPath() == "" {
			return usagef("--update-lock has no file to write to: a template's packages are locked in a file of your own, name it with --lock")
		}
		return nil
	}
	var content []byte
	var err error
	if f.lock != "" {
		o.LockSource = f.lock
		content, err = readLock(f.lock)
		if errors.Is(err, fs.ErrNotExist) {
			return usagef("read the lock %s: there is no such file: make it with --update-lock", f.lock)
		}
	} else {
		o.LockSource = kiwi.LockName + " of " + o.Source
		content, err = untrusted.ReadFile(o.Description, kiwi.LockName, kiwi.MaxLockBytes)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	if err == nil {
		o.Lock, err = kiwi.ParseLock(content)
	}
	if err != nil {
		return usagef("read the lock %s: %w", o.LockSource, err)
	}
	return nil
}

// readLock reads a lock, which may lie in somebody's checkout.
func readLock(path string) ([]byte, error) {
	dir, err := untrusted.Dir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return untrusted.ReadFile(dir, filepath.Base(path), kiwi.MaxLockBytes)
}

// updateLock puts the packages that a build used into the lock, in place of those of
// the same architecture.
func updateLock(path string, used kiwi.Lock) error {
	if used == nil {
		return fmt.Errorf("write the lock %s: this description's packages cannot be locked: only those of apt can", path)
	}
	lock := kiwi.Lock{}
	content, err := readLock(path)
	if err == nil {
		lock, err = kiwi.ParseLock(content)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("read the lock %s: %w", path, err)
	}
	maps.Copy(lock, used)
	if err := artifact.WriteFile(path, lock.Format()); err != nil { // in the place of a link, not through it
		return fmt.Errorf("write the lock: %w", err)
	}
	return nil
}

// recipe is what is known of how to build an image again.
type recipe struct {
	kiwi.Recipe
	top     string // of the work tree that paths are relative to, "" before the first
	unknown bool   // a path is in no work tree, or in another one
}

// path is where a checked out directory is in its work tree.
func (r *recipe) path(checkout *source.Checkout) string {
	if checkout == nil || len(checkout.Tracked) == 0 || !fs.ValidPath(checkout.Path) || r.top != "" && checkout.Top != r.top {
		r.unknown = true
		return ""
	}
	r.top = checkout.Top
	return checkout.Path
}

// source finds out the image's time, and the permissions that git records for what it
// is built from.
func (f buildFlags) source(ctx context.Context, o *kiwi.Options) (told string, err error) {
	var from string
	recipe := recipe{Recipe: kiwi.Recipe{Template: f.template, Name: f.name, Version: f.version, Serve: f.serve}}
	if f.description != "" {
		checkout, err := source.ReadCheckout(ctx, f.description)
		if err != nil {
			return "", err
		}
		recipe.Description = recipe.path(checkout)
		if checkout != nil {
			o.Epoch, o.Tracked, from = checkout.Epoch, checkout.Tracked, f.description
		}
	}
	if f.overlay != "" {
		checkout, err := source.ReadCheckout(ctx, f.overlay)
		if err != nil {
			return "", err
		}
		recipe.Overlay = recipe.path(checkout)
		if checkout != nil {
			o.OverlayTracked = checkout.Tracked
			if o.Epoch == 0 && f.description == "" {
				o.Epoch, from = checkout.Epoch, f.overlay
			}
		}
	}
	if f.lock != "" && !f.updateLock && recipe.top != "" {
		// One that lies elsewhere is asked for when somebody builds again.
		if checkout, err := source.ReadCheckout(ctx, filepath.Dir(f.lock)); err == nil && checkout != nil && checkout.Top == recipe.top {
			if _, tracked := checkout.Tracked[filepath.Base(f.lock)]; tracked {
				recipe.Lock = path.Join(checkout.Path, filepath.Base(f.lock))
			}
		}
	}
	if !recipe.unknown {
		o.Recipe = &recipe.Recipe
	}
	told = "the commit of " + from
	if text := os.Getenv("SOURCE_DATE_EPOCH"); text != "" {
		if o.Epoch, err = kiwi.ParseEpoch(text); err != nil {
			return "", err
		}
		told = "SOURCE_DATE_EPOCH"
	} else if o.Epoch == 0 {
		o.Epoch, told = kiwi.DefaultEpoch, "the default, because the source has no commit"
		if f.description == "" {
			told = "the default for a template"
		}
	}
	return fmt.Sprintf("the image's time is %s (%s)", time.Unix(o.Epoch, 0).UTC().Format(time.RFC3339), told), nil
}

// runBuild has KIWI build, with its log below what is told in a group that folds on
// Actions.
func (a *app) runBuild(ctx context.Context, o kiwi.Options, told ...string) (*kiwi.Result, error) {
	o.Log = io.Discard
	if !a.quiet {
		o.Log = a.stderr
		end := gha.Group(a.stderr, "Build "+o.Source+" with KIWI NG")
		defer end()
		for _, line := range told {
			fmt.Fprintln(a.stderr, line)
		}
	}
	return kiwi.Build(ctx, o)
}

// build builds an image.
func (a *app) build(ctx context.Context, f buildFlags) (*kiwi.Result, error) {
	o, err := a.options(f)
	if err != nil {
		return nil, err
	}
	at, err := f.source(ctx, &o)
	if err != nil {
		return nil, err
	}
	told := []string{at}
	if o.Lock == nil && !f.updateLock {
		told = append(told, "the packages are not locked: the image has what its package sources have now")
	}
	result, err := a.runBuild(ctx, o, told...)
	if err != nil {
		return nil, err
	}
	if f.updateLock {
		if err := updateLock(f.lockPath(), result.Used); err != nil {
			return nil, err
		}
	}
	return result, nil
}
