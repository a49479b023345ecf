package cli

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/smithy-go"

	"github.com/org/attestable-image-action/internal/kmsstandin"
	"github.com/org/attestable-image-action/internal/testenv"
	"github.com/org/attestable-image-action/nitrotpm"
)

// recorded passes requests on and keeps what went over the wire.
type recorded struct {
	next http.Handler
	wire bytes.Buffer
}

func (r *recorded) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	answer := httptest.NewRecorder()
	r.next.ServeHTTP(answer, request)
	r.wire.Write(answer.Body.Bytes())
	maps.Copy(w.Header(), answer.Header())
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes())
}

func kmsClient(t *testing.T) *kms.Client {
	t.Helper()
	c, err := config.LoadDefaultConfig(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return kms.NewFromConfig(c)
}

// keyPolicy is what kms-policy prints for a measurements document.
func keyPolicy(t *testing.T, measurements string) []byte {
	t.Helper()
	status, out, said := execute(t, "kms-policy", "--format", "policy", "--principal", testAdmin, "--role", testRole, measurements)
	if status != 0 {
		t.Fatal(said)
	}
	return []byte(out)
}

func parsedPolicy(t *testing.T, text []byte) *kmsstandin.Policy {
	t.Helper()
	policy, err := kmsstandin.ParsePolicy(text)
	if err != nil {
		t.Fatal(err)
	}
	return policy
}

// TestKMSDecrypt encrypts a secret with a key in moto, and has it released to an
// instance with an emulated NitroTPM. Moto knows no recipients: the stand-in in front
// of it verifies the document, evaluates the policy that kms-policy printed, has moto
// decrypt, and encrypts the answer to the instance's key.
func TestKMSDecrypt(t *testing.T) {
	noJob(t)
	t.Setenv("GITHUB_ACTIONS", "")
	testenv.StartAWS(t)
	moto := os.Getenv("AWS_ENDPOINT_URL")
	open, rootFile, doc := instance(t)
	golden := goldenPath(t)
	t.Chdir(t.TempDir())

	client := kmsClient(t)
	policy := keyPolicy(t, golden)
	created, err := client.CreateKey(t.Context(), &kms.CreateKeyInput{Policy: aws.String(string(policy))})
	if err != nil {
		t.Fatal(err)
	}
	const secret = "a secret for this instance alone\n"
	sealed, err := client.Encrypt(t.Context(), &kms.EncryptInput{
		KeyId: created.KeyMetadata.Arn, Plaintext: []byte(secret), EncryptionContext: map[string]string{"app": "demo", "stage": "a=b"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("secret.kms", sealed.CiphertextBlob, 0o600); err != nil {
		t.Fatal(err)
	}
	rootPEM, err := os.ReadFile(rootFile)
	if err != nil {
		t.Fatal(err)
	}
	root, err := nitrotpm.ParseRoot(rootPEM)
	if err != nil {
		t.Fatal(err)
	}
	believed := []nitrotpm.Root{root}
	service := &kmsstandin.Service{
		Roots:  func() ([]nitrotpm.Root, error) { return believed, nil },
		Policy: parsedPolicy(t, policy),
		Decrypt: func(ctx context.Context, call kmsstandin.Call) ([]byte, string, error) {
			out, err := client.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: call.Ciphertext, KeyId: &call.KeyID, EncryptionContext: call.Context})
			if api := smithy.APIError(nil); errors.As(err, &api) {
				return nil, "", &kmsstandin.Error{Code: api.ErrorCode(), Message: api.ErrorMessage()}
			}
			if err != nil {
				return nil, "", err
			}
			return out.Plaintext, aws.ToString(out.KeyId), nil
		},
	}
	recorder := &recorded{next: service}
	server := httptest.NewServer(recorder)
	t.Cleanup(server.Close)
	t.Setenv("AWS_ENDPOINT_URL", server.URL)

	args := []string{"kms-decrypt", "--key-id", aws.ToString(created.KeyMetadata.Arn), "--ciphertext", "secret.kms", "--encryption-context", "app=demo", "--encryption-context", "stage=a=b"}
	with := func(more ...string) []string { return append(append([]string{}, args...), more...) }
	status, out, said := on(t, open, args...)
	if status != 0 || out != secret || said != "" {
		t.Fatalf("status %d, %q, %s", status, out, said)
	}
	for _, readable := range []string{secret, base64.StdEncoding.EncodeToString([]byte(secret)), "Plaintext"} {
		if strings.Contains(recorder.wire.String(), readable) {
			t.Errorf("%q went over the wire", readable)
		}
	}
	if !strings.Contains(recorder.wire.String(), "CiphertextForRecipient") {
		t.Errorf("the answer was %s", recorder.wire.String())
	}

	if status, out, said = on(t, open, with("-o", "released")...); status != 0 || out+said != "" {
		t.Errorf("status %d, %q, %s", status, out, said)
	}
	content, err := os.ReadFile("released")
	if err != nil || string(content) != secret {
		t.Errorf("%q, %v", content, err)
	}
	if info, err := os.Stat("released"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if left, err := filepath.Glob(".released-*"); err != nil || left != nil {
		t.Errorf("left behind: %v, %v", left, err)
	}

	// The role's credentials alone, without a document.
	_, err = kmsClient(t).Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: sealed.CiphertextBlob, KeyId: created.KeyMetadata.Arn})
	if api := smithy.APIError(nil); !errors.As(err, &api) || api.ErrorCode() != "AccessDeniedException" {
		t.Errorf("without a document: %v", err)
	}

	refused := func(name string, change func(t *testing.T), err string, args ...string) {
		t.Run(name, func(t *testing.T) {
			change(t)
			status, out, said := on(t, open, args...)
			if status != 1 || out != "" || !strings.Contains(said, err) {
				t.Errorf("status %d, standard error lacks %q:\n%s\n%s", status, err, said, out)
			}
		})
	}
	nothing := func(*testing.T) {}
	refused("another encryption context", nothing, "InvalidCiphertext", with("--encryption-context", "more=1")...)
	refused("another key", nothing, "does not exist", "kms-decrypt", "--key-id", "arn:aws:kms:eu-central-1:123456789012:key/00000000-0000-0000-0000-000000000000", "--ciphertext", "secret.kms")
	refused("the policy of another image", func(t *testing.T) {
		before := service.Policy
		t.Cleanup(func() { service.Policy = before })
		pcrs := map[int]string{4: strings.Repeat("4b", 48), 12: doc.PCR(12), 13: doc.PCR(13)}
		service.Policy = parsedPolicy(t, keyPolicy(t, writeMeasurements(t, "other.json", "SHA384", pcrs)))
	}, "access denied: its policy does not let this role use it from an instance with these PCRs", args...)
	refused("another emulator's root", func(t *testing.T) {
		t.Cleanup(func() { believed = []nitrotpm.Root{root} })
		_, other, _ := instance(t)
		content, err := os.ReadFile(other)
		if err != nil {
			t.Fatal(err)
		}
		another, err := nitrotpm.ParseRoot(content)
		if err != nil {
			t.Fatal(err)
		}
		believed = []nitrotpm.Root{another}
	}, "attestation document refused: root", args...)
	refused("AWS's root", func(t *testing.T) {
		t.Cleanup(func() { believed = []nitrotpm.Root{root} })
		believed = []nitrotpm.Root{nitrotpm.AWSRoot()}
	}, "attestation document refused: root: expected AWS's", args...)
	refused("ten minutes later", func(t *testing.T) {
		t.Cleanup(func() { service.Now = nil })
		service.Now = func() time.Time { return time.Now().Add(10 * time.Minute) }
	}, "attestation document refused: timestamp", args...)
	refused("who does not know documents", func(t *testing.T) { t.Setenv("AWS_ENDPOINT_URL", moto) }, "the answer has the secret in the clear", args...)

	// The same image with a command line from outside: PCR 12 is another from now on.
	tpm, err := open(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	testenv.Extend(t, tpm, 12, bytes.Repeat([]byte{0xcc}, 48))
	refused("another command line", nothing, "access denied", args...)
	if _, _, said := on(t, open, args...); !strings.Contains(said, "note: PCR 12 of this instance is ") || strings.Contains(said, "note: PCR 12 of this instance is "+doc.PCR(12)) || !strings.Contains(said, "note: PCR 4 of this instance is "+doc.PCR(4)) {
		t.Errorf("standard error %s", said)
	}
}

func TestKMSDecryptCommandLine(t *testing.T) {
	noJob(t)
	for name, value := range map[string]string{"AWS_REGION": "", "AWS_DEFAULT_REGION": "", "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_EC2_METADATA_DISABLED": "true"} {
		t.Setenv(name, value)
	}
	t.Chdir(t.TempDir())
	for name, size := range map[string]int{"blob": 100, "empty": 0, "large": 6145} {
		if err := os.WriteFile(name, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	key := []string{"--key-id", "alias/a"}
	for _, tc := range []struct {
		name   string
		args   []string
		status int
		stderr string
	}{
		{"nothing", nil, 2, "give the encrypted secret in --ciphertext"},
		{"no key", []string{"--ciphertext", "blob"}, 2, "say in --key-id which key"},
		{"an argument", append(key, "--ciphertext", "blob", "more"), 2, `"more" is one argument too many`},
		{"no context", append(key, "--ciphertext", "blob", "--encryption-context", "a"), 2, `"a" is not NAME=VALUE`},
		{"context without name", append(key, "--ciphertext", "blob", "--encryption-context", "=a"), 2, `"=a" is not NAME=VALUE`},
		{"a name twice", append(key, "--ciphertext", "blob", "--encryption-context", "a=1", "--encryption-context", "a=2"), 2, `"a=2" is not NAME=VALUE with a NAME of its own`},
		{"no file", append(key, "--ciphertext", "missing"), 1, "read the ciphertext: open missing"},
		{"empty", append(key, "--ciphertext", "empty"), 1, "the ciphertext has 0 bytes"},
		{"too large", append(key, "--ciphertext", "large"), 1, "large is longer than the 6144 bytes"},
		{"no region", append(key, "--ciphertext", "blob"), 1, "no AWS region is set: name the key by its ARN"},
		{"an ARN of another service", []string{"--key-id", "arn:aws:s3:::bucket", "--ciphertext", "blob"}, 1, "not that of a key in KMS"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			status, out, said := execute(t, append([]string{"kms-decrypt"}, tc.args...)...)
			if status != tc.status || out != "" || !strings.Contains(said, tc.stderr) {
				t.Errorf("status %d, want %d; standard error lacks %q:\n%s\n%s", status, tc.status, tc.stderr, said, out)
			}
		})
	}
}

// TestSecretIsNotLogged refuses the journal, by the number of its file, and takes a
// pipe and a file.
func TestSecretIsNotLogged(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	t.Setenv("JOURNAL_STREAM", "")
	if err := mayCarrySecret(file); err != nil {
		t.Error(err)
	}
	t.Setenv("JOURNAL_STREAM", "1:2")
	if err := mayCarrySecret(file); err != nil {
		t.Error(err)
	}
	t.Setenv("JOURNAL_STREAM", journalStream(t, file))
	if err := mayCarrySecret(file); err == nil || !strings.Contains(err.Error(), "standard output is the journal") {
		t.Errorf("error %v", err)
	}
}

// journalStream is what $JOURNAL_STREAM would be, were a file the journal.
func journalStream(t *testing.T, file *os.File) string {
	t.Helper()
	out, err := exec.Command("stat", "--format=%d:%i", file.Name()).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}
