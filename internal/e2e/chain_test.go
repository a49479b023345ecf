package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/org/attestable-image-action/internal/testenv"
)

// command builds the command once and returns its path.
func command(t *testing.T) string {
	t.Helper()
	path, err := buildBinary()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// binaryDir is removed by TestMain.
var binaryDir string

var buildBinary = sync.OnceValues(func() (string, error) {
	path := filepath.Join(binaryDir, "attestable-image")
	cmd := exec.Command("go", "build", "-o", path, "../..")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // it goes into an image, too
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build attestable-image: %w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	status := func() int {
		var err error
		if binaryDir, err = os.MkdirTemp("", "attestable-image-e2e"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(binaryDir)
		defer testenv.StopShared()
		return m.Run()
	}()
	os.Exit(status)
}

// artifact is one that went the whole length, and all that was made beside it.
type artifact struct {
	stack     *testenv.Stack
	registry  *testenv.Registry
	workflow  testenv.Run
	reference string // HOST/REPOSITORY@DIGEST
	bundles   string // path of the bundles, one a line
	disk      string // path of the disk that was pushed
}

// TestChain makes an artifact with the command's own stages, in a job as
// GitHub would run it, and lets everybody verify it; then changes one byte of
// it after the other, and everybody must refuse.
func TestChain(t *testing.T) {
	stack := testenv.StartSigstore(t, testenv.Options{GenuineIssuer: true})
	disk := smallDisk(t)
	for _, kind := range testenv.RegistryKinds {
		t.Run(kind.Name, func(t *testing.T) {
			a := makeArtifact(t, stack, testenv.DefaultRun, kind.Start(t), disk)
			t.Run("accepted", a.acceptedByAll)
			t.Run("tampered", a.refusedWhenTampered)
		})
	}
}

// makeArtifact runs measure, push and attest, which signs as the stack's signing
// configuration says, or with flags.
func makeArtifact(t *testing.T, stack *testenv.Stack, workflow testenv.Run, r *testenv.Registry, disk string, flags ...string) *artifact {
	t.Helper()
	dir := t.TempDir()
	a := &artifact{stack: stack, registry: r, workflow: workflow, disk: disk, bundles: filepath.Join(dir, "attestations.jsonl")}
	program := command(t)
	// The steps' environment, and the proxy, under whose names the issuer's
	// keys and GitHub's API are.
	env := append(stack.Env(a.workflow), stack.Proxy.Env()...)
	env = append(env, "GITHUB_OUTPUT="+filepath.Join(dir, "output"), "GITHUB_STEP_SUMMARY="+filepath.Join(dir, "summary"),
		"RUNNER_TEMP="+dir)
	step := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(program, args...)
		cmd.Env = slices.Concat(env, []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir})
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v\n%s%s", args[0], err, out, stderr.Bytes())
		}
		return string(out)
	}
	measurements := filepath.Join(dir, "measurements.json")
	if err := os.WriteFile(measurements, []byte(step("measure", "--format=json", disk)), 0o600); err != nil {
		t.Fatal(err)
	}
	pushed := step("push", "--measurements="+measurements, "--tag="+releaseTag, disk, r.Host+"/octo-org/image")
	for line := range strings.Lines(pushed) {
		if line = strings.TrimSpace(line); strings.Contains(line, "@sha256:") {
			a.reference = line
		}
	}
	if !strings.HasPrefix(a.reference, r.Host+"/octo-org/image") {
		t.Fatalf("push printed no reference:\n%s", pushed)
	}
	if len(flags) == 0 {
		flags = []string{"--signing-config=" + stack.SigningConfig}
	}
	step(slices.Concat([]string{"attest", "--trusted-root=" + stack.TrustedRoot, "--bundle-output=" + a.bundles}, flags, []string{a.reference})...)
	return a
}

// ours verifies with this project's own command, from the registry unless
// flags say otherwise.
func (a *artifact) ours(t *testing.T, reference string, flags ...string) outcome {
	t.Helper()
	args := append([]string{
		"verify", "artifact", reference, "--trusted-root", a.stack.TrustedRoot,
		"--repo", testenv.DefaultRun.Repository,
		"--signer-workflow", testenv.DefaultRun.Repository + "/" + a.workflow.WorkflowPath,
	}, flags...)
	if a.stack.Issuer.URL != testenv.GenuineIssuer {
		args = append(args, "--cert-oidc-issuer", a.stack.Issuer.URL)
	}
	return run(t, nil, command(t), args...)
}

// pull pulls with oras and restores the disk with zstd.
func (a *artifact) pull(t *testing.T, reference string) (outcome, string) {
	t.Helper()
	dir := t.TempDir()
	pulled := run(t, nil, testenv.Tool(t, "oras"), "pull", "--plain-http", "--no-tty", "--output", dir, reference)
	if pulled.err != nil {
		return pulled, ""
	}
	compressed, err := filepath.Glob(filepath.Join(dir, "*.raw.zst"))
	if err != nil || len(compressed) != 1 {
		t.Fatalf("oras pulled %q: %v", compressed, err)
	}
	disk := strings.TrimSuffix(compressed[0], ".zst")
	return run(t, nil, testenv.Tool(t, "zstd"), "-q", "-d", compressed[0], "-o", disk), disk
}

// releaseTag is what the artifact is pushed under.
const releaseTag = "v1"

// tagged is the artifact's reference by its tag.
func (a *artifact) tagged() string {
	repository, _, _ := strings.Cut(a.reference, "@")
	return repository + ":" + releaseTag
}

// predicates are the attestations that every artifact has.
var predicates = []string{predicateProvenance, predicateMeasurements}

// bundleFile writes the bundle of one predicate, for programs that read one.
func (a *artifact) bundleFile(t *testing.T, predicateType string) string {
	t.Helper()
	data, err := os.ReadFile(a.bundles)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(data) {
		var bundle struct {
			DSSEEnvelope struct {
				Payload []byte `json:"payload"`
			} `json:"dsseEnvelope"`
		}
		if err := json.Unmarshal(line, &bundle); err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(bundle.DSSEEnvelope.Payload, []byte(`"`+predicateType+`"`)) {
			path := filepath.Join(t.TempDir(), "bundle.json")
			if err := os.WriteFile(path, line, 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}
	}
	t.Fatalf("no bundle of %s in %s", predicateType, a.bundles)
	return ""
}

func (a *artifact) acceptedByAll(t *testing.T) {
	for _, predicateType := range predicates {
		oci := "oci://" + a.reference
		ghVerify(t, a.stack, a.workflow, oci, predicateType, nil, "--bundle", a.bundleFile(t, predicateType)).accepts(t)
		ghVerify(t, a.stack, a.workflow, oci, predicateType, []string{"GH_TOKEN=x"}, "--bundle-from-oci").accepts(t)
		ghVerify(t, a.stack, a.workflow, oci, predicateType, ghAPI(a.stack)).accepts(t)
		cosignVerify(t, a.stack, a.workflow, a.reference, predicateType).accepts(t)
	}
	a.ours(t, a.reference).accepts(t)
	a.ours(t, a.reference, "--remeasure").accepts(t)
	a.ours(t, a.reference, "--bundle", a.bundles).accepts(t)
	a.ours(t, a.reference, "--repo", "octo-org/other").refuses(t, "octo-org/other")

	pulled, disk := a.pull(t, a.reference)
	pulled.accepts(t)
	want, err := os.ReadFile(a.disk)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(disk); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the disk that oras and zstd restored is another one (%v)", err)
	}
}

// refusedWhenTampered changes one byte at each place. Reasons are quoted from
// the programs; gh gives none beyond the step that failed.
func (a *artifact) refusedWhenTampered(t *testing.T) {
	descriptor, manifest := a.manifest(t)
	diskLayer := manifest.Layers[0].Digest.String()
	oci := "oci://" + a.reference

	t.Run("manifest", func(t *testing.T) {
		a.registry.Lie(t, func(path string, body []byte) []byte {
			if strings.HasSuffix(path, "/manifests/"+descriptor.Digest.String()) || strings.HasSuffix(path, "/manifests/"+releaseTag) {
				return flip(body, bytes.Index(body, []byte(`"pcr4"`))+len(`"pcr4":"`)+1)
			}
			return body
		})
		mismatch := []string{"does not match", "mismatch", "invalid digest", "digest"}
		for _, predicateType := range predicates {
			ghVerify(t, a.stack, a.workflow, oci, predicateType, nil, "--bundle", a.bundleFile(t, predicateType)).refuses(t, mismatch...)
			ghVerify(t, a.stack, a.workflow, oci, predicateType, []string{"GH_TOKEN=x"}, "--bundle-from-oci").refuses(t, mismatch...)
			ghVerify(t, a.stack, a.workflow, oci, predicateType, ghAPI(a.stack)).refuses(t, mismatch...)
			// Given a digest, cosign never looks at what the registry has
			// under it. By the tag it comes to another digest.
			cosignVerify(t, a.stack, a.workflow, a.tagged(), predicateType).refuses(t, "no matching attestations", "no signatures found")
		}
		pulled, _ := a.pull(t, a.reference)
		pulled.refuses(t, mismatch...)
		a.ours(t, a.reference).refuses(t, mismatch...)
		a.ours(t, a.reference, "--bundle", a.bundles).refuses(t, mismatch...)
	})

	// gh and cosign speak of the manifest, which names the layer by its digest:
	// they never fetch it. Whoever does must notice.
	t.Run("disk layer", func(t *testing.T) {
		a.registry.Lie(t, func(path string, body []byte) []byte {
			if strings.HasSuffix(path, "/blobs/"+diskLayer) {
				return flip(body, len(body)/2)
			}
			return body
		})
		pulled, _ := a.pull(t, a.reference)
		pulled.refuses(t, "digest", "mismatch")
		a.ours(t, a.reference, "--remeasure").refuses(t, "digest", "mismatch")
	})

	// The same by somebody who may push: layer and manifest fit again, and the
	// tag points at them. Everybody who resolves the tag must refuse.
	t.Run("disk layer, pushed again", func(t *testing.T) {
		tagged := a.pushTampered(t, "tampered", diskLayer)
		for _, predicateType := range predicates {
			ghVerify(t, a.stack, a.workflow, "oci://"+tagged, predicateType, nil, "--bundle", a.bundleFile(t, predicateType)).
				refuses(t, "Sigstore verification failed")
			ghVerify(t, a.stack, a.workflow, "oci://"+tagged, predicateType, []string{"GH_TOKEN=x"}, "--bundle-from-oci").
				refuses(t, "no attestations", "no bundles")
			ghVerify(t, a.stack, a.workflow, "oci://"+tagged, predicateType, ghAPI(a.stack)).
				refuses(t, "404", "no attestations")
			cosignVerify(t, a.stack, a.workflow, tagged, predicateType).refuses(t, "no matching attestations", "no attestations", "no signatures found")
		}
		a.ours(t, tagged).refuses(t, "attestation")
		a.ours(t, tagged, "--bundle", a.bundles).refuses(t, "digest", "subject", "attestation")
	})

	for _, place := range []struct {
		name   string
		member string // whose base64 value is changed
	}{
		{"bundle's payload", `"payload":"`},
		{"bundle's signature", `"sig":"`},
		{"bundle's certificate", `"rawBytes":"`},
		{"bundle's timestamp", `"signedTimestamp":"`},
		{"bundle's log entry", `"canonicalizedBody":"`},
	} {
		t.Run(place.name, func(t *testing.T) {
			a.refusesBundle(t, func(bundle []byte) []byte {
				start := bytes.Index(bundle, []byte(place.member))
				if start < 0 {
					t.Errorf("the bundle has no %s", place.member)
					return bundle
				}
				start += len(place.member)
				return flip(bundle, start+bytes.IndexByte(bundle[start:], '"')/2)
			})
		})
	}
}

// refusesBundle lets everybody meet bundles that tamper changed: as a file,
// behind GitHub's API, and in the registry.
func (a *artifact) refusesBundle(t *testing.T, tamper func(bundle []byte) []byte) {
	t.Helper()
	oci := "oci://" + a.reference
	const refused = "" // each program has its own words for each place
	data, err := os.ReadFile(a.bundles)
	if err != nil {
		t.Fatal(err)
	}
	var all []byte
	for line := range bytes.Lines(data) {
		all = append(all, tamper(bytes.Clone(line))...)
	}
	bundles := filepath.Join(t.TempDir(), "bundles.jsonl")
	if err := os.WriteFile(bundles, all, 0o600); err != nil {
		t.Fatal(err)
	}
	a.ours(t, a.reference, "--bundle", bundles).refuses(t, refused)
	for _, predicateType := range predicates {
		original := a.bundleFile(t, predicateType)
		line, err := os.ReadFile(original)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(original, tamper(line), 0o600); err != nil {
			t.Fatal(err)
		}
		ghVerify(t, a.stack, a.workflow, oci, predicateType, nil, "--bundle", original).refuses(t, refused)
	}
	restore := a.stack.GitHub.Tamper(tamper)
	for _, predicateType := range predicates {
		ghVerify(t, a.stack, a.workflow, oci, predicateType, ghAPI(a.stack)).refuses(t, refused)
	}
	restore()

	// Served under its old digest, and so not even a bundle that counts.
	a.registry.Lie(t, func(path string, body []byte) []byte {
		if strings.Contains(path, "/blobs/") && bytes.Contains(body, []byte(`"dsseEnvelope"`)) {
			return tamper(bytes.Clone(body))
		}
		return body
	})
	for _, predicateType := range predicates {
		ghVerify(t, a.stack, a.workflow, oci, predicateType, []string{"GH_TOKEN=x"}, "--bundle-from-oci").refuses(t, refused)
		cosignVerify(t, a.stack, a.workflow, a.reference, predicateType).refuses(t, refused)
	}
	a.ours(t, a.reference).refuses(t, refused)
}

// manifest fetches the artifact's manifest.
func (a *artifact) manifest(t *testing.T) (*remote.Descriptor, *v1.Manifest) {
	t.Helper()
	reference, err := name.ParseReference(a.reference)
	if err != nil {
		t.Fatal(err)
	}
	descriptor, err := remote.Get(reference)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := v1.ParseManifest(bytes.NewReader(descriptor.Manifest))
	if err != nil || len(manifest.Layers) == 0 {
		t.Fatalf("manifest %s: %v", descriptor.Manifest, err)
	}
	return descriptor, manifest
}

// pushTampered pushes the artifact again under tag with one byte of the layer
// changed and a manifest that fits, and returns the tag's reference.
func (a *artifact) pushTampered(t *testing.T, tag, layer string) string {
	t.Helper()
	descriptor, manifest := a.manifest(t)
	reference, err := name.NewDigest(a.reference)
	if err != nil {
		t.Fatal(err)
	}
	repository := reference.Context()
	original, err := remote.Layer(repository.Digest(layer))
	if err != nil {
		t.Fatal(err)
	}
	content, err := original.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	data, err := io.ReadAll(content)
	if err != nil {
		t.Fatal(err)
	}
	changed := static.NewLayer(flip(data, len(data)/2), manifest.Layers[0].MediaType)
	digest, err := changed.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteLayer(repository, changed); err != nil {
		t.Fatal(err)
	}
	tagged := repository.Tag(tag)
	raw := rawManifest{
		data:      bytes.ReplaceAll(descriptor.Manifest, []byte(layer), []byte(digest.String())),
		mediaType: descriptor.MediaType,
	}
	if err := remote.Put(tagged, raw); err != nil {
		t.Fatal(err)
	}
	return tagged.String()
}

// rawManifest is a manifest to be pushed as it is.
type rawManifest struct {
	data      []byte
	mediaType types.MediaType
}

func (m rawManifest) RawManifest() ([]byte, error)        { return m.data, nil }
func (m rawManifest) MediaType() (types.MediaType, error) { return m.mediaType, nil }

// flip changes the byte at i to another of the same kind (hex digit, base64
// character), so that what encloses it still parses.
func flip(data []byte, i int) []byte {
	data = bytes.Clone(data)
	switch c := data[i]; {
	case c == '0':
		data[i] = '1'
	case c >= '1' && c <= '9':
		data[i] = '0'
	case c == 'a':
		data[i] = 'b'
	case c >= 'b' && c <= 'z':
		data[i] = 'a'
	case c == 'A':
		data[i] = 'B'
	case c >= 'B' && c <= 'Z':
		data[i] = 'A'
	default:
		data[i] ^= 1
	}
	return data
}
