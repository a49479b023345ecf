package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// TestProvenance attests in a workflow that act runs, and compares every field of
// the provenance statement with what GitHub's own attest action makes of the same
// claims.
func TestProvenance(t *testing.T) {
	testenv.Tool(t, "act")
	stack := testenv.StartSigstore(t, testenv.Options{})
	for _, tc := range []struct {
		name   string
		change func(run *testenv.Run)
	}{
		{"in the repository's own workflow", func(*testenv.Run) {}},
		{"in a reusable workflow of another repository", func(run *testenv.Run) {
			run.JobWorkflowRef = "octo-org/workflows/.github/workflows/build.yml@refs/tags/v1"
		}},
		{"for a tag with an at sign, by hand, on a runner of one's own, again", func(run *testenv.Run) {
			run.Ref, run.EventName, run.RunnerEnvironment = "refs/tags/image@1.2.3", "workflow_dispatch", "self-hosted"
			run.RepositoryID, run.RepositoryOwnerID, run.Repository = "9007199254740993", "18014398509481985", "Octo-Org/Image"
			run.RunID, run.RunAttempt = "17654321098", "3"
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			registry := testenv.StartRegistry(t)
			pushed := run(t, nil, command(t), "push", "--quiet", smallDisk(t), registry.Host+"/octo-org/image:v1")
			pushed.accepts(t)
			reference := strings.TrimSpace(pushed.output)
			bundles := filepath.Join(t.TempDir(), "bundles.jsonl")
			quoted := func(value string) string {
				text, err := json.Marshal(value) // JSON strings are YAML strings
				if err != nil {
					t.Fatal(err)
				}
				return string(text)
			}
			dir := t.TempDir()
			if err := os.MkdirAll(filepath.Join(dir, ".github/workflows"), 0o755); err != nil {
				t.Fatal(err)
			}
			workflow := `name: Image
on: [push, workflow_dispatch]
permissions:
  id-token: write
  attestations: write
  packages: write
jobs:
  image:
    runs-on: ubuntu-latest
    steps:
      - env:
          GITHUB_TOKEN: ${{ github.token }}
          PROGRAM: ` + quoted(command(t)) + `
          SIGNING_CONFIG: ` + quoted(stack.SigningConfig) + `
          TRUSTED_ROOT: ` + quoted(stack.TrustedRoot) + `
          BUNDLES: ` + quoted(bundles) + `
          REFERENCE: ` + quoted(reference) + `
        run: '"$PROGRAM" attest --signing-config "$SIGNING_CONFIG" --trusted-root "$TRUSTED_ROOT" --bundle-output "$BUNDLES" "$REFERENCE"'
`
			if err := os.WriteFile(filepath.Join(dir, workflowPath), []byte(workflow), 0o600); err != nil {
				t.Fatal(err)
			}
			git(t, dir, "init", "--quiet", "--initial-branch=main")
			git(t, dir, "remote", "add", "origin", "https://github.com/"+testenv.DefaultRun.Repository)
			git(t, dir, "add", "--all")
			git(t, dir, "-c", "user.name=Octocat", "-c", "user.email=octocat@example.com", "commit", "--quiet", "--message=Test")
			job := testenv.DefaultRun
			job.SHA, job.WorkflowPath, job.JobWorkflowRef = strings.TrimSpace(git(t, dir, "rev-parse", "HEAD")), workflowPath, ""
			tc.change(&job)
			var env []string
			for _, variable := range stack.Env(job) {
				if !strings.HasPrefix(variable, "GITHUB_TOKEN=") { // a secret, as the runner has it
					env = append(env, variable)
				}
			}
			if result := act(t, dir, job, stack.GitHub.Token, env); result.failed {
				t.Fatalf("the workflow failed: %q", result.errors)
			}
			a := &artifact{bundles: bundles, reference: reference}
			a.saysWhatGitHubSays(t, job)
		})
	}
}

// saysWhatGitHubSays compares the provenance in the artifact's bundles, member by
// member and in both directions, with GitHub's for this job. Of a build by the action
// the builder and the inputs follow the source.
func (a *artifact) saysWhatGitHubSays(t *testing.T, job testenv.Run, further ...any) {
	t.Helper()
	claims := job.Claims()
	claim := func(name string) string { return claims[name].(string) }
	place, digest, _ := strings.Cut(a.reference, "@sha256:")
	const server = "https://github.com"
	repository := server + "/" + claim("repository")
	path, _, _ := strings.Cut(strings.TrimPrefix(claim("workflow_ref"), claim("repository")+"/"), "@")
	want := map[string]any{
		"_type":         "https://in-toto.io/Statement/v1",
		"subject":       []any{map[string]any{"name": place, "digest": map[string]any{"sha256": digest}}},
		"predicateType": "https://slsa.dev/provenance/v1",
		"predicate": map[string]any{
			"buildDefinition": map[string]any{
				"buildType": "https://actions.github.io/buildtypes/workflow/v1",
				"externalParameters": map[string]any{
					"workflow": map[string]any{"ref": claim("ref"), "repository": repository, "path": path},
				},
				"internalParameters": map[string]any{"github": map[string]any{
					"event_name":          claim("event_name"),
					"repository_id":       claim("repository_id"),
					"repository_owner_id": claim("repository_owner_id"),
					"runner_environment":  claim("runner_environment"),
				}},
				"resolvedDependencies": append([]any{map[string]any{
					"uri": "git+" + repository + "@" + claim("ref"), "digest": map[string]any{"gitCommit": claim("sha")},
				}}, further...),
			},
			"runDetails": map[string]any{
				"builder":  map[string]any{"id": server + "/" + claim("job_workflow_ref")},
				"metadata": map[string]any{"invocationId": repository + "/actions/runs/" + claim("run_id") + "/attempts/" + claim("run_attempt")},
			},
		},
	}
	data, err := os.ReadFile(a.bundleFile(t, predicateProvenance))
	if err != nil {
		t.Fatal(err)
	}
	var statement any
	if err := json.Unmarshal([]byte(payloadOf(data)), &statement); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(statement, any(want)) {
		got, _ := json.MarshalIndent(statement, "", "  ")
		expected, _ := json.MarshalIndent(want, "", "  ")
		t.Errorf("the statement is\n%s\nand GitHub's\n%s", got, expected)
	}
	var bundle struct {
		MediaType            string `json:"mediaType"`
		VerificationMaterial struct {
			Certificate *struct {
				RawBytes []byte `json:"rawBytes"`
			} `json:"certificate"`
			Chain any `json:"x509CertificateChain"`
		} `json:"verificationMaterial"`
		Envelope struct {
			PayloadType string            `json:"payloadType"`
			Signatures  []json.RawMessage `json:"signatures"`
		} `json:"dsseEnvelope"`
	}
	if err := json.Unmarshal(data, &bundle); err != nil {
		t.Fatal(err)
	}
	material := bundle.VerificationMaterial
	if bundle.MediaType != "application/vnd.dev.sigstore.bundle.v0.3+json" || bundle.Envelope.PayloadType != "application/vnd.in-toto+json" ||
		len(bundle.Envelope.Signatures) != 1 || material.Certificate == nil || len(material.Certificate.RawBytes) == 0 || material.Chain != nil ||
		bytes.Count(bytes.TrimSpace(data), []byte("\n")) > 0 {
		t.Errorf("the bundle is not as GitHub's: %s", data)
	}
}
