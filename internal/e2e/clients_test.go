package e2e

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// predicateProvenance and predicateMeasurements are the types of the two
// attestations that every artifact has.
const (
	predicateProvenance   = "https://slsa.dev/provenance/v1"
	predicateMeasurements = "https://github.com/org/attestable-image-action/measurements/v1"
)

// outcome is how a program ended.
type outcome struct {
	err    error
	output string // standard output and error, as they came
}

// run runs a program to its end, without a terminal, without the developer's
// own configuration, and with env in addition.
func run(t *testing.T, env []string, path string, args ...string) outcome {
	t.Helper()
	home := t.TempDir()
	cmd := exec.Command(path, args...)
	cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + home, "XDG_CONFIG_HOME=" + home, "XDG_CACHE_HOME=" + home,
		"TMPDIR=" + os.TempDir(), "LANG=C.UTF-8", "NO_COLOR=1",
	}, env...)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	err := cmd.Run()
	return outcome{err: err, output: output.String()}
}

// accepts fails the test unless the program ended well.
func (o outcome) accepts(t *testing.T) {
	t.Helper()
	if o.err != nil {
		t.Errorf("refused: %v\n%s", o.err, o.output)
	}
}

// refuses fails the test unless the program ended badly and said one of the
// reasons: a refusal for another reason proves nothing.
func (o outcome) refuses(t *testing.T, reasons ...string) {
	t.Helper()
	if o.err == nil {
		t.Errorf("accepted:\n%s", o.output)
		return
	}
	for _, reason := range reasons {
		if strings.Contains(o.output, reason) {
			return
		}
	}
	t.Errorf("refused, but not for one of %q: %v\n%s", reasons, o.err, o.output)
}

// ghVerify verifies an artifact (a file, or oci://REF) with gh, offline but
// for what flags ask for.
func ghVerify(t *testing.T, s *testenv.Stack, workflow testenv.Run, artifact, predicateType string, env []string, flags ...string) outcome {
	t.Helper()
	args := append([]string{
		"attestation", "verify", artifact,
		"--custom-trusted-root", s.TrustedRootLines,
		"--repo", testenv.DefaultRun.Repository,
		"--predicate-type", predicateType,
		"--cert-identity", workflow.Identity(),
		"--cert-oidc-issuer", s.Issuer.URL,
	}, flags...)
	// Without a terminal gh says nothing of its success.
	env = append([]string{"GH_FORCE_TTY=120", "GH_NO_UPDATE_NOTIFIER=1"}, env...)
	return run(t, env, testenv.Tool(t, "gh"), args...)
}

// ghAPI lets gh reach the stand-in of GitHub's API under its genuine name.
func ghAPI(s *testenv.Stack) []string {
	return append(s.Proxy.Env(), "GH_TOKEN="+s.GitHub.Token)
}

// cosignVerify verifies an artifact in a registry with cosign.
func cosignVerify(t *testing.T, s *testenv.Stack, workflow testenv.Run, reference, predicateType string) outcome {
	t.Helper()
	args := []string{
		"verify-attestation", reference,
		"--trusted-root", s.TrustedRoot,
		"--certificate-identity", workflow.Identity(),
		"--certificate-oidc-issuer", s.Issuer.URL,
		"--type", predicateType,
		"--insecure-ignore-sct", // no certificate transparency log in this stack
	}
	if s.RekorURL == "" {
		args = append(args, "--insecure-ignore-tlog", "--use-signed-timestamps")
	}
	return run(t, nil, testenv.Tool(t, "cosign"), args...)
}

// storeBundle stores a bundle with GitHub's API and returns its number.
func storeBundle(t *testing.T, s *testenv.Stack, workflow testenv.Run, bundle []byte) int {
	t.Helper()
	body := append(append([]byte(`{"bundle":`), bundle...), '}')
	request, err := http.NewRequest(http.MethodPost, s.GitHub.URL+"/repos/"+workflow.Repository+"/attestations", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+s.GitHub.Token)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var answer struct {
		ID int `json:"id"`
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil || response.StatusCode != http.StatusCreated {
		t.Fatalf("store the bundle: %s, %v", response.Status, err)
	}
	return answer.ID
}
