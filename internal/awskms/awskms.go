// Package awskms uses keys that AWS KMS keeps and that never leave the service. Open
// signs with an RSA key, to which only digests of 32 bytes are sent. Decrypt has a
// secret decrypted for the instance that an attestation document vouches for.
package awskms

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// Key is an asymmetric signing key in AWS KMS. It is a crypto.Signer.
type Key struct {
	ctx    context.Context // crypto.Signer has no way for one
	client *kms.Client
	id     string
	public crypto.PublicKey
}

const algorithm = types.SigningAlgorithmSpecRsassaPkcs1V15Sha256

// Open finds a key by its identifier, ARN or alias ("alias/NAME"). Credentials
// and region come from where AWS's tools take them. ctx also ends what Sign is
// doing.
func Open(ctx context.Context, id string) (*Key, error) {
	c, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return nil, fmt.Errorf("open AWS KMS key %s: read the AWS configuration: %w", id, err)
	}
	if c.Region == "" {
		return nil, fmt.Errorf("open AWS KMS key %s: no AWS region is set: set AWS_REGION", id)
	}
	client := kms.NewFromConfig(c)
	out, err := client.GetPublicKey(ctx, &kms.GetPublicKeyInput{KeyId: &id})
	if err != nil {
		return nil, fmt.Errorf("open AWS KMS key %s: get its public key (permission kms:GetPublicKey): %w", id, err)
	}
	if out.KeyUsage != types.KeyUsageTypeSignVerify {
		return nil, fmt.Errorf("open AWS KMS key %s: it is for %s: make a key with the usage SIGN_VERIFY", id, out.KeyUsage)
	}
	public, err := x509.ParsePKIXPublicKey(out.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("open AWS KMS key %s: read its public key: %w", id, err)
	}
	if _, ok := public.(*rsa.PublicKey); ok && !slices.Contains(out.SigningAlgorithms, algorithm) {
		return nil, fmt.Errorf("open AWS KMS key %s: it does not sign with %s", id, algorithm)
	}
	return &Key{ctx, client, id, public}, nil
}

// Public is the key's public half.
func (k *Key) Public() crypto.PublicKey { return k.public }

// Sign makes an RSASSA-PKCS1-v1_5 signature of a SHA-256 digest. The random
// source is not used.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if _, pss := opts.(*rsa.PSSOptions); pss || opts.HashFunc() != crypto.SHA256 || len(digest) != crypto.SHA256.Size() {
		return nil, errors.New("sign with AWS KMS: only RSASSA-PKCS1-v1_5 over a SHA-256 digest is supported")
	}
	out, err := k.client.Sign(k.ctx, &kms.SignInput{
		KeyId: &k.id, Message: digest, MessageType: types.MessageTypeDigest, SigningAlgorithm: algorithm,
	})
	if err != nil {
		return nil, fmt.Errorf("sign with AWS KMS key %s (permission kms:Sign): %w", k.id, err)
	}
	return out.Signature, nil
}
