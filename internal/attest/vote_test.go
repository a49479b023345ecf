package attest

import (
	"context"
	"errors"
	"strings"
	"testing"
)

// claimsOf are those of a job in the repository with an owner of a number.
func claimsOf(repository, ownerID string) *Claims {
	c := testClaims()
	c.Repository, c.RepositoryID, c.RepositoryOwnerID = repository, "1"+ownerID, ownerID
	c.WorkflowRef = repository + "/.github/workflows/rebuild.yml@refs/heads/main"
	c.JobWorkflowRef = c.WorkflowRef
	return c
}

// TestVote counts builders.
func TestVote(t *testing.T) {
	a := newAuthority(t, "somebody", nil)
	own := a.both(t)
	by := func(claims *Claims, predicateType string, predicate []byte) Candidate {
		a.certify = certified(claims)
		return Candidate{Source: claims.Repository, Data: a.bundle(t, statement(t, predicateType, predicate))}
	}
	measured := func(claims *Claims) Candidate { return by(claims, PredicateMeasurements, testMeasurements) }

	borrowed := claimsOf("carol/rebuild", "3")
	borrowed.JobWorkflowRef = "octo-org/image/.github/workflows/image.yml@refs/heads/main"
	hosted := claimsOf("dave/rebuild", "4")
	hosted.RunnerEnvironment = SelfHosted
	foreign := claimsOf("erin/rebuild", "5")
	foreign.Issuer = "https://issuer.example"
	elsewhere := statement(t, PredicateMeasurements, testMeasurements)
	elsewhere.Subject[0].Digest["sha256"] = strings.Repeat("f", 64)
	a.certify = certified(claimsOf("heidi/rebuild", "8"))
	another := Candidate{Source: "heidi/rebuild", Data: a.bundle(t, elsewhere)}
	bundles := append([]Candidate{
		measured(claimsOf("alice/rebuild", "1")), measured(claimsOf("bob/rebuild", "2")), measured(borrowed), measured(hosted), measured(foreign),
		measured(claimsOf("alice/again", "1")), measured(claimsOf("octo-org/rebuild", "98765")), measured(claimsOf("octo-renamed/rebuild", "98765")),
		by(claimsOf("frank/rebuild", "6"), PredicateMeasurements, []byte(`{"Measurements":{"HashAlgorithm":"SHA384","PCR4":"01"}}`)),
		by(claimsOf("grace/rebuild", "7"), PredicateProvenance, provenanceOf(t, claimsOf("grace/rebuild", "7"))), another,
		{Source: "broken", Err: errors.New("the connection broke")},
	}, own...)

	for _, tc := range []struct {
		name     string
		builders string
		required int
		counted  int
		note     string // why the last one does not count
	}{
		{"the signer alone", "", 1, 1, ""},
		{"another", "alice/rebuild", 2, 2, ""},
		{"two others", "alice/rebuild Bob/Rebuild", 3, 3, ""},
		{"the workflow", "alice/rebuild/.github/workflows/rebuild.yml@refs/heads/main", 2, 2, ""},
		{"another workflow", "alice/rebuild/.github/workflows/other.yml", 2, 1, "workflow: expected https://github.com/alice/rebuild/.github/workflows/other.yml"},
		{"another ref", "alice/rebuild/.github/workflows/rebuild.yml@refs/tags/v1", 2, 1, "workflow: expected"},
		{"twice", "alice/rebuild alice/rebuild", 3, 2, "no other owner's than alice/rebuild"},
		{"two of an owner", "alice/rebuild alice/again", 3, 2, "no other owner's than alice/rebuild (number 1)"},
		{"of the signer's owner", "octo-org/rebuild", 2, 1, "no other owner's than octo-org/image"},
		{"of the signer's owner, by number", "octo-renamed/rebuild", 2, 1, "no other owner's than octo-org/image (number 98765)"},
		{"with the signer's workflow", "carol/rebuild", 2, 1, "workflow: expected https://github.com/carol/rebuild/…"},
		{"on another runner", "dave/rebuild", 2, 1, "runner: expected github-hosted"},
		{"by another issuer", "erin/rebuild", 2, 1, "issuer: expected"},
		{"other measurements", "frank/rebuild", 2, 1, "it attests other measurements: Measurements.PCR4"},
		{"only provenance", "grace/rebuild", 2, 1, "it attests nothing of this artifact"},
		{"another digest", "heidi/rebuild", 2, 1, "it attests nothing of this artifact"},
		{"nobody", "mallory/rebuild", 2, 1, "it attests nothing of this artifact"},
		{"more than needed", "mallory/rebuild alice/rebuild", 2, 2, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			expected := expectImage()
			expected.Runner = GitHubHosted
			v, err := Verify(t.Context(), a.trust, expected, testDigest, from(bundles...))
			if err != nil || outcome(v) != "" {
				t.Fatalf("%s, %v", outcome(v), err)
			}
			var builders []Builder
			for text := range strings.FieldsSeq(tc.builders) {
				b, err := ParseBuilder(text)
				if err != nil {
					t.Fatal(err)
				}
				builders = append(builders, b)
			}
			// What the first one said is with its own repository.
			var asked []string
			places := func(b Builder) []Source {
				asked = append(asked, b.Repository)
				if b.Repository == "alice/rebuild" {
					return []Source{from(bundles[0])}
				}
				return nil
			}
			if err := v.Vote(t.Context(), a.trust, expected, testDigest, tc.required, builders, []Source{from(bundles[1:]...)}, places); err != nil {
				t.Fatal(err)
			}
			failed, bad := v.Failed()
			if bad != (tc.counted < tc.required) || bad && failed.Name != "builders" {
				t.Errorf("failed %+v, %t", failed, bad)
			}
			counted := 0
			for _, vote := range v.Votes {
				if vote.Counts {
					counted++
				} else if vote.Reason == "" {
					t.Errorf("no reason why %s does not count", vote.Builder)
				}
			}
			if counted != tc.counted {
				t.Errorf("%d count, want %d: %+v", counted, tc.counted, v.Votes)
			}
			if tc.note != "" && !strings.Contains(v.Votes[len(v.Votes)-1].Reason, tc.note) {
				t.Errorf("the last one does not count because %q, want %q", v.Votes[len(v.Votes)-1].Reason, tc.note)
			}
			if strings.Contains(tc.builders, "Bob") && len(asked) != 1 {
				t.Errorf("asked %q, though one was found already", asked)
			}
		})
	}
	t.Run("of a verdict that failed", func(t *testing.T) {
		v, err := Verify(t.Context(), a.trust, expectImage(), testDigest, from(bundles[:3]...))
		if err != nil {
			t.Fatal(err)
		}
		if err := v.Vote(t.Context(), a.trust, expectImage(), testDigest, 1, nil, []Source{from(bundles...)}, nil); err != nil || v.Votes != nil {
			t.Errorf("votes %+v, %v", v.Votes, err)
		}
	})
	t.Run("a place that cannot be asked", func(t *testing.T) {
		v, err := Verify(t.Context(), a.trust, expectImage(), testDigest, from(own...))
		if err != nil {
			t.Fatal(err)
		}
		down := Source{Name: "down", Fetch: func(context.Context) ([]Candidate, error) { return nil, errors.New("down") }}
		err = v.Vote(t.Context(), a.trust, expectImage(), testDigest, 2, []Builder{{Repository: "alice/rebuild"}}, []Source{down}, func(Builder) []Source { return []Source{down, from(bundles[0])} })
		if err != nil || outcome(v) != "" || len(v.Notes) != 1 {
			t.Errorf("%s, notes %q, %v", outcome(v), v.Notes, err)
		}
	})
}

func TestParseBuilder(t *testing.T) {
	for text, want := range map[string]Builder{
		"a/b":                              {Repository: "a/b"},
		"a/b/.github/workflows/c.yml":      {"a/b", "a/b/.github/workflows/c.yml"},
		"a/b/.github/workflows/c.yml@refs": {"a/b", "a/b/.github/workflows/c.yml@refs"},
	} {
		if b, err := ParseBuilder(text); err != nil || b != want || b.String() != text {
			t.Errorf("%s is %+v (%v)", text, b, err)
		}
	}
	for _, text := range []string{"", "a", "a/", "/b", "a/b/", "a/b/c", "../b", "a/../c.yml", "https://github.com/a/b", "a b/c"} {
		if b, err := ParseBuilder(text); err == nil {
			t.Errorf("%q is %+v", text, b)
		}
	}
}

func FuzzParseBuilder(f *testing.F) {
	f.Add("a/b/.github/workflows/c.yml@refs/heads/main")
	f.Fuzz(func(t *testing.T, text string) {
		b, err := ParseBuilder(text)
		if err == nil && (b.String() != text || !strings.HasPrefix(text, b.Repository)) {
			t.Errorf("%q is %+v", text, b)
		}
	})
}
