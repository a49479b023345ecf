package awskms

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws/arn"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"

	"github.com/org/attestable-image-action/internal/cms"
)

// MaxCiphertext bounds a ciphertext of KMS, in bytes: AWS KMS API Reference,
// Decrypt.
const MaxCiphertext = 6144

// Sealed is a secret that is encrypted with a key in AWS KMS.
type Sealed struct {
	Ciphertext []byte            // as Encrypt returned it, at most MaxCiphertext bytes
	Context    map[string]string // the encryption context that Encrypt was given
	// KeyID is the identifier, ARN or alias ("alias/NAME") of the key. It is needed:
	// without one KMS takes whatever key the ciphertext names, and who can exchange
	// the ciphertext could exchange the secret, too.
	KeyID string
	// Region is where the key is. Empty means where KeyID says that it is, when that
	// is an ARN, and otherwise where AWS's configuration says.
	Region string
}

// ErrAccessDenied means that KMS does not let this caller use the key: its role may
// not, or the instance's PCRs are not those of the key policy's conditions.
var ErrAccessDenied = errors.New("access denied")

// recipientBits is the size of the recipient's key: AWS KMS takes RSA keys of 2048
// bits there.
const recipientBits = 2048

// Decrypt has AWS KMS decrypt a secret for this instance alone: KMS checks the
// attestation document against the conditions of the key's policy, and encrypts the
// answer to the key that the document vouches for. That key is made here, for this
// one call. document makes a document whose public_key is the given one (RSA,
// SubjectPublicKeyInfo in DER).
//
// Credentials come from where AWS's tools take them.
func Decrypt(ctx context.Context, s Sealed, document func(ctx context.Context, publicKey []byte) ([]byte, error)) ([]byte, error) {
	plaintext, err := decrypt(ctx, s, document)
	if err != nil {
		return nil, fmt.Errorf("decrypt with AWS KMS key %s: %w", s.KeyID, err)
	}
	return plaintext, nil
}

func decrypt(ctx context.Context, s Sealed, document func(ctx context.Context, publicKey []byte) ([]byte, error)) ([]byte, error) {
	switch {
	case s.KeyID == "":
		return nil, errors.New("no key is named")
	case len(s.Ciphertext) == 0 || len(s.Ciphertext) > MaxCiphertext:
		return nil, fmt.Errorf("the ciphertext has %d bytes; between 1 and %d are possible", len(s.Ciphertext), MaxCiphertext)
	}
	if s.Region == "" && arn.IsARN(s.KeyID) {
		parsed, err := arn.Parse(s.KeyID)
		if err != nil || parsed.Service != "kms" {
			return nil, errors.New("its ARN is not that of a key in KMS")
		}
		s.Region = parsed.Region
	}
	var options []func(*config.LoadOptions) error
	if s.Region != "" {
		options = append(options, config.WithRegion(s.Region))
	}
	c, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("read the AWS configuration: %w", err)
	}
	if c.Region == "" {
		return nil, errors.New("no AWS region is set: name the key by its ARN, or set AWS_REGION")
	}

	key, err := rsa.GenerateKey(rand.Reader, recipientBits)
	if err != nil {
		return nil, err
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	attestation, err := document(ctx, public)
	if err != nil {
		return nil, err
	}
	out, err := kms.NewFromConfig(c).Decrypt(ctx, &kms.DecryptInput{
		CiphertextBlob: s.Ciphertext, EncryptionContext: s.Context, KeyId: &s.KeyID,
		Recipient: &types.RecipientInfo{
			AttestationDocument: attestation, KeyEncryptionAlgorithm: types.KeyEncryptionMechanismRsaesOaepSha256,
		},
	})
	if api := smithy.APIError(nil); errors.As(err, &api) && api.ErrorCode() == "AccessDeniedException" {
		return nil, fmt.Errorf("%w: its policy does not let this role use it from an instance with these PCRs (kms-policy prints one that does): %s", ErrAccessDenied, api.ErrorMessage())
	}
	if err != nil {
		return nil, err
	}
	if len(out.Plaintext) > 0 {
		return nil, errors.New("the answer has the secret in the clear: whatever answered does not know attestation documents, and is not AWS KMS: is AWS_ENDPOINT_URL set?")
	}
	plaintext, err := cms.Open(out.CiphertextForRecipient, key)
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	return plaintext, nil
}
