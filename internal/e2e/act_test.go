package e2e

import (
	"bytes"
	"cmp"
	"encoding/json"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// workflowPath is where the tests' workflow lies in its repository.
const workflowPath = ".github/workflows/image.yml"

// checkout makes a repository of this module's tracked files, as they are in
// the working tree, and workflow, and returns its directory and the run that a
// push to it starts.
func checkout(t *testing.T, workflow string) (string, testenv.Run) {
	t.Helper()
	dir := copyModule(t)
	// The module's own workflows are another matter.
	if err := os.RemoveAll(filepath.Join(dir, ".github/workflows")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, ".github/workflows"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, workflowPath), []byte(workflow), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, commit(t, dir)
}

// copyModule copies this module's tracked files, as they are in the working tree, to a
// directory, and returns it.
func copyModule(t *testing.T) string {
	t.Helper()
	top := strings.TrimSpace(git(t, ".", "rev-parse", "--show-toplevel"))
	dir := t.TempDir()
	for name := range strings.SplitSeq(strings.TrimSuffix(git(t, top, "ls-files", "-z"), "\x00"), "\x00") {
		copyFile(t, filepath.Join(top, name), filepath.Join(dir, name))
	}
	return dir
}

// commit makes the directory dir a repository with one commit, and returns the run that
// a push of it starts.
func commit(t *testing.T, dir string) testenv.Run {
	t.Helper()
	git(t, dir, "init", "--quiet", "--initial-branch=main")
	git(t, dir, "remote", "add", "origin", "https://github.com/"+testenv.DefaultRun.Repository)
	git(t, dir, "add", "--all")
	git(t, dir, "-c", "user.name=Octocat", "-c", "user.email=octocat@example.com", "commit", "--quiet", "--message=Test")
	return testenv.Run{
		SHA:          strings.TrimSpace(git(t, dir, "rev-parse", "HEAD")),
		WorkflowPath: workflowPath,
		RunID:        "1", // as act counts
		RunAttempt:   "1",
	}
}

func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git %s: %v: %s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return string(out)
}

// copyFile copies a regular file or a symbolic link, and does nothing for one
// that is tracked but gone.
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	info, err := os.Lstat(from)
	if os.IsNotExist(err) {
		return
	}
	if err == nil {
		err = os.MkdirAll(filepath.Dir(to), 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode()&os.ModeSymlink != 0 {
		target, err := os.Readlink(from)
		if err == nil {
			err = os.Symlink(target, to)
		}
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, data, info.Mode().Perm())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// workflowResult is what act reports of a workflow run.
type workflowResult struct {
	failed  bool
	log     string            // output of all steps
	errors  []string          // "title: message" of every ::error
	summary string            // the step summaries, one after the other
	outputs map[string]string // of the jobs' own steps, by "step.name"
}

// act runs the workflow of the repository dir for a push, or for the event that run
// names: a pull request comes from a fork. The steps run on this machine itself as on a
// self-hosted runner. env goes to the steps, more are arguments of act.
func act(t *testing.T, dir string, run testenv.Run, token string, env []string, more ...string) workflowResult {
	t.Helper()
	path := testenv.Tool(t, "act")
	event := filepath.Join(t.TempDir(), "event.json")
	payload := map[string]any{
		"ref": "refs/heads/main", "after": run.SHA,
		"repository": map[string]any{"full_name": testenv.DefaultRun.Repository, "visibility": "public", "private": false},
	}
	if run.EventName == "pull_request" {
		payload["pull_request"] = map[string]any{
			"head": map[string]any{"ref": "main", "sha": run.SHA, "repo": map[string]any{"full_name": "stranger/image", "fork": true}},
			"base": map[string]any{"ref": "main", "sha": run.SHA, "repo": map[string]any{"full_name": testenv.DefaultRun.Repository}},
		}
	}
	data, err := json.Marshal(payload)
	if err == nil {
		err = os.WriteFile(event, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	args := []string{
		cmp.Or(run.EventName, "push"), "--json", "-C", dir, "-W", workflowPath, "--eventpath", event,
		"-P", "ubuntu-latest=-self-hosted", "-P", "ubuntu-24.04=-self-hosted", "-P", "ubuntu-24.04-arm=-self-hosted",
		// Without these act looks for a network.
		"--artifact-server-addr", "127.0.0.1", "--no-cache-server",
		"-s", "GITHUB_TOKEN=" + token,
	}
	for _, variable := range env {
		args = append(args, "--env", variable)
	}
	home := t.TempDir()
	cmd := exec.Command(path, append(args, more...)...)
	// The steps see act's own environment, too: only what a runner has.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "XDG_CACHE_HOME=" + filepath.Join(home, ".cache"), "LANG=C.UTF-8"}
	for _, name := range []string{"DOCKER_HOST", "TMPDIR"} {
		if value := os.Getenv(name); value != "" {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	// The Go that runs this test, with its caches, builds the action's binary.
	for _, name := range []string{"GOMODCACHE", "GOCACHE", "GOPROXY", "GOFLAGS"} {
		value, err := exec.Command("go", "env", name).Output()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Env = append(cmd.Env, name+"="+strings.TrimSpace(string(value)))
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	failure := cmd.Run()
	result := parseAct(t, &stdout)
	result.failed = failure != nil
	if len(result.log) == 0 {
		t.Fatalf("act ran nothing: %v\n%s", failure, stderr.Bytes())
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the workflow:\n%s%s", result.log, stderr.Bytes())
		}
	})
	return result
}

// parseAct reads act's log of one JSON object a line.
func parseAct(t *testing.T, r io.Reader) workflowResult {
	t.Helper()
	result := workflowResult{outputs: make(map[string]string)}
	decoder := json.NewDecoder(r)
	for {
		var line struct {
			Message string            `json:"msg"`
			Raw     bool              `json:"raw_output"`
			Command string            `json:"command"`
			Arg     string            `json:"arg"`
			Name    string            `json:"name"`
			Content string            `json:"content"`
			Pairs   map[string]string `json:"kvPairs"`
			StepID  []string          `json:"stepID"`
		}
		if err := decoder.Decode(&line); err == io.EOF {
			return result
		} else if err != nil {
			t.Fatalf("read act's log: %v", err)
		}
		result.log += strings.TrimSuffix(line.Message, "\n") + "\n"
		own := len(line.StepID) == 1 // not a step inside a composite action
		switch {
		case line.Raw:
		case line.Command == "error":
			result.errors = append(result.errors, line.Pairs["title"]+": "+line.Arg)
		case line.Command == "summary" && own:
			result.summary += line.Content
		case line.Command == "set-output" && own:
			result.outputs[line.StepID[0]+"."+line.Name] = line.Arg
		}
	}
}

// actionWorkflow is a workflow as a user has it, with inputs for the action's
// `with`, and steps after it.
func actionWorkflow(inputs map[string]string, steps string) string {
	var b strings.Builder
	b.WriteString(`name: Image
on: push
permissions:
  contents: read
  packages: write
  id-token: write
  attestations: write
jobs:
  image:
    runs-on: ubuntu-latest
    outputs:
      artifact: ${{ steps.image.outputs.artifact }}
      pcr4: ${{ steps.image.outputs.pcr4 }}
    steps:
      - uses: actions/checkout@08c6903cd8c0fde910a37f88322edcfb5dd907a8
      - id: image
        uses: ./
        with:
`)
	b.WriteString(withInputs(inputs))
	b.WriteString(steps)
	return b.String()
}

// withInputs are the lines below a step's `with`.
func withInputs(inputs map[string]string) string {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(inputs)) {
		value, err := json.Marshal(inputs[key]) // JSON strings are YAML strings
		if err != nil {
			panic(err)
		}
		b.WriteString("          " + key + ": " + string(value) + "\n")
	}
	return b.String()
}
