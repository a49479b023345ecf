package attest

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
)

var update = flag.Bool("update", false, "renew the golden files")

const testDigest = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// testClaims are those of a job in a reusable workflow of another repository.
func testClaims() *Claims {
	return &Claims{
		Issuer: "https://token.actions.githubusercontent.com", Ref: "refs/heads/main", SHA: "5f3d6c1b0a9e8d7c6b5a493827160f5e4d3c2b1a",
		Repository: "octo-org/image", RepositoryID: "812345678", RepositoryOwnerID: "98765", Visibility: "public",
		EventName: "push", WorkflowRef: "octo-org/image/.github/workflows/image.yml@refs/heads/main",
		JobWorkflowRef: "octo-org/image/.github/workflows/image.yml@refs/heads/main", RunnerEnvironment: "github-hosted",
		JobWorkflowSHA: "5f3d6c1b0a9e8d7c6b5a493827160f5e4d3c2b1a",
		RunID:          "7654321098", RunAttempt: "2",
	}
}

// TestProvenanceStatement holds the statement byte for byte in the shape that
// GitHub's own attest action gives it.
func TestProvenanceStatement(t *testing.T) {
	claims := testClaims()
	claims.JobWorkflowRef = "octo-org/workflows/.github/workflows/build.yml@refs/tags/v1"
	predicate, err := claims.Provenance("https://github.com")
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewStatement("ghcr.io/octo-org/image", testDigest, PredicateProvenance, predicate)
	if err != nil {
		t.Fatal(err)
	}
	compareGolden(t, "provenance.golden.json", s)
}

// TestDependencies adds what an image was built with, and leaves all else as it was.
func TestDependencies(t *testing.T) {
	predicate, err := testClaims().Provenance("https://github.com")
	if err != nil {
		t.Fatal(err)
	}
	same, err := AddDependencies(predicate, nil)
	if err != nil || !bytes.Equal(same, predicate) {
		t.Errorf("with nothing more it is %s (%v)", same, err)
	}
	more, err := AddDependencies(predicate, []Dependency{{Name: "builder", URI: "oci://ghcr.io/octo-org/builder", SHA256: testDigest}, {Name: "packages", SHA256: testDigest}})
	if err != nil {
		t.Fatal(err)
	}
	added := `,{"name":"builder","uri":"oci://ghcr.io/octo-org/builder","digest":{"sha256":"` + testDigest + `"}},{"name":"packages","digest":{"sha256":"` + testDigest + `"}}`
	if !bytes.Contains(more, []byte(added)) || !bytes.Equal(bytes.Replace(more, []byte(added), nil, 1), predicate) {
		t.Errorf("it is %s, without more %s", more, predicate)
	}
	if _, err := AddDependencies([]byte("x"), []Dependency{{}}); err == nil {
		t.Error("what is no provenance is taken")
	}
}

func TestMeasurementsStatement(t *testing.T) {
	s, err := NewStatement("ghcr.io/octo-org/image", testDigest, PredicateMeasurements,
		[]byte("{\n  \"Measurements\": {\"HashAlgorithm\": \"SHA384\", \"PCR4\": \"00\"},\n  \"Size\": 9007199254740890\n}\n"))
	if err != nil {
		t.Fatal(err)
	}
	compareGolden(t, "measurements.golden.json", s)
}

func compareGolden(t *testing.T, name string, statement *Statement) {
	t.Helper()
	compact, err := json.Marshal(statement)
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := json.Indent(&got, compact, "", "  "); err != nil {
		t.Fatal(err)
	}
	got.WriteByte('\n')
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("got:\n%s\nwant:\n%s", got.Bytes(), want)
	}
}

func TestBadPredicates(t *testing.T) {
	for name, tc := range map[string]struct {
		predicate []byte
		err       string
	}{
		"too long":      {bytes.Repeat([]byte(" "), MaxPredicate+1), "GitHub stores at most 16777216"},
		"no object":     {[]byte(`[1]`), "is not a JSON object"},
		"no JSON":       {[]byte(`{"a":`), "is not a JSON object"},
		"two documents": {[]byte(`{} {}`), "is not a JSON object"},
		"empty":         {nil, "is not a JSON object"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := NewStatement("x", testDigest, PredicateMeasurements, tc.predicate); err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("error %v, want one about %q", err, tc.err)
			}
		})
	}
}

func TestParseStatement(t *testing.T) {
	const subject = `"subject":[{"name":"x","digest":{"sha256":"ab"}}]`
	for payload, want := range map[string]string{
		``: "unexpected end of JSON input",
		`{"_type":"https://in-toto.io/Statement/v0.1",` + subject + `,"predicate":{}}`: `its type is "https://in-toto.io/Statement/v0.1"`,
		`{"_type":"https://in-toto.io/Statement/v1","subject":[],"predicate":{}}`:      "it has no subject",
		`{"_type":"https://in-toto.io/Statement/v1",` + subject + `}`:                  "its predicate is not a JSON object",
		`{"_type":"https://in-toto.io/Statement/v1",` + subject + `,"predicate":null}`: "its predicate is not a JSON object",
		// Go would join the two subjects to one.
		`{"_type":"https://in-toto.io/Statement/v1",` + subject + `,"subject":[{"name":"y"}],"predicate":{}}`: `member "subject" stands twice in one object`,
		`{"_type":"https://in-toto.io/Statement/v1",` + subject + `,"predicate":{"PCR4":"aa","PCR4":"ab"}}`:   `member "PCR4" stands twice in one object`,
	} {
		if _, err := parseStatement([]byte(payload)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one about %q", payload, err, want)
		}
	}
	s, err := parseStatement([]byte(`{"_type":"https://in-toto.io/Statement/v1",` + subject + `,"predicate":{"a":1}}`))
	if err != nil || !s.about("ab") || s.about("cd") || s.about("AB") {
		t.Errorf("statement %+v, error %v", s, err)
	}
}

// certified is what Fulcio would certify of the claims.
func certified(c *Claims) certificate.Summary {
	const server = "https://github.com/"
	owner, _, _ := strings.Cut(c.Repository, "/")
	return certificate.Summary{
		SubjectAlternativeName: server + c.JobWorkflowRef,
		Extensions: certificate.Extensions{
			Issuer:                          c.Issuer,
			BuildSignerURI:                  server + c.JobWorkflowRef,
			BuildSignerDigest:               c.SHA,
			BuildConfigURI:                  server + c.WorkflowRef,
			BuildTrigger:                    c.EventName,
			RunnerEnvironment:               c.RunnerEnvironment,
			SourceRepositoryURI:             server + c.Repository,
			SourceRepositoryDigest:          c.SHA,
			SourceRepositoryRef:             c.Ref,
			SourceRepositoryIdentifier:      c.RepositoryID,
			SourceRepositoryOwnerURI:        server + owner,
			SourceRepositoryOwnerIdentifier: c.RepositoryOwnerID,
			RunInvocationURI:                server + c.Repository + "/actions/runs/" + c.RunID + "/attempts/" + c.RunAttempt,
		},
	}
}

func TestContradictions(t *testing.T) {
	for name, tc := range map[string]struct {
		lie  func(c *Claims)
		want string // what differs first, or nothing
	}{
		"truth":        {func(*Claims) {}, ""},
		"repository":   {func(c *Claims) { c.Repository = "octo-org/other" }, "workflow.repository"},
		"ref":          {func(c *Claims) { c.Ref = "refs/heads/evil" }, "workflow.ref"},
		"workflow":     {func(c *Claims) { c.WorkflowRef = "octo-org/image/.github/workflows/evil.yml@refs/heads/main" }, "workflow.path"},
		"event":        {func(c *Claims) { c.EventName = "pull_request" }, "event_name"},
		"ID":           {func(c *Claims) { c.RepositoryID = "1" }, "repository_id"},
		"owner":        {func(c *Claims) { c.RepositoryOwnerID = "1" }, "repository_owner_id"},
		"runner":       {func(c *Claims) { c.RunnerEnvironment = "self-hosted" }, "runner_environment"},
		"job workflow": {func(c *Claims) { c.JobWorkflowRef = "evil/image/.github/workflows/image.yml@refs/heads/main" }, "builder.id"},
		"run":          {func(c *Claims) { c.RunAttempt = "1" }, "invocationId"},
		"commit":       {func(c *Claims) { c.SHA = strings.Repeat("0", 40) }, "gitCommit"},
	} {
		t.Run(name, func(t *testing.T) {
			said := testClaims()
			tc.lie(said)
			predicate, err := said.Provenance("https://github.com")
			if err != nil {
				t.Fatal(err)
			}
			found, err := contradictions(predicate, certified(testClaims()))
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if len(found) > 0 {
				got = found[0].what
			}
			if got != tc.want {
				t.Errorf("%q differs, want %q", got, tc.want)
			}
		})
	}
	for _, predicate := range []string{`{}`, `{"buildDefinition":{"externalParameters":{}},"runDetails":{}}`} {
		if found, err := contradictions([]byte(predicate), certified(testClaims())); err != nil || len(found) == 0 {
			t.Errorf("%s: contradictions %v, error %v", predicate, found, err)
		}
	}
	if _, err := contradictions([]byte(`{"buildDefinition":1}`), certified(testClaims())); err == nil {
		t.Error("a number passes for a build definition")
	}
}

func TestCompareMeasurements(t *testing.T) {
	const attested = `{"Measurements":{"PCR4":"aa","PCR7":"bb"},"Size":9007199254740890,"Events":[{"PCR":4},{"PCR":7}]}`
	for name, tc := range map[string]struct{ inside, want string }{
		"same":            {attested, ""},
		"other spaces":    {strings.ReplaceAll(attested, ",", " ,\n "), ""},
		"other order":     {`{"Events":[{"PCR":4},{"PCR":7}],"Size":9007199254740890,"Measurements":{"PCR7":"bb","PCR4":"aa"}}`, ""},
		"other value":     {strings.Replace(attested, `"bb"`, `"bc"`, 1), `Measurements.PCR7 is "bc" where "bb" is attested`},
		"last digit":      {strings.Replace(attested, `890,`, `891,`, 1), `Size is 9007199254740891 where 9007199254740890 is attested`},
		"missing member":  {strings.Replace(attested, `,"PCR7":"bb"`, ``, 1), `Measurements.PCR7 is nothing where "bb" is attested`},
		"further member":  {strings.Replace(attested, `"Size"`, `"Evil":1,"Size"`, 1), `Evil is 1 where nothing is attested`},
		"shorter list":    {strings.Replace(attested, `,{"PCR":7}`, ``, 1), `Events is [{"PCR":4}] where [{"PCR":4},{"PCR":7}] is attested`},
		"in a list":       {strings.Replace(attested, `{"PCR":7}`, `{"PCR":8}`, 1), `Events[1].PCR is 8 where 7 is attested`},
		"object for text": {strings.Replace(attested, `"aa"`, `{"a":"a"}`, 1), `Measurements.PCR4 is {"a":"a"} where "aa" is attested`},
		"text for object": {`"x"`, `the document is "x" where `},
		"no JSON":         {`{`, `unexpected end of JSON input`},
		"something after": {attested + `{}`, `after top-level value`},
		"a brace after":   {attested + `}`, `after top-level value`},
		// What readers take that go by the first of two members.
		"a value twice": {strings.Replace(attested, `"PCR4"`, `"PCR4":"ee","PCR4"`, 1), `member "PCR4" stands twice in one object`},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := CompareMeasurements([]byte(attested), []byte(tc.inside))
			if err != nil {
				t.Fatal(err)
			}
			if c.OK != (tc.want == "") || !strings.Contains(c.Found, tc.want) {
				t.Errorf("%+v, want one that found %q", c, tc.want)
			}
		})
	}
}
