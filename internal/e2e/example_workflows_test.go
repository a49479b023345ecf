package e2e

import (
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/testenv"
	"github.com/org/attestable-image-action/internal/vm"
)

// standInCredentials is aws-actions/configure-aws-credentials without AWS: the job has
// the credentials for moto in its environment already.
const standInCredentials = `name: Credentials
description: Stands in for aws-actions/configure-aws-credentials
inputs: {role-to-assume: {required: true, description: role}, aws-region: {required: true, description: region}}
runs:
  using: composite
  steps:
    - shell: bash
      env:
        ROLE: ${{ inputs.role-to-assume }}
      run: |
        [ "$ROLE" = arn:aws:iam::111122223333:role/register-ami ]
`

// standInDownload is actions/download-artifact without GitHub, for a file that is called
// like its artifact, with .json.
const standInDownload = `name: Download
description: Stands in for actions/download-artifact
inputs: {name: {required: true, description: name}}
runs:
  using: composite
  steps:
    - shell: bash
      env:
        NAME: ${{ inputs.name }}
      run: |
        cp "KEEP/$NAME" "$NAME.json"
`

// exampleJob is what a job of an example has to give to the job behind it.
type exampleJob map[string]string // output: regular expression

// exampleWorkflow runs one of examples/workflows as it stands there, but for what a
// machine without GitHub forces.
type exampleWorkflow struct {
	files   map[string]string // of the user's repository: path, content
	replace []string          // old, new; each old must be there
	with    map[string]string // inputs for this project's actions
	args    []string          // of act
	event   string            // "" is a push
	jobs    map[string]exampleJob
	log     []string // what the log has to say
	lacks   []string // outputs of no step
}

// localInputs are what this project's actions are told of a local stack.
func localInputs(stack *testenv.Stack, registry *testenv.Registry) map[string]map[string]string {
	return map[string]map[string]string{
		"": {
			"image": registry.Host + "/octo-org/image", "builder-image": "builder", "sbom": "none",
			"signing-config": stack.SigningConfig, "trusted-root": stack.TrustedRoot,
		},
		"/verify":       {"trusted-root": stack.TrustedRoot, "cert-oidc-issuer": stack.Issuer.URL},
		"/register-ami": {"trusted-root": stack.TrustedRoot, "cert-oidc-issuer": stack.Issuer.URL},
	}
}

var usesOurs = regexp.MustCompile(`(?m)^( *)(- )?uses: org/attestable-image-action(/[a-z-]+)?@v1\n(?: *id: \w+\n)? *with:\n`)

// TestExampleWorkflows runs every workflow of examples/workflows under act, as the
// workflow of a repository that has nothing of this project but what the workflow
// names, and asserts the outputs of its jobs in a job behind them. In place of KIWI a
// disk is copied: TestAction builds.
func TestExampleWorkflows(t *testing.T) {
	if testing.Short() {
		t.Skip("act is not run with -short")
	}
	testenv.Tool(t, "act")
	stack := testenv.StartSigstore(t, testenv.Options{})
	registry := testenv.StartRegistry(t)
	module := copyModule(t)
	credentials := t.TempDir()
	writeTree(t, credentials, map[string]string{"action.yml": standInCredentials})
	engine := t.TempDir()
	disk := smallDisk(t)
	if err := os.WriteFile(filepath.Join(engine, "docker"), []byte(strings.ReplaceAll(standInEngine, "DISK", disk)), 0o700); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	t.Setenv("PATH", engine+string(filepath.ListSeparator)+os.Getenv("PATH"))
	ec2 := testenv.SharedEC2(t)
	published := makeArtifact(t, stack, testenv.DefaultRun, registry, disk)
	key, certificate := secureBootIdentity(t)

	// What one job keeps for another is kept here.
	kept, upload, download := t.TempDir(), t.TempDir(), t.TempDir()
	writeTree(t, upload, map[string]string{"action.yml": strings.ReplaceAll(standInUpload, "KEEP", kept)})
	writeTree(t, download, map[string]string{"action.yml": strings.ReplaceAll(standInDownload, "KEEP", kept)})
	example := func(t *testing.T, name string) string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(testenv.Root(t), "examples/workflows", name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	// try runs an example. Its jobs are asserted by one that needs them all.
	try := func(t *testing.T, text string, e exampleWorkflow) workflowResult {
		t.Helper()
		for i := 0; i < len(e.replace); i += 2 {
			if !strings.Contains(text, e.replace[i]) {
				t.Fatalf("the example no longer has %q", e.replace[i])
			}
			text = strings.ReplaceAll(text, e.replace[i], e.replace[i+1])
		}
		inputs := localInputs(stack, registry)
		text = usesOurs.ReplaceAllStringFunc(text, func(uses string) string {
			m := usesOurs.FindStringSubmatch(uses)
			indent := strings.Repeat(" ", len(m[1])+len(m[2])+2)
			with := maps.Clone(inputs[m[3]])
			if m[3] == "" {
				maps.Copy(with, e.with)
			}
			for _, name := range slices.Sorted(maps.Keys(with)) {
				value, err := json.Marshal(with[name])
				if err != nil {
					t.Fatal(err)
				}
				uses += indent + name + ": " + string(value) + "\n"
			}
			return uses
		})
		text += assertJob(e.jobs)
		dir := t.TempDir()
		writeTree(t, dir, e.files)
		writeTree(t, dir, map[string]string{workflowPath: text})
		run := commit(t, dir)
		run.EventName = e.event
		var env []string
		for _, variable := range stack.Env(run) {
			// The token is a secret, as the runner has it; and a fork's run has no identity.
			if strings.HasPrefix(variable, "GITHUB_TOKEN=") || e.event == "pull_request" && strings.HasPrefix(variable, "ACTIONS_ID_TOKEN_") {
				continue
			}
			env = append(env, variable)
		}
		for _, name := range []string{"AWS_ENDPOINT_URL", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"} {
			env = append(env, name+"="+os.Getenv(name))
		}
		result := act(t, dir, run, stack.GitHub.Token, env, append([]string{
			"--local-repository", "org/attestable-image-action@v1=" + module,
			"--local-repository", "aws-actions/configure-aws-credentials@e6de054238d6b7531b4efff3b6587d9aade6a06c=" + credentials,
			"--local-repository", "actions/upload-artifact@ea165f8d65b6e75b540449e92b4886f43607fa02=" + upload,
			"--local-repository", "actions/download-artifact@d3f86a106a0bac45b974a628896c90dbdf5c8093=" + download,
		}, e.args...)...)
		if result.failed || len(result.errors) > 0 {
			t.Fatalf("the workflow failed: %q", result.errors)
		}
		for _, want := range append(e.log, "asserted: "+strings.Join(slices.Sorted(maps.Keys(e.jobs)), " ")) {
			if !strings.Contains(result.log, want) {
				t.Errorf("the log lacks %q", want)
			}
		}
		for _, name := range e.lacks {
			if value := result.outputs[name]; value != "" {
				t.Errorf("output %s is %q", name, value)
			}
		}
		return result
	}

	const digest, pcr = `@sha256:[0-9a-f]{64}$`, `^[0-9a-f]{96}$`
	reference := "^" + regexp.QuoteMeta(registry.Host+"/octo-org/image") + digest
	publisher := []string{"OWNER/REPO", testenv.DefaultRun.Repository}
	built := "" // reference of what minimal.yml built
	minimal := func(t *testing.T, text string) {
		t.Helper()
		built = try(t, text, exampleWorkflow{
			jobs: map[string]exampleJob{"image": {"artifact": reference, "pcr4": pcr, "pcr12": pcr}, "use": {}},
			log:  []string{" boots as "},
		}).outputs["image.artifact"]
	}
	tests := map[string]func(t *testing.T, text string){
		"minimal.yml": func(t *testing.T, text string) {
			minimal(t, text)
			t.Run("from a fork", func(t *testing.T) {
				try(t, text, exampleWorkflow{
					replace: []string{"on:\n  push:\n    branches: [main]\n", "on: pull_request\n"},
					event:   "pull_request",
					jobs:    map[string]exampleJob{"image": {"artifact": "^$", "pcr4": pcr, "pcr12": pcr}, "use": {}},
					log:     []string{"neither pushed nor attested"},
					lacks:   []string{"image.artifact", "image.digest", "image.attestation-id", "image.bundle-path"},
				})
			})
		},
		"application.yml": func(t *testing.T, text string) {
			files := map[string]string{"go.mod": "module example.com/image\n\ngo 1.24\n"}
			for path, from := range map[string]string{
				"hello/main.go": "examples/hello/main.go",
				"image/root/usr/lib/systemd/system/hello.service": "examples/overlays/binary/usr/lib/systemd/system/hello.service",
			} {
				content, err := os.ReadFile(filepath.Join(testenv.Root(t), from))
				if err != nil {
					t.Fatal(err)
				}
				files[path] = string(content)
			}
			try(t, text, exampleWorkflow{
				files: files,
				// The disk has no root file system that could be looked into.
				replace: []string{"          fail-on: high\n", ""},
				jobs:    map[string]exampleJob{"image": {"artifact": reference, "kms-conditions": `NitroTPMPCR12":"[0-9a-f]{96}"`}, "policy": {}},
				log:     []string{"Show what a key's policy has to say"},
			})
			// What KIWI was given.
			given, err := filepath.Glob(filepath.Join(engine, "state.description.*", "root/usr/bin/hello"))
			if err != nil || len(given) != 1 {
				t.Fatalf("the overlay that KIWI is given has the program at %q: %v", given, err)
			}
			program, err := elf.Open(given[0])
			if err != nil {
				t.Fatal(err)
			}
			defer program.Close()
			if program.Section(".interp") != nil {
				t.Error("the program needs a loader and libraries, which the image may not have")
			}
		},
		"secure-boot.yml": func(t *testing.T, text string) {
			try(t, text, exampleWorkflow{
				files: map[string]string{"image/secure-boot.pem": certificate},
				args:  []string{"-s", "SECURE_BOOT_KEY=" + key, "--var", "PCR7=" + pcr7Of(t, disk, key, certificate)},
				jobs:  map[string]exampleJob{"image": {"artifact": reference, "pcr7": pcr}, "hold": {}},
			})
		},
		"register.yml": func(t *testing.T, text string) {
			result := try(t, text, exampleWorkflow{
				files: map[string]string{"image/root/etc/motd": "hello\n"},
				args:  []string{"--var", "AWS_ROLE=arn:aws:iam::111122223333:role/register-ami"},
				jobs:  map[string]exampleJob{"image": {"artifact": reference}, "register": {"ami-id": "^ami-[0-9a-f]+$"}},
			})
			// In two regions.
			if calls := ec2.Requests("RegisterImage"); len(calls) != 2 {
				t.Errorf("RegisterImage was called %d times", len(calls))
			}
			if !strings.Contains(result.log, result.outputs["ami.ami-id"]+" from snap-") {
				t.Error("the job behind the action does not see its outputs")
			}
		},
		"deploy.yml": func(t *testing.T, text string) {
			try(t, text, exampleWorkflow{
				replace: publisher,
				event:   "workflow_dispatch", args: []string{"--eventpath", dispatch(t, published.reference)},
				jobs: map[string]exampleJob{"deploy": {"artifact": "^" + regexp.QuoteMeta(published.reference) + "$"}},
				log:  []string{published.reference + " boots as "},
			})
		},
		"consume.yml": func(t *testing.T, text string) {
			url, root := instanceOf(t, published)
			try(t, text, exampleWorkflow{
				replace: append(slices.Clone(publisher),
					"ghcr.io/"+testenv.DefaultRun.Repository+":v1", published.reference,
					"go run github.com/org/attestable-image-action@v1", command(t),
					`--measurements measurements.json`, `--measurements measurements.json --root `+root),
				event: "workflow_dispatch", args: []string{"--var", "INSTANCE=" + url},
				jobs: map[string]exampleJob{"ask": {"artifact": "^" + regexp.QuoteMeta(published.reference) + "$"}, "report": {}},
				log:  []string{"the instance runs " + published.reference},
			})
		},
		"second-builder.yml": func(t *testing.T, text string) {
			if built == "" { // the other example was not asked for
				minimal(t, example(t, "minimal.yml"))
			}
			trust := " --trusted-root " + stack.TrustedRoot
			try(t, text, exampleWorkflow{
				replace: append(slices.Clone(publisher),
					`rebuild "$ARTIFACT"`, `rebuild "$ARTIFACT" --builder-image builder --cert-oidc-issuer `+stack.Issuer.URL+trust,
					"attest --rebuilt", "attest --signing-config "+stack.SigningConfig+trust+" --rebuilt",
					"go run github.com/org/attestable-image-action@v1", command(t)),
				event: "workflow_dispatch", args: []string{"--eventpath", dispatch(t, built)},
				jobs: map[string]exampleJob{"rebuild": {}, "attest": {}},
				log:  []string{"reproduced: " + built},
			})
		},
		"reusable.yml": nil, // TestReusableWorkflow
	}
	files, err := filepath.Glob(filepath.Join(testenv.Root(t), "examples/workflows/*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, file := range files {
		name := filepath.Base(file)
		test, ok := tests[name]
		if !ok {
			t.Errorf("no test runs examples/workflows/%s", name)
		}
		if test != nil {
			t.Run(name, func(t *testing.T) { test(t, example(t, name)) })
		}
	}
}

// dispatch is the event of a person who starts a workflow with the input artifact.
func dispatch(t *testing.T, artifact string) string {
	t.Helper()
	event, err := json.Marshal(map[string]any{
		"ref": "refs/heads/main", "inputs": map[string]string{"artifact": artifact},
		"repository": map[string]any{"full_name": testenv.DefaultRun.Repository, "visibility": "public", "private": false},
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "event.json")
	if err := os.WriteFile(path, event, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// assertJob is a job that needs the jobs of a workflow and is given their outputs, as a
// job of a user's is, and fails unless each ended well and has what it should.
func assertJob(jobs map[string]exampleJob) string {
	names := strings.Join(slices.Sorted(maps.Keys(jobs)), " ")
	var b strings.Builder
	b.WriteString("\n  assert:\n    needs: [" + strings.ReplaceAll(names, " ", ", ") + "]\n    runs-on: ubuntu-24.04\n    steps:\n      - env:\n          NEEDS: ${{ toJSON(needs) }}\n        run: |\n          set -euo pipefail\n")
	for _, job := range slices.Sorted(maps.Keys(jobs)) {
		b.WriteString("          jq --exit-status '.[\"" + job + "\"].result == \"success\"' <<<\"$NEEDS\" > /dev/null\n")
		for _, output := range slices.Sorted(maps.Keys(jobs[job])) {
			pattern, _ := json.Marshal(jobs[job][output]) // a string
			b.WriteString("          jq --exit-status '.[\"" + job + "\"].outputs[\"" + output + "\"] // \"\" | test(" + string(pattern) + ")' <<<\"$NEEDS\" > /dev/null\n")
		}
	}
	b.WriteString("          echo 'asserted: " + names + "'\n")
	return b.String()
}

// pcr7Of predicts PCR 7 of a disk that is signed with an identity.
func pcr7Of(t *testing.T, disk, key, certificate string) string {
	t.Helper()
	dir := t.TempDir()
	s := &actionSteps{values: map[string]string{
		"github.action_path": testenv.Root(t), "steps.prepare.outputs.bin": command(t), "steps.prepare.outputs.work": dir,
		"steps.build.outputs.image-path": filepath.Join(dir, "image.raw"), "inputs.secure-boot-key": key, "inputs.secure-boot-cert": certificate,
	}}
	copyFile(t, disk, filepath.Join(dir, "image.raw"))
	s.run(t, "sign").accepts(t)
	var stdout strings.Builder
	cmd := exec.Command(command(t), "measure", "--format=json", "--PK="+s.values["steps.sign.outputs.PK"],
		"--KEK="+s.values["steps.sign.outputs.KEK"], "--db="+s.values["steps.sign.outputs.db"], filepath.Join(dir, "image.raw"))
	cmd.Stdout = &stdout
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	doc, err := measure.ParseDocument([]byte(stdout.String()))
	if err != nil {
		t.Fatal(err)
	}
	return doc.PCR(7)
}

// instanceOf serves documents as an instance does that booted an artifact's disk: in
// front of an emulated NitroTPM whose PCRs were extended as firmware would have. It
// returns the URL and a file with the emulator's root.
func instanceOf(t *testing.T, a *artifact) (url, root string) {
	t.Helper()
	measured, err := exec.Command(command(t), "measure", "--format=json", a.disk).Output()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := measure.ParseDocument(measured)
	if err != nil {
		t.Fatal(err)
	}
	emulated, err := vm.EmulateNitroTPM()
	if err != nil {
		t.Fatal(err)
	}
	tpm := emulated.Layer(testenv.SoftwareTPM(t))
	for _, event := range doc.Events {
		digest, err := hex.DecodeString(event.Digest)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(event.PCR), Auth: tpm2.PasswordAuth(nil)},
			Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA384, Digest: digest}}},
		}).Execute(tpm); err != nil {
			t.Fatal(err)
		}
	}
	root = filepath.Join(t.TempDir(), "root.pem")
	if err := os.WriteFile(root, emulated.RootPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	url, _ = startServe(t, command(t), testenv.TerminalDevice(t, tpm, 0))
	return url, root
}

// writeTree writes files below a directory.
func writeTree(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for path, content := range files {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
