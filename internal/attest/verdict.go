package attest

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"

	"github.com/org/attestable-image-action/internal/strictjson"
)

// Source is a place that may hold bundles.
type Source struct {
	Name  string
	Fetch func(ctx context.Context) ([]Candidate, error)
}

// Reported is a bundle that was looked at, for the record.
type Reported struct {
	Source        string `json:"source"` // where it came from
	PredicateType string `json:"predicateType,omitempty"`
	Signer        string `json:"signer,omitempty"` // the certificate's name
	Run           string `json:"run,omitempty"`    // URL, with the attempt
	Time          string `json:"time,omitempty"`   // RFC 3339, the earliest that is proven
	// What proves a time, and when the certificate was valid (RFC 3339).
	Clocks    []Clock `json:"clocks,omitempty"`
	NotBefore string  `json:"notBefore,omitempty"`
	NotAfter  string  `json:"notAfter,omitempty"`
	OK        bool    `json:"ok"`               // whether it counts
	Reason    string  `json:"reason,omitempty"` // why it does not count
}

// Verdict is everything that was demanded of an artifact's attestations.
type Verdict struct {
	Checks       []Check    `json:"checks"`
	Attestations []Reported `json:"attestations"`
	Votes        []Vote     `json:"votes,omitempty"` // of builders, where they were counted
	// Notes say what went wrong on the way without deciding anything: a source
	// that could not be asked.
	Notes []string `json:"notes,omitempty"`
	// Measurements is the attested document, or nil when none is believed, or
	// provenance and measurements of one run were not both found.
	Measurements json.RawMessage `json:"-"`
	// Origin is what the certificate of that document's signer says; empty
	// without Measurements.
	Origin Origin `json:"-"`

	signer certificate.Summary // of Measurements
}

// Origin is where an artifact comes from, as the certificate of a signer says.
// A local trust root says nothing.
type Origin struct {
	Repository string // URL
	Commit     string // hex
	Ref        string // refs/heads/…
	Workflow   string // URL of the workflow that holds the signing job, with @REF
	Run        string // URL, without the attempt
}

// Failed returns the first check that does not hold.
func (v *Verdict) Failed() (Check, bool) {
	for _, c := range v.Checks {
		if !c.OK {
			return c, true
		}
	}
	return Check{}, false
}

// labels of the two predicates, for people.
var labels = map[string]string{
	PredicateProvenance:   "provenance",
	PredicateMeasurements: "measurements",
}

// finding is an attestation with what was demanded of it.
type finding struct {
	Attestation
	checks []Check
	good   bool
}

// Verify looks for attestations of both predicates about the manifest with this
// SHA-256 (hex) in one source after the other, until both are found whose
// signer is the expected one, and the same run: what a run measured is not what
// another one built. Of several runs that attest both the first one counts. A
// bundle that does not verify beside one that does changes nothing, but is
// reported.
func Verify(ctx context.Context, trust *Trust, expected Expectation, sha256 string, sources ...Source) (*Verdict, error) {
	if err := expected.Validate(); err != nil {
		return nil, err
	}
	v := new(Verdict)
	best := make(map[string]*finding)
	var attesting runs
	var chosen *run
	for _, source := range sources {
		candidates, err := source.Fetch(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil, err
			}
			v.Notes = append(v.Notes, err.Error())
			continue
		}
		if len(candidates) == 0 {
			v.Notes = append(v.Notes, source.Name+" holds no bundle about sha256:"+sha256)
		}
		for _, c := range candidates[:min(len(candidates), MaxBundles)] {
			f := expected.judge(trust.Check(c, sha256))
			v.Attestations = append(v.Attestations, f.report())
			if known := best[f.PredicateType]; known == nil || f.better(known) {
				best[f.PredicateType] = f
			}
			if f.good {
				attesting.add(f)
			}
		}
		if chosen = attesting.first(expected.Local); chosen != nil {
			best = chosen.findings
			break
		}
	}
	for _, predicateType := range Predicates {
		label, f := labels[predicateType], best[predicateType]
		name := label + " attestation"
		switch {
		case f == nil:
			v.Checks = append(v.Checks, check(name, "a bundle that verifies", v.reasonForNone(), false))
		case f.Err != nil:
			v.Checks = append(v.Checks, check(name, "a bundle that verifies", f.Source+": "+f.Err.Error(), false))
		default:
			v.Checks = append(v.Checks, check(name, "a bundle that verifies", "from "+f.Source, true), f.timeCheck(label+" time"))
			for _, c := range f.checks {
				c.Name = label + " " + c.Name
				v.Checks = append(v.Checks, c)
			}
		}
	}
	if chosen == nil {
		if good(best[PredicateProvenance]) && good(best[PredicateMeasurements]) {
			v.Checks = append(v.Checks, check("run", "one run that attests provenance and measurements", attesting.String(), false))
		}
		return v, nil
	}
	f := best[PredicateMeasurements]
	v.Measurements, v.signer = f.Predicate, f.Certificate
	if c := f.Certificate; !expected.Local {
		said := fmt.Sprintf("%s at commit %s", chosen.author.Run, chosen.author.Commit)
		v.Checks = append(v.Checks, check("run", said, said, true))
		v.Origin = Origin{
			Repository: c.SourceRepositoryURI, Commit: c.SourceRepositoryDigest, Ref: c.SourceRepositoryRef,
			Workflow: c.BuildSignerURI, Run: chosen.author.Run,
		}
	}
	return v, nil
}

// run is what one author attests, by predicate type.
type run struct {
	author   Author
	findings map[string]*finding
}

// runs are the authors of attestations, in the order in which they were found.
type runs []*run

// add takes an attestation that is good. Of an author's several of one type, as of
// the attempts of a run, the first one counts.
func (r *runs) add(f *finding) {
	author := authorOf(f.Certificate)
	i := slices.IndexFunc(*r, func(known *run) bool { return known.author == author })
	if i < 0 {
		i = len(*r)
		*r = append(*r, &run{author, make(map[string]*finding)})
	}
	if known := (*r)[i].findings[f.PredicateType]; known == nil || f.before(known) {
		(*r)[i].findings[f.PredicateType] = f
	}
}

// before orders attestations by their time, and not by where a store lists them.
func (f *finding) before(other *finding) bool {
	return cmp.Or(f.Time.Compare(other.Time), cmp.Compare(f.Certificate.RunInvocationURI, other.Certificate.RunInvocationURI)) < 0
}

// first is the first run that attests all that is needed, or nil. Only a local trust
// root may name no run.
func (r runs) first(local bool) *run {
	var first *run
	for _, one := range r {
		if one.author.Run == "" && !local || slices.ContainsFunc(Predicates, func(p string) bool { return one.findings[p] == nil }) {
			continue
		}
		if first == nil || one.findings[PredicateProvenance].before(first.findings[PredicateProvenance]) {
			first = one
		}
	}
	return first
}

// String tells what each run attests.
func (r runs) String() string {
	const limit = 4
	var told []string
	for i, one := range r {
		if i == limit {
			told = append(told, fmt.Sprintf("and %d more", len(r)-limit))
			break
		}
		var attests []string
		for _, p := range Predicates {
			if one.findings[p] != nil {
				attests = append(attests, labels[p])
			}
		}
		told = append(told, fmt.Sprintf("%s of %s at commit %s by %s", strings.Join(attests, " and "),
			cmp.Or(one.author.Run, "no run"), one.author.Commit, one.author.Signer))
	}
	return strings.Join(told, "; ")
}

// judge demands of a verified bundle that the expected one signed it.
func (e *Expectation) judge(a Attestation) *finding {
	f := &finding{Attestation: a}
	if a.Err != nil {
		return f
	}
	f.checks = e.identity(a.Certificate)
	if a.PredicateType == PredicateProvenance {
		const expected = "what the certificate says"
		differences, err := contradictions(a.Predicate, a.Certificate)
		switch {
		case err != nil:
			f.checks = append(f.checks, check("content", expected, err.Error(), false))
		case len(differences) > 0:
			f.checks = append(f.checks, check("content", expected, differences[0].String(), false))
		default:
			f.checks = append(f.checks, check("content", expected, expected, true))
		}
	}
	f.good = true
	for _, c := range f.checks {
		f.good = f.good && c.OK
	}
	return f
}

// better prefers what holds to what verifies, and that to the rest.
func (f *finding) better(other *finding) bool {
	rank := func(f *finding) int {
		switch {
		case f.good:
			return 2
		case f.Err == nil:
			return 1
		}
		return 0
	}
	return rank(f) > rank(other)
}

// timeCheck says which clock proved that the signature was made while the
// certificate was valid. Without one the bundle would not have verified.
func (f *finding) timeCheck(name string) Check {
	told := make([]string, len(f.Clocks))
	for i, clock := range f.Clocks {
		told[i] = clock.Time.Format(time.RFC3339) + " by the " + clock.Kind + " " + cmp.Or(clock.URI, "without a name")
	}
	if f.Timeless > 0 {
		told = append(told, "its log entry tells no time")
	}
	return check(name, fmt.Sprintf("within the certificate's validity, %s to %s", f.NotBefore.UTC().Format(time.RFC3339), f.NotAfter.UTC().Format(time.RFC3339)),
		strings.Join(told, "; "), true)
}

func good(f *finding) bool { return f != nil && f.good }

func (f *finding) report() Reported {
	r := Reported{Source: f.Source, PredicateType: f.PredicateType, OK: f.good}
	if f.Err != nil {
		r.Reason = f.Err.Error()
		return r
	}
	r.Run = f.Certificate.RunInvocationURI
	r.Signer, r.Time = f.Certificate.SubjectAlternativeName, f.Time.UTC().Format(time.RFC3339)
	r.Clocks, r.NotBefore, r.NotAfter = f.Clocks, f.NotBefore.UTC().Format(time.RFC3339), f.NotAfter.UTC().Format(time.RFC3339)
	for _, c := range f.checks {
		if !c.OK {
			r.Reason = fmt.Sprintf("%s: expected %s, found %s", c.Name, c.Expected, c.Found)
			break
		}
	}
	return r
}

// reasonForNone says why there is no bundle of a predicate at all.
func (v *Verdict) reasonForNone() string {
	var reasons []string
	for _, a := range v.Attestations {
		if a.PredicateType == "" {
			reasons = append(reasons, a.Source+": "+a.Reason)
		}
	}
	reasons = append(reasons, v.Notes...)
	if len(reasons) == 0 {
		return "none"
	}
	return "none; " + strings.Join(reasons, "; ")
}

// CompareMeasurements checks that the attested document and the one inside the
// artifact say the same in every member.
func CompareMeasurements(attested, inside []byte) (Check, error) {
	const name, expected = "measurements.json", "what is attested"
	a, err := strictjson.Value(attested)
	if err != nil {
		return Check{}, fmt.Errorf("read the attested measurements: %w", err)
	}
	b, err := strictjson.Value(inside)
	if err != nil {
		return check(name, expected, err.Error(), false), nil
	}
	if d, ok := firstDifference("", a, b); ok {
		return check(name, expected, fmt.Sprintf("%s is %s where %s is attested", d.what, d.found, d.expected), false), nil
	}
	return check(name, expected, expected, true), nil
}
