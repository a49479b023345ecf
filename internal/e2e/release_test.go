package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/org/attestable-image-action/internal/testenv"
)

// TestReleaseBinary builds a binary of a release in two directories, and holds that
// neither they nor the machine's settings reach it.
func TestReleaseBinary(t *testing.T) {
	if testing.Short() {
		t.Skip("nothing is built with -short")
	}
	build := func(dir string, env ...string) []byte {
		t.Helper()
		file := filepath.Join(t.TempDir(), "attestable-image")
		cmd := exec.Command(filepath.Join(dir, "scripts/release-binary"), "linux", "amd64", "7.8.9", strings.Repeat("c", 40), file)
		cmd.Env = append(os.Environ(), env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return content
	}
	here := build(testenv.Root(t))
	there := build(copyModule(t), "GOFLAGS=-ldflags=-X=main.x=y -tags=other", "GOAMD64=v3", "CGO_ENABLED=1", "TZ=Asia/Tokyo", "SOURCE_DATE_EPOCH=1")
	if !bytes.Equal(here, there) {
		t.Error("the same source makes another binary in another directory")
	}
	modules, err := exec.Command("go", "env", "GOMODCACHE").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{testenv.Root(t), strings.TrimSpace(string(modules))} {
		if bytes.Contains(here, []byte(path)) {
			t.Errorf("the binary has the path %s", path)
		}
	}
}

// TestReleaseNotes takes the section of a version out of a changelog, and nothing of
// one that is not ready.
func TestReleaseNotes(t *testing.T) {
	script := filepath.Join(testenv.Root(t), "scripts/release-notes")
	const ready = "# Changelog\n\n## Unreleased\n\n## 1.2.0 - 2026-01-02\n\n### Added\n\n- A thing.\n\n## 1.1.0 - 2026-01-01\n\n- Before.\n"
	for name, c := range map[string]struct{ version, changelog, want string }{
		"ready":              {"1.2.0", ready, "### Added\n\n- A thing.\n"},
		"the first one":      {"1.2.0", "## Unreleased\n\n## 1.2.0\n\n- All.\n", "- All.\n"},
		"a pre-release":      {"1.2.0-rc.1", strings.Replace(ready, "1.2.0", "1.2.0-rc.1", 1), "### Added\n\n- A thing.\n"},
		"an older one":       {"1.1.0", ready, "!the newest version in"},
		"another one":        {"1.3.0", ready, "!is '1.2.0', not 1.3.0"},
		"with a v":           {"v1.2.0", ready, "!is no version"},
		"a command":          {"$(touch x)", ready, "!is no version"},
		"work left":          {"1.2.0", strings.Replace(ready, "Unreleased\n", "Unreleased\n\n- More.\n", 1), "!something stands below '## Unreleased'"},
		"nothing to tell":    {"1.2.0", "## Unreleased\n\n## 1.2.0\n\n## 1.1.0\n\n- Before.\n", "!is empty"},
		"no version at all":  {"1.2.0", "## Unreleased\n\n- All.\n", "!is '', not 1.2.0"},
		"no changelog there": {"1.2.0", "", "!is '', not 1.2.0"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "CHANGELOG.md")
			if err := os.WriteFile(file, []byte(c.changelog), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(script, c.version, file)
			var stdout, stderr strings.Builder
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			err := cmd.Run()
			if want, refused := strings.CutPrefix(c.want, "!"); refused {
				if err == nil || !strings.Contains(stderr.String(), want) || stdout.Len() > 0 {
					t.Errorf("%v: %q %q, want an error with %q", err, stdout.String(), stderr.String(), want)
				}
			} else if err != nil || stdout.String() != c.want {
				t.Errorf("%v: %q %q, want %q", err, stdout.String(), stderr.String(), c.want)
			}
		})
	}
}

// TestMoveMajorTag moves v1 in a repository, and only forwards.
func TestMoveMajorTag(t *testing.T) {
	remote, work := t.TempDir(), t.TempDir()
	git(t, remote, "init", "--quiet", "--bare")
	git(t, work, "init", "--quiet", "--initial-branch=main")
	commits := map[string]string{}
	for _, tag := range []string{"v1.9.0", "v1.10.0", "v2.0.0-rc.1", "v2.0.0", "v1.10.1"} {
		git(t, work, "-c", "user.name=Octocat", "-c", "user.email=octocat@example.com", "commit", "--quiet", "--allow-empty", "--message="+tag)
		commits[tag] = strings.TrimSpace(git(t, work, "rev-parse", "HEAD"))
		if tag == "v1.10.0" { // an annotated one
			git(t, work, "-c", "user.name=Octocat", "-c", "user.email=octocat@example.com", "tag", "--annotate", "--message="+tag, tag)
		} else {
			git(t, work, "tag", tag)
		}
	}
	move := func(tag string) outcome {
		t.Helper()
		return run(t, []string{"PATH=" + os.Getenv("PATH"), "HOME=" + work, "GIT_DIR=" + filepath.Join(work, ".git")}, filepath.Join(testenv.Root(t), "scripts/move-major-tag"), tag, remote)
	}
	at := func(tag string) string {
		return strings.TrimSpace(git(t, remote, "for-each-ref", "--format=%(objectname)", "refs/tags/"+tag))
	}
	publish := func(tag string) { git(t, work, "push", "--quiet", remote, "refs/tags/"+tag) }

	if o := move("v1.9.0"); o.err == nil || !strings.Contains(o.output, "has no tag v1.9.0") {
		t.Errorf("a tag that nobody pushed: %v %s", o.err, o.output)
	}
	publish("v1.9.0")
	move("v1.9.0").accepts(t)
	if at("v1") != commits["v1.9.0"] {
		t.Errorf("v1 is %s", at("v1"))
	}
	publish("v1.10.0") // newer than 1.9.0 by number, not by letters
	move("v1.10.0").accepts(t)
	if at("v1") != commits["v1.10.0"] {
		t.Errorf("v1 is %s, want the commit behind an annotated tag", at("v1"))
	}
	move("v1.10.0").accepts(t)
	move("v1.9.0").accepts(t) // a late run
	publish("v2.0.0-rc.1")
	move("v2.0.0-rc.1").accepts(t)
	if at("v1") != commits["v1.10.0"] || at("v2") != "" {
		t.Errorf("v1 is %s and v2 %s after an older release and a pre-release", at("v1"), at("v2"))
	}
	publish("v2.0.0")
	move("v2.0.0").accepts(t)
	publish("v1.10.1")
	move("v1.10.1").accepts(t)
	if at("v1") != commits["v1.10.1"] || at("v2") != commits["v2.0.0"] {
		t.Errorf("v1 is %s and v2 %s", at("v1"), at("v2"))
	}
	if o := move("v1; touch x"); o.err != nil || !strings.Contains(o.output, "nothing moves") {
		t.Errorf("a tag that is none: %v %s", o.err, o.output)
	}
}

// TestReleaseWorkflow holds that the jobs of the release workflow which can sign, and so
// could make any program one that scripts/action-binary believes, run nothing of this
// repository and of its modules.
func TestReleaseWorkflow(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(testenv.Root(t), ".github/workflows/release.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var workflow struct {
		Permissions map[string]string
		Jobs        map[string]struct {
			Permissions map[string]string
			Steps       []struct{ Uses, Run string }
		}
	}
	if err := yaml.Unmarshal(text, &workflow); err != nil {
		t.Fatal(err)
	}
	if len(workflow.Permissions) > 0 {
		t.Errorf("every job has the permissions %v", workflow.Permissions)
	}
	signers := 0
	for name, job := range workflow.Jobs {
		if job.Permissions == nil {
			t.Errorf("job %s does not say which permissions it has", name)
		}
		if job.Permissions["id-token"] == "" {
			continue
		}
		signers++
		for _, step := range job.Steps {
			if strings.Contains(step.Uses, "actions/checkout@") || strings.HasPrefix(step.Uses, "./") {
				t.Errorf("job %s can sign, and uses %s", name, step.Uses)
			}
			for _, word := range []string{"go ", "scripts/", "git ", "make "} {
				if strings.Contains(step.Run, word) {
					t.Errorf("job %s can sign, and runs %q", name, step.Run)
				}
			}
		}
	}
	if signers != 2 {
		t.Errorf("%d jobs can sign", signers)
	}
}

// TestReleasePublish publishes with a gh that only writes down what it is asked for.
func TestReleasePublish(t *testing.T) {
	script := filepath.Join(testenv.Root(t), "scripts/release-publish")
	for name, c := range map[string]struct {
		tag, state string // of the release that is there, as gh tells it
		tamper     bool
		newer      string   // tag beside the release's own
		want       []string // calls in their order; nil is an error
	}{
		"new":           {tag: "v1.2.0", want: []string{"release view", "release create v1.2.0 --verify-tag --draft", "release edit v1.2.0 --draft=false --latest"}},
		"a pre-release": {tag: "v1.2.0-rc.1", want: []string{"release view", "release create v1.2.0-rc.1 --verify-tag --draft", "release edit v1.2.0-rc.1 --draft=false --prerelease --latest=false"}},
		"an older line": {tag: "v1.2.0", newer: "v2.0.0", want: []string{"release view", "release create v1.2.0", "release edit v1.2.0 --draft=false --latest=false"}},
		"no newer one":  {tag: "v1.10.0", newer: "v1.9.0", want: []string{"release view", "release create v1.10.0", "release edit v1.10.0 --draft=false --latest"}},
		"left behind":   {tag: "v1.2.0", state: "true", want: []string{"release view", "release delete v1.2.0 --yes", "release create", "release edit"}},
		"another file":  {tag: "v1.2.0", tamper: true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			calls := filepath.Join(dir, "calls")
			writeTree(t, dir, map[string]string{
				"bin/gh":                                 "#!/bin/bash\necho \"$*\" >> '" + calls + "'\n[ \"$2\" != view ] || echo '" + c.state + "'\n",
				"release/notes.md":                       "- A thing.\n",
				"release/files/attestable-image_linux_x": "program",
				"bundle.json":                            "{}",
			})
			if err := os.Chmod(filepath.Join(dir, "bin/gh"), 0o700); err != nil { //nolint:gosec // a program
				t.Fatal(err)
			}
			if out, err := exec.Command("bash", "-c", "cd '"+dir+"/release/files' && sha256sum attestable-image_linux_x > SHA256SUMS").CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if c.tamper {
				writeTree(t, dir, map[string]string{"release/files/attestable-image_linux_x": "another"})
			}
			remote := t.TempDir()
			writeTree(t, remote, map[string]string{"file": ""})
			commit(t, remote)
			for _, tag := range []string{c.tag, c.newer, "v3.0.0-rc.1", "v1"} {
				if tag != "" {
					git(t, remote, "tag", tag)
				}
			}
			commit := strings.Repeat("c", 40)
			o := run(t, []string{"PATH=" + filepath.Join(dir, "bin") + ":" + os.Getenv("PATH")}, script, c.tag, commit, filepath.Join(dir, "release"), filepath.Join(dir, "bundle.json"), remote)
			asked, _ := os.ReadFile(calls)
			lines := strings.Split(strings.TrimSuffix(string(asked), "\n"), "\n")
			if c.want == nil {
				if o.err == nil || len(asked) > 0 {
					t.Errorf("it was published: %v\n%s", o.err, asked)
				}
				return
			}
			if o.err != nil || len(lines) != len(c.want) {
				t.Fatalf("%v, asked for:\n%s\n%s", o.err, asked, o.output)
			}
			for i, want := range c.want {
				if !strings.HasPrefix(lines[i], want) || strings.HasPrefix(want, "release edit v") && lines[i] != want {
					t.Errorf("call %d is %q, want %q", i, lines[i], want)
				}
				if strings.HasPrefix(want, "release create") {
					for _, file := range []string{"attestable-image_linux_x", "SHA256SUMS", "provenance-" + commit + ".jsonl"} {
						if !strings.Contains(lines[i], "/release/files/"+file) {
							t.Errorf("the release lacks %s: %s", file, lines[i])
						}
					}
				}
			}
		})
	}
}
