package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// actionFiles are the actions of this repository, by what a workflow puts behind
// its name, in the order of their use.
var actionFiles = []struct{ path, file string }{
	{"", "action.yml"},
	{"/register-ami", "register-ami/action.yml"},
	{"/verify", "verify/action.yml"},
}

// repositoryName is what a workflow calls this repository.
const repositoryName = "org/attestable-image-action"

// action is an action.yml: GitHub's "Metadata syntax reference". Inputs and outputs
// stay nodes, which keep their order.
type action struct {
	Name, Description string
	Inputs, Outputs   yaml.Node
}

// member is an input or an output.
type member struct {
	name        string
	Description string
	Required    bool
	Default     string
}

func members(node *yaml.Node) ([]member, error) {
	var list []member
	for i := 0; node != nil && i+1 < len(node.Content); i += 2 {
		m := member{name: node.Content[i].Value}
		if err := node.Content[i+1].Decode(&m); err != nil {
			return nil, fmt.Errorf("%s: %w", m.name, err)
		}
		list = append(list, m)
	}
	return list, nil
}

// permission is a line of the comment that tells the permissions, in an action.yml in
// words, in a reusable workflow as in YAML.
var permission = regexp.MustCompile(`^# +([a-z-]+: (?:read|write)) +(?:# )?(.+)$`)

// actionsPage is docs/reference/actions.md.
func actionsPage(root string) (string, error) {
	var b strings.Builder
	b.WriteString(notice + "# Actions\n\nInputs, outputs and permissions, from each `action.yml` and reusable workflow. [Commands](commands.md) tells what\nthe steps do, and the [README](../../README.md#in-a-workflow) how to use them.\n")
	for _, a := range actionFiles {
		content, err := os.ReadFile(filepath.Join(root, a.file))
		if err != nil {
			return "", err
		}
		var parsed action
		if err := yaml.Unmarshal(content, &parsed); err != nil {
			return "", fmt.Errorf("%s: %w", a.file, err)
		}
		name := repositoryName + a.path
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n```yaml\n- uses: %s@v1\n```\n\n", strings.TrimPrefix(name, "org/"), markdown(parsed.Description), name)
		if err := writeInterface(&b, string(content), &parsed.Inputs, &parsed.Outputs); err != nil {
			return "", fmt.Errorf("%s: %w", a.file, err)
		}
	}
	workflows, err := filepath.Glob(filepath.Join(root, ".github", "workflows", "*.yml"))
	if err != nil {
		return "", err
	}
	for _, path := range workflows {
		content, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		if err := writeWorkflow(&b, filepath.Base(path), string(content)); err != nil {
			return "", fmt.Errorf("%s: %w", path, err)
		}
	}
	return b.String(), nil
}

// writeWorkflow writes of a workflow that others can call, and nothing of another one.
func writeWorkflow(b *strings.Builder, name, content string) error {
	var document yaml.Node
	if err := yaml.Unmarshal([]byte(content), &document); err != nil {
		return err
	}
	if len(document.Content) == 0 {
		return nil
	}
	call := memberOf(memberOf(document.Content[0], "on"), "workflow_call")
	if call == nil {
		return nil
	}
	fmt.Fprintf(b, "\n## Reusable workflow %s\n\n```yaml\njobs:\n  image:\n    uses: %s/.github/workflows/%s@v1\n```\n\n", name, repositoryName, name)
	return writeInterface(b, content, memberOf(call, "inputs"), memberOf(call, "outputs"))
}

// writeInterface writes permissions, inputs and outputs.
func writeInterface(b *strings.Builder, content string, inputs, outputs *yaml.Node) error {
	b.WriteString("| permission of the job | what for |\n|---|---|\n")
	for line := range strings.Lines(content) {
		if m := permission.FindStringSubmatch(strings.TrimRight(line, "\n")); m != nil {
			fmt.Fprintf(b, "| `%s` | %s |\n", m[1], actionText(strings.Join(strings.Fields(m[2]), " ")))
		}
	}
	list, err := members(inputs)
	if err != nil {
		return fmt.Errorf("input %w", err)
	}
	b.WriteString("\n| input | default | meaning |\n|---|---|---|\n")
	for _, m := range list {
		standard := cell(m.Default)
		if m.Required {
			standard = "needed"
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", m.name, standard, actionText(m.Description))
	}
	if list, err = members(outputs); err != nil {
		return fmt.Errorf("output %w", err)
	}
	b.WriteString("\n| output | what it is |\n|---|---|\n")
	for _, m := range list {
		fmt.Fprintf(b, "| `%s` | %s |\n", m.name, actionText(m.Description))
	}
	return nil
}

// actionText is a text of an action.yml as Markdown; its code stays code.
func actionText(text string) string {
	var out bytes.Buffer
	for i, part := range strings.Split(text, "`") {
		if i%2 == 1 {
			out.WriteString(cell(part))
			continue
		}
		out.WriteString(markdown(part))
	}
	return out.String()
}
