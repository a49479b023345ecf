package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/attest"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/testenv"
)

// TestActionRefuses runs the action in jobs that cannot succeed: each must end
// before anything is built, with one annotation that says what to change.
func TestActionRefuses(t *testing.T) {
	if testing.Short() {
		t.Skip("act is not run with -short")
	}
	tokens := []string{"ACTIONS_ID_TOKEN_REQUEST_URL=http://127.0.0.1:1/idtoken", "ACTIONS_ID_TOKEN_REQUEST_TOKEN=x"}
	for _, c := range []struct {
		name   string
		inputs map[string]string
		env    []string
		want   string
	}{
		// act cannot withhold a permission, but what the runner does then is to
		// leave the variables out.
		{"without the permission id-token", map[string]string{"template": "debian"}, nil, "id-token: write"},
		{"without an image", map[string]string{"name": "image"}, tokens, "neither 'template' nor 'description'"},
		{"with two images", map[string]string{"template": "debian", "description": "image"}, tokens, "both 'template' and 'description'"},
		{"with a key and no certificate", map[string]string{"template": "debian", "secure-boot-key": "awskms:alias/key"}, tokens, "only one of the inputs 'secure-boot-key' and 'secure-boot-cert' has a value"},
		{"with no boolean", map[string]string{"template": "debian", "push": "yes"}, tokens, "'push' must be true or false"},
		{"with no boolean for the service", map[string]string{"template": "debian", "serve": "8443"}, tokens, "'serve' must be true or false"},
		{"with no format", map[string]string{"template": "debian", "sbom": "swid"}, tokens, "'sbom' must be spdx, cyclonedx, both or none"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, run := checkout(t, actionWorkflow(c.inputs, ""))
			var result workflowResult
			// act does not wait for the last lines of a step that fails, and
			// loses them now and then.
			for range 4 {
				if result = act(t, dir, run, "dummy", c.env); !result.failed || len(result.errors) > 0 {
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

// TestAction runs the action as a user's workflow calls it, `uses: ./` and the
// template, with KIWI NG in a container; and lets everybody verify the artifact.
func TestAction(t *testing.T) {
	if testing.Short() {
		t.Skip("the action is not run with -short: it builds an image with KIWI, which takes minutes")
	}
	testenv.Tool(t, "act")
	command(t) // what verifies should not fail to build when all is made
	if exec.Command("docker", "info").Run() != nil && exec.Command("podman", "info").Run() != nil {
		testenv.Missing(t, "neither docker nor podman answers: KIWI runs in a container")
	}
	stack := testenv.StartSigstore(t, testenv.Options{})
	registry := testenv.StartRegistry(t)
	keep := t.TempDir()
	inputs := map[string]string{
		"template": "debian", "name": "demo", "version": "1.2.3", "overlay": "overlay", "serve": "true", "sbom": "both",
		"package-source": os.Getenv("ATTESTABLE_IMAGE_PACKAGE_SOURCE"),
		"image":          registry.Host + "/octo-org/image", "tags": releaseTag + "\nlatest",
		"signing-config": stack.SigningConfig, "trusted-root": stack.TrustedRoot,
	}
	// A job's files go with it.
	dir, run := checkout(t, actionWorkflow(inputs, `      - name: Keep what was made
        env:
          KEEP: `+keep+`
          IMAGE_PATH: ${{ steps.image.outputs.image-path }}
          MEASUREMENTS_PATH: ${{ steps.image.outputs.measurements-path }}
          BUNDLE_PATH: ${{ steps.image.outputs.bundle-path }}
          SBOM_PATH: ${{ steps.image.outputs.sbom-path }}
        run: |
          while read -r path; do cp "$path" "$KEEP/"; done <<<"$SBOM_PATH"
          cp --sparse=always "$IMAGE_PATH" "$KEEP/image.raw"
          cp "$MEASUREMENTS_PATH" "$KEEP/measurements.json"
          cp "$BUNDLE_PATH" "$KEEP/bundles.jsonl"
`))
	if err := os.MkdirAll(filepath.Join(dir, "overlay", "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay", "etc", "motd"), []byte("hello\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var env []string
	for _, variable := range stack.Env(run) {
		if !strings.HasPrefix(variable, "GITHUB_TOKEN=") { // a secret, as the runner has it
			env = append(env, variable)
		}
	}
	result := act(t, dir, run, stack.GitHub.Token, env)
	if result.failed {
		t.Fatalf("the workflow failed: %q", result.errors)
	}
	a := &artifact{
		stack: stack, registry: registry, workflow: run,
		reference: result.outputs["image.artifact"], bundles: filepath.Join(keep, "bundles.jsonl"), disk: filepath.Join(keep, "image.raw"),
	}
	t.Run("outputs", func(t *testing.T) {
		measurements, err := os.ReadFile(filepath.Join(keep, "measurements.json"))
		if err != nil {
			t.Fatal(err)
		}
		doc, err := measure.ParseDocument(measurements)
		if err != nil {
			t.Fatal(err)
		}
		descriptor, _ := a.manifest(t)
		for name, want := range map[string]string{
			"pcr2": doc.PCR(2), "pcr4": doc.PCR(4), "pcr7": doc.PCR(7), "pcr11": doc.PCR(11), "pcr12": doc.PCR(12), "pcr13": doc.PCR(13),
			"artifact":       registry.Host + "/octo-org/image@" + descriptor.Digest.String(),
			"digest":         descriptor.Digest.String(),
			"attestation-id": "1000002", "attestation-url": "https://github.com/octo-org/image/attestations/1000002",
			"measurements": string(bytes.TrimSpace(measurements)),
			"kms-conditions": `{"StringEqualsIgnoreCase":{"kms:RecipientAttestation:NitroTPMPCR12":"` + doc.PCR(12) + `","kms:RecipientAttestation:NitroTPMPCR13":"` + doc.PCR(13) +
				`","kms:RecipientAttestation:NitroTPMPCR2":"` + doc.PCR(2) + `","kms:RecipientAttestation:NitroTPMPCR4":"` + doc.PCR(4) + `"}}`,
		} {
			if got := result.outputs["image."+name]; got != want || got == "" {
				t.Errorf("output %s is %q, want %q", name, got, want)
			}
		}
		for _, want := range []string{a.reference, doc.PCR(4), "https://github.com/octo-org/image/attestations/1000002", "attestable-image verify artifact"} {
			if !strings.Contains(result.summary, want) {
				t.Errorf("the summary lacks %q:\n%s", want, result.summary)
			}
		}
		if strings.Contains(result.log, stack.GitHub.Token) {
			t.Error("the log shows the token")
		}
	})
	t.Run("provenance", func(t *testing.T) {
		content, err := os.ReadFile(filepath.Join(keep, "measurements.json"))
		if err != nil {
			t.Fatal(err)
		}
		doc, err := measure.ParseDocument(content)
		if err != nil || doc.Builder == nil {
			t.Fatalf("the measurements name no builder: %v", err)
		}
		digest := func(sha256 string) map[string]any { return map[string]any{"sha256": sha256} }
		builder := map[string]any{"name": "builder", "uri": "oci://" + doc.Builder.Image}
		if doc.Builder.Digest != "" { // it is from a registry
			builder["digest"] = digest(strings.TrimPrefix(doc.Builder.Digest, "sha256:"))
		}
		a.saysWhatGitHubSays(t, run, builder,
			map[string]any{"name": "builder packages", "digest": digest(doc.Builder.PackagesSHA256)},
			map[string]any{"name": "description", "digest": digest(doc.Builder.Inputs.DescriptionSHA256)},
			map[string]any{"name": "packages", "digest": digest(doc.Builder.Inputs.PackagesSHA256)})
	})
	t.Run("audit", func(t *testing.T) {
		ghVerify(t, stack, run, "oci://"+a.reference, attest.PredicateAudit, nil, "--bundle", a.bundleFile(t, attest.PredicateAudit)).accepts(t)
		cosignVerify(t, stack, run, a.reference, attest.PredicateAudit).accepts(t)
	})
	t.Run("sbom", func(t *testing.T) {
		testenv.ValidateSPDX(t, filepath.Join(keep, "sbom.spdx.json"))
		testenv.ValidateCycloneDX(t, filepath.Join(keep, "sbom.cdx.json"))
		for predicateType, file := range map[string]string{"https://spdx.dev/Document/v2.3": "sbom.spdx.json", attest.PredicateCycloneDX: "sbom.cdx.json"} {
			content, err := os.ReadFile(filepath.Join(keep, file))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := attest.SBOMPredicateType(content); err != nil || got != predicateType {
				t.Errorf("%s is of type %q: %v", file, got, err)
			}
			ghVerify(t, stack, run, "oci://"+a.reference, predicateType, nil, "--bundle", a.bundleFile(t, predicateType)).accepts(t)
			cosignVerify(t, stack, run, a.reference, predicateType).accepts(t)
			// As README has it: the statement that verified is the one to read. Without a
			// terminal gh prints nothing else.
			printed := ghVerify(t, stack, run, "oci://"+a.reference, predicateType, []string{"GH_FORCE_TTY="}, "--bundle", a.bundleFile(t, predicateType),
				"--format", "json", "--jq", ".[0].verificationResult.statement.predicate")
			var want, got any
			if err := errors.Join(printed.err, json.Unmarshal(content, &want), json.Unmarshal([]byte(printed.output), &got)); err != nil || !reflect.DeepEqual(want, got) {
				t.Errorf("gh prints another document than %s: %v\n%.300s", file, err, printed.output)
			}
		}
	})
	t.Run("accepted", a.acceptedByAll)
	t.Run("tampered", a.refusedWhenTampered)
	t.Run("instance", a.provesItself)
}
