package cli

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestCompletion asks as a shell's completion script asks.
func TestCompletion(t *testing.T) {
	for _, test := range []struct {
		name      string
		line      []string
		want      []string // the values, without what is said of them
		directive string
	}{
		{"templates", []string{"build", "--template", ""}, []string{"al2023", "debian", "ubuntu"}, ":4"},
		{"a directory", []string{"build", "--description", ""}, nil, ":16"},
		{"a file", []string{"build", "--lock", ""}, nil, ":0"},
		{"a name", []string{"build", "--name", ""}, nil, ":4"},
		{"no argument", []string{"build", ""}, nil, ":4"},
		{"formats", []string{"verify", "artifact", "--format", ""}, []string{"table", "json"}, ":36"},
		{"formats of inspect", []string{"inspect", "--format", ""}, []string{"table", "json", "sarif"}, ":36"},
		{"formats of sbom", []string{"sbom", "--format", ""}, []string{"spdx", "cyclonedx"}, ":36"},
		{"formats of kms-policy", []string{"kms-policy", "--format", ""}, []string{"conditions", "policy", "terraform"}, ":36"},
		{"severities", []string{"inspect", "--fail-on", ""}, []string{"critical", "high", "medium", "low", "info"}, ":36"},
		{"a file of the variables", []string{"verify", "artifact", "--KEK", ""}, nil, ":0"},
		{"a file or hex", []string{"verify", "instance", "--nonce", ""}, nil, ":0"},
		{"a disk", []string{"push", ""}, nil, ":0"},
		{"a reference after the disk", []string{"push", "image.raw", ""}, nil, ":4"},
		{"a reference", []string{"verify", "artifact", ""}, nil, ":4"},
		{"files to measure", []string{"measure", "a.efi", "b.efi", ""}, nil, ":0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out, errOut strings.Builder
			a := &app{stdout: &out, stderr: &errOut, templates: os.DirFS("../../kiwi-templates")}
			if status := run(context.Background(), a, append([]string{"__complete"}, test.line...)); status != exitOK {
				t.Fatalf("exit status %d: %s", status, errOut.String())
			}
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			if directive := lines[len(lines)-1]; directive != test.directive {
				t.Errorf("the directive is %s, not %s", directive, test.directive)
			}
			var got []string
			for _, line := range lines[:len(lines)-1] {
				value, _, _ := strings.Cut(line, "\t")
				got = append(got, value)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("offered %q, not %q", got, test.want)
			}
		})
	}
}

// TestCompletionScripts holds that a script comes for each shell.
func TestCompletionScripts(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		var out, errOut strings.Builder
		status := run(context.Background(), &app{stdout: &out, stderr: &errOut}, []string{"completion", shell})
		if status != exitOK || !strings.Contains(out.String(), "__complete") {
			t.Errorf("%s: exit status %d, %d bytes: %s", shell, status, out.Len(), errOut.String())
		}
	}
}

// TestOfferedValuesAreTold holds that a shell offers what the help tells, and that
// there is such a flag.
func TestOfferedValuesAreTold(t *testing.T) {
	root, err := Command(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		cmd.Flags().VisitAll(func(flag *pflag.Flag) {
			key := cmd.Name() + " " + flag.Name
			if flagValues[key] == nil {
				key = flag.Name
			}
			used[key] = true
			for _, value := range flagValues[key] {
				if !strings.Contains(flag.Usage+cmd.Long, value) {
					t.Errorf("%s --%s is offered %s, of which the help says nothing", cmd.CommandPath(), flag.Name, value)
				}
			}
		})
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(root)
	for key := range flagValues {
		if !used[key] {
			t.Errorf("there is no flag %q", key)
		}
	}
}
