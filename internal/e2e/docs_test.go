package e2e

import (
	"cmp"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/org/attestable-image-action/internal/testenv"
)

// TestGuide types what docs/guide.md says for a laptop, from the disk on, as it stands
// there, into one shell. It leaves out what other tests and `make demo` run: the build
// and the boots. That all other command lines of the documentation are right is for
// internal/docs to say.
func TestGuide(t *testing.T) {
	content, err := os.ReadFile(filepath.Join(testenv.Root(t), "docs", "guide.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, laptop, found := strings.Cut(string(content), "\n## On a laptop\n")
	laptop, _, more := strings.Cut(laptop, "\n## On GitHub and AWS\n")
	if !found || !more {
		t.Fatal("the guide has no longer the two ways")
	}
	leftOut := regexp.MustCompile(`^(git clone|make |export PATH|attestable-image build|rm -f|attestable-image boot|until|attestable-image verify instance|scripts/demo)`)
	script := []string{"set -euo pipefail"}
	typed, skipped := 0, 0
	for _, block := range regexp.MustCompile("(?s)```console\n(.*?)```").FindAllStringSubmatch(laptop, -1) {
		for line := range strings.SplitSeq(strings.ReplaceAll(block[1], "\\\n", " "), "\n") {
			line, ok := strings.CutPrefix(line, "$ ")
			switch {
			case !ok:
			case leftOut.MatchString(line):
				skipped++
			default:
				script = append(script, line)
				typed++
			}
		}
	}
	if typed < 9 || skipped < 8 {
		t.Fatalf("%d lines are typed and %d left out", typed, skipped)
	}

	program, disk, dir := command(t), testenv.DebianDisk(t), t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "out"), 0o700); err != nil {
		t.Fatal(err)
	}
	// As a build leaves it.
	if err := os.Symlink(filepath.Dir(disk), filepath.Join(dir, "out", "image")); err != nil {
		t.Fatal(err)
	}
	shell := exec.Command("bash", "-c", strings.Join(script, "\n"))
	shell.Dir = dir
	shell.Env = []string{"PATH=" + filepath.Dir(program) + ":" + os.Getenv("PATH"), "HOME=" + dir, "LANG=C.UTF-8"}
	output, err := shell.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	for _, want := range []string{"PCR 4", "oci:out/layout@sha256:", "measured again", "kms:RecipientAttestation:NitroTPMPCR4"} {
		if !strings.Contains(string(output), want) {
			t.Errorf("it does not say %q:\n%s", want, output)
		}
	}
}

// TestGuideWorkflow holds that the workflow of the guide gives the actions inputs that
// they have, and all that they need.
func TestGuideWorkflow(t *testing.T) {
	content, err := os.ReadFile(filepath.Join(testenv.Root(t), "docs", "guide.md"))
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```yaml\n(name:.*?)```").FindSubmatch(content)
	if block == nil {
		t.Fatal("the guide has no workflow")
	}
	var workflow struct {
		Jobs map[string]struct {
			Steps []struct {
				Uses string
				With map[string]string
			}
		}
	}
	if err := yaml.Unmarshal(block[1], &workflow); err != nil {
		t.Fatal(err)
	}
	all, called := actions(t), 0
	for _, job := range workflow.Jobs {
		for _, step := range job.Steps {
			path, ours := strings.CutPrefix(step.Uses, "org/attestable-image-action")
			if !ours {
				continue
			}
			called++
			path, _, _ = strings.Cut(path, "@")
			action, ok := all[cmp.Or(strings.TrimPrefix(path, "/"), ".")]
			if !ok {
				t.Errorf("there is no action %s", step.Uses)
			}
			for name := range step.With {
				if _, ok := action.Inputs[name]; !ok {
					t.Errorf("%s has no input %s", step.Uses, name)
				}
			}
			for name, input := range action.Inputs {
				if input.Required && step.With[name] == "" {
					t.Errorf("%s needs the input %s", step.Uses, name)
				}
			}
		}
	}
	if called != 2 {
		t.Errorf("it calls %d actions of this project", called)
	}
}
