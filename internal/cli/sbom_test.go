package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/attest"
	"github.com/org/attestable-image-action/internal/sbom"
	"github.com/org/attestable-image-action/internal/testenv"
)

// TestSBOM lists the template's disk with the command.
func TestSBOM(t *testing.T) {
	disk := testenv.DebianDisk(t)
	list := strings.TrimSuffix(disk, ".raw") + ".packages"
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	status, stdout, stderr := execute(t, "sbom", "--packages", list, disk)
	if status != 0 || !strings.Contains(stderr, "packages of Debian GNU/Linux 13 (trixie), as KIWI lists them") {
		t.Fatalf("status %d: %s", status, stderr)
	}
	file := filepath.Join(t.TempDir(), "image.cdx.json")
	if status, stdout, stderr := execute(t, "sbom", "--format", "cyclonedx", "--output", file, "--name", "image", "--version", "2.0.0", disk); status != 0 || stdout != "" {
		t.Fatalf("status %d: %s%s", status, stdout, stderr)
	}
	cycloneDX, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for want, document := range map[string]string{
		`"created": "2023-11-14T22:13:20Z"`:   stdout,
		`"name": "attestable-debian.x86_64-`:  stdout,
		`"timestamp": "2023-11-14T22:13:20Z"`: string(cycloneDX),
		`"version": "2.0.0"`:                  string(cycloneDX),
	} {
		if !strings.Contains(document, want) {
			t.Errorf("%s is not in\n%.3000s", want, document)
		}
	}
	// The digest is the one that measure takes, too.
	_, measured, _ := execute(t, "measure", "--format=json", disk)
	if digest, err := sbom.DiskDigest([]byte(stdout)); err != nil || digest == "" || !strings.Contains(measured, digest) {
		t.Errorf("the disk's digest is %q: %v", digest, err)
	}

	other := filepath.Join(t.TempDir(), "other.packages")
	if err := os.WriteFile(other, []byte("bash|None|1.0|None|amd64|None|None\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args   []string
		status int
		want   string
	}{
		"another list of packages": {[]string{"--packages", other, disk}, 1, "only in KIWI's list: bash 1.0 amd64"},
		"no list of packages":      {[]string{"--packages", other + "x", disk}, 1, "no such file"},
		"another format":           {[]string{"--format", "swid", disk}, 2, `there is no format "swid"`},
		"no disk":                  {nil, 2, "give the raw disk to list"},
		"no root file system":      {[]string{testenv.GoldenDisk(t, "stub257")}, 1, "package database of dpkg or rpm"},
		"no partition table":       {[]string{list}, 1, "GPT"},
	} {
		if status, stdout, stderr := execute(t, append([]string{"sbom"}, c.args...)...); status != c.status || stdout != "" || !strings.Contains(stderr, c.want) {
			t.Errorf("%s: status %d, %s", name, status, stderr)
		}
	}
	t.Setenv("SOURCE_DATE_EPOCH", "yesterday")
	if status, _, stderr := execute(t, "sbom", disk); status != 1 || !strings.Contains(stderr, "SOURCE_DATE_EPOCH") {
		t.Errorf("status %d, %s", status, stderr)
	}
}

// TestAttestSBOM attests bills of materials, each as what it says that it is.
func TestAttestSBOM(t *testing.T) {
	dir := t.TempDir()
	disk := testenv.GoldenDisk(t, "stub257")
	write := func(name, content string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	status, stdout, stderr := execute(t, "push", disk, "oci:"+filepath.Join(dir, "layout"))
	if status != 0 {
		t.Fatal(stderr)
	}
	reference := strings.TrimSpace(stdout)
	trust, bundles := filepath.Join(dir, "trust"), filepath.Join(dir, "bundles.jsonl")
	const spdx = `{"spdxVersion":"SPDX-2.3","SPDXID":"SPDXRef-DOCUMENT","name":"image"}`
	const cycloneDX = `{"bomFormat":"CycloneDX","specVersion":"1.6","serialNumber":"urn:uuid:3e671687-395b-41f5-a30f-a58921a69b79"}`
	another := strings.Repeat("0", 64)
	for name, c := range map[string]struct {
		content string
		status  int
		want    string
	}{
		"no JSON":             {`<bom/>`, 1, "not a JSON object"},
		"a list":              {`[` + spdx + `]`, 1, "not a JSON object"},
		"something else":      {`{}`, 1, "neither SPDX (spdxVersion) nor CycloneDX"},
		"both":                {spdx[:len(spdx)-1] + "," + cycloneDX[1:], 1, "it says that it is SPDX and that it is CycloneDX"},
		"twice":               {`{"spdxVersion":"SPDX-2.2",` + spdx[1:], 1, "stands twice"},
		"SPDX without an ID":  {`{"spdxVersion":"SPDX-2.3"}`, 1, "both are needed"},
		"SPDX 3":              {`{"spdxVersion":"SPDX-x/../y","SPDXID":"SPDXRef-DOCUMENT"}`, 1, "both are needed"},
		"another bomFormat":   {`{"bomFormat":"CycleDX"}`, 1, "which are needed"},
		"CycloneDX, unserial": {`{"bomFormat":"CycloneDX","specVersion":"1.6"}`, 1, "which are needed"},
		"fields of numbers":   {`{"spdxVersion":2.3}`, 1, "neither SPDX nor CycloneDX"},
		"too long":            {spdx + strings.Repeat(" ", attest.MaxPredicate), 1, "longer than"},
		"another disk": {`{"spdxVersion":"SPDX-2.3","SPDXID":"SPDXRef-DOCUMENT","documentNamespace":"https://github.com/org/attestable-image-action/sbom/1",
			"packages":[{"SPDXID":"SPDXRef-Image","checksums":[{"algorithm":"SHA256","checksumValue":"` + another + `"}]}]}`, 1, "is about the disk with the SHA-256 " + another},
		"another disk, CycloneDX": {cycloneDX[:len(cycloneDX)-1] + `,"metadata":{"tools":{"components":[{"name":"attestable-image"}]},
			"component":{"bom-ref":"image","hashes":[{"alg":"SHA-256","content":"` + another + `"}]}}}`, 1, "is about the disk with the SHA-256 " + another},
	} {
		status, _, stderr := execute(t, "attest", "--local-trust", trust, "--sbom", write("bad.json", c.content), "--bundle-output", bundles, reference)
		if status != c.status || !strings.Contains(stderr, c.want) {
			t.Errorf("%s: status %d, %s", name, status, stderr)
		}
		if _, err := os.Stat(bundles); err == nil {
			t.Fatalf("%s was attested", name)
		}
	}
	one, two := write("one.json", spdx), write("two.json", cycloneDX)
	if status, _, stderr := execute(t, "attest", "--local-trust", trust, "--sbom", one, "--sbom", one, reference); status != 2 || !strings.Contains(stderr, "of the same format") {
		t.Errorf("the same twice: status %d, %s", status, stderr)
	}
	if status, _, stderr := execute(t, "attest", "--local-trust", trust, "--sbom", one, "--sbom", two, "--sbom", "", "--bundle-output", bundles, reference); status != 0 {
		t.Fatal(stderr)
	}
	if status, _, stderr := execute(t, "verify", "artifact", reference, "--local-trust", trust); status != 0 {
		t.Fatal(stderr)
	}
	lines, err := os.ReadFile(bundles)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for line := range bytes.Lines(lines) {
		var bundle struct{ DSSEEnvelope struct{ Payload []byte } }
		var statement attest.Statement
		if err := json.Unmarshal(line, &bundle); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(bundle.DSSEEnvelope.Payload, &statement); err != nil {
			t.Fatal(err)
		}
		found[statement.PredicateType] = string(statement.Predicate)
	}
	if len(found) != 4 || found["https://spdx.dev/Document/v2.3"] != spdx || found["https://cyclonedx.org/bom"] != cycloneDX {
		t.Errorf("attested: %q", found)
	}
}
