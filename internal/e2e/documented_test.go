package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/testenv"
)

// typedElsewhere are the documented command lines that TestDocumentedCommands does not
// type, and what does: a test, a script with a real build, or nobody here.
var typedElsewhere = []struct{ line, by string }{
	{`^make (demo|test|setup build)`, "make demo, and .ci/run"},
	{`^(git |gh repo |gh run |gh auth |go install |ln -sf |mkdir -p \.github|echo "made from source")`, "scripts/newcomer, which stands in for what needs an account"},
	{`^attestable-image (build|boot|rebuild|attest --rebuilt)`, "make demo, scripts/newcomer, scripts/rebuild, scripts/reproducible: builds and boots"},
	{`^until \[|^attestable-image verify instance https://127\.0\.0\.1`, "TestAction: an instance with the emulated NitroTPM"},
	{`^attestable-image diff `, "TestDiff"},
	{`^attestable-image verify artifact .*--builder alice/rebuild`, "TestExampleWorkflows: second-builder.yml"},
	{`^attestable-image kms-decrypt|^scripts/demo-secret-release`, "TestSecretRelease, and scripts/demo-secret-release"},
	{`--predicate-type https://spdx\.dev/Document/v2\.3`, "TestAction: a disk with packages"},
	{`^gh attestation verify attestable-image_linux_amd64`, "TestReleasedBinary"},
	{`^docker run --rm ghcr\.io/org/attestable-image-action`, "TestImage in internal/release"},
	{`^docker build --build-arg SNAPSHOT`, "TestAction makes the builder; the archive of snapshots is out of reach"},
	{`^terraform |^key=\$\(terraform`, "TestTerraformExample reads what it applies; an account is out of reach"},
	{`^aws iam `, "TestIAMTakesThePolicies"},
	{`^aws (kms|ec2) |^gh (api|variable) `, "nobody: an account is out of reach"},
	{`^(mkdir -p image/root|cp |ln -s )`, "scripts/demo-secret-release"},
}

// TestDocumentedCommands types the commands of README and guide that are about what
// was published, as they stand there, and holds that for every other one there is
// somebody who does. OWNER/REPO and what is elided have values of this test; Sigstore's
// trust roots are those of a local stack, which a wrapper gives each program.
func TestDocumentedCommands(t *testing.T) {
	typed := map[string][]string{} // lines by the page they are of
	for _, page := range []string{"README.md", "docs/guide.md"} {
		content, err := os.ReadFile(filepath.Join(testenv.Root(t), page))
		if err != nil {
			t.Fatal(err)
		}
		text := string(content)
		if page == "docs/guide.md" { // TestGuide types the way on a laptop
			var found bool
			if _, text, found = strings.Cut(text, "\n## On GitHub and AWS\n"); !found {
				t.Fatal("the guide has no longer its second way")
			}
		}
		for _, block := range regexp.MustCompile("(?s)```console\n(.*?)```").FindAllStringSubmatch(text, -1) {
			for line := range strings.SplitSeq(strings.ReplaceAll(block[1], "\\\n", " "), "\n") {
				line, ok := strings.CutPrefix(line, "$ ")
				if !ok {
					continue
				}
				elsewhere := false
				for _, other := range typedElsewhere {
					elsewhere = elsewhere || regexp.MustCompile(other.line).MatchString(line)
				}
				if !elsewhere {
					typed[page] = append(typed[page], line)
				}
			}
		}
	}
	if len(typed["README.md"]) < 8 || len(typed["docs/guide.md"]) < 4 {
		t.Fatalf("too little is typed: %q", typed)
	}
	if testing.Short() {
		t.Skip("servers are not started with -short")
	}

	stack := testenv.StartSigstore(t, testenv.Options{GenuineIssuer: true})
	registry := testenv.StartRegistry(t)
	ec2 := testenv.SharedEC2(t)
	first := makeArtifact(t, stack, testenv.DefaultRun, registry, smallDisk(t))
	second := makeArtifact(t, stack, testenv.DefaultRun, registry, smallDisk(t))
	url, root := instanceOf(t, first)
	bin, dir := t.TempDir(), t.TempDir()
	trust := "--trusted-root='" + stack.TrustedRoot + "'"
	for name, script := range map[string]string{
		"attestable-image": `case "$1 $2" in
			"measure "*) exec '` + command(t) + `' "$@" ;;
			"verify instance") set -- "$@" --root='` + root + `' ;;
		esac
		exec '` + command(t) + `' "$@" ` + trust,
		"gh":     `exec '` + testenv.Tool(t, "gh") + `' "$@" --custom-trusted-root='` + stack.TrustedRootLines + `'`,
		"cosign": `exec '` + testenv.Tool(t, "cosign") + `' "$@" ` + trust + ` --insecure-ignore-sct`,
		"oras":   `exec '` + testenv.Tool(t, "oras") + `' "$@" --plain-http --no-tty`,
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/bash\n"+script+"\n"), 0o700); err != nil { //nolint:gosec // a program
			t.Fatal(err)
		}
	}
	values := strings.NewReplacer(
		"ghcr.io/OWNER/REPO:sha-$(git rev-parse HEAD)", first.tagged(),
		"ghcr.io/OWNER/REPO@sha256:…", first.reference,
		"REF@OLD REF@NEW", first.reference+" "+second.reference,
		"OWNER/REPO", testenv.DefaultRun.Repository,
		"https://203.0.113.7:8443", url, "https://10.0.1.23:8443", url,
		"NAME.raw", "image.raw",
	)
	env := append(os.Environ(), stack.Proxy.Env()...)
	env = append(env, "PATH="+bin+":"+os.Getenv("PATH"), "HOME="+dir, "GH_TOKEN="+stack.GitHub.Token, "GITHUB_API_URL="+stack.GitHub.URL, "GH_NO_UPDATE_NOTIFIER=1")
	for page, lines := range typed {
		for _, line := range lines {
			cmd := exec.Command("bash", "-euo", "pipefail", "-c", values.Replace(line))
			cmd.Dir, cmd.Env = dir, env
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %s: %v\n%s", page, line, err, out)
			}
		}
	}
	// In three regions.
	if calls := ec2.Requests("RegisterImage"); len(calls) != 3 {
		t.Errorf("RegisterImage was called %d times", len(calls))
	}
}
