package attest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"

	"github.com/org/attestable-image-action/internal/strictjson"
)

// Author is who signs, as far as it makes one attestation another than the next:
// which run of which workflow, from which source. The attempts of a run are one
// author: they are of one commit, and the next completes what the last one left.
// What is attested of an artifact belongs together where it has one author.
type Author struct {
	Issuer       string // of the identity token
	Signer       string // URL of the workflow that holds the job, with @REF
	SignerCommit string // of that workflow, hex
	Repository   string // URL
	Ref          string // refs/heads/…
	Commit       string // hex
	Runner       string // github-hosted or self-hosted
	Run          string // URL, without the attempt
}

// LocalAuthor is whoever keeps a local trust root.
var LocalAuthor = Author{Issuer: LocalIssuer, Signer: LocalIdentity}

// Author is who signs in the job that the claims describe, on the GitHub at
// server (https://github.com).
func (c *Claims) Author(server string) Author {
	return Author{
		Issuer: c.Issuer, Signer: server + "/" + c.JobWorkflowRef, SignerCommit: c.JobWorkflowSHA,
		Repository: server + "/" + c.Repository, Ref: c.Ref, Commit: c.SHA, Runner: c.RunnerEnvironment,
		Run: server + "/" + c.Repository + "/actions/runs/" + c.RunID,
	}
}

func authorOf(c certificate.Summary) Author {
	run, _, _ := strings.Cut(c.RunInvocationURI, "/attempts/")
	return Author{
		Issuer: c.Issuer, Signer: c.SubjectAlternativeName, SignerCommit: c.BuildSignerDigest, Repository: c.SourceRepositoryURI,
		Ref: c.SourceRepositoryRef, Commit: c.SourceRepositoryDigest, Runner: c.RunnerEnvironment, Run: run,
	}
}

// Existing looks among bundles for one that says already what a statement by an
// author would say, so that signing it again would add nothing: it verifies, is
// about the same digest, of the same type, and its predicate says the same in
// every member. Of provenance that means the same attempt of the run. The
// bundle is JSON on one line.
func (s *Signer) Existing(candidates []Candidate, statement *Statement, author Author) ([]byte, bool) {
	said, err := strictjson.Value(statement.Predicate)
	if err != nil {
		return nil, false
	}
	for _, c := range candidates[:min(len(candidates), MaxBundles)] {
		if claimed, err := c.Claimed(); err != nil || claimed.PredicateType != statement.PredicateType {
			continue // not worth the verification
		}
		a := s.trust.Check(c, statement.Subject[0].Digest["sha256"])
		if a.Err != nil || a.PredicateType != statement.PredicateType || authorOf(a.Certificate) != author {
			continue
		}
		found, err := strictjson.Value(a.Predicate)
		if err != nil {
			continue
		}
		if _, differs := firstDifference("", said, found); differs {
			continue
		}
		var line bytes.Buffer
		if json.Compact(&line, c.Data) == nil {
			return line.Bytes(), true
		}
	}
	return nil, false
}

// Claimed reads the statement in a bundle that nobody has verified: anybody can have
// made it.
func (c Candidate) Claimed() (*Statement, error) {
	if c.Err != nil {
		return nil, c.Err
	}
	var b struct {
		Envelope struct {
			Payload []byte `json:"payload"`
		} `json:"dsseEnvelope"`
	}
	if err := strictjson.Unmarshal(c.Data, &b); err != nil {
		return nil, fmt.Errorf("read the bundle: %w", err)
	}
	return parseStatement(b.Envelope.Payload)
}
