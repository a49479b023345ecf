package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// TestSecondBuilder has one repository build and attest, another one build again from
// the commit in the certificate and attest the same, and a consumer demand both.
func TestSecondBuilder(t *testing.T) {
	disk := testenv.GoldenDisk(t, "stub257")
	stack := testenv.StartSigstore(t, testenv.Options{})
	fakeEngine(t, disk)
	tree, commit := sourceTree(t)
	registry := testenv.StartRegistry(t)
	const first, second = "octo-org/voted", "alice/rebuild"
	deployment := []string{"--signing-config", stack.SigningConfig, "--trusted-root", stack.TrustedRoot}
	whose := []string{"--trusted-root", stack.TrustedRoot, "--cert-oidc-issuer", stack.Issuer.URL, "--repo", first}
	with := func(command []string, more ...[]string) []string {
		for _, args := range more {
			command = append(command, args...)
		}
		return command
	}
	bundles := filepath.Join(t.TempDir(), "bundles.jsonl")

	inJob(t, stack, testenv.Run{Repository: first, SHA: commit})
	reference := publish(t, tree, registry.Host+"/"+first+":v1")
	if status, _, said := executeHere(t, with([]string{"attest", "--bundle-output", bundles, reference}, deployment)...); status != 0 {
		t.Fatal(said)
	}

	builder := testenv.Run{Repository: second, RepositoryID: "7", RepositoryOwnerID: "1", WorkflowPath: ".github/workflows/rebuild.yml"}
	inJob(t, stack, builder)
	rebuilt := filepath.Join(t.TempDir(), "rebuilt.json")
	rebuild := func(more ...string) (status int, stdout, stderr string) {
		t.Helper()
		return executeHere(t, with([]string{"rebuild", "--builder-image", "fake", reference}, whose, more)...)
	}
	status, out, said := rebuild("--source-url", "file://"+tree, "--measurements", rebuilt)
	if status != 0 || !strings.Contains(out, "built again from https://github.com/"+first+" at "+commit) {
		t.Fatalf("status %d: %s%s", status, out, said)
	}

	t.Run("another commit", func(t *testing.T) {
		other := filepath.Join(t.TempDir(), "source")
		gitIn(t, tree, "clone", "--quiet", tree, other)
		writeFile(t, filepath.Join(other, "files/etc/motd"), "evil\n", 0o644)
		gitIn(t, other, "commit", "--quiet", "--all", "-m", "evil")
		status, _, said := rebuild("--source", other)
		if status != 1 || !strings.Contains(said, "and the artifact was built from the commit "+commit) {
			t.Errorf("status %d: %s", status, said)
		}
		status, _, said = rebuild("--source", other, "--other-commit")
		if status != 1 || !strings.Contains(said, "root/etc/motd has other content") {
			t.Errorf("status %d: %s", status, said)
		}
		gitIn(t, other, "checkout", "--quiet", commit)
		if status, _, said := rebuild("--source", other); status != 0 {
			t.Errorf("status %d: %s", status, said)
		}
		status, _, said = rebuild("--source-url", "file://"+t.TempDir())
		if status != 1 || !strings.Contains(said, "check out file://") {
			t.Errorf("status %d: %s", status, said)
		}
	})

	verify := func(more ...string) (verification, string) {
		t.Helper()
		var verdict verification
		_, out, said := executeHere(t, with([]string{"verify", "artifact", "--format", "json", reference}, whose, more)...)
		if err := json.Unmarshal([]byte(out), &verdict); err != nil {
			t.Fatalf("%v: %s%s", err, out, said)
		}
		return verdict, out
	}
	if verdict, out := verify("--builder", second); verdict.Failed != "builders" || len(verdict.Votes) != 2 {
		t.Errorf("before the second builder attests: %s", out)
	}
	attestRebuilt := func(path string) (int, string) {
		t.Helper()
		status, _, said := executeHere(t, with([]string{"attest", "--rebuilt", path, "--bundle-output", bundles, reference}, deployment)...)
		return status, said
	}
	if status, said := attestRebuilt(rebuilt); status != 0 {
		t.Fatal(said)
	}
	if stored := len(stack.GitHub.Bundles(second)); stored != 1 {
		t.Errorf("GitHub has %d attestations of the second builder, want the measurements alone", stored)
	}
	verdict, out := verify("--builder", second+"/.github/workflows/rebuild.yml", "--require-builders", "2")
	if !verdict.Verified || len(verdict.Votes) != 2 || verdict.Votes[1].OwnerID != "1" || verdict.Votes[1].RepositoryID != "7" || verdict.Votes[0].RepositoryID != testenv.DefaultRun.RepositoryID {
		t.Errorf("with both: %s", out)
	}
	if verdict, out := verify("--builder", second, "--bundle", bundles); !verdict.Verified {
		t.Errorf("from the file: %s", out)
	}
	if verdict, out := verify("--builder", second, "--bundle-from", "registry"); verdict.Failed != "builders" {
		t.Errorf("from the registry alone: %s", out)
	}
	if verdict, out := verify("--builder", second+"\nmallory/rebuild"); verdict.Failed != "builders" {
		t.Errorf("with one who attests nothing: %s", out)
	}
	status, out, _ = executeHere(t, with([]string{"verify", "artifact", reference, "--builder", second, "--builder", "mallory/rebuild", "--require-builders", "2"}, whose)...)
	if status != 0 || !strings.Contains(out, "builder "+second) || !strings.Contains(out, "builder mallory/rebuild does not count: it attests nothing of this artifact") {
		t.Errorf("status %d: %s", status, out)
	}
	// The second builder did not make it.
	if status, out, _ := executeHere(t, "verify", "artifact", reference, "--trusted-root", stack.TrustedRoot, "--cert-oidc-issuer", stack.Issuer.URL, "--repo", second); status != 1 {
		t.Errorf("as the second builder's own: %s", out)
	}

	t.Run("another image", func(t *testing.T) {
		content, err := os.ReadFile(rebuilt)
		if err != nil {
			t.Fatal(err)
		}
		other := filepath.Join(t.TempDir(), "other.json")
		writeFile(t, other, strings.Replace(string(content), `"SHA256": "f5`, `"SHA256": "f6`, 1), 0o644)
		if status, said := attestRebuilt(other); status != 1 || !strings.Contains(said, "what was built again is another image: Disk.SHA256") {
			t.Errorf("status %d: %s", status, said)
		}
		if status, said := attestRebuilt("/nonexistent"); status != 2 || !strings.Contains(said, "read what was built again") {
			t.Errorf("status %d: %s", status, said)
		}
	})
}

func TestVoteCommandLine(t *testing.T) {
	noJob(t)
	const digest = "ghcr.io/a/b@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	many := []string{"verify", "artifact", "--repo", "a/b"}
	for range maxBuilders + 1 {
		many = append(many, "--builder", "c/d")
	}
	for _, tc := range []struct {
		name   string
		args   []string
		stderr string
	}{
		{"more than there are", []string{"verify", "artifact", "--repo", "a/b", "--builder", "c/d", "--require-builders", "3", digest}, "name more, or require from 1 to 2"},
		{"more than a list has", []string{"verify", "artifact", "--repo", "a/b", "--builder", "c/d, e/f\n", "--require-builders", "4", digest}, "name more, or require from 1 to 3"},
		{"negative", []string{"verify", "artifact", "--repo", "a/b", "--require-builders", "-1", digest}, "require from 1 to 1"},
		{"no repository", []string{"verify", "artifact", "--repo", "a/b", "--builder", "c", digest}, `the builder "c" is not of the form`},
		{"too many", append(many, digest), "there are more than 50"},
		{"local", []string{"verify", "artifact", "--local-trust", "x", "--builder", "c/d", digest}, "is nobody's vote"},
		{"rebuilt locally", []string{"attest", "--local-trust", "x", "--rebuilt", "y", digest}, "--rebuilt needs the identity of a job"},
		{"rebuilt and more", []string{"attest", "--rebuilt", "y", "--sbom", "z", digest}, "leave out --release, --audit and --sbom"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			status, stdout, stderr := execute(t, tc.args...)
			if status != 2 || !strings.Contains(stderr, tc.stderr) || stdout != "" {
				t.Errorf("status %d, stderr %q; want %q", status, stderr, tc.stderr)
			}
		})
	}
}
