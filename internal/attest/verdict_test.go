package attest

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/sign"
	"github.com/sigstore/sigstore-go/pkg/verify"

	"github.com/org/attestable-image-action/internal/retry"
)

// gitHubHost is github.com.
var gitHubHost = Host{Server: "https://github.com", Issuer: "https://token.actions.githubusercontent.com", name: "github.com"}

// expectImage expects the test's job.
func expectImage() Expectation {
	return Expectation{
		Host: gitHubHost, Repository: "octo-org/image", Ref: "refs/heads/main",
		Workflow: "octo-org/image/.github/workflows/image.yml",
	}
}

func from(candidates ...Candidate) Source {
	return Source{Name: "the test", Fetch: func(context.Context) ([]Candidate, error) { return candidates, nil }}
}

// outcome is the first check that failed, as "name: found", or "".
func outcome(v *Verdict) string {
	failed, bad := v.Failed()
	if !bad {
		return ""
	}
	return failed.Name + ": " + failed.Found
}

// TestIdentity holds who may have signed: what the certificate says against
// what is expected.
func TestIdentity(t *testing.T) {
	const evil = "https://github.com/evil/image"
	for _, tc := range []struct {
		name    string
		certify func(c *certificate.Summary)
		expect  func(e *Expectation)
		want    string // the first check that failed, or nothing
	}{
		{name: "as expected"},
		{name: "repository in other case", expect: func(e *Expectation) { e.Repository = "Octo-Org/IMAGE" }},
		{name: "no workflow and no ref expected", expect: func(e *Expectation) { e.Workflow, e.Ref = "", "" }},
		{name: "owner", expect: func(e *Expectation) { e.Repository, e.Workflow, e.Owner = "", "", "octo-org" }},
		{name: "workflow at a ref", expect: func(e *Expectation) { e.Workflow += "@refs/heads/main" }},
		{
			name: "another repository", want: "repository: " + evil,
			certify: func(c *certificate.Summary) { c.SourceRepositoryURI = evil },
		},
		{
			name: "a repository whose name begins like it", want: "repository: https://github.com/octo-org/image-evil",
			certify: func(c *certificate.Summary) { c.SourceRepositoryURI = "https://github.com/octo-org/image-evil" },
		},
		{
			name: "another owner", want: "owner: https://github.com/octo-org",
			expect: func(e *Expectation) { e.Repository, e.Workflow, e.Owner = "", "", "octo" },
		},
		{
			name: "another workflow", want: "workflow: https://github.com/octo-org/image/.github/workflows/evil.yml@refs/heads/main",
			certify: func(c *certificate.Summary) {
				c.SubjectAlternativeName = "https://github.com/octo-org/image/.github/workflows/evil.yml@refs/heads/main"
				c.BuildSignerURI = c.SubjectAlternativeName
			},
		},
		{
			name: "a workflow whose name begins like it", want: "workflow: https://github.com/octo-org/image/.github/workflows/image.yml.yml@refs/heads/main",
			certify: func(c *certificate.Summary) {
				c.SubjectAlternativeName = "https://github.com/octo-org/image/.github/workflows/image.yml.yml@refs/heads/main"
				c.BuildSignerURI = c.SubjectAlternativeName
			},
		},
		{
			name: "a workflow whose path differs by case", want: "workflow: https://github.com/octo-org/image/.github/workflows/IMAGE.yml@refs/heads/main",
			certify: func(c *certificate.Summary) {
				c.SubjectAlternativeName = "https://github.com/octo-org/image/.github/workflows/IMAGE.yml@refs/heads/main"
				c.BuildSignerURI = c.SubjectAlternativeName
			},
		},
		{
			name: "a workflow at another ref", want: "workflow: https://github.com/octo-org/image/.github/workflows/image.yml@refs/heads/main",
			expect: func(e *Expectation) { e.Workflow += "@refs/tags/v1" },
		},
		{
			name: "a reusable workflow of others, when none is expected", want: "workflow: " + evil + "/.github/workflows/image.yml@refs/heads/main",
			expect: func(e *Expectation) { e.Workflow = "" },
			certify: func(c *certificate.Summary) {
				c.SubjectAlternativeName = evil + "/.github/workflows/image.yml@refs/heads/main"
				c.BuildSignerURI = c.SubjectAlternativeName
			},
		},
		{
			name:   "a reusable workflow that is expected",
			expect: func(e *Expectation) { e.Workflow = "octo-org/workflows/.github/workflows/build.yaml@refs/tags/v1" },
			certify: func(c *certificate.Summary) {
				c.SubjectAlternativeName = "https://github.com/octo-org/workflows/.github/workflows/build.yaml@refs/tags/v1"
				c.BuildSignerURI = c.SubjectAlternativeName
			},
		},
		{
			name: "two signers", want: "workflow: https://github.com/octo-org/image/.github/workflows/image.yml@refs/heads/main and " + evil,
			certify: func(c *certificate.Summary) { c.BuildSignerURI = evil },
		},
		{
			name: "another ref", want: "ref: refs/pull/1/merge",
			certify: func(c *certificate.Summary) { c.SourceRepositoryRef = "refs/pull/1/merge" },
		},
		{
			name: "another issuer", want: "issuer: https://accounts.example.com",
			certify: func(c *certificate.Summary) { c.Issuer = "https://accounts.example.com" },
		},
		{
			name:    "another issuer that is expected",
			expect:  func(e *Expectation) { e.Issuer = gitHubHost.Issuer + "/octo-enterprise" },
			certify: func(c *certificate.Summary) { c.Issuer += "/octo-enterprise" },
		},
		{
			name:   "a reusable workflow of a repository that is expected",
			expect: func(e *Expectation) { e.Workflow, e.SignerRepository = "", "Octo-Org/workflows" },
			certify: func(c *certificate.Summary) {
				c.SubjectAlternativeName = "https://github.com/octo-org/workflows/.github/workflows/build.yaml@refs/tags/v1"
				c.BuildSignerURI = c.SubjectAlternativeName
			},
		},
		{
			name: "a reusable workflow of a repository whose name begins like it", want: "workflow: https://github.com/octo-org/workflows-evil/.github/workflows/build.yaml@refs/tags/v1",
			expect: func(e *Expectation) { e.Workflow, e.SignerRepository = "", "octo-org/workflows" },
			certify: func(c *certificate.Summary) {
				c.SubjectAlternativeName = "https://github.com/octo-org/workflows-evil/.github/workflows/build.yaml@refs/tags/v1"
				c.BuildSignerURI = c.SubjectAlternativeName
			},
		},
		{name: "everything that can be asked", expect: func(e *Expectation) {
			e.SignerDigest, e.SourceDigest, e.Runner = strings.ToUpper(testClaims().SHA), testClaims().SHA, GitHubHosted
		}},
		{
			name: "another commit", want: "commit: " + testClaims().SHA,
			expect: func(e *Expectation) { e.SourceDigest = strings.Repeat("0", 40) },
		},
		{
			name: "a workflow of another commit", want: "workflow's commit: " + testClaims().SHA,
			expect: func(e *Expectation) { e.SignerDigest = strings.Repeat("0", 40) },
		},
		{
			name: "a self-hosted runner", want: "runner: self-hosted",
			expect:  func(e *Expectation) { e.Runner = GitHubHosted },
			certify: func(c *certificate.Summary) { c.RunnerEnvironment = SelfHosted },
		},
		{
			name: "a runner of which nothing is said", want: "runner: nothing",
			expect:  func(e *Expectation) { e.Runner = GitHubHosted },
			certify: func(c *certificate.Summary) { c.RunnerEnvironment = "" },
		},
		{
			name: "no GitHub at all", want: "repository: nothing",
			certify: func(c *certificate.Summary) {
				*c = certificate.Summary{SubjectAlternativeName: "https://example.com/x", Extensions: certificate.Extensions{Issuer: c.Issuer}}
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, e := certified(testClaims()), expectImage()
			if tc.certify != nil {
				tc.certify(&c)
			}
			if tc.expect != nil {
				tc.expect(&e)
			}
			if err := e.Validate(); err != nil {
				t.Fatal(err)
			}
			v := &Verdict{Checks: e.identity(c)}
			if got := outcome(v); got != tc.want {
				t.Errorf("failed %q, want %q", got, tc.want)
			}
		})
	}
}

func TestBadExpectations(t *testing.T) {
	for want, e := range map[string]Expectation{
		"anybody can sign something":               {},
		"not of the form OWNER/REPO":               {Repository: "image"},
		`the repository "../.." is not`:            {Repository: "../.."},
		`the repository "a/b/c" is not`:            {Repository: "a/b/c"},
		`the owner "a b" is not a name`:            {Owner: "a b"},
		`the workflow "image.yml" is not`:          {Repository: "a/b", Workflow: "image.yml"},
		`the workflow "a/b/c.txt@x" is not`:        {Repository: "a/b", Workflow: "a/b/c.txt@x"},
		`the ref "main" is not a full one`:         {Repository: "a/b", Ref: "main"},
		"a local trust root signs for no reposito": {Repository: "a/b", Local: true},
		"a local trust root signs":                 {SourceDigest: strings.Repeat("0", 40), Local: true},
		"not both":                                 {Repository: "a/b", Workflow: "a/b/c.yml", SignerRepository: "a/b"},
		`the signer's repository "a" is not`:       {Repository: "a/b", SignerRepository: "a"},
		`the signer's digest "abc" is no commit`:   {Repository: "a/b", SignerDigest: "abc"},
		`the source's digest "main" is no commit`:  {Repository: "a/b", SourceDigest: "main"},
		`there is no runner environment "mine"`:    {Repository: "a/b", Runner: "mine"},
	} {
		if err := e.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: error %v, want one about %q", e, err, want)
		}
	}
}

// TestVerify holds what a set of bundles is worth.
func TestVerify(t *testing.T) {
	a := newAuthority(t, "somebody", nil)
	good := a.both(t)
	provenance, measurements := good[0], good[1]

	other := newAuthority(t, "somebody", nil) // of the same name, with other keys
	stranger := other.both(t)

	lying := testClaims()
	lying.SHA = strings.Repeat("0", 40)
	lie := Candidate{Source: "lie", Data: a.bundle(t, statement(t, PredicateProvenance, provenanceOf(t, lying)))}
	elsewhere := statement(t, PredicateMeasurements, testMeasurements)
	elsewhere.Subject[0].Digest["sha256"] = strings.Repeat("f", 64)
	another := Candidate{Source: "another", Data: a.bundle(t, elsewhere)}
	garbage := Candidate{Source: "garbage", Data: []byte("{}")}
	broken := Candidate{Source: "broken", Err: errors.New("the connection broke")}

	a.certify.SourceRepositoryURI = "https://github.com/evil/image"
	evil := a.both(t)
	a.certify = certified(testClaims())

	for _, tc := range []struct {
		name    string
		sources []Source
		want    string // beginning of the first failure, or nothing
		bad     int    // bundles that do not count
	}{
		{"both", []Source{from(good...)}, "", 0},
		{"from two sources", []Source{from(provenance), from(measurements)}, "", 0},
		{"bad ones beside good ones", []Source{from(garbage, evil[0], evil[1], stranger[0], another, broken, lie, provenance, measurements)}, "", 7},
		{"bad source, good source", []Source{from(stranger...), from(good...)}, "", 2},
		{"nothing", []Source{from()}, "provenance attestation: none; the test holds no bundle about sha256:" + testDigest, 0},
		{"no source", nil, "provenance attestation: none", 0},
		{"only provenance", []Source{from(provenance)}, "measurements attestation: none", 0},
		{"only measurements", []Source{from(measurements)}, "provenance attestation: none", 0},
		{"for another digest", []Source{from(provenance, another)}, "measurements attestation: another: it is about another digest: its subject is sha256:ffff", 1},
		{"for another repository", []Source{from(evil...)}, "provenance repository: https://github.com/evil/image", 2},
		{"one for another repository", []Source{from(provenance, evil[1])}, "measurements repository: https://github.com/evil/image", 1},
		{"provenance that contradicts the certificate", []Source{from(lie, measurements)}, `provenance content: gitCommit is "0000`, 1},
		{"from another authority", []Source{from(stranger...)}, "provenance attestation: provenance: failed to verify timestamps", 2},
		{"garbage", []Source{from(garbage)}, "provenance attestation: none; garbage: it is no Sigstore bundle", 1},
		{"broken", []Source{from(broken)}, "provenance attestation: none; broken: the connection broke", 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v, err := Verify(context.Background(), a.trust, expectImage(), testDigest, tc.sources...)
			if err != nil {
				t.Fatal(err)
			}
			if got := outcome(v); (tc.want == "") != (got == "") || !strings.HasPrefix(got, tc.want) {
				t.Errorf("failed %q, want %q", got, tc.want)
			}
			if tc.want == "" && v.Measurements == nil || strings.HasPrefix(tc.want, "measurements") && v.Measurements != nil {
				t.Errorf("measurements %s", v.Measurements)
			}
			bad := 0
			for _, b := range v.Attestations {
				if !b.OK {
					bad++
					if b.Reason == "" {
						t.Errorf("no reason why %s does not count", b.Source)
					}
				}
			}
			if bad != tc.bad {
				t.Errorf("%d bundles do not count, want %d: %+v", bad, tc.bad, v.Attestations)
			}
		})
	}

	t.Run("the attested document", func(t *testing.T) {
		v, err := Verify(context.Background(), a.trust, expectImage(), testDigest, from(good...))
		if err != nil || !bytes.Equal(v.Measurements, testMeasurements) {
			t.Errorf("measurements %s, error %v", v.Measurements, err)
		}
	})
	t.Run("a source that cannot be asked", func(t *testing.T) {
		down := Source{Name: "down", Fetch: func(context.Context) ([]Candidate, error) { return nil, errors.New("down") }}
		v, err := Verify(context.Background(), a.trust, expectImage(), testDigest, down, from(good...))
		if err != nil || outcome(v) != "" || len(v.Notes) != 1 || v.Notes[0] != "down" {
			t.Errorf("verdict %+v, error %v", v, err)
		}
	})
	t.Run("not asked in vain", func(t *testing.T) {
		never := Source{Name: "never", Fetch: func(context.Context) ([]Candidate, error) {
			t.Error("another source was asked")
			return nil, nil
		}}
		if _, err := Verify(context.Background(), a.trust, expectImage(), testDigest, from(good...), never); err != nil {
			t.Error(err)
		}
	})
	t.Run("nothing expected", func(t *testing.T) {
		if _, err := Verify(context.Background(), a.trust, Expectation{Host: gitHubHost}, testDigest, from(good...)); err == nil {
			t.Error("verified for nobody")
		}
	})
}

// TestOneRun holds that what a verdict takes together is of one run of one commit, and
// of which, whatever the order in which stores list it.
func TestOneRun(t *testing.T) {
	a := newAuthority(t, "somebody", nil)
	// sign has a run attest both, with what the certificate says of it changed.
	sign := func(runID, attempt string, change func(c *Claims)) (provenance, measurements Candidate) {
		t.Helper()
		claims := testClaims()
		claims.RunID, claims.RunAttempt = runID, attempt
		change(claims)
		a.certify = certified(claims)
		a.certify.BuildSignerDigest = claims.JobWorkflowSHA
		name := "run " + runID + "." + attempt
		return Candidate{Source: name + " provenance", Data: a.bundle(t, statement(t, PredicateProvenance, provenanceOf(t, claims)))},
			Candidate{Source: name + " measurements", Data: a.bundle(t, statement(t, PredicateMeasurements, testMeasurements))}
	}
	as := func(*Claims) {}
	zeros := strings.Repeat("0", 40)
	provenance, measurements := sign("1", "1", as)
	provenanceAgain, _ := sign("1", "2", as)
	_, ofCommit := sign("2", "1", func(c *Claims) { c.SHA, c.JobWorkflowSHA = zeros, zeros })
	_, ofRun := sign("2", "1", as)
	_, ofRef := sign("1", "1", func(c *Claims) { c.Ref = "refs/heads/feature" })
	_, ofWorkflow := sign("1", "1", func(c *Claims) {
		c.JobWorkflowRef = "octo-org/image/.github/workflows/other.yml@refs/heads/main"
	})
	_, ofWorkflowCommit := sign("1", "1", func(c *Claims) { c.JobWorkflowSHA = zeros })
	_, ofRunner := sign("1", "1", func(c *Claims) { c.RunnerEnvironment = SelfHosted })
	time.Sleep(1100 * time.Millisecond) // timestamps are of a second
	laterProvenance, laterMeasurements := sign("3", "1", func(c *Claims) { c.SHA = zeros })

	a.certify = certified(testClaims())
	a.certify.RunInvocationURI = ""
	nameless := testClaims()
	without, err := nameless.Provenance("https://github.com")
	if err != nil {
		t.Fatal(err)
	}
	without = bytes.Replace(without, []byte(`,"metadata":{"invocationId":"https://github.com/octo-org/image/actions/runs/7654321098/attempts/2"}`), nil, 1)
	noRun := []Candidate{
		{Source: "no run provenance", Data: a.bundle(t, statement(t, PredicateProvenance, without))},
		{Source: "no run measurements", Data: a.bundle(t, statement(t, PredicateMeasurements, testMeasurements))},
	}

	const runs = "https://github.com/octo-org/image/actions/runs/"
	main := testClaims().SHA
	for _, tc := range []struct {
		name    string
		bundles []Candidate
		run     string // that counts
		want    []string
	}{
		{"one", []Candidate{provenance, measurements}, runs + "1", nil},
		{"attempts of a run", []Candidate{provenanceAgain, measurements}, runs + "1", nil},
		{"the first of two", []Candidate{laterMeasurements, laterProvenance, measurements, provenance}, runs + "1", nil},
		{"the first of two, listed first", []Candidate{provenance, measurements, laterProvenance, laterMeasurements}, runs + "1", nil},
		{"the only whole one", []Candidate{provenance, ofRun, laterMeasurements, laterProvenance, ofCommit}, runs + "3", nil},
		{"of another run", []Candidate{provenance, ofRun}, "", []string{"provenance of " + runs + "1 at commit " + main, "measurements of " + runs + "2 at commit " + main}},
		{"of another commit", []Candidate{ofCommit, provenance}, "", []string{"measurements of " + runs + "2 at commit " + zeros, "provenance of " + runs + "1"}},
		{"of another ref", []Candidate{provenance, ofRef}, "", []string{"provenance of ", "measurements of "}},
		{"of another workflow", []Candidate{provenance, ofWorkflow}, "", []string{"by https://github.com/octo-org/image/.github/workflows/other.yml@refs/heads/main"}},
		{"of the workflow at another commit", []Candidate{provenance, ofWorkflowCommit}, "", []string{"provenance of ", "measurements of "}},
		{"on another kind of runner", []Candidate{provenance, ofRunner}, "", []string{"provenance of ", "measurements of "}},
		{"of many", []Candidate{provenance, ofRun, ofCommit, ofRef, ofWorkflow, ofRunner}, "", []string{"and 2 more"}},
		{"of no run", noRun, "", []string{"of no run at commit " + main}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v, err := Verify(context.Background(), a.trust, Expectation{Host: gitHubHost, Repository: "octo-org/image"}, testDigest, from(tc.bundles...))
			if err != nil {
				t.Fatal(err)
			}
			failed, bad := v.Failed()
			if tc.run != "" {
				last := v.Checks[len(v.Checks)-1]
				if bad || v.Measurements == nil || v.Origin.Run != tc.run || last.Name != "run" || !strings.HasPrefix(last.Found, tc.run+" at commit "+v.Origin.Commit) {
					t.Errorf("failed %+v, origin %+v, last check %+v; want the run %s", failed, v.Origin, last, tc.run)
				}
				return
			}
			if !bad || failed.Name != "run" || v.Measurements != nil || v.Origin != (Origin{}) {
				t.Errorf("failed %+v, measurements %s, origin %+v", failed, v.Measurements, v.Origin)
			}
			for _, want := range tc.want {
				if !strings.Contains(failed.Found, want) {
					t.Errorf("found %s, want %q in it", failed.Found, want)
				}
			}
		})
	}
}

// TestPolicy holds what must vouch for a signature beside the certificate.
func TestPolicy(t *testing.T) {
	for _, tc := range []struct {
		name, organization string
		logs               map[string]*root.TransparencyLog
		want               string
	}{
		{"private, a timestamp", "somebody", nil, ""},
		{"GitHub, a timestamp", orgGitHub, nil, ""},
		{"GitHub, a timestamp, and a log that is not its own", orgGitHub, newTestLog(t).trusted(), ""},
		{"private with a log, no entry", "somebody", newTestLog(t).trusted(), "log inclusion"},
		{"the public Sigstore, no entry", orgPublicGood, newTestLog(t).trusted(), "log inclusion"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := newAuthority(t, tc.organization, tc.logs)
			got := a.trust.Check(a.both(t)[1], testDigest)
			if (got.Err == nil) != (tc.want == "") || got.Err != nil && !strings.Contains(got.Err.Error(), tc.want) {
				t.Errorf("error %v, want one about %q", got.Err, tc.want)
			}
			if got.Err == nil && (len(got.Clocks) != 1 || got.Clocks[0].Kind != ClockTimestamp || got.Time != got.Clocks[0].Time ||
				got.Time.Before(got.NotBefore) || got.Time.After(got.NotAfter)) {
				t.Errorf("%+v", got)
			}
			if got.Err == nil && (got.Time.IsZero() || got.PredicateType != PredicateMeasurements) {
				t.Errorf("%+v", got)
			}
		})
	}
}

// TestTamperedBundles changes a bundle in one place each.
func TestTamperedBundles(t *testing.T) {
	a := newAuthority(t, "somebody", nil)
	data := a.both(t)[1].Data
	if got := a.trust.Check(Candidate{Data: data}, testDigest); got.Err != nil {
		t.Fatal(got.Err)
	}
	// flip changes one base64 digit in the middle of a member.
	flip := func(member string) []byte {
		changed := bytes.Clone(data)
		start := bytes.Index(changed, []byte(member))
		if start < 0 {
			t.Fatalf("no %s in %s", member, data)
		}
		start += len(member)
		at := start + bytes.IndexByte(changed[start:], '"')/2
		if changed[at] == 'A' {
			changed[at] = 'B'
		} else {
			changed[at] = 'A'
		}
		return changed
	}
	// edit changes the bundle as JSON.
	edit := func(change func(bundle map[string]any)) []byte {
		var bundle map[string]any
		if err := json.Unmarshal(data, &bundle); err != nil {
			t.Fatal(err)
		}
		change(bundle)
		changed, err := json.Marshal(bundle)
		if err != nil {
			t.Fatal(err)
		}
		return changed
	}
	envelope := func(bundle map[string]any) map[string]any { return bundle["dsseEnvelope"].(map[string]any) }
	material := func(bundle map[string]any) map[string]any {
		return bundle["verificationMaterial"].(map[string]any)
	}
	for name, tc := range map[string]struct {
		data []byte
		want string
	}{
		"payload":     {flip(`"payload":"`), ""},
		"signature":   {flip(`"sig":"`), ""},
		"certificate": {flip(`"rawBytes":"`), ""},
		"timestamp":   {flip(`"signedTimestamp":"`), ""},
		"no timestamp": {edit(func(b map[string]any) { delete(material(b), "timestampVerificationData") }),
			"nothing in it proves when it was signed, neither a timestamp nor a log entry with a time, and its certificate was valid only from "},
		"payload type": {edit(func(b map[string]any) { envelope(b)["payloadType"] = "text/plain" }),
			`its payload is of type "text/plain"`},
		"two signatures": {edit(func(b map[string]any) {
			e := envelope(b)
			e["signatures"] = append(e["signatures"].([]any), e["signatures"].([]any)[0])
		}), "signature"},
		"no signature": {edit(func(b map[string]any) { envelope(b)["signatures"] = []any{} }), ""},
		"old kind": {edit(func(b map[string]any) { b["mediaType"] = "application/vnd.dev.sigstore.bundle+json;version=0.1" }),
			"it is a bundle of the old kind"},
		"new kind": {edit(func(b map[string]any) { b["mediaType"] = "application/vnd.dev.sigstore.bundle.v0.9+json" }),
			"it is no Sigstore bundle"},
		"bare key": {edit(func(b map[string]any) {
			m := material(b)
			delete(m, "certificate")
			m["publicKey"] = map[string]any{"hint": "x"}
		}), "it was signed with a bare key"},
		"bare signature": {edit(func(b map[string]any) {
			delete(b, "dsseEnvelope")
			b["messageSignature"] = map[string]any{"messageDigest": map[string]any{"algorithm": "SHA2_256", "digest": "AAAA"}, "signature": "AAAA"}
		}), "it holds no DSSE envelope"},
		"no statement": {a.envelope(t, []byte(`{"hello":"world"}`)), "read the in-toto statement"},
		"no material":  {edit(func(b map[string]any) { delete(b, "verificationMaterial") }), "it is no Sigstore bundle"},
		"padded":       {append(bytes.Clone(data), bytes.Repeat([]byte(" "), 17<<20)...), "bytes around its statement, and no bundle has more than 1048576"},
		"too many subjects": {a.envelope(t, manySubjects(t, MaxSubjects+1)),
			"it has 1025 subjects, and none has more than 1024"},
		"too long a predicate": {a.bundle(t, &Statement{Type: StatementType, Subject: statement(t, PredicateMeasurements, testMeasurements).Subject,
			PredicateType: PredicateMeasurements, Predicate: longPredicate(17 << 20)}), "its predicate has 17825792 bytes, and none has more than 16777216"},
		"envelope by the name of its field": {bytes.Replace(data, []byte(`"dsseEnvelope"`), []byte(`"dsse_envelope"`), 1), `member "dsse_envelope" is not spelt "dsseEnvelope"`},
		"envelope in another case":          {bytes.Replace(data, []byte(`"dsseEnvelope"`), []byte(`"DsseEnvelope":{},"dsseEnvelope"`), 1), "it is no Sigstore bundle"},
		"payload twice":                     {bytes.Replace(data, []byte(`"payload":`), []byte(`"payload":"e30=","payload":`), 1), "it is no Sigstore bundle"},
		"payload twice, by an escape":       {bytes.Replace(data, []byte(`"payload":`), []byte(`"p\u0061yload":"e30=","payload":`), 1), "it is no Sigstore bundle"},
		"payload without padding":           {withPayload(t, data, func(s string) string { return strings.TrimRight(s, "=") }), "its payload is not in the base64 of RFC 4648"},
		"payload with a line's end":         {withPayload(t, data, func(s string) string { return s[:8] + `\n` + s[8:] }), "it is no Sigstore bundle"},
		"statement says two things": {a.envelope(t, bytes.Replace(manySubjects(t, 1), []byte(`"subject":`), []byte(`"Subject":[],"subject":`), 1)),
			`member "Subject" is not spelt "subject"`},
		"statement in another case": {a.envelope(t, bytes.Replace(manySubjects(t, 1), []byte(`"predicate":`), []byte(`"Predicate":`), 1)),
			`member "Predicate" is not spelt "predicate"`},
		"too long": {append(bytes.Clone(data), bytes.Repeat([]byte(" "), MaxBundle)...), "no bundle has more than"},
		"empty":    {nil, "it is no Sigstore bundle"},
	} {
		t.Run(name, func(t *testing.T) {
			got := a.trust.Check(Candidate{Data: tc.data}, testDigest)
			if got.Err == nil || !strings.Contains(got.Err.Error(), tc.want) {
				t.Errorf("error %v, want one about %q", got.Err, tc.want)
			}
			if got.Predicate != nil || got.Certificate != (certificate.Summary{}) {
				t.Errorf("something is believed: %+v", got)
			}
		})
	}
}

// withPayload writes the payload of a bundle in another way. The spaces give it one
// whose length needs padding.
func withPayload(t *testing.T, data []byte, change func(string) string) []byte {
	t.Helper()
	before, rest, ok := bytes.Cut(data, []byte(`"payload":"`))
	payload, after, both := bytes.Cut(rest, []byte(`"`))
	if !ok || !both {
		t.Fatalf("there is no payload in %s", data)
	}
	raw, err := base64.StdEncoding.DecodeString(string(payload))
	if err != nil {
		t.Fatal(err)
	}
	for len(raw)%3 == 0 {
		raw = append(raw, ' ')
	}
	return slices.Concat(before, []byte(`"payload":"`), []byte(change(base64.StdEncoding.EncodeToString(raw))), []byte(`"`), after)
}

// longPredicate is a JSON object of n bytes.
func longPredicate(n int) []byte {
	const around = len(`{"x":""}`)
	return []byte(`{"x":"` + strings.Repeat("x", n-around) + `"}`)
}

// manySubjects is a statement about n manifests, the last of which is the test's.
func manySubjects(t *testing.T, n int) []byte {
	t.Helper()
	s := statement(t, PredicateMeasurements, testMeasurements)
	last := s.Subject[0]
	s.Subject = nil
	for i := range n - 1 {
		s.Subject = append(s.Subject, Subject{Digest: map[string]string{"sha256": fmt.Sprintf("%064x", i)}})
	}
	s.Subject = append(s.Subject, last)
	payload, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return payload
}

// TestLargeBundles holds that what GitHub takes just so is taken.
func TestLargeBundles(t *testing.T) {
	a := newAuthority(t, "somebody", nil)
	for name, data := range map[string][]byte{
		"1,024 subjects": a.envelope(t, manySubjects(t, MaxSubjects)),
		"16 MiB":         a.bundle(t, statement(t, PredicateMeasurements, longPredicate(MaxPredicate))),
	} {
		if got := a.trust.Check(Candidate{Data: data}, testDigest); got.Err != nil {
			t.Errorf("%s: %v", name, got.Err)
		}
	}
}

// TestSubjects holds that a statement may be about several things, and that it
// is shown shortly.
func TestSubjects(t *testing.T) {
	s := &Statement{Subject: []Subject{
		{Digest: map[string]string{"sha512": "ab"}}, {Digest: map[string]string{"sha256": strings.Repeat("x", 1000)}},
		{Digest: map[string]string{"sha256": testDigest}}, {}, {},
	}}
	if !s.about(testDigest) {
		t.Error("the third subject is not seen")
	}
	if got, want := s.subjects(), "without a SHA-256, sha256:"+strings.Repeat("x", 64)+", sha256:"+testDigest+", …"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestPublicGood verifies a real bundle of the public Sigstore with its real
// trust root, both from sigstore-go's tests, with the policy for it. The bundle
// is about an npm package.
func TestPublicGood(t *testing.T) {
	trust, err := ReadTrust("testdata/public-good-root.json")
	if err != nil {
		t.Fatal(err)
	}
	data, err := readFile("testdata/sigstore-js-2.0.0.sigstore.json", MaxBundle)
	if err != nil {
		t.Fatal(err)
	}
	subject, err := hex.DecodeString("46d4e2f74c4877316640000a6fdf8a8b59f1e0847667973e9859f774dd31b8f1e0937813b777fb66a2ac67d50540fe34640966eee9fc2ccca387082b4c85cd3c")
	if err != nil {
		t.Fatal(err)
	}
	verifyIt := func(change func(b *bundle.Bundle)) error {
		b := new(bundle.Bundle)
		if err := b.UnmarshalJSON(data); err != nil {
			t.Fatal(err)
		}
		change(b)
		content, err := b.VerificationContent()
		if err != nil {
			t.Fatal(err)
		}
		verifiers, err := trust.verifiers(content.Certificate())
		if err != nil || len(verifiers) != 1 {
			t.Fatalf("%d verifiers, error %v", len(verifiers), err)
		}
		_, err = verifiers[0].Verify(b, verify.NewPolicy(verify.WithArtifactDigest("sha512", subject), verify.WithoutIdentitiesUnsafe()))
		return err
	}
	if err := verifyIt(func(*bundle.Bundle) {}); err != nil {
		t.Error(err)
	}
	if err := verifyIt(func(b *bundle.Bundle) { b.VerificationMaterial.TlogEntries = nil }); err == nil || !strings.Contains(err.Error(), "log inclusion") {
		t.Errorf("without a log entry: error %v", err)
	}
	// Ours refuses it: it is about no manifest, and of an old kind.
	if got := trust.Check(Candidate{Data: data}, testDigest); got.Err == nil || !strings.Contains(got.Err.Error(), "old kind") {
		t.Errorf("error %v", got.Err)
	}
}

// TestPublicGoodWantsSCT holds that a certificate that no transparency log has
// seen does not pass for one of the public Sigstore.
func TestPublicGoodWantsSCT(t *testing.T) {
	log := newTestLog(t)
	a := newAuthority(t, orgPublicGood, log.trusted())
	s := a.signer(a.trust)
	s.logs = func(ctx context.Context) []sign.Transparency {
		return []sign.Transparency{newLog(ctx, Log{URL: log.url, Version: 1}, retry.Transport{})}
	}
	_, err := s.Sign(context.Background(), statement(t, PredicateMeasurements, testMeasurements))
	if err == nil || !strings.Contains(err.Error(), "signed certificate timestamp") {
		t.Errorf("error %v", err)
	}
}
