package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"cuelabs.dev/go/oci/ociregistry/ocimem"
	"cuelabs.dev/go/oci/ociregistry/ociserver"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	ourartifact "github.com/org/attestable-image-action/internal/artifact"
	"github.com/org/attestable-image-action/internal/attest"
	"github.com/org/attestable-image-action/internal/testenv"
)

// long says that the long forms run.
var long = os.Getenv("ATTESTABLE_IMAGE_LONG") == "1"

// An attester is a place where many runs attest artifacts of their own: one
// Sigstore, one GitHub, and a registry of each kind.
type attester struct {
	stack      *testenv.Stack
	trust      *attest.Trust
	registries []attestedRegistry
}

type attestedRegistry struct {
	name     string
	backend  http.Handler
	front    *testenv.Registry // without faults
	manifest v1.Manifest       // of the artifact there, in octo-org/image
}

func newAttester(t *testing.T) *attester {
	t.Helper()
	stack := testenv.StartSigstore(t, testenv.Options{GenuineIssuer: true, Public: whole})
	trust, err := attest.ReadTrust(stack.TrustedRoot)
	if err != nil {
		t.Fatal(err)
	}
	a := &attester{stack: stack, trust: trust}
	disk := smallDisk(t)
	for _, r := range []attestedRegistry{
		{name: "with referrers API", backend: ociserver.New(ocimem.New(), nil)},
		{name: "without referrers API", backend: testenv.Distribution(t)},
	} {
		r.front = testenv.FrontRegistry(t, r.backend)
		pushed := run(t, nil, command(t), "push", "--quiet", disk, r.front.Host+"/octo-org/image:v1")
		pushed.accepts(t)
		_, manifest := (&artifact{reference: strings.TrimSpace(pushed.output)}).manifest(t)
		r.manifest = *manifest
		a.registries = append(a.registries, r)
	}
	return a
}

// newArtifact pushes a manifest of its own, which shares the layers, and returns
// its digest.
func (r *attestedRegistry) newArtifact(t *testing.T, version string) v1.Hash {
	t.Helper()
	m := r.manifest
	m.Annotations = maps.Clone(m.Annotations)
	m.Annotations["org.opencontainers.image.version"] = version
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	digest, _, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.NewDigest(r.front.Host + "/octo-org/image@" + digest.String())
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Put(ref, rawManifest{data: raw, mediaType: m.MediaType}); err != nil {
		t.Fatal(err)
	}
	return digest
}

// job is the environment of a job whose services fail as faults say, and the
// flags of attest for it.
func (a *attester) job(t *testing.T, r *attestedRegistry, workflow testenv.Run, faults *testenv.Faults) (env, flags []string, host string) {
	t.Helper()
	dir := t.TempDir()
	tokens, err := url.Parse(a.stack.Issuer.TokenURL)
	if err != nil {
		t.Fatal(err)
	}
	issuer := testenv.Forward(tokens.Scheme + "://" + tokens.Host)
	proxy := testenv.StartProxy(t)
	proxy.Map("token.actions.githubusercontent.com", faults.Before("issuer", issuer))
	tokenURL := faults.Front(t, "issuer", issuer) + tokens.RequestURI()

	config, err := os.ReadFile(a.stack.SigningConfig)
	if err != nil {
		t.Fatal(err)
	}
	for service, base := range map[string]string{"Fulcio": a.stack.FulcioURL, "TSA": a.stack.TimestampURL, "Rekor": a.stack.RekorURL} {
		u, err := url.Parse(base)
		if err != nil {
			t.Fatal(err)
		}
		front := faults.Front(t, service, testenv.Forward(u.Scheme+"://"+u.Host))
		config = bytes.ReplaceAll(config, []byte(u.Scheme+"://"+u.Host), []byte(front))
	}
	if rekor := a.stack.RekorV1URL; rekor != "" && workflow.RunAttempt == "1" { // every other four runs
		front := faults.Front(t, "Rekor v1", testenv.Forward(rekor))
		config = regexp.MustCompile(`"url": "[^"]*",\s*"majorApiVersion": 2`).ReplaceAll(config, []byte(`"url": "`+front+`", "majorApiVersion": 1`))
	}
	file := filepath.Join(dir, "signing-config.json")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		t.Fatal(err)
	}
	github := faults.Front(t, "GitHub", testenv.Forward(a.stack.GitHub.URL))
	for _, variable := range slices.Concat(a.stack.Env(workflow), proxy.Env()) {
		switch name, _, _ := strings.Cut(variable, "="); name {
		case "GITHUB_API_URL":
			variable = name + "=" + github
		case "ACTIONS_ID_TOKEN_REQUEST_URL":
			variable = name + "=" + tokenURL
		}
		env = append(env, variable)
	}
	env = append(env, "RUNNER_TEMP="+dir, "GITHUB_OUTPUT="+filepath.Join(dir, "output"))
	front := testenv.FrontRegistry(t, faults.Before("registry", r.backend))
	return env, []string{"--signing-config", file, "--trusted-root", a.stack.TrustedRoot}, front.Host
}

// stored are the bundles about a digest that the two stores hold, each of which
// must verify: by predicate type, without repetition.
func (a *attester) stored(t *testing.T, r *attestedRegistry, digest v1.Hash) (github, registry map[string][]string) {
	t.Helper()
	github, registry = make(map[string][]string), make(map[string][]string)
	add := func(where string, to map[string][]string, c attest.Candidate) {
		t.Helper()
		checked := a.trust.Check(c, digest.Hex)
		if checked.Err != nil {
			t.Errorf("%s holds a bundle that does not verify: %v", where, checked.Err)
			return
		}
		// Bundles of the same meaning may differ in nothing, not in a space.
		if line := string(c.Data); !slices.Contains(to[checked.PredicateType], line) {
			to[checked.PredicateType] = append(to[checked.PredicateType], line)
		}
	}
	for _, bundle := range a.stack.GitHub.Bundles(testenv.DefaultRun.Repository) {
		if strings.Contains(payloadOf(bundle), digest.Hex) {
			add("GitHub", github, attest.Candidate{Data: bundle})
		}
	}
	ref, err := ourartifact.ParseReference(r.front.Host + "/octo-org/image@" + digest.String())
	if err != nil {
		t.Fatal(err)
	}
	referrers, err := ourartifact.Referrers(t.Context(), ref, attest.BundleMediaType)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range referrers {
		data, err := ourartifact.GetReferrer(t.Context(), ref, d)
		if err != nil {
			t.Errorf("the registry lists what it does not have: %v", err)
			continue
		}
		add("the registry", registry, attest.Candidate{Data: data})
	}
	return github, registry
}

// once demands that both stores hold one bundle of each predicate, the same.
func once(t *testing.T, github, registry map[string][]string) {
	t.Helper()
	for _, predicateType := range predicates {
		if g, r := github[predicateType], registry[predicateType]; len(g) != 1 || len(r) != 1 || g[0] != r[0] {
			t.Errorf("%s: GitHub holds %d bundles and the registry %d; want one, and the same", predicateType, len(g), len(r))
		}
	}
}

// TestAttestFaults attests while a fifth of all requests to each service fail:
// Fulcio, the timestamp authority, Rekor, the registry, GitHub's API and its
// issuer. A run succeeds, and then all is stored, or it fails with a sentence,
// and then what is stored is whole; the next run completes it, and nothing is
// there twice. ATTESTABLE_IMAGE_LONG=1 makes it 200 runs.
func TestAttestFaults(t *testing.T) {
	runs := 6
	if long {
		runs = 200
	}
	a := newAttester(t)
	var mu sync.Mutex
	ended, tried, seen := make(map[string]int), make(map[string]int), make(map[string]int)
	t.Run("runs", func(t *testing.T) {
		for n := range runs {
			t.Run(strconv.Itoa(n), func(t *testing.T) {
				t.Parallel()
				r := &a.registries[n%2]
				digest := r.newArtifact(t, fmt.Sprintf("faults-%d", n))
				kinds, class := testenv.FaultsOfAMoment, "faults of a moment"
				if n%4 >= 2 {
					kinds, class = slices.Concat(kinds, testenv.Lies), "lies, too"
				}
				faults := testenv.NewFaults(t, uint64(n), 0.2, kinds...)
				workflow := testenv.DefaultRun
				workflow.RunID, workflow.RunAttempt = strconv.Itoa(1000+n), strconv.Itoa(1+n/4%2)
				env, flags, host := a.job(t, r, workflow, faults)
				args := slices.Concat([]string{"attest", "--quiet"}, flags, []string{host + "/octo-org/image@" + digest.String()})
				first := run(t, env, command(t), args...)
				faults.Stop()

				end := "done"
				github, registry := a.stored(t, r, digest)
				if first.err == nil {
					once(t, github, registry)
				} else {
					end = "failed, nothing stored"
					if len(github)+len(registry) > 0 {
						end = "failed, a part stored"
						if !strings.Contains(first.output, "what was stored before stays: run this again") && len(github) == len(predicates) {
							t.Errorf("it does not say that something is stored:\n%s", first.output)
						}
					}
					a.failsCleanly(t, first)
				}
				again := run(t, env, command(t), args...)
				again.accepts(t)
				github, registry = a.stored(t, r, digest)
				once(t, github, registry)

				mu.Lock()
				defer mu.Unlock()
				ended[class+": "+end]++
				tried[class]++
				for kind, times := range faults.Seen() {
					seen[kind] += times
				}
			})
		}
	})
	for _, end := range slices.Sorted(maps.Keys(ended)) {
		t.Logf("%4d × %s", ended[end], end)
	}
	for _, kind := range slices.Sorted(maps.Keys(seen)) {
		t.Logf("%4d × %s", seen[kind], kind)
	}
	// Four attempts of a request fail together once in 600 times.
	if class := "faults of a moment"; ended[class+": done"] < tried[class]*8/10 {
		t.Errorf("%d of %d runs got over faults of a moment", ended[class+": done"], tried[class])
	}
}

// identityToken is a JWT's header and the beginning of its claims.
var identityToken = regexp.MustCompile(`eyJ[A-Za-z0-9_-]+\.eyJ`)

// failsCleanly demands one sentence, and no secret.
func (a *attester) failsCleanly(t *testing.T, o outcome) {
	t.Helper()
	t.Log(lastLine(o.output))
	sentences := 0
	for line := range strings.Lines(o.output) {
		if strings.HasPrefix(line, "Error: ") {
			sentences++
		}
	}
	if sentences != 1 || strings.Contains(o.output, "panic") || strings.Contains(o.output, "goroutine ") {
		t.Errorf("it does not end with one sentence:\n%s", o.output)
	}
	if strings.Contains(o.output, a.stack.GitHub.Token) || identityToken.MatchString(o.output) {
		t.Errorf("it shows a token:\n%s", o.output)
	}
	if strings.Contains(o.output, "<html") && len(o.output) > 3000 {
		t.Errorf("it repeats a page:\n%s", o.output)
	}
}

// TestAttestAtOnce has two jobs attest the same digest at once, again and again,
// in each kind of registry: nothing that a job said it stored may be lost.
func TestAttestAtOnce(t *testing.T) {
	rounds := 3
	if long {
		rounds = 25
	}
	a := newAttester(t)
	calm := testenv.NewFaults(t, 0, 0)
	for i := range a.registries {
		r := &a.registries[i]
		t.Run(r.name, func(t *testing.T) {
			for n := range rounds {
				digest := r.newArtifact(t, fmt.Sprintf("at-once-%d", n))
				reference := r.front.Host + "/octo-org/image@" + digest.String()
				outcomes := make([]outcome, 2)
				var jobs sync.WaitGroup
				for j := range outcomes {
					workflow := testenv.DefaultRun
					workflow.RunID = strconv.Itoa(5000 + 2*n + j)
					env, flags, _ := a.job(t, r, workflow, calm)
					args := slices.Concat([]string{"attest", "--quiet"}, flags, []string{reference})
					program := command(t)
					jobs.Go(func() { outcomes[j] = run(t, env, program, args...) })
				}
				jobs.Wait()
				github, registry := a.stored(t, r, digest)
				ref, err := ourartifact.ParseReference(reference)
				if err != nil {
					t.Fatal(err)
				}
				listed, err := ourartifact.Referrers(t.Context(), ref, attest.BundleMediaType)
				if err != nil {
					t.Fatal(err)
				}
				for _, o := range outcomes {
					o.accepts(t)
					for line := range strings.Lines(o.output) {
						_, stored, ok := strings.Cut(strings.TrimSpace(line), "/octo-org/image@")
						if ok && !strings.Contains(line, "already there") && !slices.ContainsFunc(listed, func(d v1.Descriptor) bool { return d.Digest.String() == stored }) {
							t.Errorf("round %d: %s was stored and is not listed", n, stored)
						}
					}
				}
				for where, has := range map[string]map[string][]string{"GitHub": github, "the registry": registry} {
					if len(has[predicateProvenance]) != 2 || len(has[predicateMeasurements]) < 1 || len(has[predicateMeasurements]) > 2 {
						t.Errorf("round %d: %s holds %d of provenance and %d of measurements", n, where, len(has[predicateProvenance]), len(has[predicateMeasurements]))
					}
				}
			}
		})
	}
}
