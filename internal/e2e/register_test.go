package e2e

import (
	"strings"
	"testing"
)

// registerWorkflow is a workflow whose job registers an AMI.
func registerWorkflow(inputs map[string]string) string {
	return `name: Image
on: push
permissions:
  contents: read
  packages: read
  attestations: read
  id-token: write
jobs:
  register:
    runs-on: ubuntu-latest
    outputs:
      ami-id: ${{ steps.ami.outputs.ami-id }}
    steps:
      - uses: actions/checkout@08c6903cd8c0fde910a37f88322edcfb5dd907a8
      - id: ami
        uses: ./register-ami
        with:
` + withInputs(inputs)
}

// TestRegisterActionRefuses runs the action in jobs that ask for what would not
// be safe: each must end before anything is built, with one annotation that says
// what to change.
func TestRegisterActionRefuses(t *testing.T) {
	if testing.Short() {
		t.Skip("act is not run with -short")
	}
	digest := "@sha256:" + strings.Repeat("0", 64)
	for _, c := range []struct {
		name   string
		inputs map[string]string
		want   string
	}{
		{"no artifact", map[string]string{"name": "image"}, "input 'artifact' is empty"},
		{"a tag", map[string]string{"artifact": "ghcr.io/octo-org/image:v1"}, "input 'artifact' names no digest"},
		{"a flag", map[string]string{"artifact": "--help"}, "input 'artifact' names no digest"},
		{"two artifacts", map[string]string{"artifact": "ghcr.io/octo-org/image" + digest + "\nghcr.io/octo-org/image" + digest}, "input 'artifact' names no digest"},
		{"another repository's, of any workflow", map[string]string{"artifact": "ghcr.io/octo-org/other" + digest, "repository": "octo-org/other"}, "say in 'signer-workflow'"},
		{"another repository's, of any ref", map[string]string{
			"artifact": "ghcr.io/octo-org/other" + digest, "repository": "octo-org/other", "signer-workflow": "octo-org/other/.github/workflows/image.yml",
		}, "say in 'source-ref'"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, run := checkout(t, registerWorkflow(c.inputs))
			var result workflowResult
			// act does not wait for the last lines of a step that fails, and
			// loses them now and then.
			for range 4 {
				if result = act(t, dir, run, "dummy", nil); !result.failed || len(result.errors) > 0 {
					break
				}
			}
			if !result.failed {
				t.Error("the workflow succeeded")
			}
			if len(result.errors) != 1 || !strings.Contains(result.errors[0], c.want) {
				t.Errorf("errors are %q; want one that contains %q", result.errors, c.want)
			}
			if strings.Contains(result.log, "Build attestable-image") {
				t.Error("something was built before the error")
			}
		})
	}
}
