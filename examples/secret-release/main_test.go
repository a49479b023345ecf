package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/org/attestable-image-action/internal/awskms"
	"github.com/org/attestable-image-action/internal/nsm"
	"github.com/org/attestable-image-action/internal/testenv"
	"github.com/org/attestable-image-action/internal/vm"
)

// keyPolicy is a policy with PCR 4 and 12, as kms-policy prints one.
func keyPolicy(pcr4, pcr12 string) string {
	const condition = "kms:RecipientAttestation:NitroTPMPCR"
	return fmt.Sprintf(`{"Version":"2012-10-17","Statement":[{"Sid":"UseWhenAttested1","Effect":"Allow",
		"Principal":{"AWS":["arn:aws:iam::111122223333:role/image"]},"Action":["kms:Decrypt"],"Resource":"*",
		"Condition":{"StringEqualsIgnoreCase":{"%s4":%q,"%s12":%q}}}]}`, condition, pcr4, condition, pcr12)
}

// TestSecretRelease seals a secret, serves, and has it released to an emulated
// NitroTPM with the right PCRs, and not once PCR 12 is another.
func TestSecretRelease(t *testing.T) {
	n, err := vm.EmulateNitroTPM()
	if err != nil {
		t.Fatal(err)
	}
	tpm := n.Layer(testenv.SoftwareTPM(t))
	t.Chdir(t.TempDir())
	zero := hex.EncodeToString(make([]byte, 48))
	const secret = "a secret"
	for name, content := range map[string]string{"secret": secret, "root.pem": string(n.RootPEM()), "policy.json": keyPolicy(zero, zero), "long": strings.Repeat("x", 4097), "bad.key": "00"} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var ciphertext, again bytes.Buffer
	for _, out := range []*bytes.Buffer{&ciphertext, &again} {
		if err := run(t.Context(), []string{"seal", "-key", "key", "secret"}, out, io.Discard); err != nil {
			t.Fatal(err)
		}
	}
	if bytes.Contains(ciphertext.Bytes(), []byte(secret)) || bytes.Equal(ciphertext.Bytes(), again.Bytes()) {
		t.Errorf("the ciphertext is %q", ciphertext.Bytes())
	}
	if info, err := os.Stat("key"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's file: %v, %v", info, err)
	}

	said, write := io.Pipe()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, []string{"serve", "-key", "key", "-policy", "policy.json", "-root", "root.pem", "-listen", "127.0.0.1:0"}, io.Discard, write)
		write.Close()
	}()
	var first string
	if _, err := fmt.Fscanf(said, "AWS KMS stand-in, which is not AWS KMS: %s\n", &first); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, said) }()
	for name, value := range map[string]string{
		"AWS_ENDPOINT_URL": first, "AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_SESSION_TOKEN": "",
		"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_PROFILE": "",
	} {
		t.Setenv(name, value)
	}
	release := func(key string, ciphertext []byte, pairs map[string]string) (string, error) {
		out, err := awskms.Decrypt(t.Context(), awskms.Sealed{KeyID: key, Ciphertext: ciphertext, Context: pairs, Region: "us-east-1"}, func(_ context.Context, publicKey []byte) ([]byte, error) {
			return nsm.Get(tpm, nsm.Request{PublicKey: publicKey})
		})
		return string(out), err
	}
	for _, sealed := range [][]byte{ciphertext.Bytes(), again.Bytes()} {
		if got, err := release(keyARN, sealed, nil); err != nil || got != secret {
			t.Errorf("%q, %v", got, err)
		}
	}
	for _, tc := range []struct {
		name, key  string
		ciphertext []byte
		pairs      map[string]string
		err        string
	}{
		{"another key", "alias/other", ciphertext.Bytes(), nil, "NotFoundException"},
		{"a changed ciphertext", keyARN, append(bytes.Clone(ciphertext.Bytes()), 0), nil, "InvalidCiphertextException"},
		{"a ciphertext of somebody else", keyARN, []byte("ciphertext"), nil, "InvalidCiphertextException"},
		{"an encryption context", keyARN, ciphertext.Bytes(), map[string]string{"a": "b"}, "InvalidCiphertextException"},
	} {
		if got, err := release(tc.key, tc.ciphertext, tc.pairs); err == nil || !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s: %q, %v", tc.name, got, err)
		}
	}
	if _, err := (tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: 12, Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA384, Digest: bytes.Repeat([]byte{1}, 48)}}},
	}).Execute(tpm); err != nil {
		t.Fatal(err)
	}
	if got, err := release(keyARN, ciphertext.Bytes(), nil); err == nil || !strings.Contains(err.Error(), "access denied") {
		t.Errorf("with another PCR 12: %q, %v", got, err)
	}
	stop()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("it does not end")
	}

	for name, args := range map[string][]string{
		"nothing": nil, "another command": {"open"}, "no key": {"seal", "secret"}, "no secret": {"seal", "-key", "key"}, "a long secret": {"seal", "-key", "key", "long"},
		"a missing secret": {"seal", "-key", "key", "missing"}, "no key in the file": {"seal", "-key", "bad.key", "secret"}, "no policy": {"serve", "-key", "key", "-root", "root.pem"},
		"a policy that is none": {"serve", "-key", "key", "-root", "root.pem", "-policy", "root.pem"}, "no address": {"serve", "-key", "key", "-policy", "policy.json", "-root", "root.pem", "-listen", "nowhere"},
		"no key to serve": {"serve", "-key", "missing", "-policy", "policy.json", "-root", "root.pem"},
	} {
		if err := run(t.Context(), args, io.Discard, io.Discard); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
