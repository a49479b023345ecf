package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/ami"
	"github.com/org/attestable-image-action/internal/testenv"
)

func TestRegisterAMICommandLine(t *testing.T) {
	noJob(t)
	t.Setenv("AWS_CONFIG_FILE", os.DevNull)
	t.Setenv("AWS_REGION", "")
	t.Setenv("AWS_DEFAULT_REGION", "")
	missing := filepath.Join(t.TempDir(), "missing")
	whose := func(args ...string) []string {
		return append([]string{"register-ami", "ghcr.io/a/b", "--repo", "a/b", "--signer-workflow", "a/b/.github/workflows/image.yml"}, args...)
	}
	const digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for _, tc := range []struct {
		name   string
		args   []string
		status int
		stderr string
	}{
		{"nothing", []string{"register-ami"}, 2, "give the reference of the artifact"},
		{"no repository", []string{"register-ami", "ghcr.io/a/b"}, 2, "--repo OWNER/REPO"},
		{"an owner alone", []string{"register-ami", "ghcr.io/a/b", "--owner", "a", "--signer-workflow", "a/b/.github/workflows/i.yml"}, 2, "--repo OWNER/REPO"},
		{"no workflow", []string{"register-ami", "ghcr.io/a/b", "--repo", "a/b"}, 2, "--signer-workflow OWNER/REPO/.github/workflows/FILE.yml"},
		{"no reference", []string{"register-ami", "x@y", "--local-trust", missing}, 2, `"y" is no digest`},
		{"local trust and a repository", []string{"register-ami", "ghcr.io/a/b", "--local-trust", missing, "--repo", "a/b"}, 2, "a local trust root signs for no repository"},
		{"no format", whose("--format", "yaml"), 2, `there is no format "yaml"`},
		{"no region", whose("--region", "Europe"), 2, `"Europe" is no AWS region such as eu-central-1`},
		{"no region to copy to", whose("--copy-to", "eu-west-1,mars"), 2, `"mars" is no AWS region`},
		{"no name", whose("--name", "a+b"), 2, `--name: "a+b" is no name of an AMI`},
		{"no account", whose("--share-with", "1234"), 2, `"1234" is neither an AWS account (12 digits) nor the ARN`},
		{"no tag", whose("--tag", "x"), 2, `"x" is not of the form KEY=VALUE`},
		{"a tag of ours", whose("--tag", "attestable-image:digest=x"), 2, "begins as those that AWS or this program sets"},
		{"zero blocks", whose("--zero-blocks", "skip"), 2, `zero blocks cannot be treated as "skip": give outside-partitions, write or omit`},
		{"keep", whose("--keep", "-1"), 2, "-1 AMIs cannot be kept"},
		{"no time", whose("--time-limit", "0s"), 2, "0s is no time to work in"},
		{"no trust root", []string{"register-ami", "oci:" + missing + "@" + digest, "--local-trust", missing}, 1, "'attest --local-trust' makes one"},

		{"deregister nothing", []string{"deregister-ami"}, 2, "give either AMIs, or --family NAME with --keep N"},
		{"deregister both", []string{"deregister-ami", "ami-0123456789abcdef0", "--family", "x", "--keep", "1"}, 2, "give either AMIs, or"},
		{"family without a number", []string{"deregister-ami", "--family", "x"}, 2, "--family and --keep belong together"},
		{"number without a family", []string{"deregister-ami", "ami-0123456789abcdef0", "--keep", "1"}, 2, "--family and --keep belong together"},
		{"no AMI", []string{"deregister-ami", "snap-0123456789abcdef0"}, 2, "is no AMI such as ami-"},
		{"keep fewer than none", []string{"deregister-ami", "--family", "x", "--keep", "-1"}, 2, "-1 AMIs cannot be kept"},
		{"no region for it", []string{"deregister-ami", "ami-0123456789abcdef0", "--region", "x"}, 2, `"x" is no AWS region`},
		{"no region at all", []string{"deregister-ami", "ami-0123456789abcdef0"}, 1, "no AWS region is set: give --region, or set AWS_REGION"},
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

// TestRegisterAMIWithoutCredentials holds what is said where nobody logged in to
// AWS.
func TestRegisterAMIWithoutCredentials(t *testing.T) {
	noJob(t)
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_CONFIG_FILE", os.DevNull)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", os.DevNull)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	dir := t.TempDir()
	trust := filepath.Join(dir, "trust")
	status, pushed, stderr := execute(t, "push", "--quiet", testenv.GoldenDisk(t, "stub257"), "oci:"+filepath.Join(dir, "layout"))
	if status != 0 {
		t.Fatal(stderr)
	}
	reference := strings.TrimSpace(pushed)
	if status, _, stderr := execute(t, "attest", "--quiet", "--local-trust", trust, reference); status != 0 {
		t.Fatal(stderr)
	}
	status, stdout, stderr := execute(t, "register-ami", "--local-trust", trust, "--region", "eu-central-1", reference)
	if status != 1 || stdout != "" || !strings.Contains(stderr, "there are no AWS credentials: in a workflow run aws-actions/configure-aws-credentials before") {
		t.Errorf("status %d, stdout %q, stderr %q", status, stdout, stderr)
	}
}

func TestPrintRegistration(t *testing.T) {
	r := registration{Artifact: "ghcr.io/a/b@sha256:00", Architecture: "x86_64", Family: "f", Result: ami.Result{
		AMIs: []ami.Placed{
			{Region: "eu-central-1", ImageID: "ami-1", SnapshotID: "snap-1", Name: "n"},
			{Region: "eu-west-1", ImageID: "ami-2", SnapshotID: "snap-2", Name: "n", Existed: true},
		},
		Removed: []ami.Removed{{Region: "eu-west-1", ImageID: "ami-0", Name: "old", Snapshots: []string{"snap-0"}}},
	}}
	dir := t.TempDir()
	output, summary := filepath.Join(dir, "output"), filepath.Join(dir, "summary")
	t.Setenv("GITHUB_ACTIONS", "true")
	t.Setenv("GITHUB_OUTPUT", output)
	t.Setenv("GITHUB_STEP_SUMMARY", summary)
	var stdout bytes.Buffer
	if err := (&app{stdout: &stdout}).printRegistration("table", r); err != nil {
		t.Fatal(err)
	}
	const table = `eu-central-1     ami-1                 snap-1                 registered  n
eu-west-1        ami-2                 snap-2                 was there   n
eu-west-1        ami-0                 snap-0                 removed     old
`
	if stdout.String() != table {
		t.Errorf("%s\nwant\n%s", stdout.String(), table)
	}
	outputs, err := os.ReadFile(output)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"ami-id<<", "\nami-1\n", "snapshot-id<<", "\nsnap-1\n", "amis<<",
		"\n" + `{"eu-central-1":{"ami-id":"ami-1","snapshot-id":"snap-1"},"eu-west-1":{"ami-id":"ami-2","snapshot-id":"snap-2"}}` + "\n"} {
		if !strings.Contains(string(outputs), want) {
			t.Errorf("outputs %q lack %q", outputs, want)
		}
	}
	told, err := os.ReadFile(summary)
	if err != nil || !strings.Contains(string(told), "| eu-west-1 | `ami-2` | `snap-2` | was there already |") {
		t.Errorf("%s, %v", told, err)
	}
}
