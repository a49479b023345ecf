package testenv

import (
	"bytes"
	_ "embed" // for the evaluator
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

//go:embed evaluate.cjs
var evaluator string

// IAMRequest is one decision that IAM makes: a call of an API asks for one or more.
type IAMRequest struct {
	Action   string         `json:"action"`   // ec2:RegisterImage
	Resource string         `json:"resource"` // ARN
	Context  map[string]any `json:"context"`  // condition keys: text, or a list of it
}

// EvaluateIAM tells which requests of a role a policy allows. The evaluator is
// iam-simulate (scripts/node-tools), which has the Service Authorization Reference: of
// the condition keys it takes those that AWS documents for the action and the kind of
// resource, and leaves out the others. It is not AWS.
func EvaluateIAM(t testing.TB, policy []byte, requests []IAMRequest) []bool {
	t.Helper()
	cache := os.Getenv("ATTESTABLE_IMAGE_CACHE")
	if cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		cache = filepath.Join(dir, "attestable-image")
	}
	modules := filepath.Join(cache, "node-tools", "node_modules")
	if _, err := os.Stat(filepath.Join(modules, "@cloud-copilot", "iam-simulate")); err != nil {
		Missing(t, fmt.Errorf("the evaluator of IAM policies is not installed: run scripts/node-tools: %w", err))
	}
	in, err := json.Marshal(map[string]any{
		"policy": json.RawMessage(policy), "account": "111122223333", "principal": "arn:aws:iam::111122223333:role/register-ami", "requests": requests,
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(Tool(t, "node"), "-e", evaluator) //nolint:gosec // it is ours
	cmd.Env = append(os.Environ(), "NODE_PATH="+modules)
	cmd.Stdin = bytes.NewReader(in)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var results []string
	if err == nil {
		err = json.Unmarshal(out, &results)
	}
	if err != nil || len(results) != len(requests) {
		t.Fatalf("evaluate an IAM policy: %v\n%s%s", err, out, stderr.Bytes())
	}
	allowed := make([]bool, len(results))
	for i, result := range results {
		if strings.HasPrefix(result, "error") {
			t.Fatalf("evaluate %+v: %s", requests[i], result)
		}
		allowed[i] = result == "Allowed"
	}
	return allowed
}
