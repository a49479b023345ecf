package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// What scripts/release writes into a released binary with the linker's -X: the version
// without a v, and the commit in full.
var (
	releasedVersion string
	releasedCommit  string
)

// build says which source a program was made of. What is not known is empty.
type build struct{ version, commit string }

// thisBuild is what the release stamped, or what Go's tools know: `go install` the
// version, `go build` in a clone the commit.
func thisBuild() build {
	if releasedVersion != "" {
		return build{version: releasedVersion, commit: releasedCommit}
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return build{}
	}
	return buildOf(info)
}

func buildOf(info *debug.BuildInfo) build {
	var b build
	if info.Main.Version != "(devel)" {
		b.version = info.Main.Version
	}
	changed := false
	for _, setting := range info.Settings {
		switch setting.Key {
		case "vcs.revision":
			b.commit = setting.Value
		case "vcs.modified":
			changed = setting.Value == "true"
		}
	}
	if changed && b.commit != "" {
		b.commit += " with changes"
	}
	return b
}

func (b build) String() string {
	if b.version == "" {
		b.version = "of no release"
	}
	if b.commit == "" {
		b.commit = "not recorded"
	}
	return fmt.Sprintf("attestable-image %s\ncommit %s\n%s %s/%s\n", b.version, b.commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

func newVersionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print which release and commit this program is",
		Long: `Print the version of this program, the commit of its source, and the Go release
and system that it was compiled with and for. A binary of a release has both from
the release; one of go install knows its version only, and one of go build in a
clone its commit.`,
		Example: "  attestable-image version",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("%q is one argument too many: version takes none", args[0])
			}
			return nil
		},
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprint(a.stdout, thisBuild())
			return err
		},
	}
}
