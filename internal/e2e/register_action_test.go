package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// TestRegisterAction runs the action as a user's workflow calls it, `uses:
// ./register-ami`, against moto, with an artifact in a registry that the same
// workflow attested.
func TestRegisterAction(t *testing.T) {
	if testing.Short() {
		t.Skip("the action is not run with -short: it builds the command and runs under act")
	}
	testenv.Tool(t, "act")
	stack := testenv.StartSigstore(t, testenv.Options{})
	registry := testenv.StartRegistry(t)
	a := makeArtifact(t, stack, testenv.DefaultRun, registry, smallDisk(t))
	ec2 := testenv.SharedEC2(t)
	home := os.Getenv("AWS_REGION")

	// register runs the action with inputs beside those that the local stack asks for.
	register := func(inputs map[string]string) workflowResult {
		t.Helper()
		with := map[string]string{"artifact": a.reference, "trusted-root": stack.TrustedRoot, "cert-oidc-issuer": stack.Issuer.URL}
		maps.Copy(with, inputs)
		dir, run := checkout(t, registerWorkflow(with))
		// What configure-aws-credentials leaves for the steps after it, and the
		// stand-in's address.
		var env []string
		for _, name := range []string{"AWS_ENDPOINT_URL", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"} {
			env = append(env, name+"="+os.Getenv(name))
		}
		for _, variable := range stack.Env(run) {
			if !strings.HasPrefix(variable, "GITHUB_TOKEN=") { // a secret, as the runner has it
				env = append(env, variable)
			}
		}
		return act(t, dir, run, stack.GitHub.Token, env)
	}

	for name, inputs := range map[string]map[string]string{
		"another workflow's": {"signer-workflow": "octo-org/image/.github/workflows/other.yml"},
		"another branch's":   {"source-ref": "refs/heads/other"},
	} {
		result := register(inputs)
		if !result.failed {
			t.Errorf("%s artifact was registered: %v", name, result.outputs)
		}
	}
	if calls := ec2.Requests(); len(calls) > 0 {
		t.Fatalf("artifacts that do not verify led to calls of AWS: %v", calls)
	}

	result := register(map[string]string{"name": "action test", "copy-to": "us-east-1, eu-west-1", "keep": "2"})
	if result.failed {
		t.Fatalf("the workflow failed: %q", result.errors)
	}
	image, snapshot := result.outputs["ami.ami-id"], result.outputs["ami.snapshot-id"]
	if !strings.HasPrefix(image, "ami-") || !strings.HasPrefix(snapshot, "snap-") {
		t.Fatalf("outputs %v", result.outputs)
	}
	var amis map[string]map[string]string
	if err := json.Unmarshal([]byte(result.outputs["ami.amis"]), &amis); err != nil {
		t.Fatalf("output amis: %v: %s", err, result.outputs["ami.amis"])
	}
	if len(amis) != 3 || amis[home]["ami-id"] != image || amis[home]["snapshot-id"] != snapshot {
		t.Errorf("output amis is %v", amis)
	}
	for _, region := range []string{"us-east-1", "eu-west-1"} {
		if !strings.HasPrefix(amis[region]["ami-id"], "ami-") || !strings.HasPrefix(amis[region]["snapshot-id"], "snap-") {
			t.Errorf("%s has %v", region, amis[region])
		}
	}
	status, body := askAWS(t, "ec2", "2016-11-15", map[string]string{"Action": "DescribeImages", "ImageId.1": image})
	_, digest, _ := strings.Cut(a.reference, "@")
	for _, want := range []string{image, snapshot, digest, "<name>action test</name>"} {
		if status != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("status %d; EC2 does not tell of %s:\n%s", status, want, body)
		}
	}
	if !strings.Contains(result.summary, image) {
		t.Errorf("the summary lacks the AMI:\n%s", result.summary)
	}
	if strings.Contains(result.log, stack.GitHub.Token) {
		t.Error("the log shows the token")
	}

	again := register(map[string]string{"name": "action test", "copy-to": "us-east-1, eu-west-1", "keep": "2"})
	if again.failed || again.outputs["ami.ami-id"] != image || again.outputs["ami.amis"] != result.outputs["ami.amis"] {
		t.Errorf("a second run has the outputs %v, and the first had %v", again.outputs, result.outputs)
	}
	if ids := snapshotsOf(t); !slices.Equal(ids, []string{snapshot}) {
		t.Errorf("the snapshots are %q, want %s", ids, snapshot)
	}
}

// snapshotsOf are the snapshots in the account's home region that this program
// tagged.
func snapshotsOf(t *testing.T) []string {
	t.Helper()
	status, body := askAWS(t, "ec2", "2016-11-15", map[string]string{
		"Action": "DescribeSnapshots", "Filter.1.Name": "tag-key", "Filter.1.Value.1": "attestable-image:digest",
	})
	if status != http.StatusOK {
		t.Fatalf("status %d: %s", status, body)
	}
	var ids []string
	for _, id := range regexp.MustCompile(`<snapshotId>(snap-[0-9a-f]+)<`).FindAllStringSubmatch(body, -1) {
		ids = append(ids, id[1])
	}
	return ids
}

// TestRegisterPolicyNamesEveryCall reads from the source which operations
// internal/ami calls, and holds that registerActions, and so the policy of the
// examples, has all of them and no other.
func TestRegisterPolicyNamesEveryCall(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(testenv.Root(t), "internal/ami/*.go"))
	if err != nil {
		t.Fatal(err)
	}
	call := regexp.MustCompile(`\b(ebs|ec2|kms|sts)\.([A-Z]\w+)Input\b`)
	called := map[string]bool{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range call.FindAllStringSubmatch(string(text), -1) {
			called[fmt.Sprintf("%s:%s", m[1], m[2])] = true
		}
	}
	if len(called) < 5 {
		t.Fatalf("only %d operations were found: %v", len(called), called)
	}
	for action := range called {
		if !slices.Contains(registerActions, action) {
			t.Errorf("internal/ami calls %s, and registerActions lacks it", action)
		}
	}
	for _, action := range registerActions {
		if !called[action] {
			t.Errorf("internal/ami does not call %s", action)
		}
	}
}
