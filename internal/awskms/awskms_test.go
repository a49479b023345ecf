package awskms

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/org/attestable-image-action/internal/testenv"
)

func makeKey(t *testing.T, spec types.KeySpec, usage types.KeyUsageType) string {
	t.Helper()
	c, err := config.LoadDefaultConfig(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out, err := kms.NewFromConfig(c).CreateKey(t.Context(), &kms.CreateKeyInput{KeySpec: spec, KeyUsage: usage})
	if err != nil {
		t.Fatal(err)
	}
	return aws.ToString(out.KeyMetadata.KeyId)
}

// TestSign signs a digest as AWS KMS does, which moto does not.
func TestSign(t *testing.T) {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	service := testenv.StartKMS(t, map[string]*rsa.PrivateKey{"alias/secure-boot": private})
	key, err := Open(t.Context(), "alias/secure-boot")
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("what is signed"))
	signature, err := key.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if err := rsa.VerifyPKCS1v15(&private.PublicKey, crypto.SHA256, digest[:], signature); err != nil {
		t.Error(err)
	}
	if !private.PublicKey.Equal(key.Public()) || service.Signs() != 1 {
		t.Errorf("%d signatures, public key %v", service.Signs(), key.Public())
	}
}

// TestKey uses keys in moto. It passes over MessageType (moto 5 says so), and
// so signs the digest of the digest.
func TestKey(t *testing.T) {
	testenv.StartAWS(t)
	digest := sha256.Sum256([]byte("what is signed"))
	for _, spec := range []types.KeySpec{types.KeySpecRsa2048, types.KeySpecRsa4096} {
		t.Run(string(spec), func(t *testing.T) {
			key, err := Open(t.Context(), makeKey(t, spec, types.KeyUsageTypeSignVerify))
			if err != nil {
				t.Fatal(err)
			}
			signature, err := key.Sign(nil, digest[:], crypto.SHA256)
			if err != nil {
				t.Fatal(err)
			}
			public, ok := key.Public().(*rsa.PublicKey)
			if !ok {
				t.Fatalf("the public key is a %T", key.Public())
			}
			twice := sha256.Sum256(digest[:])
			if err := rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], signature); err != nil && rsa.VerifyPKCS1v15(public, crypto.SHA256, twice[:], signature) != nil {
				t.Error(err)
			}
			for name, opts := range map[string]crypto.SignerOpts{
				"PSS": &rsa.PSSOptions{Hash: crypto.SHA256}, "SHA-384": crypto.SHA384,
			} {
				if _, err := key.Sign(nil, digest[:], opts); err == nil || !strings.Contains(err.Error(), "only RSASSA-PKCS1-v1_5 over a SHA-256 digest") {
					t.Errorf("%s: %v", name, err)
				}
			}
			if _, err := key.Sign(nil, digest[:31], crypto.SHA256); err == nil {
				t.Error("a digest of 31 bytes was signed")
			}
		})
	}
	t.Run("ECDSA", func(t *testing.T) {
		key, err := Open(t.Context(), makeKey(t, types.KeySpecEccNistP256, types.KeyUsageTypeSignVerify))
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := key.Public().(*ecdsa.PublicKey); !ok {
			t.Errorf("the public key is a %T", key.Public())
		}
	})
	t.Run("for encryption", func(t *testing.T) {
		_, err := Open(t.Context(), makeKey(t, types.KeySpecRsa2048, types.KeyUsageTypeEncryptDecrypt))
		if err == nil || !strings.Contains(err.Error(), "make a key with the usage SIGN_VERIFY") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("missing", func(t *testing.T) {
		_, err := Open(t.Context(), "alias/missing")
		if err == nil || !strings.Contains(err.Error(), "open AWS KMS key alias/missing: get its public key (permission kms:GetPublicKey)") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		key, err := Open(ctx, makeKey(t, types.KeySpecRsa2048, types.KeyUsageTypeSignVerify))
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if _, err := key.Sign(nil, digest[:], crypto.SHA256); err == nil || !strings.Contains(err.Error(), "context canceled") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no region", func(t *testing.T) {
		t.Setenv("AWS_REGION", "")
		t.Setenv("AWS_DEFAULT_REGION", "")
		if _, err := Open(t.Context(), "some-key"); err == nil || !strings.Contains(err.Error(), "set AWS_REGION") {
			t.Errorf("got %v", err)
		}
	})
}
