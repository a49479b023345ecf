package e2e

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/org/attestable-image-action/internal/testenv"
)

// actionFile is an action.yml: GitHub's "Metadata syntax reference".
type actionFile struct {
	Inputs map[string]struct {
		Description string
		Required    bool
		Default     string
	}
	Outputs map[string]struct{ Description, Value string }
	Runs    struct {
		Using string
		Steps []struct {
			ID, Name, If, Shell, Run string
			Env                      map[string]string
		}
	}
}

// actions are this project's actions, by the directory that a workflow names.
func actions(t *testing.T) map[string]actionFile {
	t.Helper()
	all := map[string]actionFile{}
	for _, path := range trackedFiles(t, "action.yml", "*/action.yml") {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var action actionFile
		decoder := yaml.NewDecoder(strings.NewReader(string(data)))
		if err := decoder.Decode(&action); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		directory, err := filepath.Rel(testenv.Root(t), filepath.Dir(path))
		if err != nil {
			t.Fatal(err)
		}
		all[filepath.ToSlash(directory)] = action
	}
	if len(all) < 2 {
		t.Fatalf("there are only %d actions", len(all))
	}
	return all
}

var (
	inputUse  = regexp.MustCompile(`\binputs\.([\w-]+)`)
	stepUse   = regexp.MustCompile(`\bsteps\.([\w-]+)\.outputs\.`)
	shellUse  = regexp.MustCompile(`\$\{?([A-Z][A-Z0-9_]*)(:?-)?`)
	scriptUse = regexp.MustCompile(`\$ACTION_PATH/([\w./-]+)`)
	sourceUse = regexp.MustCompile(`(?m)^source "\$\(dirname "\$0"\)/([\w-]+)"$`)
)

// TestActionFiles holds that the parts of each action fit together, which no
// program checks before a workflow runs: actionlint reads workflows only.
func TestActionFiles(t *testing.T) {
	for directory, action := range actions(t) {
		t.Run(directory, func(t *testing.T) {
			if action.Runs.Using != "composite" {
				t.Fatalf("it runs with %q", action.Runs.Using)
			}
			var expressions []string
			earlier := map[string]bool{}
			for _, step := range action.Runs.Steps {
				if step.Shell != "bash" || step.Name == "" {
					t.Errorf("step %q has the shell %q", step.Name, step.Shell)
				}
				own := append(slices.Collect(maps.Values(step.Env)), step.If)
				for _, use := range stepUse.FindAllStringSubmatch(strings.Join(own, "\n"), -1) {
					if !earlier[use[1]] {
						t.Errorf("step %q uses what %q makes, and there is no such step before it", step.Name, use[1])
					}
				}
				earlier[step.ID] = true
				expressions = append(expressions, own...)
				texts := []string{step.Run}
				for _, use := range scriptUse.FindAllStringSubmatch(step.Run, -1) {
					path := filepath.Join(testenv.Root(t), directory, use[1])
					info, err := os.Stat(path)
					if err != nil || info.Mode()&0o111 == 0 {
						t.Fatalf("step %q runs %s: %v", step.Name, path, err)
					}
					script, err := os.ReadFile(path)
					if err != nil {
						t.Fatal(err)
					}
					texts = append(texts, string(script))
					for _, part := range sourceUse.FindAllStringSubmatch(string(script), -1) {
						sourced, err := os.ReadFile(filepath.Join(filepath.Dir(path), part[1]))
						if err != nil {
							t.Fatal(err)
						}
						texts = append(texts, string(sourced))
					}
				}
				used := map[string]bool{}
				for _, use := range shellUse.FindAllStringSubmatch(strings.Join(texts, "\n"), -1) {
					used[use[1]] = true
					_, set := step.Env[use[1]]
					runner := strings.HasPrefix(use[1], "GITHUB_") || strings.HasPrefix(use[1], "RUNNER_")
					if !set && !runner && use[2] == "" {
						t.Errorf("step %q reads $%s, which is not in its env", step.Name, use[1])
					}
				}
				for name := range step.Env {
					// Tokens are for the program that the step runs.
					if !used[name] && !strings.HasSuffix(name, "_TOKEN") && !strings.Contains(strings.Join(texts, "\n"), name) {
						t.Errorf("step %q sets %s, and nothing reads it", step.Name, name)
					}
				}
			}
			for name, output := range action.Outputs {
				use := stepUse.FindStringSubmatch(output.Value)
				if use == nil || !earlier[use[1]] || output.Description == "" {
					t.Errorf("output %s is %q: %s", name, output.Value, output.Description)
				}
			}
			uses := map[string]bool{}
			for _, use := range inputUse.FindAllStringSubmatch(strings.Join(expressions, "\n"), -1) {
				uses[use[1]] = true
				if _, ok := action.Inputs[use[1]]; !ok {
					t.Errorf("there is no input %s", use[1])
				}
			}
			for name, input := range action.Inputs {
				if !uses[name] || input.Description == "" {
					t.Errorf("nothing uses the input %s: %s", name, input.Description)
				}
			}
		})
	}
}

// TestActionsAreCalledRight holds that the examples and the README give an action
// the inputs that it has, and all that it needs, and that the README tells of
// every input and output.
func TestActionsAreCalledRight(t *testing.T) {
	const ours = "org/attestable-image-action"
	all := actions(t)
	called := map[string]bool{}
	check := func(file, uses string, with map[string]string) {
		path, ok := strings.CutPrefix(uses, ours)
		if path, _, _ = strings.Cut(path, "@"); !ok {
			return
		}
		directory := strings.TrimPrefix(path, "/")
		if directory == "" {
			directory = "."
		}
		action, ok := all[directory]
		if !ok {
			t.Errorf("%s calls %s, and there is no such action", file, uses)
			return
		}
		called[directory] = true
		for name := range with {
			if _, ok := action.Inputs[name]; !ok {
				t.Errorf("%s gives %s an input %s, and it has none", file, uses, name)
			}
		}
		for name, input := range action.Inputs {
			if input.Required && with[name] == "" {
				t.Errorf("%s does not give %s the input %s", file, uses, name)
			}
		}
	}
	readme, err := os.ReadFile(filepath.Join(testenv.Root(t), "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	workflows := map[string][]byte{}
	for _, file := range trackedFiles(t, "examples/*.yml") {
		if workflows[file], err = os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
	}
	for i, block := range regexp.MustCompile("(?s)```yaml\nname:(.*?)```").FindAllSubmatch(readme, -1) {
		workflows["README.md, workflow "+string(rune('1'+i))] = append([]byte("name:"), block[1]...)
	}
	for file, text := range workflows {
		var workflow struct {
			Jobs map[string]struct {
				Steps []struct {
					Uses string
					With map[string]string
				}
			}
		}
		if err := yaml.Unmarshal(text, &workflow); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		for _, job := range workflow.Jobs {
			for _, step := range job.Steps {
				check(file, step.Uses, step.With)
			}
		}
	}
	for directory, action := range all {
		if !called[directory] {
			t.Errorf("no example calls %s", directory)
		}
		for _, name := range slices.Concat(slices.Collect(maps.Keys(action.Inputs)), slices.Collect(maps.Keys(action.Outputs))) {
			if !strings.Contains(string(readme), "`"+name+"`") {
				t.Errorf("the README does not tell of %s of %s", name, directory)
			}
		}
	}
}
