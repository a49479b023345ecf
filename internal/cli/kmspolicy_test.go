package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/attest"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/testenv"
)

const (
	testAdmin = "arn:aws:iam::111122223333:role/key-admin"
	testRole  = "arn:aws:iam::111122223333:role/image"
)

// writeMeasurements writes a document with these PCRs, for Secure Boot off, into
// a file.
func writeMeasurements(t *testing.T, name string, bank measure.Bank, pcrs map[int]string) string {
	t.Helper()
	doc := &measure.Document{
		Measurements: measure.Measurements{HashAlgorithm: bank, PCRs: pcrs}, SchemaVersion: measure.SchemaVersion,
		BootChain: []measure.ImageInfo{}, Events: []measure.EventInfo{},
	}
	out, err := doc.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, out, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// digestOf is a digest that begins as told.
func digestOf(prefix string, length int) string {
	return prefix + strings.Repeat("5", length-len(prefix))
}

func TestKMSPolicyCommandLine(t *testing.T) {
	noJob(t)
	zero := strings.Repeat("0", 96)
	good := writeMeasurements(t, "good.json", measure.SHA384, map[int]string{4: digestOf("4a", 96), 7: digestOf("7a", 96), 12: zero, 13: zero})
	no12 := writeMeasurements(t, "no12.json", measure.SHA384, map[int]string{4: digestOf("4a", 96), 7: digestOf("7a", 96), 13: zero})
	no13 := writeMeasurements(t, "no13.json", measure.SHA384, map[int]string{4: digestOf("4a", 96), 7: digestOf("7a", 96), 12: zero})
	noBoot := writeMeasurements(t, "zero.json", measure.SHA384, map[int]string{4: zero, 7: zero, 12: zero, 13: zero})
	sha256 := writeMeasurements(t, "sha256.json", measure.SHA256, map[int]string{4: digestOf("4a", 64), 12: digestOf("00", 64)})
	broken := filepath.Join(t.TempDir(), "broken.json")
	if err := os.WriteFile(broken, []byte(`{"Measurements":{"HashAlgorithm":"SHA384","PCR4":"zz"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	secure := func(name, pcr7 string) string {
		path := writeMeasurements(t, name, measure.SHA384, map[int]string{4: digestOf("4a", 96), 7: pcr7, 12: zero, 13: zero})
		content, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(path, []byte(strings.Replace(string(content), `"Enabled": false`, `"Enabled": true`, 1)), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	on := secure("on.json", digestOf("7a", 96))
	everyone := secure("everyone.json", "98441c7f7625d10058c47683aec486ce311c633235eb555593a7ee791121e3578ae72d04ecef661f272d59058b77af35")
	for _, tc := range []struct {
		name   string
		args   []string
		status int
		stderr string
	}{
		{"nothing", nil, 2, "give the artifacts that may use the key"},
		{"no such format", []string{"--format", "yaml", good}, 2, `there is no format "yaml": give conditions, policy or terraform`},
		{"no number", []string{"--pcr", "4,x", good}, 2, `"x" is not the number of a PCR`},
		{"no repository", []string{"ghcr.io/octo-org/image:v1"}, 2, "--repo"},
		{"a file and a repository", []string{"--repo", "octo-org/image", good}, 2, "nobody signed a file"},
		{"a file and an issuer", []string{"--cert-oidc-issuer", "https://issuer.example", good}, 2, "nobody signed a file"},
		{"neither", []string{"image", "--repo", "octo-org/image"}, 2, "it names no registry"},
		{"a condition names nobody", []string{"--role", testRole, good}, 2, "a condition names nobody"},
		{"no administrator", []string{"--format", "policy", "--role", testRole, good}, 2, "give --account or --principal"},
		{"no role", []string{"--format", "terraform", "--account", "111122223333", good}, 2, "give the role of the instances in --role"},
		{"no account", []string{"--format", "policy", "--account", "1111", "--role", testRole, good}, 2, `--account: "1111" is no AWS account`},
		{"everybody", []string{"--format", "policy", "--principal", "*", "--role", testRole, good}, 2, `--principal: "*" is no ARN`},
		{"a user as role", []string{"--format", "policy", "--account", "111122223333", "--role", "arn:aws:iam::111122223333:user/a", good}, 1, "may not use the key"},
		{"one for both", []string{"--format", "policy", "--principal", testRole, "--role", testRole, good}, 1, "would be a user and an administrator"},
		{"no file", []string{"./missing.json"}, 1, "no such file"},
		{"no document", []string{broken}, 1, "the value of PCR4 is not a SHA384 digest"},
		{"no PCR 12", []string{no12}, 1, "GHSA-xrv8-2pf5-f3q7"},
		{"no PCR 12, asked for PCR 4", []string{"--pcr", "2,4,13", no12}, 1, "without PCR 12 they let in"},
		{"no PCR 13, of an older document", []string{no13}, 1, "PCR 13 is not among the measurements, and whether the image has extensions is not guessed: measure again"},
		{"PCR 4 and 12 only", []string{"--pcr", "4,12", good}, 1, "without PCR 2 they let in the same image with a driver"},
		{"PCR 7 alone", []string{"--pcr", "7", on}, 1, "without PCR 12 they let in"},
		{"PCR 7 of every instance", []string{everyone}, 1, "PCR 7 is that of every instance with Secure Boot off"},
		{"left out what cannot be", []string{"--without-pcr", "4", good}, 2, "--without-pcr: PCR 4 cannot be left out"},
		{"bound and left out", []string{"--pcr", "2,4,12,13", "--without-pcr", "2", good}, 1, "PCR 2 is to be bound and to be left out"},
		{"no boot", []string{noBoot}, 1, "PCR 4 is zero"},
		{"another bank", []string{sha256}, 1, "measure with --bank sha384"},
		{"a good one and a bad one", []string{good, sha256}, 1, "measure with --bank sha384"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			status, out, said := execute(t, append([]string{"kms-policy"}, tc.args...)...)
			if status != tc.status || !strings.Contains(said, tc.stderr) || out != "" {
				t.Errorf("status %d, want %d; standard output %q; %q lacks %q", status, tc.status, out, said, tc.stderr)
			}
		})
	}
}

func TestKMSPolicyOfFiles(t *testing.T) {
	noJob(t)
	zero := strings.Repeat("0", 96)
	file := func(name, pcr4, pcr12 string) string {
		return writeMeasurements(t, name, measure.SHA384, map[int]string{4: digestOf(pcr4, 96), 12: pcr12, 13: zero})
	}
	first, second, third := file("1.json", "4a", zero), file("2.json", "4b", zero), file("3.json", "4c", digestOf("cc", 96))

	status, out, said := execute(t, "kms-policy", first)
	if want := "note: nothing vouches for " + first; status != 0 || !strings.Contains(said, want) || strings.Count(said, "\n") != 1 {
		t.Errorf("status %d; standard error is %q, want %q", status, said, want)
	}
	var block map[string]map[string]string
	if err := json.Unmarshal([]byte(out), &block); err != nil || len(block) != 1 ||
		len(block["StringEqualsIgnoreCase"]) != 4 || block["StringEqualsIgnoreCase"]["kms:RecipientAttestation:NitroTPMPCR4"] != digestOf("4a", 96) {
		t.Errorf("%v: %s", err, out)
	}

	// What an older document lacks is left out by name, and said.
	old := writeMeasurements(t, "old.json", measure.SHA384, map[int]string{4: digestOf("4a", 96), 12: zero})
	status, out, said = execute(t, "kms-policy", "--without-pcr", "13", old)
	if status != 0 || strings.Contains(out, "NitroTPMPCR13") || !strings.Contains(out, "NitroTPMPCR2") || !strings.Contains(said, "note: PCR 13 was left out") {
		t.Errorf("status %d\n%s%s", status, out, said)
	}

	// Two that share a block, and one that must not be mixed with them.
	_, out, said = execute(t, "kms-policy", first, second, third)
	decoder := json.NewDecoder(strings.NewReader(out))
	blocks := 0
	for decoder.More() {
		var any map[string]map[string]any
		if err := decoder.Decode(&any); err != nil {
			t.Fatal(err)
		}
		blocks++
	}
	if blocks != 2 || !strings.Contains(said, "these are 2 conditions") {
		t.Errorf("%d blocks\n%s%s", blocks, out, said)
	}

	for format, wants := range map[string][]string{
		"policy":    {`"Sid": "UseWhenAttested2"`, `"` + testRole + `"`, `"arn:aws:iam::111122223333:root"`, `"` + testAdmin + `"`},
		"terraform": {`sid    = "UseWhenAttested2"`, "#   " + first, `resource "aws_kms_key"`},
	} {
		status, out, said := execute(t, "kms-policy", "--format", format, "--principal", testAdmin, "--account", "111122223333", "--role", testRole, first, second, third)
		if status != 0 || !strings.Contains(said, "whoever may PutKeyPolicy can change that") {
			t.Errorf("%s: status %d, %s", format, status, said)
		}
		for _, want := range wants {
			if !strings.Contains(out, want) {
				t.Errorf("%s lacks %q:\n%s", format, want, out)
			}
		}
	}
}

// TestKMSPolicyOfArtifacts verifies before anything is printed.
func TestKMSPolicyOfArtifacts(t *testing.T) {
	noJob(t)
	disk := testenv.GoldenDisk(t, "stub257")
	dir := t.TempDir()
	t.Chdir(dir)
	place := startRegistry(t, testenv.RegistryKinds[0].Name) + "/octo-org/image:v1"
	_, out, _ := execute(t, "push", disk, place)
	reference := strings.TrimSpace(out)

	refused := func(want string, args ...string) {
		t.Helper()
		status, out, said := execute(t, append([]string{"kms-policy"}, args...)...)
		if status != 1 || out != "" || !strings.Contains(said, want) {
			t.Errorf("%q: status %d, standard output %q, standard error lacks %q:\n%s", args, status, out, want, said)
		}
	}
	if _, err := attest.OpenLocalTrust("trust"); err != nil {
		t.Fatal(err)
	}
	refused("no policy is printed: "+reference+" does not verify", reference, "--local-trust=trust")

	if status, _, said := execute(t, "attest", "--local-trust=trust", reference); status != 0 {
		t.Fatal(said)
	}
	status, out, said := execute(t, "kms-policy", reference, "--local-trust=trust", "--remeasure")
	if status != 0 || !strings.Contains(said, "verified "+reference+": 23 checks hold") || strings.Contains(said, "nothing vouches") {
		t.Errorf("status %d: %s", status, said)
	}
	doc, err := os.ReadFile(filepath.Join(testenv.Root(t), "internal/measure/testdata/stub257.json"))
	if err != nil {
		t.Fatal(err)
	}
	golden, err := measure.ParseDocument(doc)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{2, 4, 12, 13} {
		if !strings.Contains(out, golden.PCR(n)) {
			t.Errorf("PCR %d of the disk is not in\n%s", n, out)
		}
	}
	// The output that the action has is the same block.
	compact, err := kmsConditions(golden)
	if err != nil {
		t.Fatal(err)
	}
	var a, b map[string]map[string]string
	if err := json.Unmarshal([]byte(compact), &a); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(out), &b); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"kms:RecipientAttestation:NitroTPMPCR4", "kms:RecipientAttestation:NitroTPMPCR12"} {
		if a["StringEqualsIgnoreCase"][n] == "" || a["StringEqualsIgnoreCase"][n] != b["StringEqualsIgnoreCase"][n] {
			t.Errorf("%s: %s and %s", n, compact, out)
		}
	}

	if _, err := attest.OpenLocalTrust("other"); err != nil {
		t.Fatal(err)
	}
	refused("no policy is printed", reference, "--local-trust=other")
	// One that does not verify spoils the others.
	refused("no policy is printed", reference, place, "--local-trust=other")

	// A file of the reference's name is not taken for the artifact.
	if err := os.MkdirAll(filepath.Dir(place), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(place, doc, 0o600); err != nil {
		t.Fatal(err)
	}
	refused("no policy is printed", place, "--local-trust=other")
	if err := os.WriteFile("measurements", doc, 0o600); err != nil {
		t.Fatal(err)
	}
	if status, out, said := execute(t, "kms-policy", "measurements"); status != 2 || out != "" || !strings.Contains(said, "to mean the file of this name, write ./measurements") {
		t.Errorf("status %d, %s%s", status, out, said)
	}
	if status, _, said := execute(t, "kms-policy", "./measurements"); status != 0 {
		t.Error(said)
	}
}
