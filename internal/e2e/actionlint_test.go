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
	stepUse   = regexp.MustCompile(`\bsteps\.([\w-]+)\.(?:outputs\.|outcome\b)`)
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
					runner := strings.HasPrefix(use[1], "GITHUB_") || strings.HasPrefix(use[1], "RUNNER_") || use[1] == "SECONDS" // bash's own
					if !set && !runner && use[2] == "" {
						t.Errorf("step %q reads $%s, which is not in its env", step.Name, use[1])
					}
				}
				for name := range step.Env {
					// Tokens, and where to leave the time, are for the program that the step runs.
					forProgram := strings.HasSuffix(name, "_TOKEN") || name == "ATTESTABLE_IMAGE_TIMES"
					if !used[name] && !forProgram && !strings.Contains(strings.Join(texts, "\n"), name) {
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

// workflowFile is a reusable workflow, as those who call it see it.
type workflowFile struct {
	On struct {
		Call struct {
			Inputs map[string]struct {
				Description, Type string
				Required          bool
			}
			Outputs map[string]struct{ Description, Value string }
			Secrets map[string]any
		} `yaml:"workflow_call"`
	}
	Jobs map[string]yaml.Node
}

// callee is what can be called with inputs: an action or a reusable workflow.
type callee struct {
	required map[string]bool // inputs, and whether they have to be given
	outputs  []string
}

// callees are this project's actions and reusable workflows, by what a workflow names
// behind the repository.
func callees(t *testing.T) map[string]callee {
	t.Helper()
	all := map[string]callee{}
	for directory, action := range actions(t) {
		c := callee{required: map[string]bool{}, outputs: slices.Collect(maps.Keys(action.Outputs))}
		for name, input := range action.Inputs {
			c.required[name] = input.Required
		}
		all[strings.TrimSuffix("/"+directory, "/.")] = c
	}
	workflow := reusableWorkflow(t)
	c := callee{required: map[string]bool{}, outputs: slices.Collect(maps.Keys(workflow.On.Call.Outputs))}
	for name, input := range workflow.On.Call.Inputs {
		c.required[name] = input.Required
	}
	all["/"+reusablePath] = c
	return all
}

func reusableWorkflow(t *testing.T) workflowFile {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(testenv.Root(t), reusablePath))
	if err != nil {
		t.Fatal(err)
	}
	var workflow workflowFile
	if err := yaml.Unmarshal(text, &workflow); err != nil {
		t.Fatalf("%s: %v", reusablePath, err)
	}
	return workflow
}

// TestReusableWorkflowFile holds what actionlint does not: every input is used and
// described, there are no secrets, the jobs that build cannot sign, and the one that
// signs runs no action but those that check out and upload.
func TestReusableWorkflowFile(t *testing.T) {
	workflow := reusableWorkflow(t)
	text, err := os.ReadFile(filepath.Join(testenv.Root(t), reusablePath))
	if err != nil {
		t.Fatal(err)
	}
	if len(workflow.On.Call.Secrets) > 0 || regexp.MustCompile(`\$\{\{[^}]*\bsecrets\b`).Match(text) {
		t.Error("it takes secrets")
	}
	// Who names the servers is sent the identity token of the job that signs.
	for _, name := range []string{"signing-config", "trusted-root"} {
		if _, there := workflow.On.Call.Inputs[name]; there {
			t.Errorf("the caller names the servers: there is an input %s", name)
		}
	}
	uses := map[string]bool{}
	for _, use := range inputUse.FindAllStringSubmatch(string(text), -1) {
		uses[use[1]] = true
	}
	for name, input := range workflow.On.Call.Inputs {
		if !uses[name] || input.Description == "" || input.Type == "" {
			t.Errorf("nothing uses the input %s of type %s: %s", name, input.Type, input.Description)
		}
	}
	for name, output := range workflow.On.Call.Outputs {
		if output.Description == "" || output.Value == "" {
			t.Errorf("output %s is %q: %s", name, output.Value, output.Description)
		}
	}
	for name, node := range workflow.Jobs {
		var job struct {
			RunsOn      string `yaml:"runs-on"`
			Permissions map[string]string
			Steps       []struct{ Uses string }
		}
		if err := node.Decode(&job); err != nil {
			t.Errorf("job %s: %v", name, err)
		}
		want := map[string]string{"contents": "read"}
		switch name {
		case "build":
			want["packages"] = "write"
		case "attest":
			want["packages"], want["id-token"], want["attestations"] = "write", "write", "write"
			for _, step := range job.Steps {
				if step.Uses != "" && !strings.HasPrefix(step.Uses, "actions/checkout@") && !strings.HasPrefix(step.Uses, "actions/upload-artifact@") {
					t.Errorf("the job that signs runs %s", step.Uses)
				}
			}
		}
		if !maps.Equal(job.Permissions, want) {
			t.Errorf("job %s has the permissions %v, want %v", name, job.Permissions, want)
		}
		if name == "build" && job.RunsOn == "${{ matrix.runner }}" {
			continue // which workflow-plan chooses
		}
		if job.RunsOn != "ubuntu-24.04" {
			t.Errorf("job %s runs on %s", name, job.RunsOn)
		}
	}
}

// TestActionsAreCalledRight holds that the examples and the documentation give an
// action or the reusable workflow the inputs that it has, and all that it needs, use
// the outputs that it has, and that the README tells of every input and output.
func TestActionsAreCalledRight(t *testing.T) {
	const ours = "org/attestable-image-action"
	all := callees(t)
	called := map[string]bool{}
	// find returns what a `uses` names, nil when it is of others.
	find := func(file, uses string) *callee {
		path, ok := strings.CutPrefix(uses, ours)
		if !ok {
			return nil
		}
		path, _, _ = strings.Cut(path, "@")
		c, ok := all[path]
		if !ok {
			t.Errorf("%s calls %s, and there is no such action and no such workflow", file, uses)
			return nil
		}
		called[path] = true
		return &c
	}
	check := func(file, uses string, with map[string]any, part bool) *callee {
		c := find(file, uses)
		if c == nil {
			return nil
		}
		for name := range with {
			if _, ok := c.required[name]; !ok {
				t.Errorf("%s gives %s an input %s, and it has none", file, uses, name)
			}
		}
		for name, required := range c.required {
			if required && with[name] == nil && !part {
				t.Errorf("%s does not give %s the input %s", file, uses, name)
			}
		}
		return c
	}
	type step struct {
		ID, Uses string
		With     map[string]any
	}
	type job struct {
		Uses    string
		With    map[string]any
		Steps   []step
		Outputs map[string]string
	}
	texts := documentedYAML(t)
	for _, file := range trackedFiles(t, "examples/*.yml", "examples/*.yaml") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		texts[file] = text
	}
	for file, text := range texts {
		var workflow struct{ Jobs map[string]job }
		var steps []step
		part := false
		if err := yaml.Unmarshal(text, &workflow); err != nil || workflow.Jobs == nil {
			// A list of steps, a step's `with`, or something else that names one.
			if part = true; yaml.Unmarshal(text, &steps) == nil {
				workflow.Jobs = map[string]job{"": {Steps: steps}}
			}
		}
		outputs := map[string][]string{} // that steps and jobs of ours have, by how they are named
		for id, job := range workflow.Jobs {
			if c := check(file, job.Uses, job.With, part); c != nil {
				outputs["needs."+id] = c.outputs
			}
			for _, step := range job.Steps {
				if c := check(file, step.Uses, step.With, part); c != nil && step.ID != "" {
					outputs["steps."+step.ID] = append(outputs["steps."+step.ID], c.outputs...)
				}
			}
		}
		for id, job := range workflow.Jobs {
			if job.Outputs != nil {
				outputs["needs."+id] = slices.Collect(maps.Keys(job.Outputs))
			}
		}
		for _, use := range outputUse.FindAllStringSubmatch(string(text), -1) {
			if has, known := outputs[use[1]]; known && !slices.Contains(has, use[2]) {
				t.Errorf("%s uses the output %s of %s, and it has none", file, use[2], use[1])
			}
		}
	}
	readme, err := os.ReadFile(filepath.Join(testenv.Root(t), "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range all {
		if !called[name] {
			t.Errorf("no example calls %s", name)
		}
		for _, name := range append(slices.Collect(maps.Keys(c.required)), c.outputs...) {
			if !strings.Contains(string(readme), "`"+name+"`") {
				t.Errorf("the README does not tell of %s", name)
			}
		}
	}
}

var outputUse = regexp.MustCompile(`\b((?:steps|needs)\.[\w-]+)\.outputs\.([\w-]+)`)

// tableRow is a row of a table in the README whose first cell has names.
var tableRow = regexp.MustCompile("(?m)^\\| ((?:`[\\w-]+`(?:, )?)+) \\|")

// TestTablesOfInputs holds that every input and output that the README has in a table
// exists.
func TestTablesOfInputs(t *testing.T) {
	readme, err := os.ReadFile(filepath.Join(testenv.Root(t), "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, c := range callees(t) {
		for name := range c.required {
			known["input "+name] = true
		}
		for _, name := range c.outputs {
			known["output "+name] = true
		}
	}
	rows := 0
	for _, kind := range []string{"input", "output"} {
		for _, table := range regexp.MustCompile(`(?m)^\| `+kind+` \|.*\n((?:\|.*\n)+)`).FindAllSubmatch(readme, -1) {
			for _, row := range tableRow.FindAllSubmatch(table[1], -1) {
				rows++
				for name := range strings.SplitSeq(string(row[1]), ", ") {
					if name = strings.Trim(name, "`"); !known[kind+" "+name] {
						t.Errorf("the README has a table with the %s %s, and there is none", kind, name)
					}
				}
			}
		}
	}
	if rows < 40 {
		t.Errorf("only %d rows were found", rows)
	}
}
