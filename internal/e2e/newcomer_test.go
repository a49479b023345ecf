package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/org/attestable-image-action/internal/testenv"
)

// newcomerBlock is a block of README.md that belongs to the newcomer's way.
var newcomerBlock = regexp.MustCompile("<!-- newcomer: ([a-z]+) -->\n```[a-z]+\n((?s:.*?))```\n")

// newcomerBlocks reads them, by their names.
func newcomerBlocks(t *testing.T) map[string]string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(testenv.Root(t), "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := map[string]string{}
	for _, m := range newcomerBlock.FindAllStringSubmatch(string(content), -1) {
		blocks[m[1]] = m[2]
	}
	for _, name := range []string{"files", "workflow", "run", "verify"} {
		if blocks[name] == "" {
			t.Fatalf("README.md has no block marked <!-- newcomer: %s -->", name)
		}
	}
	return blocks
}

// typedCommands are the commands behind the prompts of a block.
func typedCommands(block string) []string {
	var commands []string
	for line := range strings.SplitSeq(strings.ReplaceAll(block, "\\\n", " "), "\n") {
		if command, ok := strings.CutPrefix(line, "$ "); ok {
			commands = append(commands, command)
		}
	}
	return commands
}

// TestNewcomerFiles types what README.md says until the push, which takes no time, and
// so holds that all of its blocks are there and fit together.
func TestNewcomerFiles(t *testing.T) {
	n := &newcomer{t: t, blocks: newcomerBlocks(t), dir: t.TempDir()}
	n.files()
	if _, err := os.Stat(filepath.Join(n.dir, "image", "image", "root", "etc", "motd")); err != nil {
		t.Error(err)
	}
	run := typedCommands(n.blocks["run"])
	if len(run) != 3 || !strings.HasPrefix(run[1], "gh repo create ") || run[2] != "gh run watch" {
		t.Errorf("after the files the way goes on with %q", run)
	}
	verify := typedCommands(n.blocks["verify"])
	if len(verify) != 5 || !strings.HasPrefix(verify[0], "go install ") || !strings.HasPrefix(verify[2], "gh auth ") || !strings.HasPrefix(verify[4], "attestable-image verify artifact ghcr.io/OWNER/REPO:sha-$(git rev-parse HEAD) ") {
		t.Errorf("the way ends with %q", verify)
	}
}

// newcomer goes the way of README.md.
type newcomer struct {
	t      *testing.T
	blocks map[string]string
	dir    string // that it begins in
	env    []string
	steps  []string // what took how long
	total  time.Duration
}

// timed does something and takes the time.
func (n *newcomer) timed(what string, do func()) {
	n.t.Helper()
	n.t.Logf("== %s", what)
	start := time.Now()
	do()
	took := time.Since(start)
	n.total += took
	n.steps = append(n.steps, fmt.Sprintf("%8.1f s  %s", took.Seconds(), what))
}

// instead replaces text that needs what this machine does not have, and says so.
func (n *newcomer) instead(text, old, replacement string) string {
	n.t.Helper()
	if !strings.Contains(text, old) {
		n.t.Fatalf("README.md does not say %q any more, which is replaced here:\n%s", old, text)
	}
	n.t.Logf("instead of %q: %q", old, replacement)
	return strings.ReplaceAll(text, old, replacement)
}

// shell runs a command in a directory below the first.
func (n *newcomer) shell(directory, command string) string {
	n.t.Helper()
	n.t.Logf("$ %s", command)
	shell := exec.Command("bash", "-euo", "pipefail", "-c", command)
	shell.Dir = filepath.Join(n.dir, directory)
	shell.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + n.dir, "LANG=C.UTF-8",
		"GIT_AUTHOR_NAME=Octocat", "GIT_AUTHOR_EMAIL=octocat@example.com", "GIT_COMMITTER_NAME=Octocat", "GIT_COMMITTER_EMAIL=octocat@example.com",
	}, n.env...)
	var output bytes.Buffer
	shell.Stdout, shell.Stderr = &output, &output
	if err := shell.Run(); err != nil {
		n.t.Fatalf("%s: %v\n%s", command, err, output.Bytes())
	}
	n.t.Logf("%s", output.Bytes())
	return output.String()
}

// files makes the repository's files. Everything else happens in the directory that
// the first command enters.
func (n *newcomer) files() {
	n.t.Helper()
	n.shell(".", strings.Join(typedCommands(n.blocks["files"]), "\n"))
	if err := os.WriteFile(filepath.Join(n.dir, "image", workflowPath), []byte(n.blocks["workflow"]), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

// TestNewcomer is what scripts/newcomer runs: from an empty repository to a verified
// artifact, with a build by KIWI, which takes minutes.
func TestNewcomer(t *testing.T) {
	keep := os.Getenv("ATTESTABLE_IMAGE_NEWCOMER")
	if keep == "" {
		t.Skip("a newcomer's way is gone by scripts/newcomer: it builds an image with KIWI")
	}
	testenv.Tool(t, "act")
	stack := testenv.StartSigstore(t, testenv.Options{})
	registry := testenv.StartRegistry(t)
	gopath := t.TempDir()
	n := &newcomer{t: t, blocks: newcomerBlocks(t), dir: t.TempDir(), env: []string{"GOPATH=" + gopath}}
	for _, name := range []string{"GOMODCACHE", "GOCACHE", "GOPROXY", "GOFLAGS"} {
		value, err := exec.Command("go", "env", name).Output()
		if err != nil {
			t.Fatal(err)
		}
		n.env = append(n.env, name+"="+strings.TrimSpace(string(value)))
	}
	n.env = append(n.env, "PATH="+filepath.Join(gopath, "bin")+":"+os.Getenv("PATH"))

	t.Log("act stands in for GitHub, and takes org/attestable-image-action@v1 from this checkout")
	with := "image: " + registry.Host + "/" + testenv.DefaultRun.Repository + "\n" +
		"          signing-config: " + stack.SigningConfig + "\n" +
		"          trusted-root: " + stack.TrustedRoot
	if source := os.Getenv("ATTESTABLE_IMAGE_PACKAGE_SOURCE"); source != "" {
		with += "\n          package-source: " + source
	}
	n.blocks["workflow"] = n.instead(n.blocks["workflow"], "template: debian", "template: debian\n          "+with)
	n.timed("make the files", n.files)
	commands := typedCommands(n.blocks["run"])
	n.timed("commit", func() { n.shell("image", commands[0]) })
	dir := filepath.Join(n.dir, "image")
	run := testenv.Run{SHA: strings.TrimSpace(git(t, dir, "rev-parse", "HEAD")), WorkflowPath: workflowPath, RunID: "1", RunAttempt: "1"}
	t.Logf("instead of %q: a remote of that name, and act", strings.Join(commands[1:], "; "))
	git(t, dir, "remote", "add", "origin", "https://github.com/"+testenv.DefaultRun.Repository)
	var env []string
	for _, variable := range stack.Env(run) {
		if !strings.HasPrefix(variable, "GITHUB_TOKEN=") { // a secret, as the runner has it
			env = append(env, variable)
		}
	}
	var result workflowResult
	n.timed("the workflow: build, measure, push, attest", func() {
		result = act(t, dir, run, stack.GitHub.Token, env, "--local-repository", "org/attestable-image-action@v1="+trackedCopy(t))
	})
	if result.failed {
		t.Fatalf("the workflow failed: %q", result.errors)
	}
	t.Logf("summary:\n%s", result.summary)
	if keep != "-" {
		if err := os.WriteFile(filepath.Join(keep, "summary.md"), []byte(result.summary), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n.verify(stack, registry)
	t.Logf("from an empty repository to a verified artifact:\n%s\n%8.1f s  together", strings.Join(n.steps, "\n"), n.total.Seconds())
}

// verify gets the program and verifies what the workflow made.
func (n *newcomer) verify(stack *testenv.Stack, registry *testenv.Registry) {
	n.t.Helper()
	commands := typedCommands(n.blocks["verify"])
	install := n.instead(commands[0], "go install github.com/org/attestable-image-action@v1",
		`cd "`+testenv.Root(n.t)+`" && CGO_ENABLED=0 go build -o "$GOPATH/bin/attestable-image-action" .`)
	n.timed("install the program", func() {
		n.shell("image", install)
		n.shell("image", commands[1])
	})
	n.t.Logf("instead of %q: nothing, the registry here asks nobody", strings.Join(commands[2:4], "; "))
	command := n.instead(commands[4], "ghcr.io/OWNER/REPO", registry.Host+"/"+testenv.DefaultRun.Repository)
	command = n.instead(command, "OWNER/REPO", testenv.DefaultRun.Repository)
	command = n.instead(command, "--remeasure", "--remeasure --trusted-root "+stack.TrustedRoot+" --cert-oidc-issuer "+stack.Issuer.URL)
	n.timed("verify", func() {
		if output := n.shell("image", command); !strings.Contains(output, "measured again") {
			n.t.Errorf("it does not say that the disk was measured again:\n%s", output)
		}
	})
}

// trackedCopy is a copy of this module's tracked files, as they are in the working
// tree.
func trackedCopy(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, path := range trackedFiles(t, ".") {
		rel, err := filepath.Rel(testenv.Root(t), path)
		if err != nil {
			t.Fatal(err)
		}
		copyFile(t, path, filepath.Join(dir, rel))
	}
	return dir
}
