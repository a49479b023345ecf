package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/artifact"
	"github.com/org/attestable-image-action/internal/attest"
	"github.com/org/attestable-image-action/internal/testenv"
)

// inJob makes the test a job of run, and returns its file of outputs.
func inJob(t *testing.T, stack *testenv.Stack, run testenv.Run) (outputs, temp string) {
	t.Helper()
	noJob(t)
	temp = t.TempDir()
	outputs = filepath.Join(temp, "output")
	for _, variable := range append(stack.Env(run), "GITHUB_OUTPUT="+outputs, "GITHUB_STEP_SUMMARY="+filepath.Join(temp, "summary"), "RUNNER_TEMP="+temp) {
		name, value, _ := strings.Cut(variable, "=")
		t.Setenv(name, value)
	}
	return outputs, temp
}

// lines are the lines of a file.
func lines(t *testing.T, path string) []string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(content), "\n"), "\n")
}

// TestAttestTwice attests in a job, and again: what is there already is not added
// once more, what lacks is, and every step hands on the same.
func TestAttestTwice(t *testing.T) {
	disk := testenv.GoldenDisk(t, "stub257")
	stack := testenv.StartSigstore(t, testenv.Options{})
	for _, kind := range registryKinds() {
		t.Run(kind, func(t *testing.T) {
			host := startRegistry(t, kind)
			name := "octo-org/" + map[bool]string{true: "one", false: "two"}[kind == registryKinds()[0]]
			workflow := testenv.Run{Repository: name, Visibility: "private"}
			outputs, temp := inJob(t, stack, workflow)
			status, pushed, said := executeHere(t, "push", disk, host+"/"+name+":v1")
			if status != 0 {
				t.Fatalf("status %d: %s", status, said)
			}
			var reference string
			for line := range strings.FieldsSeq(pushed) {
				if strings.Contains(line, "@sha256:") {
					reference = line
				}
			}
			ref, err := artifact.ParseReference(reference)
			if err != nil {
				t.Fatal(err)
			}
			attestIt := func() (stdout, stderr string) {
				t.Helper()
				status, out, said := executeHere(t, "attest", "--signing-config", stack.SigningConfig, "--trusted-root", stack.TrustedRoot, reference)
				if status != 0 {
					t.Fatalf("status %d: %s", status, said)
				}
				return out, said
			}
			stored := func() (onGitHub, inRegistry int) {
				t.Helper()
				referrers, err := artifact.Referrers(context.Background(), ref, attest.BundleMediaType)
				if err != nil {
					t.Fatal(err)
				}
				return len(stack.GitHub.Bundles(name)), len(referrers)
			}
			expect := func(wantGitHub, wantRegistry int) {
				t.Helper()
				if g, r := stored(); g != wantGitHub || r != wantRegistry {
					t.Errorf("%d attestations on GitHub, and %d in the registry; want %d and %d", g, r, wantGitHub, wantRegistry)
				}
			}
			records := func() int {
				return len(slices.DeleteFunc(stack.GitHub.Records(), func(r testenv.StorageRecord) bool { return r.Name != ref.Place() }))
			}

			out, said := attestIt()
			expect(2, 2)
			if records() != 1 || strings.Contains(said, "Warning") || strings.Contains(out, "already there") {
				t.Errorf("%d storage records\n%s%s", records(), said, out)
			}
			first := strings.Join(lines(t, outputs), "\n")
			for _, want := range []string{"attestation-id<<", "/attestations/10000", "bundle-path<<", "storage-record-ids<<"} {
				if !strings.Contains(first, want) {
					t.Errorf("the outputs lack %q:\n%s", want, first)
				}
			}
			if paths := lines(t, filepath.Join(temp, "created_attestation_paths.txt")); len(paths) != 1 || len(lines(t, paths[0])) != 2 {
				t.Errorf("files of bundles: %q", paths)
			}

			out, _ = attestIt()
			expect(2, 2)
			if records() != 1 || strings.Count(out, "already there") != 4 {
				t.Errorf("%d storage records\n%s", records(), out)
			}
			// The file has them all the same, for whoever comes after.
			if paths := lines(t, filepath.Join(temp, "created_attestation_paths.txt")); len(paths) != 2 || len(lines(t, paths[1])) != 2 {
				t.Errorf("files of bundles: %q", paths)
			}

			// The next attempt of the run is another provenance, and the same image.
			workflow.RunAttempt = "2"
			inJob(t, stack, workflow)
			attestIt()
			expect(3, 3)

			// Another run of the commit attests all of it: nobody takes what is of two runs
			// together.
			workflow.RunID, workflow.RunAttempt = "7654321099", ""
			inJob(t, stack, workflow)
			attestIt()
			expect(5, 5)
			attestIt()
			expect(5, 5)

			// The first check that does not hold has a name.
			status, asJSON, _ := executeHere(t, "verify", "artifact", reference, "--trusted-root", stack.TrustedRoot, "--cert-oidc-issuer", stack.Issuer.URL,
				"--repo", name, "--runner-environment", "self-hosted", "--format", "json")
			var verdict verification
			if err := json.Unmarshal([]byte(asJSON), &verdict); err != nil || status != 1 || verdict.Verified || verdict.Failed != "provenance runner" {
				t.Errorf("status %d, failed %q (%v)", status, verdict.Failed, err)
			}
			for _, source := range []string{"registry", "github"} {
				status, table, said := executeHere(t, "verify", "artifact", reference, "--trusted-root", stack.TrustedRoot, "--cert-oidc-issuer", stack.Issuer.URL,
					"--repo", name, "--bundle-from", source, "--deny-self-hosted-runners", "--source-digest", testenv.DefaultRun.SHA)
				if status != 0 || !strings.Contains(table, " by the timestamp authority "+stack.TimestampURL+"; its log entry tells no time") {
					t.Errorf("from %s: status %d\n%s%s", source, status, table, said)
				}
			}
		})
	}
}

// TestAttestHalf completes what a run left half done: GitHub had the attestations,
// and the registry refused them.
func TestAttestHalf(t *testing.T) {
	disk := testenv.GoldenDisk(t, "stub257")
	stack := testenv.StartSigstore(t, testenv.Options{Organization: testenv.GitHubInc, NoRekor: true})
	registry := testenv.StartRegistry(t)
	const name = "octo-org/half"
	inJob(t, stack, testenv.Run{Repository: name})
	_, pushed, _ := executeHere(t, "push", "--quiet", disk, registry.Host+"/"+name+":v1")
	reference := strings.Fields(pushed)[0]
	if !strings.Contains(reference, "@sha256:") {
		t.Fatalf("push printed %q", pushed)
	}
	args := []string{"attest", "--trusted-root", stack.TrustedRoot, "--fulcio-url", stack.FulcioURL, "--timestamp-server-url", stack.TimestampURL,
		"--oidc-issuer", stack.Issuer.URL, "--storage-record=false", reference}
	t.Run("refused", func(t *testing.T) {
		registry.Intercept(t, func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPut {
				return false
			}
			w.WriteHeader(http.StatusForbidden)
			return true
		})
		status, _, said := executeHere(t, args...)
		if status != 1 || !strings.Contains(said, "run this again, and only what lacks is stored") {
			t.Errorf("status %d: %s", status, said)
		}
	})
	before := fmt.Sprint(stack.GitHub.Bundles(name))
	status, out, said := executeHere(t, args...)
	if status != 0 || strings.Count(out, "already there") != 2 || fmt.Sprint(stack.GitHub.Bundles(name)) != before {
		t.Errorf("status %d: %s%s", status, out, said)
	}
	ref, err := artifact.ParseReference(reference)
	if err != nil {
		t.Fatal(err)
	}
	referrers, err := artifact.Referrers(t.Context(), ref, attest.BundleMediaType)
	if err != nil || len(referrers) != 2 {
		t.Fatalf("%d referrers, %v", len(referrers), err)
	}
	for _, r := range referrers {
		bundle, err := artifact.GetReferrer(t.Context(), ref, r)
		if err != nil || !slices.ContainsFunc(stack.GitHub.Bundles(name), func(stored json.RawMessage) bool { return string(stored) == string(bundle) }) {
			t.Errorf("the registry has another bundle than GitHub (%v)", err)
		}
		if r.Annotations["org.opencontainers.image.created"] == "" || r.Annotations[attest.AnnotationContent] != "dsse-envelope" {
			t.Errorf("annotations %v", r.Annotations)
		}
	}
	if len(stack.GitHub.Records()) != 0 {
		t.Error("a storage record was made")
	}
}
