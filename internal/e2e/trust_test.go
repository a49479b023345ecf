package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// TestPrivateRepository makes an artifact as a private repository does: signed
// by GitHub's own Sigstore, which keeps no log that others could read.
func TestPrivateRepository(t *testing.T) {
	stack := testenv.StartSigstore(t, testenv.Options{Organization: testenv.GitHubInc, NoRekor: true, GenuineIssuer: true})
	workflow := testenv.Run{Visibility: "private", WorkflowPath: testenv.DefaultRun.WorkflowPath}
	a := makeArtifact(t, stack, workflow, testenv.StartRegistry(t), smallDisk(t))
	data, err := os.ReadFile(a.bundles)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(data), "tlogEntries\":[{") {
		t.Error("an entry was added to a log")
	}
	a.acceptedByAll(t)
}

// TestPublicTrustRefusesOthers holds that what a private deployment signed
// is nothing to somebody who trusts the public ones.
func TestPublicTrustRefusesOthers(t *testing.T) {
	stack := testenv.StartSigstore(t, testenv.Options{GenuineIssuer: true})
	a := makeArtifact(t, stack, testenv.DefaultRun, testenv.StartRegistry(t), smallDisk(t))
	run(t, nil, command(t), "verify", "artifact", a.reference, "--repo", testenv.DefaultRun.Repository, "--bundle", a.bundles).
		refuses(t, "which is neither the public Sigstore nor GitHub: name its trusted root with --trusted-root")
	run(t, nil, command(t), "verify", "artifact", a.reference, "--repo", testenv.DefaultRun.Repository, "--bundle", a.bundles,
		"--trusted-root", filepath.Join(testenv.Root(t), "internal/attest/testdata/public-good-root.json")).
		refuses(t, "provenance attestation: expected a bundle that verifies")
}

// TestLocalTrustByCosign lets cosign verify what a local trust root signed, by
// the name that it gives itself; and nobody takes it for GitHub's.
func TestLocalTrustByCosign(t *testing.T) {
	registry := testenv.StartRegistry(t)
	dir := t.TempDir()
	trust := filepath.Join(dir, "trust")
	pushed := run(t, nil, command(t), "push", "--quiet", smallDisk(t), registry.Host+"/octo-org/image:v1")
	pushed.accepts(t)
	reference := strings.TrimSpace(pushed.output)
	run(t, nil, command(t), "attest", "--local-trust", trust, reference).accepts(t)
	cosign := func(identity, issuer string) outcome {
		return run(t, nil, testenv.Tool(t, "cosign"), "verify-attestation", reference, "--trusted-root", filepath.Join(trust, "trusted_root.json"),
			"--certificate-identity", identity, "--certificate-oidc-issuer", issuer, "--type", predicateMeasurements,
			"--insecure-ignore-sct", "--insecure-ignore-tlog", "--use-signed-timestamps")
	}
	cosign("https://localhost/attestable-image/local", "attestable-image local trust").accepts(t)
	cosign(testenv.DefaultRun.Identity(), testenv.GenuineIssuer).refuses(t, "no matching CertificateIdentity found")
	run(t, nil, command(t), "verify", "artifact", reference, "--trusted-root", filepath.Join(trust, "trusted_root.json"), "--repo", "octo-org/image").
		refuses(t, "provenance issuer: expected https://token.actions.githubusercontent.com, found attestable-image local trust")
}

// TestAttestInJob holds what jobs that may not attest are told.
func TestAttestInJob(t *testing.T) {
	stack := testenv.StartSigstore(t, testenv.Options{})
	registry := testenv.StartRegistry(t)
	pushed := run(t, nil, command(t), "push", "--quiet", smallDisk(t), registry.Host+"/octo-org/image:v1")
	pushed.accepts(t)
	reference := strings.TrimSpace(pushed.output)
	for _, c := range []struct {
		name, drop, set, want string
	}{
		{name: "without the permission id-token", drop: "ACTIONS_ID_TOKEN_REQUEST_URL=", want: "add 'permissions: id-token: write'"},
		{name: "without a token", drop: "GITHUB_TOKEN=", want: "there is no token to store the attestations with"},
		{name: "with another token", drop: "GITHUB_TOKEN=", set: "GITHUB_TOKEN=ghs_wrong", want: "is not valid, or expired"},
		{name: "with a request token that expired", drop: "ACTIONS_ID_TOKEN_REQUEST_TOKEN=", set: "ACTIONS_ID_TOKEN_REQUEST_TOKEN=x", want: "it answered 401 Unauthorized: start the job again"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			env := []string{"RUNNER_TEMP=" + dir, "GITHUB_OUTPUT=" + filepath.Join(dir, "output")}
			for _, variable := range stack.Env(testenv.DefaultRun) {
				if !strings.HasPrefix(variable, c.drop) {
					env = append(env, variable)
				}
			}
			if c.set != "" {
				env = append(env, c.set)
			}
			got := run(t, env, command(t), "attest", "--signing-config", stack.SigningConfig, "--trusted-root", stack.TrustedRoot, reference)
			got.refuses(t, c.want)
			if !strings.Contains(got.output, "::error title=attestable-image::") || strings.Contains(got.output, "ghs_wrong") {
				t.Errorf("output:\n%s", got.output)
			}
		})
	}
	if stored := stack.GitHub.Bundles(testenv.DefaultRun.Repository); len(stored) != 0 {
		t.Errorf("%d bundles were stored", len(stored))
	}
}
