package e2e

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// verifyOutputs are the outputs that a workflow is given when everything holds.
var verifyOutputs = []string{"artifact", "digest", "measurements", "pcr11", "pcr12", "pcr13", "pcr2", "pcr4", "pcr7", "source-digest", "source-repository"}

// verifyWorkflow is a workflow of a repository that deploys, which calls the
// action with inputs.
func verifyWorkflow(inputs map[string]string) string {
	return `name: Deploy
on: push
permissions:
  packages: read
  attestations: read
jobs:
  deploy:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@08c6903cd8c0fde910a37f88322edcfb5dd907a8
      - id: image
        uses: ./verify
        with:
` + withInputs(inputs) + `      - env:
          DIGEST: ${{ steps.image.outputs.digest }}
        run: |
          echo "deploying $DIGEST"
`
}

// TestVerifyAction runs the action as a user's workflow calls it, `uses: ./verify`,
// with an artifact in a registry that a workflow attested: what verifies is handed
// on whole, and of anything else nothing.
func TestVerifyAction(t *testing.T) {
	if testing.Short() {
		t.Skip("the action is not run with -short: it builds the command and runs under act")
	}
	testenv.Tool(t, "act")
	stack := testenv.StartSigstore(t, testenv.Options{})
	registry := testenv.StartRegistry(t)
	a := makeArtifact(t, stack, testenv.DefaultRun, registry, smallDisk(t))
	_, digest, _ := strings.Cut(a.reference, "@")

	verify := func(inputs map[string]string) workflowResult {
		t.Helper()
		with := map[string]string{"artifact": a.reference, "trusted-root": stack.TrustedRoot, "cert-oidc-issuer": stack.Issuer.URL}
		maps.Copy(with, inputs)
		dir, run := checkout(t, verifyWorkflow(with))
		var env []string
		for _, variable := range stack.Env(run) {
			// A secret, as the runner has it; and no permission for a token.
			if !strings.HasPrefix(variable, "GITHUB_TOKEN=") && !strings.HasPrefix(variable, "ACTIONS_ID_TOKEN_") {
				env = append(env, variable)
			}
		}
		return act(t, dir, run, stack.GitHub.Token, env)
	}

	for name, inputs := range map[string]map[string]string{
		"of another commit":            {"source-digest": strings.Repeat("0", 40)},
		"that nobody built again":      {"builders": "alice/rebuild, bob/rebuild/.github/workflows/rebuild.yml", "require-builders": "2"},
		"of another reusable workflow": {"repository": "octo-org/image", "signer-workflow": "octo-org/image/.github/workflows/other.yml"},
	} {
		result := verify(inputs)
		if !result.failed || len(result.errors) == 0 || !strings.Contains(result.errors[0], "does not verify") {
			t.Errorf("%s: failed %t, errors %q", name, result.failed, result.errors)
		}
		for output, value := range result.outputs {
			if strings.HasPrefix(output, "image.") && value != "" {
				t.Errorf("%s: output %s is %q", name, output, value)
			}
		}
		if strings.Contains(result.log, "deploying") {
			t.Errorf("%s: it was deployed", name)
		}
	}

	result := verify(map[string]string{"source-digest": testenv.DefaultRun.SHA, "deny-self-hosted-runners": "true", "remeasure": "true"})
	if result.failed {
		t.Fatalf("the workflow failed: %q", result.errors)
	}
	var names []string
	for output, value := range result.outputs {
		if name, ok := strings.CutPrefix(output, "image."); ok && value != "" {
			names = append(names, name)
		}
	}
	if slices.Sort(names); !slices.Equal(names, verifyOutputs) {
		t.Errorf("outputs %q, want %q", names, verifyOutputs)
	}
	if got := result.outputs["image.digest"]; got != digest || result.outputs["image.artifact"] != a.reference {
		t.Errorf("digest %q of %q, want %q", got, result.outputs["image.artifact"], digest)
	}
	for _, n := range []string{"4", "7", "11", "12"} {
		value := result.outputs["image.pcr"+n]
		if len(value) != 96 || !strings.Contains(result.outputs["image.measurements"], `"`+value+`"`) {
			t.Errorf("PCR %s is %q, and the measurements are %.300s", n, value, result.outputs["image.measurements"])
		}
	}
	if got := result.outputs["image.source-repository"]; got != "https://github.com/octo-org/image" {
		t.Errorf("it was built from %q", got)
	}
	if !strings.Contains(result.log, "deploying "+digest) || !strings.Contains(result.summary, digest) {
		t.Errorf("it was not deployed, or is not in the summary:\n%s", result.summary)
	}
	if strings.Contains(result.log, stack.GitHub.Token) {
		t.Error("the log shows the token")
	}
}

// TestVerifyActionInputs holds what the action says of inputs before it builds
// anything, and that values stay values.
func TestVerifyActionInputs(t *testing.T) {
	script := filepath.Join(testenv.Root(t), "scripts/action-verify")
	marker := filepath.Join(t.TempDir(), "marker")
	for name, tc := range map[string]struct {
		set  map[string]string
		want string
	}{
		"no artifact":        {map[string]string{"ARTIFACT": ""}, "input 'artifact' is empty"},
		"another repository": {map[string]string{"REPOSITORY": "octo-org/other"}, "say in 'signer-workflow' which of its workflows must have signed"},
		"another repository without a ref": {map[string]string{"REPOSITORY": "octo-org/other", "SIGNER_WORKFLOW": "octo-org/other/.github/workflows/x.yml"},
			"say in 'source-ref' from which ref"},
		"no number":       {map[string]string{"REQUIRE_BUILDERS": "$(touch " + marker + ")"}, "input 'require-builders' must be a number"},
		"no truth":        {map[string]string{"REMEASURE": "maybe"}, "input 'remeasure' must be true or false"},
		"no truth either": {map[string]string{"DENY_SELF_HOSTED_RUNNERS": ""}, "input 'deny-self-hosted-runners' must be true or false"},
		"a command":       {map[string]string{"REMEASURE": "$(touch " + marker + ")"}, "input 'remeasure' must be true or false"},
		"in a name": {map[string]string{"REPOSITORY": "a/b`touch " + marker + "`"},
			"say in 'signer-workflow' which of its workflows must have signed"},
	} {
		t.Run(name, func(t *testing.T) {
			env := map[string]string{
				"ARTIFACT": "ghcr.io/octo-org/image@sha256:" + strings.Repeat("0", 64), "REPOSITORY": "", "SIGNER_WORKFLOW": "", "SIGNER_DIGEST": "",
				"SOURCE_REF": "", "SOURCE_DIGEST": "", "DENY_SELF_HOSTED_RUNNERS": "false", "REMEASURE": "false", "CERT_OIDC_ISSUER": "",
				"TRUSTED_ROOT": "", "BUNDLE": "", "BUILDERS": "", "REQUIRE_BUILDERS": "", "GITHUB_REPOSITORY": "Octo-Org/Image", "GITHUB_REF": "refs/heads/main",
				"GITHUB_WORKFLOW_REF": "octo-org/image/.github/workflows/deploy.yml@refs/heads/main", "PATH": os.Getenv("PATH"),
			}
			maps.Copy(env, tc.set)
			cmd := exec.Command(script)
			for key, value := range env {
				cmd.Env = append(cmd.Env, key+"="+value)
			}
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "::error title=attestable-image::") || !strings.Contains(string(out), tc.want) {
				t.Errorf("%v: %s\nwant %q", err, out, tc.want)
			}
			if _, err := os.Stat(marker); err == nil {
				t.Error("a value was run")
			}
		})
	}
}
