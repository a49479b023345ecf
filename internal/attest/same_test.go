package attest

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestExisting holds when an attestation says already what another would say.
func TestExisting(t *testing.T) {
	a := newAuthority(t, "somebody", nil)
	signer := a.signer(a.trust)
	author := testClaims().Author("https://github.com")
	stored := a.both(t)
	garbage := Candidate{Data: []byte("{}")}
	broken := Candidate{Err: errors.New("the connection broke")}
	stranger := newAuthority(t, "somebody", nil).both(t)

	a.certify.SourceRepositoryDigest = strings.Repeat("0", 40)
	otherCommit := a.both(t)
	a.certify = certified(testClaims())
	a.certify.SourceRepositoryRef = "refs/tags/v1"
	otherRef := a.both(t)
	a.certify = certified(testClaims())
	a.certify.RunInvocationURI = "https://github.com/octo-org/image/actions/runs/1/attempts/1"
	otherRun := a.both(t)
	a.certify = certified(testClaims())
	a.certify.RunInvocationURI = strings.Replace(a.certify.RunInvocationURI, "/attempts/2", "/attempts/1", 1)
	otherAttempt := a.both(t)
	a.certify = certified(testClaims())
	a.certify.BuildSignerDigest = strings.Repeat("0", 40)
	otherWorkflow := a.both(t)
	a.certify = certified(testClaims())

	measurements := statement(t, PredicateMeasurements, testMeasurements)
	spaced := statement(t, PredicateMeasurements, []byte(`{ "Measurements": {"PCR4": "00", "HashAlgorithm":"SHA384"} }`))
	changed := statement(t, PredicateMeasurements, []byte(`{"Measurements":{"HashAlgorithm":"SHA384","PCR4":"01"}}`))
	provenance := statement(t, PredicateProvenance, provenanceOf(t, testClaims()))
	nextAttempt := testClaims()
	nextAttempt.RunAttempt = "3"
	again := statement(t, PredicateProvenance, provenanceOf(t, nextAttempt))
	elsewhere := statement(t, PredicateMeasurements, testMeasurements)
	elsewhere.Subject[0].Digest["sha256"] = strings.Repeat("f", 64)

	for _, tc := range []struct {
		name       string
		candidates []Candidate
		statement  *Statement
		want       bool
	}{
		{"the same", stored, measurements, true},
		{"the same provenance", stored, provenance, true},
		{"the same with other spaces and order", stored, spaced, true},
		{"the same by another attempt of the run", otherAttempt, measurements, true},
		{"the same by another run of the same commit", otherRun, measurements, false},
		{"the same by the workflow at another commit", otherWorkflow, measurements, false},
		{"after what is of no use", append([]Candidate{garbage, broken}, stored...), measurements, true},
		{"nothing", nil, measurements, false},
		{"of no use", []Candidate{garbage, broken}, measurements, false},
		{"another content", stored, changed, false},
		{"another type", stored[:1], measurements, false},
		{"another digest", stored, elsewhere, false},
		{"another attempt of the run", stored, again, false},
		{"from another commit", otherCommit, measurements, false},
		{"from another ref", otherRef, measurements, false},
		{"by a stranger", stranger, measurements, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			spread := slices.Clone(tc.candidates)
			for i, c := range spread {
				spread[i].Data = bytes.ReplaceAll(c.Data, []byte(`","`), []byte("\",\n\""))
			}
			bundle, ok := signer.Existing(spread, tc.statement, author)
			if ok != tc.want || ok != (bundle != nil) || bytes.ContainsRune(bundle, '\n') {
				t.Errorf("found %t with %d bytes, want %t", ok, len(bundle), tc.want)
			}
		})
	}
}

// testToken is a token that says when it expires.
func testToken(expires time.Time, n int32) string {
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(`{"alg":"none"}`)) + "." + encode(fmt.Appendf(nil, `{"exp":%d,"n":%d}`, expires.Unix(), n)) + "." + encode([]byte("signature"))
}

// TestOneToken holds that one token serves all signatures of a run as long as it
// is good for a while yet.
func TestOneToken(t *testing.T) {
	a := newAuthority(t, "somebody", nil)
	statements := []*Statement{
		statement(t, PredicateProvenance, provenanceOf(t, testClaims())), statement(t, PredicateMeasurements, testMeasurements), statement(t, PredicateAudit, []byte(`{}`)),
	}
	for name, tc := range map[string]struct {
		token func(n int32) string
		asked int32
	}{
		"good for five minutes": {func(n int32) string { return testToken(time.Now().Add(5*time.Minute), n) }, 1},
		"about to expire":       {func(n int32) string { return testToken(time.Now().Add(time.Minute), n) }, 3},
		"says nothing":          {func(int32) string { return "a.b.c" }, 3},
		"no token at all":       {func(int32) string { return "" }, 3},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int32
			s := a.signer(a.trust)
			s.token = (&tokenCache{fetch: func(context.Context) (string, error) { return tc.token(asked.Add(1)), nil }}).get
			bundles, err := s.SignAll(context.Background(), statements)
			if err != nil {
				t.Fatal(err)
			}
			for i, b := range bundles {
				if got := a.trust.Check(Candidate{Data: b}, testDigest); got.Err != nil || got.PredicateType != statements[i].PredicateType {
					t.Errorf("bundle %d is of %s, error %v", i, got.PredicateType, got.Err)
				}
			}
			if asked.Load() != tc.asked {
				t.Errorf("%d tokens were asked for, want %d", asked.Load(), tc.asked)
			}
		})
	}
	t.Run("refused", func(t *testing.T) {
		s := a.signer(a.trust)
		s.token = (&tokenCache{fetch: func(context.Context) (string, error) { return "", errors.New("id-token: write") }}).get
		if bundles, err := s.SignAll(context.Background(), statements); err == nil || bundles != nil {
			t.Errorf("%d bundles, error %v", len(bundles), err)
		}
	})
}
