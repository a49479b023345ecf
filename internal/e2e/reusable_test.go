package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/attest"
	"github.com/org/attestable-image-action/internal/testenv"
)

// reusablePath is where the reusable workflow lies in its repository.
const reusablePath = ".github/workflows/attestable-image.yml"

// standInEngine is a container engine that makes the disk DISK in place of KIWI.
const standInEngine = `#!/bin/bash
set -euo pipefail
state=$(dirname "$0")/state
case $1 in
  version) echo 28.0.0 ;;
  info | rm) ;;
  network) echo bridge ;;
  image) echo '[{"Id":"sha256:0000000000000000000000000000000000000000000000000000000000000000"}]' ;;
  create)
    for argument in "$@"; do
      case $argument in
        *,target=/description,readonly) argument=${argument%,target=/description,readonly}; cp -R "${argument#*source=}" "$state.description.$$" ;;
        *,target=/output) argument=${argument%,target=/output}; echo "${argument#*source=}" > "$state" ;;
      esac
    done
    ;;
  start)
    output=$(cat "$state")
    mkdir -p "$output/build"
    cp --sparse=always DISK "$output/build/image.x86_64-1.0.0.raw"
    echo '{"disk_image":{"filename":"/output/build/image.x86_64-1.0.0.raw"}}' > "$output/build/kiwi.result.json"
    echo "KIWI (next generation) version 10.2.33" > "$output/builder.kiwi"
    echo "kiwi 10.2.33 amd64" > "$output/builder.packages"
    echo built > "$output/kiwi.log"
    ;;
  *) exit 1 ;;
esac
`

// standInUpload is actions/upload-artifact without GitHub.
const standInUpload = `name: Upload
description: Stands in for actions/upload-artifact
inputs: {name: {required: true, description: name}, path: {required: true, description: path}, if-no-files-found: {description: what then}}
runs:
  using: composite
  steps:
    - shell: bash
      env:
        NAME: ${{ inputs.name }}
        FILE: ${{ inputs.path }}
      run: |
        cp "$FILE" "KEEP/$NAME"
`

// TestReusableWorkflow runs the example that calls the reusable workflow, with a
// stand-in for KIWI.
func TestReusableWorkflow(t *testing.T) {
	if testing.Short() {
		t.Skip("act is not run with -short")
	}
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "docker"), []byte(strings.ReplaceAll(standInEngine, "DISK", smallDisk(t))), 0o700); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+string(filepath.ListSeparator)+os.Getenv("PATH"))
	example, err := os.ReadFile(filepath.Join(testenv.Root(t), "examples/workflows/reusable.yml"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(example)
	for _, change := range [][2]string{
		{"  pull_request:\n", ""},
		{"org/attestable-image-action/" + reusablePath + "@v1", "./" + reusablePath},
		{"image/root", "examples/overlays/binary"},
		{"image/web", "examples/overlays/unit"},
		// act keeps the outputs of one job of a matrix.
		{"      architectures: x86_64 aarch64\n", "      builder-image: builder\n      sbom: none\n"},
		{",\n" + `          {"variant": "worker", "name": "worker", "overlay": "image/worker", "serve": true}`, ""},
	} {
		if !strings.Contains(text, change[0]) {
			t.Fatalf("the example no longer has %q", change[0])
		}
		text = strings.ReplaceAll(text, change[0], change[1])
	}
	result := callReusableWorkflow(t, text, attest.PredicateMeasurements, attest.PredicateAudit)
	if want := "web-x86_64 boots as " + result.outputs["assert.pcr4"]; !strings.Contains(result.log, want) {
		t.Errorf("the job of the example does not say %q", want)
	}
}

// TestReusableWorkflowWithKIWI is what scripts/reusable-workflow runs: the same with
// KIWI, which takes minutes.
func TestReusableWorkflowWithKIWI(t *testing.T) {
	if os.Getenv("ATTESTABLE_IMAGE_REUSABLE_WORKFLOW") == "" {
		t.Skip("the reusable workflow builds with KIWI in scripts/reusable-workflow")
	}
	text := `name: Images
on: push
permissions: {}
jobs:
  images:
    permissions:
      contents: read
      packages: write
      id-token: write
      attestations: write
    uses: ./` + reusablePath + `
    with:
      template: debian
      serve: true
      sbom: both
      variants: '[{"variant": "hello", "overlay": "examples/hello", "name": "hello", "version": "1.2.3"}]'
`
	if source := os.Getenv("ATTESTABLE_IMAGE_PACKAGE_SOURCE"); source != "" {
		text = strings.Replace(text, "    with:\n", "    with:\n      package-source: "+source+"\n", 1)
	}
	callReusableWorkflow(t, text, attest.PredicateMeasurements, attest.PredicateAudit, "https://spdx.dev/Document/v2.3", attest.PredicateCycloneDX)
}

// callReusableWorkflow runs a workflow whose job images calls the reusable one, as far
// as act goes: without job.workflow_sha, which it does not know, and for one image,
// since it keeps the outputs of one job of a matrix. A job behind it, assert, is given
// the outputs, and everybody verifies the artifact by the workflow that signed it.
func callReusableWorkflow(t *testing.T, text string, predicateTypes ...string) workflowResult {
	t.Helper()
	testenv.Tool(t, "act")
	stack := testenv.StartSigstore(t, testenv.Options{})
	registry := testenv.StartRegistry(t)
	keep := t.TempDir()
	upload := t.TempDir()
	if err := os.WriteFile(filepath.Join(upload, "action.yml"), []byte(strings.ReplaceAll(standInUpload, "KEEP", keep)), 0o600); err != nil {
		t.Fatal(err)
	}
	const uses = "    uses: ./" + reusablePath + "\n    with:\n"
	if !strings.Contains(text, uses) {
		t.Fatalf("the workflow does not call the reusable one:\n%s", text)
	}
	text = strings.Replace(text, uses, uses+"      image: "+registry.Host+"/octo-org/image\n      tags: v1\n", 1)
	dir, run := checkout(t, text+`
  assert:
    needs: images
    runs-on: ubuntu-24.04
    steps:
      - id: assert
        env:
          IMAGES: ${{ needs.images.outputs.images }}
          ARTIFACT: ${{ needs.images.outputs.artifact }}
          DIGEST: ${{ needs.images.outputs.digest }}
          PCR2: ${{ needs.images.outputs.pcr2 }}
          PCR4: ${{ needs.images.outputs.pcr4 }}
          PCR7: ${{ needs.images.outputs.pcr7 }}
          PCR11: ${{ needs.images.outputs.pcr11 }}
          PCR12: ${{ needs.images.outputs.pcr12 }}
          PCR13: ${{ needs.images.outputs.pcr13 }}
          BUNDLE: ${{ needs.images.outputs.bundle }}
        run: |
          for name in IMAGES ARTIFACT DIGEST PCR2 PCR4 PCR7 PCR11 PCR12 PCR13 BUNDLE; do
            [ -n "${!name}" ]
            echo "${name,,}=${!name}" >> "$GITHUB_OUTPUT"
          done
`)
	reusable, err := os.ReadFile(filepath.Join(testenv.Root(t), reusablePath))
	if err != nil {
		t.Fatal(err)
	}
	// What GitHub's server tells, and act does not. act makes a copy of the checkout
	// for what is the run's own repository and ref.
	workflow := strings.NewReplacer(
		"ref: ${{ job.workflow_sha }}", "ref: refs/heads/main",
		"${{ job.workflow_sha }}", run.SHA,
		"${{ job.workflow_repository }}", testenv.DefaultRun.Repository,
	).Replace(string(reusable))
	if strings.Contains(workflow, "${{ job.") {
		t.Fatal("the workflow uses more of the context job than this test stands in for")
	}
	if err := os.WriteFile(filepath.Join(dir, reusablePath), []byte(workflow), 0o600); err != nil {
		t.Fatal(err)
	}
	run.JobWorkflowRef = "org/attestable-image-action/" + reusablePath + "@refs/tags/v1"
	env := []string{"SIGNING_CONFIG=" + stack.SigningConfig, "TRUSTED_ROOT=" + stack.TrustedRoot}
	for _, variable := range stack.Env(run) {
		if !strings.HasPrefix(variable, "GITHUB_TOKEN=") { // a secret, as the runner has it
			env = append(env, variable)
		}
	}
	result := act(t, dir, run, stack.GitHub.Token, env, "--local-repository", "actions/upload-artifact@ea165f8d65b6e75b540449e92b4886f43607fa02="+upload)
	if result.failed {
		t.Fatalf("the workflow failed: %q", result.errors)
	}
	var images []map[string]string
	if err := json.Unmarshal([]byte(result.outputs["assert.images"]), &images); err != nil || len(images) != 1 {
		t.Fatalf("images are %s: %v", result.outputs["assert.images"], err)
	}
	for _, name := range []string{"artifact", "digest", "pcr2", "pcr4", "pcr7", "pcr11", "pcr12", "pcr13", "bundle"} {
		if got := result.outputs["assert."+name]; got == "" || got != images[0][name] {
			t.Errorf("output %s is %q, and in images %q", name, got, images[0][name])
		}
	}
	a := &artifact{
		stack: stack, registry: registry, workflow: run, reference: result.outputs["assert.artifact"],
		bundles: filepath.Join(keep, result.outputs["assert.bundle"]),
	}
	for _, predicateType := range append(predicateTypes, attest.PredicateProvenance) {
		ghVerify(t, stack, run, "oci://"+a.reference, predicateType, nil, "--bundle", a.bundleFile(t, predicateType)).accepts(t)
	}
	cosignVerify(t, stack, run, a.reference, attest.PredicateMeasurements).accepts(t)
	return result
}

// TestWorkflowAttest runs the step that signs on artifacts that a job pushed: it signs
// what it finds to be so, and nothing that was only told.
func TestWorkflowAttest(t *testing.T) {
	if testing.Short() {
		t.Skip("servers are not started with -short")
	}
	stack := testenv.StartSigstore(t, testenv.Options{})
	registry := testenv.StartRegistry(t)
	program, disk, dir := command(t), smallDisk(t), t.TempDir()
	measured, err := exec.Command(program, "measure", "--format=json", disk).Output()
	if err != nil {
		t.Fatal(err)
	}
	// push returns the digest of an artifact of the disk with these measurements.
	push := func(measurements []byte) string {
		t.Helper()
		file := filepath.Join(dir, "measurements.json")
		if err := os.WriteFile(file, measurements, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(program, "push", "--quiet", "--measurements="+file, "--tag=v1", disk, registry.Host+"/octo-org/image").CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return registry.Host + "/octo-org/image@" + regexp.MustCompile(`sha256:[0-9a-f]{64}`).FindString(string(out))
	}
	good := push(measured)
	var document struct{ Measurements map[string]any }
	if err := json.Unmarshal(measured, &document); err != nil {
		t.Fatal(err)
	}
	pcr, ok := document.Measurements["PCR12"].(string)
	if !ok {
		t.Fatalf("the measurements are %s", measured)
	}
	forged := push(bytes.ReplaceAll(measured, []byte(pcr), []byte(strings.Repeat("1", 96))))

	run := testenv.DefaultRun
	run.JobWorkflowRef = "org/attestable-image-action/" + reusablePath + "@refs/tags/v1"
	attestStep := func(image string) (outputs map[string]string, log string, ok bool) {
		t.Helper()
		env := map[string]string{
			"IMAGE": image, "NAME": "", "VERSION": "", "SBOM": "none", "SIGNING_CONFIG": stack.SigningConfig, "TRUSTED_ROOT": stack.TrustedRoot,
			"HOME": dir, "RUNNER_TEMP": t.TempDir(),
		}
		for _, variable := range stack.Env(run) {
			name, value, _ := strings.Cut(variable, "=")
			env[name] = value
		}
		for _, name := range []string{"GOMODCACHE", "GOCACHE", "GOPROXY", "GOFLAGS"} {
			value, err := exec.Command("go", "env", name).Output()
			if err != nil {
				t.Fatal(err)
			}
			env[name] = strings.TrimSpace(string(value))
		}
		return workflowScript(t, "workflow-attest", env)
	}
	handedOn := func(artifact string) string {
		text, err := json.Marshal(map[string]string{"id": "x86_64", "artifact": artifact})
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	for name, c := range map[string]struct{ image, want string }{
		"nothing":             {"", "handed on no artifact"},
		"no artifact":         {`{"id":"x86_64"}`, "handed on no artifact"},
		"a tag":               {handedOn(registry.Host + "/octo-org/image:v1"), "handed on no artifact"},
		"another's PCR":       {handedOn(forged), "are not those of its disk: nothing was attested"},
		"what does not exist": {handedOn(registry.Host + "/octo-org/image@sha256:" + strings.Repeat("0", 64)), "sha256:0000"},
	} {
		outputs, log, ok := attestStep(c.image)
		if ok || outputs["artifact"] != "" || outputs["attestation-id"] != "" || !strings.Contains(log, c.want) {
			t.Errorf("%s: outputs %v, want an error with %q\n%s", name, outputs, c.want, log)
		}
	}
	outputs, log, ok := attestStep(handedOn(good))
	if !ok || outputs["artifact"] != good || outputs["pcr12"] != pcr || outputs["attestation-id"] == "" {
		t.Fatalf("outputs %v\n%s", outputs, log)
	}
	a := &artifact{stack: stack, registry: registry, workflow: run, reference: good, bundles: outputs["bundle-path"]}
	for _, predicateType := range []string{attest.PredicateProvenance, attest.PredicateMeasurements, attest.PredicateAudit} {
		ghVerify(t, stack, run, "oci://"+good, predicateType, nil, "--bundle", a.bundleFile(t, predicateType)).accepts(t)
	}
}
