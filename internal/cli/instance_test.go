package cli

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2/transport"

	"github.com/org/attestable-image-action/internal/attest"
	"github.com/org/attestable-image-action/internal/measure"
	"github.com/org/attestable-image-action/internal/testenv"
	"github.com/org/attestable-image-action/internal/vm"
)

// keptOpen is a TPM that its users do not close.
type keptOpen struct{ transport.TPM }

func (keptOpen) Close() error { return nil }

// instance is an emulated NitroTPM in which a golden disk was booted, as far as
// its PCRs tell; root is the file of the emulator's root.
func instance(t *testing.T) (open func(context.Context, string) (transport.TPMCloser, error), root string, doc *measure.Document) {
	t.Helper()
	n, err := vm.EmulateNitroTPM()
	if err != nil {
		t.Fatal(err)
	}
	tpm := n.Layer(testenv.SoftwareTPM(t))
	doc = goldenDocument(t)
	for _, e := range doc.Events {
		digest, err := hex.DecodeString(e.Digest)
		if err != nil {
			t.Fatal(err)
		}
		testenv.Extend(t, tpm, e.PCR, digest)
	}
	root = filepath.Join(t.TempDir(), "root.pem")
	if err := os.WriteFile(root, n.RootPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	return func(context.Context, string) (transport.TPMCloser, error) { return keptOpen{tpm}, nil }, root, doc
}

func goldenDocument(t *testing.T) *measure.Document {
	t.Helper()
	content, err := os.ReadFile(goldenPath(t))
	if err != nil {
		t.Fatal(err)
	}
	doc, err := measure.ParseDocument(content)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func goldenPath(t *testing.T) string {
	t.Helper()
	return filepath.Join(testenv.Root(t), "internal/measure/testdata/stub257.json")
}

// on runs a command line on a machine with this TPM.
func on(t *testing.T, open func(context.Context, string) (transport.TPMCloser, error), args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	status = run(t.Context(), &app{stdout: &out, stderr: &errs, openTPM: open}, args)
	return status, out.String(), errs.String()
}

// TestVerifyDocument gets a document and verifies it, and what it must not be
// taken for.
func TestVerifyDocument(t *testing.T) {
	noJob(t)
	t.Setenv("GITHUB_ACTIONS", "")
	open, root, doc := instance(t)
	t.Chdir(t.TempDir())
	if err := os.WriteFile("data", []byte("some data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("other", []byte("other data"), 0o600); err != nil {
		t.Fatal(err)
	}
	const nonce = "00112233445566778899aabbccddeeff"
	status, out, said := on(t, open, "attestation-document", "--nonce", nonce, "--user-data", "data", "--public-key", "other", "-o", "document")
	if status != 0 || out != "" {
		t.Fatalf("status %d, %q, %s", status, out, said)
	}
	if status, out, said = on(t, open, "attestation-document"); status != 0 || len(out) < 1000 || said != "" {
		t.Fatalf("status %d, %d bytes, %s", status, len(out), said)
	}
	golden := goldenPath(t)
	verify := func(args ...string) (int, string, string) {
		return on(t, open, append([]string{"verify", "instance"}, args...)...)
	}
	pcr := func(n string, value string) string { return "--pcr=" + n + "=" + value }
	four, twelve := doc.PCR(4), doc.PCR(12)
	other := strings.Repeat("ab", 48)

	status, out, said = verify("document", "--nonce", nonce, "--measurements", golden, "--root", root, "--user-data", "data")
	if status != 0 || !strings.Contains(out, "verified: 15 of 15 checks hold") || !strings.Contains(out, "the image is that of "+golden) || !strings.Contains(said, "nothing vouches for") {
		t.Errorf("status %d\n%s%s", status, out, said)
	}
	if status, out, said = verify("document", "--any-nonce", "--measurements", golden, "--root", root, "--format", "json"); status != 0 {
		t.Errorf("status %d, %s", status, said)
	}
	var result instanceVerification
	if err := json.Unmarshal([]byte(out), &result); err != nil || !result.Verified || result.PCRs["4"] != four || result.Generation != golden || len(result.Checks) != 15 {
		t.Errorf("%v\n%s", err, out)
	}

	for _, tc := range []struct {
		name   string
		args   []string
		status int
		stderr string
	}{
		{"given PCRs", []string{"document", "--nonce", nonce, pcr("4", four), pcr("12", twelve), "--root", root}, 0, ""},
		{"the second generation", []string{"document", "--nonce", nonce, pcr("4", other), pcr("12", twelve), "--measurements", golden, "--root", root}, 0, ""},
		{"any image", []string{"document", "--nonce", nonce, "--any-image", "--root", root}, 0, ""},
		{"two roots", []string{"document", "--nonce", nonce, "--any-image", "--root", root, "--root", strings.Repeat("00", 32)}, 0, ""},
		{"an hour from now", []string{"document", "--nonce", nonce, "--any-image", "--root", root, "--at", time.Now().Add(time.Hour).Format(time.RFC3339)}, 0, ""},

		{"AWS's root", []string{"document", "--nonce", nonce, "--any-image"}, 1, "does not verify: root: expected AWS's"},
		{"another image", []string{"document", "--nonce", nonce, pcr("4", other), pcr("12", twelve), "--root", root}, 1, "PCR 4: expected abab"},
		{"another command line", []string{"document", "--nonce", nonce, pcr("4", four), pcr("12", other), "--root", root}, 1, "PCR 12: expected abab"},
		{"another nonce", []string{"document", "--nonce", "ff" + nonce, "--any-image", "--root", root}, 1, "does not verify: nonce"},
		{"other user_data", []string{"document", "--nonce", nonce, "--any-image", "--root", root, "--user-data", "other"}, 1, "does not verify: user_data"},
		{"next week", []string{"document", "--nonce", nonce, "--any-image", "--root", root, "--at", time.Now().AddDate(0, 0, 7).Format(time.RFC3339)}, 1, "does not verify: certificates"},
		{"older than it may be", []string{"document", "--nonce", nonce, "--any-image", "--root", root, "--at", time.Now().Add(time.Hour).Format(time.RFC3339), "--max-age", "5m"}, 1, "does not verify: timestamp"},
		{"no document", []string{"data", "--nonce", nonce, "--any-image"}, 1, "data: read attestation document: it is not a COSE_Sign1 object"},
		{"no file", []string{"missing", "--nonce", nonce, "--any-image"}, 1, "read the attestation document: open missing"},

		{"nothing", nil, 2, "give the URL of the instance's service, or the file of a document"},
		{"no nonce", []string{"document", "--any-image"}, 2, "give in --nonce what was sent"},
		{"no image", []string{"document", "--nonce", nonce}, 2, "say which image it must be"},
		{"an image and any", []string{"document", "--nonce", nonce, "--any-image", pcr("4", four)}, 2, "--any-image cannot be given together"},
		{"a nonce and any", []string{"document", "--nonce", nonce, "--any-nonce", "--any-image"}, 2, "--nonce and --any-nonce"},
		{"without PCR 12", []string{"document", "--nonce", nonce, pcr("4", four)}, 2, "lacks PCR 12"},
		{"without PCR 4 and 7", []string{"document", "--nonce", nonce, pcr("12", four)}, 2, "lacks PCR 7, and PCR 4"},
		{"PCR 7 of everybody", []string{"document", "--nonce", nonce, pcr("12", four), pcr("7", doc.PCR(7))}, 2, "every instance with Secure Boot off"},
		{"a PCR twice", []string{"document", "--nonce", nonce, pcr("12", four), pcr("12", four)}, 2, "PCR 12 is given twice"},
		{"a PCR given and left out", []string{"document", "--nonce", nonce, pcr("4", four), pcr("12", twelve), pcr("2", doc.PCR(2)), "--without-pcr", "2"}, 2, "--pcr gives PCR 2, and --without-pcr leaves it out"},
		{"left out what cannot be", []string{"document", "--nonce", nonce, pcr("4", four), pcr("12", twelve), "--without-pcr", "12"}, 2, "PCR 12 cannot be left out"},
		{"left out of any image", []string{"document", "--nonce", nonce, "--any-image", "--without-pcr", "2"}, 2, "compares no PCR"},
		{"zero in PCR 4", []string{"document", "--nonce", nonce, pcr("4", strings.Repeat("0", 96)), pcr("12", twelve)}, 2, "PCR 4 is zero"},
		{"no PCR", []string{"document", "--nonce", nonce, "--pcr", "4"}, 2, `"4" is not N=HEX`},
		{"a PCR of SHA-256", []string{"document", "--nonce", nonce, pcr("4", strings.Repeat("ab", 32))}, 2, "is not N=HEX"},
		{"signer of nothing", []string{"document", "--nonce", nonce, "--any-image", "--repo", "a/b"}, 2, "are about --artifact"},
		{"no time", []string{"document", "--nonce", nonce, "--any-image", "--at", "noon"}, 2, `"noon" is not a time`},
		{"no root", []string{"document", "--nonce", nonce, "--any-image", "--root", "missing"}, 2, `"missing" is neither`},
		{"no format", []string{"document", "--nonce", nonce, "--any-image", "--format", "yaml"}, 2, `no format "yaml"`},
		{"no hex", []string{"document", "--nonce", "zz", "--any-image"}, 2, `"zz" is neither hex nor a file`},
		{"a URL at another time", []string{"https://127.0.0.1:1", "--any-image", "--at", "2026-01-01T00:00:00Z"}, 2, "leave out --at"},
		{"a URL without TLS", []string{"http://127.0.0.1:1", "--any-image"}, 1, "is not a URL as https"},
		{"nobody there", []string{"https://127.0.0.1:1", "--any-image"}, 1, "ask the instance"},
		{"an artifact of nobody", []string{"document", "--nonce", nonce, "--artifact", "ghcr.io/a/b"}, 2, "give --repo OWNER/REPO"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			status, out, said := verify(tc.args...)
			if status != tc.status || !strings.Contains(said, tc.stderr) {
				t.Errorf("status %d, want %d; standard error lacks %q:\n%s\n%s", status, tc.status, tc.stderr, said, out)
			}
			if status == 2 && out != "" {
				t.Errorf("standard output %q", out)
			}
		})
	}
}

// TestVerifyInstanceWithDriver is of an instance whose firmware loaded a driver, and
// then of one with an extension, too: nothing but PCR 2, and PCR 13, tells of them. It
// is verified with measurements as they are made, as they were made before PCR 2 and
// 13 were predicted, and with given values.
func TestVerifyInstanceWithDriver(t *testing.T) {
	noJob(t)
	t.Setenv("GITHUB_ACTIONS", "")
	open, root, doc := instance(t)
	t.Chdir(t.TempDir())
	tpm, err := open(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	old := writeMeasurements(t, "old.json", measure.SHA384, map[int]string{4: doc.PCR(4), 7: doc.PCR(7), 11: doc.PCR(11), 12: doc.PCR(12)})
	verify := func(args ...string) (int, string, string) {
		t.Helper()
		if status, _, said := on(t, open, "attestation-document", "--nonce", "00112233445566778899aabbccddeeff", "-o", "document"); status != 0 {
			t.Fatal(said)
		}
		return on(t, open, append([]string{"verify", "instance", "document", "--nonce", "00112233445566778899aabbccddeeff", "--root", root}, args...)...)
	}
	expected := [][]string{{"--measurements", goldenPath(t)}, {"--measurements", old}, {"--pcr", "4=" + doc.PCR(4), "--pcr", "12=" + doc.PCR(12)}}
	for _, args := range expected {
		if status, out, said := verify(args...); status != 0 || strings.Count(out, "ok    PCR 2 ") != 1 || strings.Count(out, "ok    PCR 13") != 1 {
			t.Errorf("%q: status %d\n%s%s", args, status, out, said)
		}
	}
	testenv.Extend(t, tpm, 2, bytes.Repeat([]byte{1}, 48))
	for _, args := range expected {
		status, out, said := verify(args...)
		if status != 1 || strings.Count(out, "FAIL  ") != 1 || !strings.Contains(said, "does not verify: PCR 2: expected 518923b0f955d08d") ||
			!strings.Contains(said, ": the firmware loaded a driver that is not part of the image, or this instance type has an option ROM") {
			t.Errorf("%q: status %d\n%s%s", args, status, out, said)
		}
		if status, out, said = verify(append(args, "--without-pcr", "2")...); status != 0 || !strings.Contains(out, "the policy leaves it out") {
			t.Errorf("%q: status %d\n%s%s", args, status, out, said)
		}
	}
	testenv.Extend(t, tpm, 13, bytes.Repeat([]byte{1}, 48))
	for _, args := range expected {
		status, out, said := verify(append(args, "--without-pcr", "2")...)
		if status != 1 || !strings.Contains(said, "does not verify: PCR 13: expected 0000") || !strings.Contains(said, ": an extension image lies beside the unified kernel image") {
			t.Errorf("%q: status %d\n%s%s", args, status, out, said)
		}
	}
}

// TestVerifyInstance asks a service, against an artifact that is verified first.
func TestVerifyInstance(t *testing.T) {
	noJob(t)
	t.Setenv("GITHUB_ACTIONS", "")
	disk := testenv.GoldenDisk(t, "stub257")
	open, root, doc := instance(t)
	t.Chdir(t.TempDir())
	_, out, _ := execute(t, "push", disk, "oci:layout:v1")
	reference := strings.TrimSpace(out)
	if status, _, said := execute(t, "attest", "--local-trust=trust", reference); status != 0 {
		t.Fatal(said)
	}
	if _, err := attest.OpenLocalTrust("other"); err != nil {
		t.Fatal(err)
	}
	url := serve(t, open, "--measurements", goldenPath(t))
	verify := func(args ...string) (int, string, string) {
		return on(t, open, append([]string{"verify", "instance", url, "--root", root}, args...)...)
	}
	status, out, said := verify("--artifact", reference, "--local-trust=trust")
	if status != 0 || !strings.Contains(out, "the image is that of "+reference) || !strings.Contains(out, "ok    TLS key") || !strings.Contains(said, "verified "+reference) {
		t.Errorf("status %d\n%s%s", status, out, said)
	}
	if status, out, said = verify("--artifact", reference, "--local-trust=other"); status != 1 || out != "" || !strings.Contains(said, "the instance is not asked: "+reference+" does not verify") {
		t.Errorf("status %d\n%s%s", status, out, said)
	}
	// A document that somebody else got does not vouch for this session's key.
	_, _, _ = on(t, open, "attestation-document", "--nonce", "00112233445566778899aabbccddeeff", "-o", "document")
	if status, out, said = on(t, open, "verify", "instance", "document", "--nonce", "00112233445566778899aabbccddeeff", "--artifact", reference, "--local-trust=trust", "--root", root); status != 0 {
		t.Errorf("status %d\n%s%s", status, out, said)
	}
	// What is extended after the boot shows.
	tpm, err := open(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	testenv.Extend(t, tpm, 12, bytes.Repeat([]byte{1}, 48))
	if status, _, said = verify("--artifact", reference, "--local-trust=trust"); status != 1 || !strings.Contains(said, "PCR 12: expected "+doc.PCR(12)) {
		t.Errorf("status %d, %s", status, said)
	}
}

// TestAnotherTLSKey stands between a client and an instance, with a TLS key of its
// own: the document is genuine, and the session does not end in the instance.
func TestAnotherTLSKey(t *testing.T) {
	noJob(t)
	t.Setenv("GITHUB_ACTIONS", "")
	open, root, _ := instance(t)
	middle := relay(t, serve(t, open))
	status, _, said := on(t, open, "verify", "instance", middle, "--root", root, "--any-image")
	if status != 1 || !strings.Contains(said, "does not verify: TLS key") {
		t.Errorf("status %d, %s", status, said)
	}
}

func TestServeCommandLine(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.json")
	if err := os.WriteFile(empty, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		args   []string
		status int
		stderr string
	}{
		{"argument", []string{"serve", "x"}, 2, `"x" is one argument too many`},
		{"no rate", []string{"serve", "--rate", "0"}, 2, "positive numbers"},
		{"no address", []string{"serve", "--listen", "nowhere"}, 1, "serve: listen tcp"},
		{"no measurements", []string{"serve", "--measurements", empty}, 1, "has no Measurements"},
		{"document of an argument", []string{"attestation-document", "x"}, 2, `"x" is one argument too many`},
		{"document without a TPM", []string{"attestation-document", "--device", empty + ".missing"}, 1, "open the TPM"},
		{"document of a file", []string{"attestation-document", "--device", empty}, 1, "is not a device"},
		{"large user data", []string{"attestation-document", "--user-data", os.Args[0]}, 1, "is longer than the 1024 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if status, _, said := execute(t, tc.args...); status != tc.status || !strings.Contains(said, tc.stderr) {
				t.Errorf("status %d, want %d; standard error lacks %q:\n%s", status, tc.status, tc.stderr, said)
			}
		})
	}
}

// serve runs the command serve until the test ends, and returns its URL.
func serve(t *testing.T, open func(context.Context, string) (transport.TPMCloser, error), args ...string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	log := &lockedBuffer{}
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, &app{stdout: log, stderr: log, openTPM: open}, append([]string{"serve", "--listen", "127.0.0.1:0"}, args...))
	}()
	t.Cleanup(func() {
		cancel()
		if status := <-ended; status != 0 {
			t.Errorf("serve ended with status %d: %s", status, log)
		}
	})
	address := regexp.MustCompile(`"address":"([^"]+)"`)
	for {
		if match := address.FindStringSubmatch(log.String()); match != nil {
			return "https://" + match[1]
		}
		select {
		case status := <-ended:
			ended <- status
			t.Fatalf("serve ended with status %d: %s", status, log)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
