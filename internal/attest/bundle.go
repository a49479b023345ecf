package attest

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
	"github.com/sigstore/sigstore-go/pkg/verify"

	"github.com/org/attestable-image-action/internal/strictjson"
)

// MaxBundle bounds a bundle, in bytes: a predicate of MaxPredicate in base64,
// and what surrounds it. maxSurroundings bounds the latter: the certificate,
// timestamps and log entries, in bytes.
const (
	MaxBundle       = 24 << 20
	maxSurroundings = 1 << 20
)

// MaxBundles bounds how many bundles of one source are looked at.
const MaxBundles = 100

// maxFetched bounds the bundles of one source together, in bytes.
const maxFetched = 4 * MaxBundle

// Candidate is a bundle that may say something of the artifact.
type Candidate struct {
	Source string // where it is from, for people
	Data   []byte // JSON
	Err    error  // why there is no Data: it could not be fetched whole
}

// FetchAll fetches the candidates 0 to n-1 of a source, at most MaxBundles, until
// they would take too much memory: others can add bundles, too. One that cannot
// be fetched is as good as one that does not verify, and keeps nobody from the
// rest.
func FetchAll(ctx context.Context, n int, fetch func(i int) Candidate) ([]Candidate, error) {
	candidates := make([]Candidate, 0, min(n, MaxBundles))
	left := maxFetched
	for i := range min(n, MaxBundles) {
		c := fetch(i)
		if c.Err != nil && ctx.Err() != nil {
			return nil, c.Err
		}
		left -= len(c.Data)
		if left < 0 {
			c.Data, c.Err = nil, fmt.Errorf("with it there are more than %d bytes of bundles, and no more are looked at", maxFetched)
		}
		candidates = append(candidates, c)
		if left < 0 {
			break
		}
	}
	return candidates, nil
}

// ReadBundles reads a file of bundles: one as JSON, or one after the other, as
// in JSON Lines.
func ReadBundles(path string) ([]Candidate, error) {
	data, err := readFile(path, 2*MaxBundle)
	if err != nil {
		return nil, fmt.Errorf("read the bundles: %w", err)
	}
	candidates, err := parseBundles(path, data)
	if err != nil {
		return nil, fmt.Errorf("read the bundles in %s: %w: it must hold Sigstore bundles in JSON, one a line", path, err)
	}
	return candidates, nil
}

func parseBundles(name string, data []byte) ([]Candidate, error) {
	var candidates []Candidate
	err := strictjson.Split(bytes.NewReader(data), func(one []byte) error {
		if len(candidates) == MaxBundles {
			return fmt.Errorf("it holds more than %d bundles", MaxBundles)
		}
		candidates = append(candidates, Candidate{Source: fmt.Sprintf("%s, bundle %d", name, len(candidates)+1), Data: one})
		return nil
	})
	if err == nil && len(candidates) == 0 {
		err = errors.New("it is empty")
	}
	return candidates, err
}

// AppendBundles appends bundles to a file, one a line.
func AppendBundles(path string, bundles ...[]byte) error {
	var lines bytes.Buffer
	for _, b := range bundles {
		lines.Write(b)
		lines.WriteByte('\n')
	}
	return appendFile(path, lines.Bytes())
}

// RecordPath tells the job's later steps of a file of bundles, in the list that
// GitHub's own actions keep in the runner's temporary directory.
func RecordPath(runnerTemp, path string) error {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	return appendFile(filepath.Join(runnerTemp, "created_attestation_paths.txt"), []byte(absolute+"\n"))
}

func appendFile(path string, data []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644) //nolint:gosec // bundles are public, and other steps read them
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	return errors.Join(err, file.Close())
}

// Attestation is a candidate after its signature was looked at.
type Attestation struct {
	Source        string
	PredicateType string              // as far as it can be read, even with Err
	Predicate     json.RawMessage     // nil with Err
	Certificate   certificate.Summary // of who signed; zero with Err
	Time          time.Time           // the earliest proven time of the signature
	Clocks        []Clock             // that prove a time of the signature
	Timeless      int                 // log entries that tell no time: of Rekor v2
	NotBefore     time.Time           // from when the certificate was valid
	NotAfter      time.Time           // until when
	Err           error               // why the bundle says nothing, or nil
}

// Clock is one that proves when a signature existed, and what it says.
type Clock struct {
	Kind string    `json:"clock"`         // ClockTimestamp or ClockLog
	URI  string    `json:"uri,omitempty"` // whose it is
	Time time.Time `json:"time"`          // that it proves
}

// The clocks that there are: a timestamp authority (RFC 3161), and the integrated
// time of a Rekor v1. A Rekor v2 tells no time.
const (
	ClockTimestamp = "timestamp authority"
	ClockLog       = "transparency log"
)

// Check verifies one bundle: that its certificate comes from the trust root,
// that what the policy demands vouches for it, that the signature fits, and
// that it is about the manifest with this SHA-256 (hex). Who signed is for the
// caller to judge.
func (t *Trust) Check(c Candidate, sha256 string) Attestation {
	a := Attestation{Source: c.Source}
	if a.Err = c.Err; a.Err == nil {
		a.Err = t.check(&a, c.Data, sha256)
	}
	return a
}

func (t *Trust) check(a *Attestation, data []byte, sha256 string) error {
	digest, err := hex.DecodeString(sha256)
	if err != nil || len(digest) != 32 {
		return fmt.Errorf("%q is not a SHA-256 in hex", sha256)
	}
	if len(data) > MaxBundle {
		return fmt.Errorf("it has %d bytes, and no bundle has more than %d", len(data), MaxBundle)
	}
	b := new(bundle.Bundle)
	if err := b.UnmarshalJSON(data); err != nil {
		return fmt.Errorf("it is no Sigstore bundle: %w", err)
	}
	if err := checkOneMeaning(data, b); err != nil {
		return fmt.Errorf("it is no Sigstore bundle that has one meaning: %w", err)
	}
	envelope := b.GetDsseEnvelope()
	switch {
	case !b.MinVersion("0.2"):
		return fmt.Errorf("it is a bundle of the old kind %s, which does not prove that the log holds it", b.GetMediaType())
	case envelope == nil:
		return errors.New("it holds no DSSE envelope, but a bare signature")
	case envelope.GetPayloadType() != PayloadType:
		return fmt.Errorf("its payload is of type %q, and not %s", envelope.GetPayloadType(), PayloadType)
	}
	if around := len(data) - base64.StdEncoding.EncodedLen(len(envelope.GetPayload())); around > maxSurroundings {
		return fmt.Errorf("it has %d bytes around its statement, and no bundle has more than %d", around, maxSurroundings)
	}
	statement, err := parseStatement(envelope.GetPayload())
	if err != nil {
		return err
	}
	a.PredicateType = statement.PredicateType
	if !statement.about(sha256) {
		return fmt.Errorf("it is about another digest: its subject is %s, and the artifact is sha256:%s", statement.subjects(), sha256)
	}
	content, err := b.VerificationContent()
	if err != nil {
		return err
	}
	leaf := content.Certificate()
	if leaf == nil {
		return errors.New("it was signed with a bare key and not with a certificate, so nobody vouches for who signed")
	}
	verifiers, err := t.verifiers(leaf)
	if err != nil {
		return err
	}
	policy := verify.NewPolicy(verify.WithArtifactDigest("sha256", digest), verify.WithoutIdentitiesUnsafe())
	var result *verify.VerificationResult
	for _, v := range verifiers {
		if result, err = v.Verify(b, policy); err == nil {
			break
		}
	}
	if err != nil {
		return explainTime(err, b, leaf)
	}
	if result.Signature == nil || result.Signature.Certificate == nil || len(result.VerifiedTimestamps) == 0 {
		return errors.New("it was verified without a certificate or without a time")
	}
	a.Certificate = *result.Signature.Certificate
	a.Predicate = statement.Predicate
	a.NotBefore, a.NotAfter = leaf.NotBefore, leaf.NotAfter
	for _, entry := range b.GetVerificationMaterial().GetTlogEntries() {
		if entry.GetIntegratedTime() == 0 {
			a.Timeless++
		}
	}
	for _, proven := range result.VerifiedTimestamps {
		kind := ClockTimestamp
		if proven.Type == "Tlog" {
			kind = ClockLog
		}
		a.Clocks = append(a.Clocks, Clock{Kind: kind, URI: proven.URI, Time: proven.Timestamp.UTC()})
	}
	a.Time = slices.MinFunc(a.Clocks, func(x, y Clock) int { return x.Time.Compare(y.Time) }).Time
	return nil
}

// checkOneMeaning refuses a bundle that others read differently than protojson, which
// takes names of the .proto file and several alphabets of base64.
func checkOneMeaning(data []byte, b *bundle.Bundle) error {
	if err := strictjson.CheckMessage(data, b.Bundle); err != nil {
		return err
	}
	var text struct {
		Envelope struct {
			Payload string `json:"payload"`
		} `json:"dsseEnvelope"`
	}
	if err := strictjson.Unmarshal(data, &text); err != nil {
		return err
	}
	if text.Envelope.Payload != base64.StdEncoding.EncodeToString(b.GetDsseEnvelope().GetPayload()) {
		return errors.New("its payload is not in the base64 of RFC 4648, section 4, with padding")
	}
	return nil
}

// explainTime says of a bundle that did not verify when nothing in it tells the
// time: certificates live for minutes.
func explainTime(err error, b *bundle.Bundle, leaf *x509.Certificate) error {
	material := b.GetVerificationMaterial()
	told := len(material.GetTimestampVerificationData().GetRfc3161Timestamps()) > 0
	for _, entry := range material.GetTlogEntries() {
		told = told || entry.GetIntegratedTime() != 0
	}
	if told {
		return err
	}
	return fmt.Errorf("nothing in it proves when it was signed, neither a timestamp nor a log entry with a time, and its certificate was valid only from %s to %s: %w",
		leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339), err)
}

// subjects shows the first few subjects' digests.
func (s *Statement) subjects() string {
	var shown []string
	for i, subject := range s.Subject {
		if i == 3 {
			shown = append(shown, "…")
			break
		}
		digest := "without a SHA-256"
		if sha256 := subject.Digest["sha256"]; sha256 != "" {
			digest = fmt.Sprintf("sha256:%.64s", sha256)
		}
		shown = append(shown, digest)
	}
	return strings.Join(shown, ", ")
}
