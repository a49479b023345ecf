// Package attest says, under a signature, who made an artifact and what a boot
// of it will measure; and checks what somebody says.
//
// What is said is an in-toto Statement v1 about the digest of the artifact's
// manifest, in a DSSE envelope, in a Sigstore bundle v0.3. There are two: SLSA
// provenance v1 in the shape that GitHub's own attest action gives it, and the
// measurements document. They are signed keylessly with the identity of a
// GitHub Actions job, by the public Sigstore, by GitHub's, or by a private
// deployment; or with a local trust root, which proves no more than that its
// keeper signed.
//
// The package neither knows registries nor prints: it is handed bundles and
// hands back values.
package attest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/org/attestable-image-action/internal/strictjson"
)

// The types of the two predicates that every artifact has.
const (
	PredicateProvenance   = "https://slsa.dev/provenance/v1"
	PredicateMeasurements = "https://github.com/org/attestable-image-action/measurements/v1"
)

// PredicateAudit is the type of an attestation that an artifact may have: what
// inspect found that the image leaves open.
const PredicateAudit = "https://github.com/org/attestable-image-action/audit/v1"

// Predicates are the types of the attestations that every artifact has, in the
// order in which they are made and shown.
var Predicates = []string{PredicateProvenance, PredicateMeasurements}

// Media types (in-toto attestation framework v1; Sigstore bundle v0.3) and the
// annotations that gh and cosign read of a bundle in a registry.
const (
	StatementType     = "https://in-toto.io/Statement/v1"
	PayloadType       = "application/vnd.in-toto+json"
	BundleMediaType   = "application/vnd.dev.sigstore.bundle.v0.3+json"
	AnnotationContent = "dev.sigstore.bundle.content"
	AnnotationType    = "dev.sigstore.bundle.predicateType"
	annotationCreated = "org.opencontainers.image.created"
	contentDSSE       = "dsse-envelope"
)

// GitHub's own limits: of a predicate, in bytes of JSON, and of the subjects of
// one statement.
const (
	MaxPredicate = 16 << 20
	MaxSubjects  = 1024
)

// Statement is an in-toto Statement v1.
type Statement struct {
	Type          string          `json:"_type"`
	Subject       []Subject       `json:"subject"`
	PredicateType string          `json:"predicateType"`
	Predicate     json.RawMessage `json:"predicate"`
}

// Subject is what a statement is about.
type Subject struct {
	Name   string            `json:"name,omitempty"`
	Digest map[string]string `json:"digest"` // lower-case hex by algorithm
}

// NewStatement makes a statement about the manifest with sha256 (lower-case
// hex) in the repository name (without tag or digest).
func NewStatement(name, sha256, predicateType string, predicate []byte) (*Statement, error) {
	if len(predicate) > MaxPredicate {
		return nil, fmt.Errorf("make the statement: the predicate %s has %d bytes, and GitHub stores at most %d", predicateType, len(predicate), MaxPredicate)
	}
	if !isObject(predicate) {
		return nil, fmt.Errorf("make the statement: the predicate %s is not a JSON object", predicateType)
	}
	return &Statement{
		Type:          StatementType,
		Subject:       []Subject{{Name: name, Digest: map[string]string{"sha256": sha256}}},
		PredicateType: predicateType,
		Predicate:     predicate,
	}, nil
}

// isObject reports whether data is one JSON object and nothing after it.
func isObject(data []byte) bool {
	return json.Valid(data) && bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte("{"))
}

// parseStatement reads the payload of an envelope, whose signature is checked
// later: anybody may have written it.
func parseStatement(payload []byte) (*Statement, error) {
	s := new(Statement)
	if err := strictjson.Unmarshal(payload, s); err != nil {
		return nil, fmt.Errorf("read the in-toto statement: %w", err)
	}
	switch {
	case s.Type != StatementType:
		return nil, fmt.Errorf("read the in-toto statement: its type is %q, not %s", s.Type, StatementType)
	case len(s.Subject) == 0:
		return nil, errors.New("read the in-toto statement: it has no subject")
	case len(s.Subject) > MaxSubjects:
		return nil, fmt.Errorf("read the in-toto statement: it has %d subjects, and none has more than %d", len(s.Subject), MaxSubjects)
	case len(s.Predicate) > MaxPredicate:
		return nil, fmt.Errorf("read the in-toto statement: its predicate has %d bytes, and none has more than %d", len(s.Predicate), MaxPredicate)
	case !isObject(s.Predicate):
		return nil, errors.New("read the in-toto statement: its predicate is not a JSON object")
	}
	return s, nil
}

// about reports whether the statement has a subject with this SHA-256
// (lower-case hex).
func (s *Statement) about(sha256 string) bool {
	return slices.ContainsFunc(s.Subject, func(subject Subject) bool {
		return subject.Digest["sha256"] == sha256
	})
}

// Annotations are what a registry says of a bundle beside the bundle itself, and
// when it was put there.
func Annotations(predicateType string, created time.Time) map[string]string {
	return map[string]string{
		AnnotationContent: contentDSSE, AnnotationType: predicateType,
		annotationCreated: created.UTC().Format(time.RFC3339),
	}
}
