package awskms

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2/transport"

	"github.com/org/attestable-image-action/internal/kmsstandin"
	"github.com/org/attestable-image-action/internal/nsm"
	"github.com/org/attestable-image-action/internal/testenv"
	"github.com/org/attestable-image-action/internal/vm"
	"github.com/org/attestable-image-action/nitrotpm"
)

// releasing starts a stand-in for KMS that gives a secret to everyone who has a
// document, and returns an emulated NitroTPM that it believes.
func releasing(t *testing.T, secret string) transport.TPM {
	t.Helper()
	n, err := vm.EmulateNitroTPM()
	if err != nil {
		t.Fatal(err)
	}
	policy, err := kmsstandin.ParsePolicy([]byte(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"a"},"Action":"kms:Decrypt","Resource":"*"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(&kmsstandin.Service{
		Roots:  func() ([]nitrotpm.Root, error) { return []nitrotpm.Root{nitrotpm.Fingerprint(n.Root())}, nil },
		Policy: policy,
		Decrypt: func(_ context.Context, call kmsstandin.Call) ([]byte, string, error) {
			return []byte(secret), call.KeyID, nil
		},
	})
	t.Cleanup(server.Close)
	for name, value := range map[string]string{
		"AWS_ENDPOINT_URL": server.URL, "AWS_REGION": "eu-central-1", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
		"AWS_SESSION_TOKEN": "", "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_PROFILE": "",
	} {
		t.Setenv(name, value)
	}
	return n.Layer(testenv.SoftwareTPM(t))
}

// TestDecryptForSomebodyElse has the document vouch for a key of somebody who stands
// between program and TPM. KMS encrypts to that key, and the program cannot open the
// answer: it notices. That somebody in the instance can do so is why an image must
// not let anybody choose public_key.
func TestDecryptForSomebodyElse(t *testing.T) {
	const secret = "a secret"
	tpm := releasing(t, secret)
	sealed := Sealed{Ciphertext: []byte("ciphertext"), KeyID: "alias/a"}
	document := func(_ context.Context, publicKey []byte) ([]byte, error) {
		return nsm.Get(tpm, nsm.Request{PublicKey: publicKey})
	}
	if got, err := Decrypt(t.Context(), sealed, document); err != nil || string(got) != secret {
		t.Fatalf("%q, %v", got, err)
	}
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&other.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decrypt(t.Context(), sealed, func(ctx context.Context, _ []byte) ([]byte, error) { return document(ctx, der) })
	if err == nil || got != nil || !strings.Contains(err.Error(), "it is not encrypted for this key") {
		t.Errorf("%q, %v", got, err)
	}
}

// TestDecryptFails: what does not come as far as KMS.
func TestDecryptFails(t *testing.T) {
	for name, value := range map[string]string{
		"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_REGION": "", "AWS_DEFAULT_REGION": "", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
		"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_PROFILE": "", "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1",
	} {
		t.Setenv(name, value)
	}
	none := errors.New("there is no TPM")
	const key = "arn:aws:kms:eu-central-1:111122223333:key/1234"
	for _, tc := range []struct {
		name   string
		sealed Sealed
		tpm    error
		err    string
	}{
		{"no key", Sealed{Ciphertext: []byte("c")}, nil, "no key is named"},
		{"no ciphertext", Sealed{KeyID: key}, nil, "the ciphertext has 0 bytes"},
		{"a long ciphertext", Sealed{KeyID: key, Ciphertext: make([]byte, 6145)}, nil, "the ciphertext has 6145 bytes"},
		{"no region", Sealed{KeyID: "alias/a", Ciphertext: []byte("c")}, nil, "no AWS region is set"},
		{"an ARN of something else", Sealed{KeyID: "arn:aws:s3:::bucket", Ciphertext: []byte("c")}, nil, "is not that of a key in KMS"},
		{"no TPM", Sealed{KeyID: key, Ciphertext: []byte("c")}, none, none.Error()},
		{"nobody answers", Sealed{KeyID: key, Ciphertext: []byte("c")}, nil, "connection refused"},
		{"a region of its own", Sealed{KeyID: "alias/a", Region: "eu-west-1", Ciphertext: []byte("c")}, nil, "connection refused"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Decrypt(t.Context(), tc.sealed, func(context.Context, []byte) ([]byte, error) { return []byte("document"), tc.tpm })
			if err == nil || !strings.HasPrefix(err.Error(), "decrypt with AWS KMS key ") || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("error %v, want %q", err, tc.err)
			}
		})
	}
}
