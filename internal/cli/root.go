// Package cli is the command line of attestable-image: one file a command,
// each of which turns flags into typed values, calls one package, and prints
// the result. Standard output carries the result only; progress, warnings and
// errors go to standard error.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/google/go-tpm/tpm2/transport"
	"github.com/spf13/cobra"

	"github.com/org/attestable-image-action/internal/gha"
	"github.com/org/attestable-image-action/internal/nsm"
)

// Exit statuses of every command.
const (
	exitOK     = 0 // done, and true
	exitFailed = 1 // it failed, or does not verify
	exitUsage  = 2 // the command line is wrong
)

// app is what every command shares: where it writes, and the global flags.
type app struct {
	stdout    io.Writer
	stderr    io.Writer
	templates fs.FS // rooted at kiwi-templates
	quiet     bool
	stored    int64 // bytes that push stored of the disk, for the step summary
	// openTPM opens the TPM of this machine, or the device of a given path.
	openTPM func(ctx context.Context, device string) (transport.TPMCloser, error)
}

// usageError marks an error that the command line caused: exit status 2.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// usagef makes an error for a wrong command line.
func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// errDoesNotVerify ends a command whose printed result already says what does
// not hold: exit status 1, and no further sentence.
var errDoesNotVerify = errors.New("does not verify")

// Main runs the command line args (without the program's name) and returns the
// exit status. templates holds the folder kiwi-templates.
func Main(ctx context.Context, args []string, templates fs.FS) int {
	sub, err := fs.Sub(templates, "kiwi-templates")
	if err != nil {
		fmt.Fprintf(os.Stderr, "Error: open the embedded templates: %v\n", err)
		return exitFailed
	}
	return run(ctx, &app{stdout: os.Stdout, stderr: os.Stderr, templates: sub}, args)
}

func run(ctx context.Context, a *app, args []string) int {
	if a.openTPM == nil {
		a.openTPM = nsm.Open
	}
	root := newRootCommand(a)
	root.SetArgs(args)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	ran := false
	start := time.Now()
	root.PersistentPreRun = func(*cobra.Command, []string) { ran = true }
	cmd, err := root.ExecuteContextC(ctx)
	if ran {
		recordTime(cmd.Name(), time.Since(start), a.stored)
	}
	if err == nil {
		return exitOK
	}
	if errors.Is(err, errDoesNotVerify) {
		return exitFailed
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("interrupted: %w", err)
	}
	var usage usageError
	if !ran || errors.As(err, &usage) {
		fmt.Fprintf(a.stderr, "Error: %s\nSee '%s --help'.\n", sentence(err), cmd.CommandPath())
		return exitUsage
	}
	a.reportError(err)
	return exitFailed
}

// reportError prints a failure where a person or a runner looks for it.
func (a *app) reportError(err error) {
	fmt.Fprintf(a.stderr, "Error: %s\n", sentence(err))
	var placed placedError
	errors.As(err, &placed)
	gha.ErrorAt(a.stderr, placed.at, "attestable-image", sentence(err))
}

// sentence is an error on one line, fit to print: names on a disk and words of
// a server may be part of it.
func sentence(err error) string {
	return printable(strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; "))
}

func newRootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "attestable-image",
		Short: "Build, measure, publish and verify attestable images",
		Long: `attestable-image carries one chain of evidence from a KIWI description to a
running instance: it builds the raw disk, predicts the PCRs that a boot of it
will record, publishes both as an OCI artifact, attests them, and verifies the
result.

Exit status: 0 done and true; 1 it failed or does not verify; 2 the command
line is wrong.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			hint := ""
			if similar := cmd.SuggestionsFor(args[0]); len(similar) > 0 {
				hint = ": did you mean " + similar[0] + "?"
			}
			return usagef("unknown command %q%s", args[0], hint)
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SuggestionsMinimumDistance = 2
	cobra.EnableCommandSorting = false // the chain's order says more
	root.PersistentFlags().BoolVarP(&a.quiet, "quiet", "q", false, "no progress, only the result and errors")
	root.AddCommand(commands(a)...)
	refuseOutsideLinux(root, runtime.GOOS)
	a.complete(root)
	return root
}
