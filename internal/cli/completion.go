package cli

import (
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/org/attestable-image-action/internal/kiwi"
)

// Command returns the command line as a tree, to describe it and to check the
// command lines of documentation. It is not for running: what it prints is lost.
// templates holds the folder kiwi-templates.
func Command(templates fs.FS) (*cobra.Command, error) {
	sub, err := fs.Sub(templates, "kiwi-templates")
	if err != nil {
		return nil, fmt.Errorf("open the templates: %w", err)
	}
	return newRootCommand(&app{stdout: io.Discard, stderr: io.Discard, templates: sub}), nil
}

// flagValues are the values that a shell offers for a flag that takes one of a few:
// of every command, or of the one before the space.
var flagValues = map[string][]string{
	"format":             {"table", "json"},
	"inspect format":     {"table", "json", "sarif"},
	"sbom format":        {"spdx", "cyclonedx"},
	"kms-policy format":  {"conditions", "policy", "terraform"},
	"arch":               {"x86_64", "aarch64"},
	"bank":               {"sha384", "sha256"},
	"accel":              {"tcg", "kvm"},
	"fail-on":            {"critical", "high", "medium", "low", "info"},
	"bundle-from":        {"auto", "registry", "github"},
	"runner-environment": {"github-hosted", "self-hosted"},
	"zero-blocks":        {"outside-partitions", "write", "omit"},
	"rekor-version":      {"1", "2"},
}

// complete tells shells what the flags and arguments of a command and of those under
// it take: one of a few values, a directory, a file, or nothing that a shell knows.
func (a *app) complete(cmd *cobra.Command) {
	if fields := strings.Fields(cmd.Use); cmd.HasParent() && cmd.ValidArgsFunction == nil && !cmd.HasSubCommands() {
		files := 0 // how many arguments are files, from the first on
		switch arguments := strings.Join(fields[1:], " "); {
		case strings.Contains(arguments, "EFI..."), strings.Contains(arguments, "FILE..."):
			files = 1 << 10
		case strings.HasPrefix(arguments, "DISK"), strings.HasSuffix(arguments, "FILE"):
			files = 1
		}
		cmd.ValidArgsFunction = func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) < files {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
	}
	cmd.Flags().VisitAll(func(flag *pflag.Flag) {
		if completion := a.flagCompletion(cmd, flag); completion != nil {
			// It fails for a flag that is not there, or has one already.
			_ = cmd.RegisterFlagCompletionFunc(flag.Name, completion)
		}
	})
	for _, sub := range cmd.Commands() {
		a.complete(sub)
	}
}

// flagCompletion is what a shell offers for a flag, nil for its own choice: files.
func (a *app) flagCompletion(cmd *cobra.Command, flag *pflag.Flag) cobra.CompletionFunc {
	values, ok := flagValues[cmd.Name()+" "+flag.Name]
	if !ok {
		values, ok = flagValues[flag.Name]
	}
	kind, _ := pflag.UnquoteUsage(flag)
	switch {
	case ok:
		return cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveKeepOrder)
	case flag.Name == "template":
		return func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
			names, err := kiwi.Templates(a.templates)
			if err != nil {
				return nil, cobra.ShellCompDirectiveError
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		}
	case flag.Value.Type() == "bool", slices.Contains(strings.Split(kind, "|"), "FILE"), flag.Name == "device":
		return nil
	case kind == "DIR":
		return cobra.FixedCompletions(nil, cobra.ShellCompDirectiveFilterDirs)
	}
	return cobra.NoFileCompletions
}
