package attest

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
)

// Builder is a repository that may vote for an artifact: one whose workflow built the
// same disk, and says so.
type Builder struct {
	Repository string // OWNER/REPO
	Workflow   string // OWNER/REPO/PATH or OWNER/REPO/PATH@REF in it; empty for any
}

// ParseBuilder reads OWNER/REPO, OWNER/REPO/PATH or OWNER/REPO/PATH@REF.
func ParseBuilder(text string) (Builder, error) {
	var b Builder
	parts := strings.SplitN(text, "/", 3)
	if len(parts) >= 2 {
		b.Repository = parts[0] + "/" + parts[1]
	}
	if len(parts) == 3 {
		b.Workflow = text
	}
	e := Expectation{Repository: b.Repository, Workflow: b.Workflow}
	if b.Repository == "" {
		return b, fmt.Errorf("the builder %q is not of the form OWNER/REPO or OWNER/REPO/.github/workflows/FILE.yml", text)
	}
	if err := e.Validate(); err != nil {
		return b, fmt.Errorf("the builder %q: %w", text, err)
	}
	return b, nil
}

// String is the builder as ParseBuilder reads it.
func (b Builder) String() string {
	if b.Workflow != "" {
		return b.Workflow
	}
	return b.Repository
}

// Vote is what is known of one builder.
type Vote struct {
	Builder      string `json:"builder"`                // as it was named
	Repository   string `json:"repository,omitempty"`   // URL, as are the rest from the certificate
	RepositoryID string `json:"repositoryId,omitempty"` // GitHub's number
	Owner        string `json:"owner,omitempty"`        // URL
	OwnerID      string `json:"ownerId,omitempty"`      // GitHub's number
	Signer       string `json:"signer,omitempty"`       // URL of the workflow, with @REF
	Commit       string `json:"commit,omitempty"`       // of the builder's own repository
	Source       string `json:"source,omitempty"`       // where the bundle is from
	Counts       bool   `json:"counts"`
	Reason       string `json:"reason,omitempty"` // why it does not count

	parties []string // who could have made it say what it says
}

// Vote counts the builders that say of the artifact what its own signer says, and adds
// a check that they are at least required, the signer among them. Builders count once
// for each owner of repositories. Each is looked for in the sources, and then in those
// of its own.
//
// Of a verdict without Measurements nothing is counted: it has failed already.
func (v *Verdict) Vote(ctx context.Context, trust *Trust, expected Expectation, sha256 string, required int, builders []Builder, sources []Source, own func(Builder) []Source) error {
	if v.Measurements == nil || expected.Local {
		return nil
	}
	v.Votes = []Vote{newVote(strings.TrimPrefix(v.signer.SourceRepositoryURI, expected.Host.Server+"/"), v.signer)}
	v.Votes[0].Counts = true
	shared, err := v.measurements(ctx, trust, sha256, sources)
	if err != nil {
		return err
	}
	for _, b := range builders {
		vote := b.vote(v, expected, shared)
		if vote.Reason != "" {
			more, err := v.measurements(ctx, trust, sha256, own(b))
			if err != nil {
				return err
			}
			if found := b.vote(v, expected, more); found.Reason == "" || vote.Signer == "" {
				vote = found
			}
		}
		if vote.Reason == "" {
			vote.Reason = v.dependent(vote)
			vote.Counts = vote.Reason == ""
		}
		v.Votes = append(v.Votes, vote)
	}
	var counted []string
	for _, vote := range v.Votes {
		name := "builder " + vote.Builder
		if !vote.Counts {
			v.Notes = append(v.Notes, name+" does not count: "+vote.Reason)
			continue
		}
		counted = append(counted, vote.Builder)
		said := "the same measurements, by " + vote.Signer + " at " + vote.Commit
		v.Checks = append(v.Checks, check(name, said, said, true))
		// It is not the signer's, and yet of use.
		for i, r := range v.Attestations {
			if r.Source == vote.Source && r.PredicateType == PredicateMeasurements {
				v.Attestations[i].OK, v.Attestations[i].Reason = true, ""
			}
		}
	}
	v.Checks = append(v.Checks, check("builders", fmt.Sprintf("%d of different owners", required),
		fmt.Sprintf("%d: %s", len(counted), strings.Join(counted, ", ")), len(counted) >= required))
	return nil
}

// measurements are the attestations of measurements in some sources that verify,
// whoever signed them.
func (v *Verdict) measurements(ctx context.Context, trust *Trust, sha256 string, sources []Source) ([]Attestation, error) {
	var found []Attestation
	for _, source := range sources {
		candidates, err := source.Fetch(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil, err
			}
			if !slices.Contains(v.Notes, err.Error()) {
				v.Notes = append(v.Notes, err.Error())
			}
			continue
		}
		for _, c := range candidates[:min(len(candidates), MaxBundles)] {
			if claimed, err := c.Claimed(); err != nil || claimed.PredicateType != PredicateMeasurements {
				continue // not worth the verification
			}
			if a := trust.Check(c, sha256); a.Err == nil {
				found = append(found, a)
			}
		}
	}
	return found, nil
}

// vote is what attestations say of a builder; without a Reason it says what the
// artifact's signer says.
func (b Builder) vote(v *Verdict, expected Expectation, attestations []Attestation) Vote {
	// What holds for the signer of a place or a kind of runner holds for all.
	e := Expectation{Host: expected.Host, Issuer: expected.Issuer, Runner: expected.Runner, Repository: b.Repository, Workflow: b.Workflow}
	best := Vote{Builder: b.String(), Reason: "it attests nothing of this artifact"}
	for _, a := range attestations {
		if !strings.EqualFold(a.Certificate.SourceRepositoryURI, e.Host.Server+"/"+b.Repository) {
			continue
		}
		vote := newVote(b.String(), a.Certificate)
		vote.Source = a.Source
		vote.Reason = e.reason(v, a)
		if vote.Reason == "" {
			return vote
		}
		best = vote
	}
	return best
}

// reason is why an attestation is no vote for what the verdict says is attested, or "".
func (e *Expectation) reason(v *Verdict, a Attestation) string {
	// The workflow has to be of the builder's own repository: who runs somebody else's
	// says what that one says.
	for _, c := range e.identity(a.Certificate) {
		if !c.OK {
			return fmt.Sprintf("%s: expected %s, found %s", c.Name, c.Expected, c.Found)
		}
	}
	same, err := CompareMeasurements(v.Measurements, a.Predicate)
	switch {
	case err != nil:
		return err.Error()
	case !same.OK:
		return "it attests other measurements: " + same.Found
	}
	return ""
}

// newVote is a vote by the owner of a certificate.
func newVote(name string, c certificate.Summary) Vote {
	vote := Vote{
		Builder: name, Repository: c.SourceRepositoryURI, RepositoryID: c.SourceRepositoryIdentifier,
		Owner: c.SourceRepositoryOwnerURI, OwnerID: c.SourceRepositoryOwnerIdentifier,
		Signer: c.BuildSignerURI, Commit: c.SourceRepositoryDigest,
	}
	// A number stays when an owner gets another name. The certificate has none for the
	// owner of a reusable workflow.
	if vote.OwnerID != "" {
		vote.parties = append(vote.parties, "number "+vote.OwnerID)
	}
	for _, address := range []string{c.SourceRepositoryURI, c.SourceRepositoryOwnerURI, c.BuildSignerURI} {
		if owner := ownerIn(address); owner != "" {
			vote.parties = append(vote.parties, owner)
		}
	}
	return vote
}

// ownerIn is the address of the owner in that of a repository or workflow, in lower
// case: https://github.com/owner.
func ownerIn(address string) string {
	parts := strings.SplitN(address, "/", 5)
	if len(parts) < 4 {
		return ""
	}
	return strings.ToLower(strings.Join(parts[:4], "/"))
}

// dependent says which builder that counts already a vote depends on, or "".
func (v *Verdict) dependent(vote Vote) string {
	for _, other := range v.Votes {
		if !other.Counts {
			continue
		}
		for _, party := range vote.parties {
			if slices.Contains(other.parties, party) {
				return fmt.Sprintf("it is no other owner's than %s (%s)", other.Builder, party)
			}
		}
	}
	return ""
}
