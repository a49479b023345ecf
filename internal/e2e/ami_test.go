package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ebs"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/org/attestable-image-action/internal/attest"
	"github.com/org/attestable-image-action/internal/testenv"
)

const amiRegion = "eu-central-1"

// awsEnv points a program at the emulator.
func awsEnv(e *testenv.EC2) []string {
	return []string{
		"AWS_ENDPOINT_URL=" + e.URL, "AWS_REGION=" + amiRegion, "AWS_ACCESS_KEY_ID=test", "AWS_SECRET_ACCESS_KEY=test",
		"AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null", "AWS_EC2_METADATA_DISABLED=true",
	}
}

// account is what there is in a region, seen past the proxy.
type account struct {
	ec2 *ec2.Client
	ebs *ebs.Client
}

func accountOf(e *testenv.EC2) account {
	cfg := aws.Config{Region: amiRegion, BaseEndpoint: &e.Direct, Credentials: credentials.NewStaticCredentialsProvider("test", "test", "")}
	return account{ec2.NewFromConfig(cfg), ebs.NewFromConfig(cfg)}
}

func (a account) images(t *testing.T) []types.Image {
	t.Helper()
	out, err := a.ec2.DescribeImages(t.Context(), &ec2.DescribeImagesInput{Owners: []string{"self"}})
	if err != nil {
		t.Fatal(err)
	}
	return out.Images
}

func (a account) snapshots(t *testing.T) []types.Snapshot {
	t.Helper()
	out, err := a.ec2.DescribeSnapshots(t.Context(), &ec2.DescribeSnapshotsInput{OwnerIds: []string{"self"}})
	if err != nil {
		t.Fatal(err)
	}
	return out.Snapshots
}

func (a account) holdsNothing(t *testing.T) {
	t.Helper()
	if images, snapshots := a.images(t), a.snapshots(t); len(images)+len(snapshots) > 0 {
		t.Errorf("%d AMIs and %d snapshots are left", len(images), len(snapshots))
	}
}

// holdsOne fails the test unless there is one AMI, whose snapshot is the only
// one and reads back block by block as the disk.
func (a account) holdsOne(t *testing.T, disk string) types.Image {
	t.Helper()
	images, snapshots := a.images(t), a.snapshots(t)
	if len(images) != 1 || len(snapshots) != 1 {
		t.Fatalf("%d AMIs and %d snapshots are there", len(images), len(snapshots))
	}
	id := snapshots[0].SnapshotId
	if got := images[0].BlockDeviceMappings[0].Ebs.SnapshotId; aws.ToString(got) != aws.ToString(id) {
		t.Fatalf("the AMI is made of %s and not of %s", aws.ToString(got), aws.ToString(id))
	}
	out, err := a.ebs.ListSnapshotBlocks(t.Context(), &ebs.ListSnapshotBlocksInput{SnapshotId: id})
	if err != nil {
		t.Fatal(err)
	}
	stored := map[int64]*string{}
	for _, b := range out.Blocks {
		stored[int64(aws.ToInt32(b.BlockIndex))] = b.BlockToken
	}
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 512 << 10
	want, zero := make([]byte, size), make([]byte, size)
	for index := int64(0); ; index++ {
		n, err := io.ReadFull(f, want)
		if err == io.EOF {
			break
		}
		clear(want[n:])
		got := zero
		if token, there := stored[index]; there {
			block, err := a.ebs.GetSnapshotBlock(t.Context(), &ebs.GetSnapshotBlockInput{SnapshotId: id, BlockIndex: aws.Int32(int32(index)), BlockToken: token})
			if err != nil {
				t.Fatal(err)
			}
			got, err = io.ReadAll(block.BlockData)
			_ = block.BlockData.Close()
			if err != nil {
				t.Fatal(err)
			}
			delete(stored, index)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("block %d reads back otherwise", index)
		}
	}
	if len(stored) > 0 {
		t.Errorf("%d blocks lie behind the disk", len(stored))
	}
	return images[0]
}

// locally pushes a disk to a layout, attests it with a local trust root, and
// returns the arguments of register-ami.
func locally(t *testing.T, disk string, push ...string) []string {
	t.Helper()
	dir := t.TempDir()
	trust := filepath.Join(dir, "trust")
	pushed := run(t, nil, command(t), append(append([]string{"push", "--quiet"}, push...), disk, "oci:"+filepath.Join(dir, "layout"))...)
	pushed.accepts(t)
	reference := strings.TrimSpace(pushed.output)
	run(t, nil, command(t), "attest", "--quiet", "--local-trust", trust, reference).accepts(t)
	return []string{"register-ami", "--local-trust", trust, reference}
}

// TestRegisterAMI goes from a workflow's artifact to an AMI, on a runner, and
// again; and refuses everything that was tampered with, without a single call
// of AWS.
func TestRegisterAMI(t *testing.T) {
	e := testenv.SharedEC2(t)
	stack := testenv.StartSigstore(t, testenv.Options{GenuineIssuer: true})
	disk := smallDisk(t)
	a := makeArtifact(t, stack, testenv.DefaultRun, testenv.StartRegistry(t), disk)
	workflow := testenv.DefaultRun.Repository + "/" + testenv.DefaultRun.WorkflowPath
	arguments := func(reference string, flags ...string) []string {
		return append([]string{
			"register-ami", reference, "--trusted-root", stack.TrustedRoot, "--bundle-from", "registry",
			"--repo", testenv.DefaultRun.Repository, "--signer-workflow", workflow,
		}, flags...)
	}
	t.Run("tampered", func(t *testing.T) { a.registersNothingTampered(t, e, arguments) })

	dir := t.TempDir()
	output, summary := filepath.Join(dir, "output"), filepath.Join(dir, "summary")
	env := append(awsEnv(e), "GITHUB_ACTIONS=true", "GITHUB_OUTPUT="+output, "GITHUB_STEP_SUMMARY="+summary)
	first := run(t, env, command(t), arguments(a.reference, "--copy-to", "eu-west-1", "--source-ref", "refs/heads/main")...)
	first.accepts(t)
	image := accountOf(e).holdsOne(t, disk)
	tags := map[string]string{}
	for _, tag := range image.Tags {
		tags[aws.ToString(tag.Key)] = aws.ToString(tag.Value)
	}
	for key, want := range map[string]string{
		"repository": "https://github.com/octo-org/image", "commit": testenv.DefaultRun.SHA,
		"workflow": "https://github.com/" + workflow + "@refs/heads/main",
		"digest":   a.reference[len(a.reference)-len("sha256:")-64:], "artifact": a.reference,
	} {
		if got := tags["attestable-image:"+key]; got != want {
			t.Errorf("tag %s is %q, want %q", key, got, want)
		}
	}
	written, err := os.ReadFile(output)
	if err != nil {
		t.Fatal(err)
	}
	outputs := parseOutputs(string(written))
	var amis map[string]map[string]string
	if err := json.Unmarshal([]byte(outputs["amis"]), &amis); err != nil {
		t.Fatalf("%v in %q", err, written)
	}
	if outputs["ami-id"] != aws.ToString(image.ImageId) || amis[amiRegion]["ami-id"] != outputs["ami-id"] || len(amis) != 2 ||
		amis[amiRegion]["snapshot-id"] != outputs["snapshot-id"] || !strings.HasPrefix(amis["eu-west-1"]["ami-id"], "ami-") {
		t.Errorf("outputs %q", outputs)
	}
	told, err := os.ReadFile(summary)
	if err != nil || !strings.Contains(string(told), "| eu-central-1 | `"+outputs["ami-id"]+"` | `"+outputs["snapshot-id"]+"` | registered by this run |") {
		t.Errorf("summary %s, %v", told, err)
	}

	again := run(t, awsEnv(e), command(t), arguments(a.reference, "--quiet", "--format", "json")...)
	again.accepts(t)
	var result struct {
		ImageID string `json:"ami-id"`
		Existed bool   `json:"existed"`
	}
	if err := json.Unmarshal([]byte(again.output), &result); err != nil || result.ImageID != outputs["ami-id"] || !result.Existed {
		t.Errorf("%v: %s", err, again.output)
	}
	run(t, awsEnv(e), command(t), "deregister-ami", outputs["ami-id"]).accepts(t)
	accountOf(e).holdsNothing(t)
}

// registersNothingTampered lets register-ami meet what it must not believe.
func (a *artifact) registersNothingTampered(t *testing.T, e *testenv.EC2, arguments func(string, ...string) []string) {
	descriptor, manifest := a.manifest(t)
	bundles, err := os.ReadFile(a.bundles)
	if err != nil {
		t.Fatal(err)
	}
	file := func(t *testing.T, data []byte) string {
		t.Helper()
		path := filepath.Join(t.TempDir(), "bundles.jsonl")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	// withBundles verifies with other bundles than the registry's.
	withBundles := func(t *testing.T, data []byte) []string {
		t.Helper()
		args := arguments(a.reference, "--bundle", file(t, data))
		at := slices.Index(args, "--bundle-from")
		return slices.Delete(args, at, at+2)
	}
	inBundles := func(member string) func(t *testing.T) []string {
		return func(t *testing.T) []string {
			var all []byte
			for line := range bytes.Lines(bundles) {
				start := bytes.Index(line, []byte(member)) + len(member)
				all = append(all, flip(line, start+bytes.IndexByte(line[start:], '"')/2)...)
			}
			return withBundles(t, all)
		}
	}
	lie := func(part string, change func([]byte) []byte) func(t *testing.T) []string {
		return func(t *testing.T) []string {
			a.registry.Lie(t, func(path string, body []byte) []byte {
				if strings.Contains(path, part) {
					return change(body)
				}
				return body
			})
			return arguments(a.reference)
		}
	}
	other := func(flags ...string) func(t *testing.T) []string {
		return func(*testing.T) []string { return arguments(a.reference, flags...) }
	}
	another := makeArtifact(t, a.stack, testenv.Run{Repository: "octo-org/other", WorkflowPath: ".github/workflows/other.yml"}, a.registry, smallDisk(t))
	fork := makeArtifact(t, a.stack, testenv.Run{Ref: "refs/heads/evil"}, testenv.StartRegistry(t), smallDisk(t))
	for name, args := range map[string]func(t *testing.T) []string{
		"manifest":         lie("/manifests/"+descriptor.Digest.String(), func(b []byte) []byte { return flip(b, bytes.Index(b, []byte(`"pcr4":"`))+9) }),
		"manifest cut off": lie("/manifests/"+descriptor.Digest.String(), func(b []byte) []byte { return b[:len(b)/2] }),
		"measurements":     lie("/blobs/"+manifest.Layers[1].Digest.String(), func(b []byte) []byte { return flip(b, len(b)/2) }),
		"disk, pushed again": func(t *testing.T) []string {
			return arguments(a.pushTampered(t, "t1", manifest.Layers[0].Digest.String()))
		},
		"measurements, pushed again": func(t *testing.T) []string {
			return arguments(a.pushTampered(t, "t2", manifest.Layers[1].Digest.String()))
		},
		"disk, pushed again, old bundles": func(t *testing.T) []string {
			args := withBundles(t, bundles)
			args[1] = a.pushTampered(t, "t3", manifest.Layers[0].Digest.String())
			return args
		},
		"bundle's payload":     inBundles(`"payload":"`),
		"bundle's signature":   inBundles(`"sig":"`),
		"bundle's certificate": inBundles(`"rawBytes":"`),
		"bundle's timestamp":   inBundles(`"signedTimestamp":"`),
		"bundle's log entry":   inBundles(`"canonicalizedBody":"`),
		"provenance alone":     func(t *testing.T) []string { return withBundles(t, read(t, a.bundleFile(t, predicateProvenance))) },
		"measurements alone":   func(t *testing.T) []string { return withBundles(t, read(t, a.bundleFile(t, predicateMeasurements))) },
		"bundles of another":   func(t *testing.T) []string { return withBundles(t, read(t, fork.bundles)) },
		"no bundles":           func(t *testing.T) []string { return withBundles(t, nil) },
		"another repository's": func(*testing.T) []string { return arguments(another.reference) },
		"another ref's":        func(*testing.T) []string { return arguments(fork.reference, "--source-ref", "refs/heads/main") },
		"another repository":   other("--repo", "octo-org/other"),
		"another workflow":     other("--signer-workflow", "octo-org/image/.github/workflows/other.yml"),
		"another owner":        other("--owner", "evil"),
		"another issuer":       other("--cert-oidc-issuer", "https://issuer.example.com"),
		"another trusted root": other("--trusted-root", filepath.Join(testenv.Root(t), "internal/attest/testdata/public-good-root.json")),
		"a local trust root": func(t *testing.T) []string {
			dir := filepath.Join(t.TempDir(), "trust")
			if _, err := attest.OpenLocalTrust(dir); err != nil {
				t.Fatal(err)
			}
			return []string{"register-ami", a.reference, "--local-trust", dir}
		},
		"nothing attested": func(t *testing.T) []string {
			pushed := run(t, nil, command(t), "push", "--quiet", a.disk, a.registry.Host+"/octo-org/bare:v1")
			pushed.accepts(t)
			return arguments(strings.TrimSpace(pushed.output))
		},
		"no repository expected": func(*testing.T) []string { return []string{"register-ami", a.reference} },
		"no workflow expected":   func(*testing.T) []string { return []string{"register-ami", a.reference, "--repo", "octo-org/image"} },
	} {
		t.Run(name, func(t *testing.T) {
			e.Forget()
			o := run(t, awsEnv(e), command(t), args(t)...)
			o.refuses(t, "it does not verify, and nothing was asked of AWS", "does not match", "mismatch", "read manifest of",
				"it must hold Sigstore bundles", "give the repository", "give the workflow")
			if calls := e.Requests(); len(calls) > 0 {
				t.Errorf("%d calls of AWS, the first %s", len(calls), calls[0].Operation)
			}
			if !strings.Contains(o.output, "Error: ") {
				t.Errorf("no sentence says why: %s", o.output)
			}
		})
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestRegisterSignedAMI registers an image that is signed for Secure Boot.
func TestRegisterSignedAMI(t *testing.T) {
	e := testenv.SharedEC2(t)
	disk, dir := testenv.GoldenDisk(t, "stub257"), t.TempDir()
	keys, store := filepath.Join(dir, "keys"), filepath.Join(dir, "uefi-data.aws")
	measurements := filepath.Join(dir, "measurements.json")
	run(t, nil, command(t), "sign", "--quiet", "--create-keys", keys, "--uefi-data", store, disk).accepts(t)
	measured := run(t, nil, command(t), "measure", "--quiet", "--format", "json", "--PK", keys+"/PK.esl", "--KEK", keys+"/KEK.esl", "--db", keys+"/db.esl", disk)
	measured.accepts(t)
	if err := os.WriteFile(measurements, []byte(measured.output), 0o600); err != nil {
		t.Fatal(err)
	}
	args := locally(t, disk, "--measurements", measurements, "--uefi-data", store)
	run(t, awsEnv(e), command(t), args...).accepts(t)
	accountOf(e).holdsOne(t, disk)
	form := e.Requests("RegisterImage")[0].Form
	if got := form.Get("UefiData"); got != strings.TrimSpace(string(read(t, store))) || got == "" {
		t.Errorf("UefiData is %q", got)
	}
	// The same disk and measurements without the variables.
	e.Forget()
	run(t, awsEnv(e), command(t), locally(t, disk, "--measurements", measurements)...).
		refuses(t, "its attested measurements are for Secure Boot, but it carries no UEFI variable store")
	if calls := e.Requests(); len(calls) > 0 {
		t.Errorf("%s was asked for", calls[0].Operation)
	}
}

// TestRegisterKIWIDisk takes the disk that KIWI builds from the template to an
// AMI.
func TestRegisterKIWIDisk(t *testing.T) {
	disk := testenv.DebianDisk(t)
	e := testenv.SharedEC2(t)
	run(t, awsEnv(e), command(t), locally(t, disk)...).accepts(t)
	image := accountOf(e).holdsOne(t, disk)
	if image.BootMode != types.BootModeValuesUefi || image.TpmSupport != types.TpmSupportValuesV20 {
		t.Errorf("boot mode %s, TPM %s", image.BootMode, image.TpmSupport)
	}
}

// begin starts the command, and returns what waits for its end.
func begin(t *testing.T, env []string, args ...string) (*exec.Cmd, *bytes.Buffer, <-chan error) {
	t.Helper()
	cmd := exec.Command(command(t), args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "TMPDIR=" + os.TempDir()}, env...)
	output := new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd, output, ended
}

// TestCancelledJob cancels a job as a runner does, at each stage: SIGINT, SIGTERM
// 7.5 s later, and SIGKILL 2.5 s after that. Nothing may be left.
func TestCancelledJob(t *testing.T) {
	args := locally(t, smallDisk(t))
	for _, tc := range []struct {
		operation string
		nth       int64
		hangs     bool // the call is not answered
		signal    syscall.Signal
	}{
		{"StartSnapshot", 1, false, syscall.SIGINT},
		{"StartSnapshot", 1, true, syscall.SIGINT},
		{"PutSnapshotBlock", 1, false, syscall.SIGTERM},
		{"PutSnapshotBlock", 50, false, syscall.SIGINT},
		{"PutSnapshotBlock", 50, true, syscall.SIGINT},
		{"CompleteSnapshot", 1, true, syscall.SIGINT},
		{"RegisterImage", 1, false, syscall.SIGTERM},
		{"RegisterImage", 1, true, syscall.SIGINT},
		{"RegisterImage", 2, false, syscall.SIGINT},
	} {
		t.Run(fmt.Sprintf("%s %d, hangs %t, %s", tc.operation, tc.nth, tc.hangs, tc.signal), func(t *testing.T) {
			e := testenv.SharedEC2(t)
			over, end := context.WithCancel(context.Background())
			t.Cleanup(end)
			reached := make(chan struct{})
			var calls atomic.Int64
			e.Intercept(t, func(w http.ResponseWriter, r *http.Request, call testenv.AWSRequest, forward http.Handler) bool {
				if call.Operation != tc.operation || calls.Add(1) != tc.nth {
					return false
				}
				forward.ServeHTTP(w, r)
				close(reached)
				if tc.hangs {
					select {
					case <-over.Done():
					case <-r.Context().Done():
					}
				}
				return true
			})
			cmd, output, ended := begin(t, awsEnv(e), append(args, "--copy-to", "eu-west-1")...)
			select {
			case <-reached:
			case err := <-ended:
				t.Fatalf("it ended before: %v\n%s", err, output)
			}
			_ = cmd.Process.Signal(tc.signal)
			terminate := time.AfterFunc(7500*time.Millisecond, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
			kill := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
			err := <-ended
			terminate.Stop()
			kill.Stop()
			if status := cmd.ProcessState.ExitCode(); err == nil || status != 1 || !strings.Contains(output.String(), "Error: interrupted: ") {
				t.Errorf("status %d, %v\n%s", status, err, output)
			}
			accountOf(e).holdsNothing(t)
		})
	}
}

// TestKilled kills a run at ten random moments, and runs again: in the end there
// is one AMI, and no snapshot beside it.
func TestKilled(t *testing.T) {
	times := 10
	if os.Getenv("ATTESTABLE_IMAGE_LONG") == "1" {
		times = 50
	}
	disk := smallDisk(t)
	args := locally(t, disk)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	// A run makes some 140 calls.
	for n := range times {
		at := 1 + random.Int64N(140)
		t.Run(fmt.Sprintf("%d at call %d", n, at), func(t *testing.T) {
			e := testenv.SharedEC2(t)
			var calls atomic.Int64
			reached := make(chan struct{})
			after := random.IntN(2) == 0
			e.Intercept(t, func(w http.ResponseWriter, r *http.Request, _ testenv.AWSRequest, forward http.Handler) bool {
				if calls.Add(1) != at {
					return false
				}
				if after {
					forward.ServeHTTP(w, r)
				}
				close(reached)
				if !after {
					forward.ServeHTTP(w, r)
				}
				return true
			})
			cmd, output, ended := begin(t, awsEnv(e), args...)
			select {
			case <-reached:
				_ = cmd.Process.Kill()
				t.Logf("the first run: %v", <-ended)
			case err := <-ended:
				if err != nil {
					t.Fatalf("%v\n%s", err, output)
				}
			}
			run(t, awsEnv(e), command(t), args...).accepts(t)
			accountOf(e).holdsOne(t, disk)
		})
	}
}

// TestTwoJobs runs two jobs for one artifact at once.
func TestTwoJobs(t *testing.T) {
	disk := smallDisk(t)
	args := append(locally(t, disk), "--quiet")
	e := testenv.SharedEC2(t)
	_, one, oneEnded := begin(t, awsEnv(e), args...)
	_, two, twoEnded := begin(t, awsEnv(e), args...)
	if err := <-oneEnded; err != nil {
		t.Errorf("%v\n%s", err, one)
	}
	if err := <-twoEnded; err != nil {
		t.Errorf("%v\n%s", err, two)
	}
	id := aws.ToString(accountOf(e).holdsOne(t, disk).ImageId)
	for _, output := range []*bytes.Buffer{one, two} {
		if !strings.Contains(output.String(), id) {
			t.Errorf("%s is not in %q", id, output)
		}
	}
}
