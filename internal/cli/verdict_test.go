package cli

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/org/attestable-image-action/internal/artifact"
	"github.com/org/attestable-image-action/internal/attest"
)

func testVerdict(t *testing.T) (artifact.Reference, *attest.Verdict) {
	t.Helper()
	const digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	ref, err := artifact.ParseReference("ghcr.io/octo-org/image@" + digest)
	if err != nil {
		t.Fatal(err)
	}
	return ref, &attest.Verdict{
		Checks: []attest.Check{
			{Name: "manifest", Expected: digest, Found: digest, OK: true},
			{Name: "provenance attestation", Expected: "a bundle that verifies", Found: "signed at noon", OK: true},
			{Name: "provenance ref", Expected: "any", Found: "refs/heads/main", OK: true},
			{Name: "provenance repository", Expected: "https://github.com/octo-org/image", Found: "https://github.com/evil/\x1b[2Jimage\n", OK: false},
		},
		Attestations: []attest.Reported{
			{Source: "good", OK: true},
			{Source: "bad", Reason: "a bad one"},
			{Source: "told", Reason: "repository: expected x, found https://github.com/evil/\x1b[2Jimage\n"},
		},
		Notes: []string{"GitHub was not asked"},
	}
}

func TestVerdictTable(t *testing.T) {
	ref, verdict := testVerdict(t)
	const want = `ok    manifest                sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
ok    provenance attestation
      expected  a bundle that verifies
      found     signed at noon
ok    provenance ref          refs/heads/main
FAIL  provenance repository
      expected  https://github.com/octo-org/image
      found     https://github.com/evil/�[2Jimage 
note  not counted: bad: a bad one
note  GitHub was not asked

NOT verified: 3 of 4 checks hold
ghcr.io/octo-org/image@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
`
	if got := verdictTable(ref, verdict, 0); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// TestNarrowTable holds that nothing is wider than the terminal, and that
// nothing is lost.
func TestNarrowTable(t *testing.T) {
	ref, verdict := testVerdict(t)
	squeeze := func(s string) string {
		return strings.Join(strings.Fields(s), "")
	}
	wide := squeeze(verdictTable(ref, verdict, 0))
	for _, width := range []int{40, 60, 80, 100} {
		got := verdictTable(ref, verdict, width)
		for line := range strings.Lines(got) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
				t.Errorf("%d columns in a terminal of %d: %s", n, width, line)
			}
		}
		if squeeze(got) != wide {
			t.Errorf("something is lost in a terminal of %d columns:\n%s", width, got)
		}
	}
}
