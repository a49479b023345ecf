package cli

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/org/attestable-image-action/internal/gha"
	"github.com/org/attestable-image-action/internal/kiwi"
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
	output                         string
	serve                          bool
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
answer. The container gets CAP_SYS_ADMIN and the loop devices, never
--privileged. It runs the image of --builder-image, or one made from the
Dockerfile beside the description; a description for apt without a Dockerfile gets
the builder of the template debian. Where no container registry can be reached, a
base of Debian's for the builder is made with mmdebstrap.

KIWI's log is shown while it is written, and kept as kiwi.log in the output
directory. The directory has to be new, empty, or that of an earlier build, whose
files are removed. SOURCE_DATE_EPOCH is handed on to KIWI.

With --serve this program goes into the image, with units for systemd that answer
attestation requests on port 8443 (see serve and verify instance). A description of
your own has to make the group tss, as systemd-sysusers in its config.sh does.`,
		Example: `  attestable-image build --template debian --output out/image
  attestable-image build --description ./kiwi --overlay ./files --version 1.2.3 --output out/image
  attestable-image build --template debian --serve --output out/image
  attestable-image build --template debian --package-source "http://snapshot.example/debian trixie main" --output out/image
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
				return err
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
		o.Source, o.Description = f.description, os.DirFS(f.description)
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

// build builds an image, with KIWI's log in a group that folds on Actions.
func (a *app) build(ctx context.Context, f buildFlags) (*kiwi.Result, error) {
	o, err := a.options(f)
	if err != nil {
		return nil, err
	}
	o.Log = io.Discard
	if !a.quiet {
		o.Log = a.stderr
		end := gha.Group(a.stderr, "Build "+o.Source+" with KIWI NG")
		defer end()
	}
	return kiwi.Build(ctx, o)
}
