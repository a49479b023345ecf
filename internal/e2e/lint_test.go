package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/org/attestable-image-action/internal/testenv"
)

// trackedFiles returns the tracked files that the Git patterns match, as paths
// from here.
func trackedFiles(t *testing.T, patterns ...string) []string {
	t.Helper()
	top := strings.TrimSpace(git(t, ".", "rev-parse", "--show-toplevel"))
	var files []string
	for name := range strings.SplitSeq(git(t, top, append([]string{"ls-files", "-z", "--"}, patterns...)...), "\x00") {
		path := filepath.Join(top, name)
		if info, err := os.Stat(path); name != "" && err == nil && info.Mode().IsRegular() {
			files = append(files, path)
		}
	}
	return files
}

// TestWorkflows lets actionlint read every workflow, ours and the examples.
func TestWorkflows(t *testing.T) {
	files := trackedFiles(t, ".github/workflows/*.yml", "examples/*.yml") // of any depth
	if len(files) == 0 {
		t.Fatal("no workflow found")
	}
	// GitHub's context job has had these since April 2026, and actionlint 1.7.12 does
	// not know them: https://docs.github.com/en/actions/reference/workflows-and-actions/contexts#job-context
	const newer = `property "workflow_(repository|sha)" is not defined in object type \{check_run_id: number;`
	run(t, nil, testenv.Tool(t, "actionlint"), append([]string{"-no-color", "-shellcheck=", "-ignore", newer}, files...)...).accepts(t)
}

// TestScripts lets shellcheck read every shell script, also those that have no
// name ending.
func TestScripts(t *testing.T) {
	shellcheck := testenv.Tool(t, "shellcheck")
	var scripts []string
	for _, file := range trackedFiles(t, ".ci", "scripts", "bench", "kiwi-templates", "*.sh") {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		first, _, _ := strings.Cut(string(data), "\n")
		if strings.HasPrefix(first, "#!") && (strings.HasSuffix(first, "sh") || strings.Contains(first, "sh -")) {
			scripts = append(scripts, file)
		}
	}
	if len(scripts) == 0 {
		t.Fatal("no script found")
	}
	// What a script sources is named from the top.
	cmd := exec.Command(shellcheck, append([]string{"--external-sources"}, scripts...)...)
	cmd.Dir = strings.TrimSpace(git(t, ".", "rev-parse", "--show-toplevel"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// pinned is a `uses:` that nobody can change behind our back.
var pinned = regexp.MustCompile(`^[\w.-]+/[\w.-]+(/[\w./-]+)?@[0-9a-f]{40}$`)

// TestNoInjection holds that no value from outside is pasted into a script,
// where it could become code, and that every action of others is pinned to a
// commit.
func TestNoInjection(t *testing.T) {
	// Only this project's own release may be named by a tag: in the examples.
	const ours = "org/attestable-image-action"
	files := trackedFiles(t, "action.yml", "*/action.yml", "*/action.yaml", ".github/workflows/*.yml", ".github/workflows/*.yaml", "examples/*.yml", "examples/*.yaml")
	if len(files) == 0 {
		t.Fatal("no action and no workflow found")
	}
	texts := documentedYAML(t)
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		texts[file] = data
	}
	for file, data := range texts {
		var document yaml.Node
		if err := yaml.Unmarshal(data, &document); err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		eachPair(&document, func(key, value *yaml.Node) {
			switch {
			case value.Kind != yaml.ScalarNode:
			case key.Value == "run" && strings.Contains(value.Value, "${{"):
				t.Errorf("%s:%d: an expression inside a script: pass it through env", file, value.Line)
			case key.Value == "uses" && !strings.HasPrefix(value.Value, "./") &&
				!strings.HasPrefix(value.Value, ours+"@") && !strings.HasPrefix(value.Value, ours+"/") && !pinned.MatchString(value.Value):
				t.Errorf("%s:%d: %s is not pinned to a commit", file, value.Line, value.Value)
			}
		})
	}
}

// yamlBlock is a block of YAML in Markdown.
var yamlBlock = regexp.MustCompile("(?ms)^```ya?ml\n(.*?)^```")

// documentedYAML are the blocks of YAML in the documentation: parts of workflows, and
// whole ones. They are named by the file and their number in it.
func documentedYAML(t *testing.T) map[string][]byte {
	t.Helper()
	blocks := map[string][]byte{}
	for _, file := range trackedFiles(t, "*.md") { // of any depth
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for i, block := range yamlBlock.FindAllSubmatch(text, -1) {
			blocks[fmt.Sprintf("%s, block %d", file, i+1)] = block[1]
		}
	}
	if len(blocks) < 4 {
		t.Fatalf("there are only %d blocks of YAML", len(blocks))
	}
	return blocks
}

// eachPair calls visit for every key and value below node.
func eachPair(node *yaml.Node, visit func(key, value *yaml.Node)) {
	for i, child := range node.Content {
		if node.Kind == yaml.MappingNode && i%2 == 1 {
			visit(node.Content[i-1], child)
		}
		eachPair(child, visit)
	}
}
