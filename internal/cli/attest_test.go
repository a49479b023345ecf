package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/attest"
	"github.com/org/attestable-image-action/internal/testenv"
)

// noJob makes sure that the test is no job of GitHub Actions, nor looks like
// one.
func noJob(t *testing.T) {
	t.Helper()
	for _, name := range []string{
		"GITHUB_ACTIONS", "GITHUB_SERVER_URL", "GITHUB_API_URL", "GITHUB_TOKEN", "INPUT_GITHUB-TOKEN", "ATTESTABLE_IMAGE_GITHUB_TOKEN", "GH_TOKEN", "GH_HOST",
		"ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN", "RUNNER_TEMP", "COLUMNS",
	} {
		t.Setenv(name, "")
	}
}

func TestAttestAndVerifyCommandLine(t *testing.T) {
	noJob(t)
	const digest = "@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	missing := filepath.Join(t.TempDir(), "missing")
	root := filepath.Join(testenv.Root(t), "internal/attest/testdata/public-good-root.json")
	for _, tc := range []struct {
		name   string
		args   []string
		status int
		stderr string
	}{
		{"attest nothing", []string{"attest"}, 2, "give the artifact to attest as REF@DIGEST"},
		{"attest a tag", []string{"attest", "ghcr.io/a/b:v1"}, 2, "give the digest that push printed, ghcr.io/a/b@sha256:..."},
		{"attest no reference", []string{"attest", "ghcr.io/a/b@sha256:12"}, 2, "is no digest"},
		{"local and a URL", []string{"attest", "--local-trust", "x", "--fulcio-url", "https://y", "ghcr.io/a/b" + digest}, 2, "leave out --signing-config, --trusted-root and URLs"},
		{"local and a release", []string{"attest", "--local-trust", "x", "--release", "v1", "ghcr.io/a/b" + digest}, 2, "leave out --release"},
		{"two ways to name services", []string{"attest", "--signing-config", "y", "--trusted-root", "x", "--rekor-url", "https://y", "ghcr.io/a/b" + digest}, 2, "--signing-config names the services already"},
		{"no certificate authority", []string{"attest", "--timestamp-server-url", "https://y", "--trusted-root", "x", "ghcr.io/a/b" + digest}, 2, "give --fulcio-url, too"},
		{"URLs without root", []string{"attest", "--fulcio-url", "https://y", "ghcr.io/a/b" + digest}, 2, "--fulcio-url needs --trusted-root"},
		{"local and private", []string{"attest", "--local-trust", "x", "--signing-config", "y", "ghcr.io/a/b" + digest}, 2, "leave out --signing-config"},
		{"private without root", []string{"attest", "--signing-config", "y", "ghcr.io/a/b" + digest}, 2, "--signing-config needs --trusted-root"},
		{"attest outside of a job", []string{"attest", "ghcr.io/a/b" + digest}, 1, "there is no identity to sign with outside of a GitHub Actions job: run it in a workflow, or sign with throw-away keys: --local-trust DIR"},
		{"attest what is not there", []string{"attest", "--local-trust", filepath.Join(t.TempDir(), "trust"), "oci:" + missing + digest}, 1, "there is none"},

		{"verify nothing", []string{"verify"}, 2, "say what to verify: verify artifact REF"},
		{"verify something", []string{"verify", "ghcr.io/a/b"}, 2, `there is nothing called "ghcr.io/a/b" to verify`},
		{"verify no artifact", []string{"verify", "artifact"}, 2, "give the reference of the artifact"},
		{"verify for nobody", []string{"verify", "artifact", "ghcr.io/a/b"}, 2, "give --repo OWNER/REPO or --owner OWNER; anybody can sign something"},
		{"no repository", []string{"verify", "artifact", "--repo", "a", "ghcr.io/a/b"}, 2, `the repository "a" is not of the form OWNER/REPO`},
		{"no workflow", []string{"verify", "artifact", "--repo", "a/b", "--signer-workflow", "image.yml", "ghcr.io/a/b"}, 2, `the workflow "image.yml" is not of the form`},
		{"no signer repository", []string{"verify", "artifact", "--repo", "a/b", "--signer-repo", "a", "ghcr.io/a/b"}, 2, `the signer's repository "a" is not of the form`},
		{"two signers", []string{"verify", "artifact", "--repo", "a/b", "--signer-repo", "a/b", "--signer-workflow", "a/b/c.yml", "ghcr.io/a/b"}, 2, "not both"},
		{"no commit", []string{"verify", "artifact", "--repo", "a/b", "--source-digest", "main", "ghcr.io/a/b"}, 2, `the source's digest "main" is no commit`},
		{"no commit of the signer", []string{"verify", "artifact", "--repo", "a/b", "--signer-digest", "5f3d6c1", "ghcr.io/a/b"}, 2, `the signer's digest "5f3d6c1" is no commit`},
		{"no runner", []string{"verify", "artifact", "--repo", "a/b", "--runner-environment", "mine", "ghcr.io/a/b"}, 2, `there is no runner environment "mine"`},
		{"two runners", []string{"verify", "artifact", "--repo", "a/b", "--runner-environment", "self-hosted", "--deny-self-hosted-runners", "ghcr.io/a/b"}, 2, "cannot both hold"},
		{"two hosts", []string{"verify", "artifact", "--repo", "octo.ghe.com/a/b", "--hostname", "github.com", "ghcr.io/a/b"}, 2, "--repo names the host octo.ghe.com and --hostname github.com"},
		{"a server", []string{"verify", "artifact", "--repo", "a/b", "--hostname", "github.example.com", "ghcr.io/a/b"}, 2, "GitHub Enterprise Server issues no identities"},
		{"two places", []string{"verify", "artifact", "--repo", "a/b", "--bundle-from", "github", "--bundle-from-oci", "ghcr.io/a/b"}, 2, "cannot both hold"},
		{"as gh has it", []string{"verify", "artifact", "--repo", "a/b", "--custom-trusted-root", missing, "ghcr.io/a/b"}, 1, "read the trusted root: open " + missing},
		{"no ref", []string{"verify", "artifact", "--repo", "a/b", "--ref", "main", "ghcr.io/a/b"}, 2, `the ref "main" is not a full one`},
		{"no format", []string{"verify", "artifact", "--repo", "a/b", "--format", "yaml", "ghcr.io/a/b"}, 2, `there is no format "yaml"`},
		{"no such source", []string{"verify", "artifact", "--repo", "a/b", "--bundle-from", "x", "ghcr.io/a/b"}, 2, `not from "x"`},
		{"two sources", []string{"verify", "artifact", "--repo", "a/b", "--bundle-from", "github", "--bundle", "x", "ghcr.io/a/b"}, 2, "cannot be given together"},
		{"two roots", []string{"verify", "artifact", "--local-trust", "x", "--trusted-root", "x", "ghcr.io/a/b"}, 2, "cannot be given together"},
		{"local and a repository", []string{"verify", "artifact", "--local-trust", "x", "--repo", "a/b", "ghcr.io/a/b"}, 2, "a local trust root signs for no repository"},
		{"local from GitHub", []string{"verify", "artifact", "--local-trust", "x", "--bundle-from", "github", "ghcr.io/a/b"}, 2, "GitHub keeps nothing that a local trust root signed"},
		{"Enterprise Server", []string{"verify", "artifact", "--repo", "github.example.com/a/b", "ghcr.io/a/b"}, 2, "GitHub Enterprise Server issues no identities"},
		{"no trusted root", []string{"verify", "artifact", "--repo", "a/b", "--trusted-root", missing, "ghcr.io/a/b"}, 1, "read the trusted root: open " + missing},
		{"no local trust root", []string{"verify", "artifact", "--local-trust", missing, "ghcr.io/a/b"}, 1, "'attest --local-trust' makes one"},
		{"no layout", []string{"verify", "artifact", "--repo", "a/b", "--trusted-root", root, "oci:" + missing}, 1, "there is none"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			status, stdout, stderr := execute(t, tc.args...)
			if status != tc.status || !strings.Contains(stderr, tc.stderr) {
				t.Errorf("status %d, stderr %q; want status %d and %q", status, stderr, tc.status, tc.stderr)
			}
			if stdout != "" {
				t.Errorf("standard output is %q, want nothing", stdout)
			}
		})
	}
}

// TestAttestInJob holds what is said in jobs that cannot attest.
func TestAttestInJob(t *testing.T) {
	const reference = "ghcr.io/a/b@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for _, tc := range []struct {
		name   string
		env    map[string]string
		stderr string
	}{
		{"no token", nil, "there is no token to store the attestations with: set GITHUB_TOKEN"},
		{"no permission", map[string]string{"GITHUB_TOKEN": "x"}, "add 'permissions: id-token: write'"},
		{"Enterprise Server", map[string]string{"GITHUB_TOKEN": "x", "GITHUB_SERVER_URL": "https://github.example.com"}, "GitHub Enterprise Server issues no identities"},
		{"no server", map[string]string{"GITHUB_TOKEN": "x", "GITHUB_SERVER_URL": "github.com"}, "it is no URL such as https://github.com"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			noJob(t)
			t.Setenv("GITHUB_ACTIONS", "true")
			for name, value := range tc.env {
				t.Setenv(name, value)
			}
			status, _, stderr := executeHere(t, "attest", reference)
			if status != 1 || !strings.Contains(stderr, tc.stderr) {
				t.Errorf("status %d, stderr %q; want %q", status, stderr, tc.stderr)
			}
			if !strings.Contains(stderr, "::error title=attestable-image::attest") && !strings.Contains(stderr, "::error title=attestable-image::read the GitHub server") {
				t.Errorf("no annotation in %q", stderr)
			}
		})
	}
}

// TestGitHubAt holds who gets the job's token: the GitHub that the job runs on.
func TestGitHubAt(t *testing.T) {
	for _, tc := range []struct {
		name, server, api, repository string // of the job, and what is verified
		want                          attest.GitHub
	}{
		{"a tenant, outside of a job", "", "", "evil.ghe.com/octo-org/image", attest.GitHub{API: "https://api.evil.ghe.com"}},
		{"a tenant whose the token is", "GH_HOST=octo.ghe.com", "", "octo.ghe.com/octo-org/image", attest.GitHub{API: "https://api.octo.ghe.com", Token: "t"}},
		{"github.com with a tenant's token", "GH_HOST=octo.ghe.com", "", "github.com/octo-org/image", attest.GitHub{API: "https://api.github.com"}},
		{"a host that is no GitHub", "", "", "evil.example/octo-org/image", attest.GitHub{API: "https://evil.example/api/v3"}},
		{"outside of a job", "", "", "octo-org/image", attest.GitHub{API: "https://api.github.com", Token: "t"}},
		{"in a job", "https://github.com", "https://api.github.com", "octo-org/image", attest.GitHub{API: "https://api.github.com", Token: "t"}},
		{"a tenant's job", "https://octo.ghe.com", "https://api.octo.ghe.com", "octo-org/image", attest.GitHub{API: "https://api.octo.ghe.com", Token: "t"}},
		{"of another GitHub", "https://github.com", "https://api.github.com", "evil.ghe.com/octo-org/image", attest.GitHub{API: "https://api.evil.ghe.com"}},
		{"of github.com, in a tenant's job", "https://octo.ghe.com", "https://api.octo.ghe.com", "github.com/octo-org/image", attest.GitHub{API: "https://api.github.com"}},
		{"of github.com, on a server", "https://github.example.com", "https://github.example.com/api/v3", "github.com/octo-org/image", attest.GitHub{API: "https://api.github.com"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			noJob(t)
			t.Setenv("GITHUB_TOKEN", "t")
			if host, ok := strings.CutPrefix(tc.server, "GH_HOST="); ok {
				t.Setenv("GH_HOST", host)
			} else if tc.server != "" {
				t.Setenv("GITHUB_ACTIONS", "true")
				t.Setenv("GITHUB_SERVER_URL", tc.server)
				t.Setenv("GITHUB_API_URL", tc.api)
			}
			f := verifyFlags{repository: tc.repository}
			if strings.HasPrefix(tc.repository, "evil.example/") {
				f.issuer = "https://issuer.example" // a host that is no GitHub needs one
			}
			expected, err := f.expectation()
			if err != nil {
				t.Fatal(err)
			}
			if got := gitHubAt(expected.Host); got.API != tc.want.API || got.Token != tc.want.Token {
				t.Errorf("%+v, want %+v", got, tc.want)
			}
		})
	}
}

// TestLocalTrust attests and verifies without GitHub, as the demonstration does.
func TestLocalTrust(t *testing.T) {
	noJob(t)
	disk := testenv.GoldenDisk(t, "stub257")
	for _, kind := range append([]string{"layout"}, registryKinds()...) {
		t.Run(kind, func(t *testing.T) {
			dir, temporary := t.TempDir(), t.TempDir()
			t.Setenv("TMPDIR", temporary)
			place := "oci:" + filepath.Join(dir, "layout")
			if kind != "layout" {
				place = startRegistry(t, kind) + "/octo-org/image:v1"
			}
			trust, bundles := filepath.Join(dir, "trust"), filepath.Join(dir, "bundles.jsonl")
			succeed := func(args ...string) (stdout, stderr string) {
				t.Helper()
				status, stdout, stderr := execute(t, args...)
				if status != 0 {
					t.Fatalf("%q: status %d\n%s%s", args, status, stdout, stderr)
				}
				return stdout, stderr
			}
			pushed, _ := succeed("push", disk, place)
			reference := strings.TrimSpace(pushed)
			out, said := succeed("attest", "--quiet", "--local-trust="+trust, "--bundle-output="+bundles, "--signing-config=", "--trusted-root=", reference)
			if !strings.Contains(said, "created a local trust root in "+trust) || !strings.Contains(said, "not who built the image") {
				t.Errorf("the local trust root is used silently: %q", said)
			}
			if strings.Count(out, "@sha256:") != 2 || !strings.HasPrefix(out, attest.PredicateProvenance+"\n") {
				t.Errorf("standard output %q", out)
			}
			// Again, it adds nothing.
			out, said = succeed("attest", "--local-trust="+trust, reference)
			if strings.Contains(said, "created") || strings.Count(out, "(already there)") != 2 {
				t.Errorf("created again: %q\n%s", said, out)
			}
			table, _ := succeed("verify", "artifact", place, "--local-trust="+trust, "--remeasure")
			for _, want := range []string{"ok    manifest", "ok    PCR11 measured again", "\nverified: 23 of 23 checks hold\n"} {
				if !strings.Contains(table, want) {
					t.Errorf("the table lacks %q:\n%s", want, table)
				}
			}
			succeed("verify", "artifact", reference, "--local-trust="+trust, "--bundle="+bundles)

			asJSON, _ := succeed("verify", "artifact", reference, "--local-trust="+trust, "--format=json")
			var result verification
			if err := json.Unmarshal([]byte(asJSON), &result); err != nil {
				t.Fatal(err)
			}
			if !result.Verified || result.Reference != reference || len(result.Checks) != 16 || len(result.Attestations) != 2 {
				t.Errorf("%+v", result)
			}

			other := filepath.Join(dir, "other")
			if _, err := attest.OpenLocalTrust(other); err != nil {
				t.Fatal(err)
			}
			status, out, said := execute(t, "verify", "artifact", reference, "--local-trust="+other)
			if status != 1 || !strings.Contains(out, "FAIL  provenance attestation\n      expected  a bundle that verifies\n      found     ") ||
				!strings.Contains(said, "Error: "+reference+" does not verify: provenance attestation: expected a bundle that verifies, found ") {
				t.Errorf("status %d\n%s%s", status, out, said)
			}
			if leftovers, err := os.ReadDir(temporary); err != nil || len(leftovers) > 0 {
				t.Errorf("left behind: %v, %v", leftovers, err)
			}
		})
	}
}

func registryKinds() []string {
	var names []string
	for _, kind := range testenv.RegistryKinds {
		names = append(names, kind.Name)
	}
	return names
}

// startRegistry starts a registry of a kind and returns its host.
func startRegistry(t *testing.T, name string) string {
	t.Helper()
	for _, kind := range testenv.RegistryKinds {
		if kind.Name == name {
			return kind.Start(t).Host
		}
	}
	t.Fatalf("there is no registry %q", name)
	return ""
}

// TestExpectedHost holds which GitHub is meant.
func TestExpectedHost(t *testing.T) {
	for _, tc := range []struct{ name, server, hostname, repository, workflow, wantServer, wantWorkflow string }{
		{"the default", "", "", "a/b", "a/b/.github/workflows/c.yml", "https://github.com", "a/b/.github/workflows/c.yml"},
		{"a tenant's job", "https://octo.ghe.com", "", "a/b", "", "https://octo.ghe.com", ""},
		{"a tenant", "", "octo.ghe.com", "a/b", "octo.ghe.com/a/b/.github/workflows/c.yml", "https://octo.ghe.com", "a/b/.github/workflows/c.yml"},
		{"a tenant, as gh writes it", "", "", "octo.ghe.com/a/b", "", "https://octo.ghe.com", ""},
		{"github.com from a tenant's job", "https://octo.ghe.com", "github.com", "a/b", "github.com/a/b/.github/workflows/c.yml", "https://github.com", "a/b/.github/workflows/c.yml"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			noJob(t)
			t.Setenv("GITHUB_SERVER_URL", tc.server)
			e, err := (&verifyFlags{hostname: tc.hostname, repository: tc.repository, workflow: tc.workflow}).expectation()
			if err != nil || e.Host.Server != tc.wantServer || e.Workflow != tc.wantWorkflow || e.Repository != "a/b" {
				t.Errorf("%+v, error %v", e, err)
			}
		})
	}
}
