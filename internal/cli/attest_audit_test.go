package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/attest"
	"github.com/org/attestable-image-action/internal/audit"
	"github.com/org/attestable-image-action/internal/testenv"
)

// TestAttestAudit attests what inspect found, beside the other two statements.
func TestAttestAudit(t *testing.T) {
	dir := t.TempDir()
	disk, report := testenv.GoldenDisk(t, "stub257"), filepath.Join(dir, "audit.json")
	ok := func(args ...string) string {
		t.Helper()
		status, stdout, stderr := execute(t, args...)
		if status != 0 {
			t.Fatalf("%s: status %d: %s", args[0], status, stderr)
		}
		return strings.TrimSpace(stdout)
	}
	ok("inspect", "--audit-output", report, disk)
	want, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	reference := ok("push", disk, "oci:"+filepath.Join(dir, "layout"))
	trust, bundles := filepath.Join(dir, "trust"), filepath.Join(dir, "bundles.jsonl")

	for name, content := range map[string]string{
		"is no report":         `{}`,
		"stands twice":         `{"schemaVersion":1,"schemaVersion":1,"audited":[],"findings":[]}`,
		"a finding has no id":  `{"schemaVersion":1,"audited":[],"findings":[{"severity":"low"}]}`,
		"use a newer one":      `{"schemaVersion":99,"audited":[],"findings":[]}`,
		"there is no severity": `{"schemaVersion":1,"audited":[],"findings":[{"id":"x","severity":"awful"}]}`,
	} {
		bad := filepath.Join(dir, "bad.json")
		if err := os.WriteFile(bad, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		status, _, stderr := execute(t, "attest", "--local-trust", trust, "--audit", bad, "--bundle-output", bundles, reference)
		if status != 1 || !strings.Contains(stderr, name) {
			t.Errorf("%s: status %d, %s", content, status, stderr)
		}
		if _, err := os.Stat(bundles); err == nil {
			t.Fatalf("%s was attested", content)
		}
	}

	ok("attest", "--local-trust", trust, "--audit", report, "--bundle-output", bundles, reference)
	ok("verify", "artifact", reference, "--local-trust", trust)
	lines, err := os.ReadFile(bundles)
	if err != nil {
		t.Fatal(err)
	}
	var types []string
	for line := range bytes.Lines(lines) {
		var bundle struct{ DSSEEnvelope struct{ Payload []byte } }
		var statement attest.Statement
		if err := json.Unmarshal(line, &bundle); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(bundle.DSSEEnvelope.Payload, &statement); err != nil {
			t.Fatal(err)
		}
		types = append(types, statement.PredicateType)
		if statement.PredicateType != attest.PredicateAudit {
			continue
		}
		got, err := audit.ParseReport(statement.Predicate)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := got.Marshal(); err != nil || !bytes.Equal(b, want) {
			t.Errorf("attested is\n%s\nwant\n%s", b, want)
		}
	}
	if len(types) != 3 || types[2] != attest.PredicateAudit {
		t.Errorf("attested are %q", types)
	}
}
