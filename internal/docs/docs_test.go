package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

const root = "../.."

// TestReferenceIsUpToDate compares docs/reference with what the code says now.
func TestReferenceIsUpToDate(t *testing.T) {
	pages, err := reference(root)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range pages {
		got, err := os.ReadFile(filepath.Join(root, "docs", "reference", name))
		if err != nil || string(got) != want {
			t.Errorf("docs/reference/%s is not what the code says (%v): make it anew with `make docs`", name, err)
		}
	}
	entries, err := os.ReadDir(filepath.Join(root, "docs", "reference"))
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if pages[entry.Name()] == "" {
			t.Errorf("nothing makes docs/reference/%s: remove it", entry.Name())
		}
	}
}

// TestManualPages has groff complain of macros and escapes, and holds that a page says
// what the help says.
func TestManualPages(t *testing.T) {
	dir := t.TempDir()
	if err := write(root, dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"attestable-image.1", "attestable-image-build.1", "attestable-image-verify-instance.1"} {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err != nil {
			t.Fatal(err)
		}
	}
	groff := testenv.Tool(t, "groff")
	pages, err := filepath.Glob(filepath.Join(dir, "*.1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range pages {
		name := filepath.Base(path)
		command := exec.Command(groff, "-man", "-wmac", "-wescape", "-wdelim", "-wmissing", "-K", "utf8", "-T", "utf8", "-P", "-cbou", path)
		var complaints strings.Builder
		command.Stderr = &complaints
		text, err := command.Output()
		if err != nil || complaints.Len() > 0 {
			t.Errorf("groff: %v: %s", err, complaints.String())
		}
		if name == "attestable-image-build.1" && !strings.Contains(string(text), "--package-source") {
			t.Errorf("%s lacks a flag:\n%s", name, text)
		}
	}
}

// TestRoff holds that no text of the help becomes a macro.
func TestRoff(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"a line that begins with a dot", "a\n.br", "a\n\\&.br"},
		{"a quote", "'tis", `\&'tis`},
		{"a backslash", `C:\n`, `C:\en`},
		{"a flag", "--db", `\-\-db`},
	} {
		if got := roff(test.text); got != test.want {
			t.Errorf("%s: %q, not %q", test.name, got, test.want)
		}
	}
}

// TestMarkdown holds that the help's text stays what it is in Markdown.
func TestMarkdown(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"a flag", "see --PK and --bundle-from, too", "see `--PK` and `--bundle-from`, too"},
		{"brackets", "REF[:TAG|@DIGEST]", `REF\[:TAG\|@DIGEST\]`},
		{"a dash", "a - b -- c", "a - b -- c"},
		{"an underscore", "CAP_SYS_ADMIN", `CAP\_SYS\_ADMIN`},
	} {
		if got := markdown(test.text); got != test.want {
			t.Errorf("%s: %q, not %q", test.name, got, test.want)
		}
	}
}

// TestReusableWorkflow holds that a workflow which others can call is told as an action
// is, and another one is not.
func TestReusableWorkflow(t *testing.T) {
	const callable = `# permissions:
#   packages: write   # push to ghcr.io
on:
  workflow_call:
    inputs:
      template: {description: Name of a template., type: string, default: debian}
      serve: {description: With the service., type: boolean, required: true}
    outputs:
      digest: {description: The digest., value: "${{ jobs.a.outputs.digest }}"}
`
	var b strings.Builder
	if err := writeWorkflow(&b, "image.yml", callable); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"/.github/workflows/image.yml@v1\n", "| `packages: write` | push to ghcr.io |\n",
		"| `template` | `debian` | Name of a template. |\n", "| `serve` | needed | With the service. |\n", "| `digest` | The digest. |\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("it lacks %q:\n%s", want, b.String())
		}
	}
	b.Reset()
	for _, other := range []string{"on: [push]\njobs: {}\n", "on: push\n", "on:\n  push:\n    branches: [main]\n", ""} {
		if err := writeWorkflow(&b, "ci.yml", other); err != nil || b.Len() > 0 {
			t.Errorf("%q: %v, %s", other, err, b.String())
		}
	}
}

// TestEnvironmentIsTold holds that the reference tells of each variable that the
// program reads, but for those that a job of GitHub Actions has.
func TestEnvironmentIsTold(t *testing.T) {
	read := regexp.MustCompile(`os\.(?:Getenv|LookupEnv)\("([A-Z_]+)"\)`)
	jobs := regexp.MustCompile(`^(GITHUB|RUNNER|ACTIONS|INPUT)_`)
	for _, dir := range []string{"internal", "nitrotpm"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, entry os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if entry.IsDir() && (entry.Name() == "testenv" || entry.Name() == "testdata") {
				return filepath.SkipDir
			}
			if filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return nil
			}
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, match := range read.FindAllStringSubmatch(string(content), -1) {
				if name := match[1]; !jobs.MatchString(name) && !strings.Contains(environment, "`"+name+"`") {
					t.Errorf("%s reads %s, of which docs/reference/commands.md says nothing", path, name)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
