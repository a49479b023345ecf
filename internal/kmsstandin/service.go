package kmsstandin

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/org/attestable-image-action/internal/cms"
	"github.com/org/attestable-image-action/internal/strictjson"
	"github.com/org/attestable-image-action/nitrotpm"
)

// Name is how the stand-in calls itself in each answer and message.
const Name = "AWS KMS stand-in, which is not AWS KMS"

// Call is a call of Decrypt as far as the key is concerned.
type Call struct {
	KeyID      string
	Ciphertext []byte
	Context    map[string]string // encryption context
}

// Error is an answer that refuses a call.
type Error struct {
	Code    string // "AccessDeniedException" and so on
	Message string
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// Service answers calls in KMS's protocol (AWS JSON 1.1 over HTTP). All fields but
// Log and Now are needed.
type Service struct {
	// Roots are the roots of the emulators to believe. AWS's is not among them,
	// unless it is given.
	Roots func() ([]nitrotpm.Root, error)
	// Policy is the key's policy.
	Policy *Policy
	// Decrypt decrypts for a caller that may have the plaintext. An *Error is passed
	// on to the caller.
	Decrypt func(ctx context.Context, call Call) (plaintext []byte, keyID string, err error)
	// Log gets a line for each call: what was decided and why, never a secret.
	Log *slog.Logger
	// Now is the time of the check.
	Now func() time.Time
}

const (
	// maxRequest bounds the body of a request, in bytes: a document of
	// nitrotpm.MaxDocument bytes and the largest ciphertext, in base64, and the rest.
	maxRequest = 64 << 10
	// maxAge is how old a document may be.
	maxAge = 5 * time.Minute
	// minRSABits is the smallest key of a recipient.
	minRSABits = 2048
)

// ServeHTTP answers one call.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Server", Name)
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Amzn-Requestid", rand.Text())
	answer, err := s.answer(w, r)
	status := http.StatusOK
	var refused *Error
	switch {
	case errors.As(err, &refused):
		status, answer = http.StatusBadRequest, map[string]string{"__type": refused.Code, "message": refused.Message + " (" + Name + ")"}
	case err != nil:
		status, answer = http.StatusInternalServerError, map[string]string{"__type": "KMSInternalException", "message": err.Error() + " (" + Name + ")"}
	}
	if s.Log != nil {
		if err != nil {
			s.Log.Warn("refused", "caller", r.RemoteAddr, "reason", err.Error())
		} else {
			s.Log.Info("released", "caller", r.RemoteAddr)
		}
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer) // otherwise the client is gone
}

// decryptInput is what a call of Decrypt has: AWS KMS API Reference, Decrypt.
type decryptInput struct {
	KeyID               string `json:"KeyId"`
	CiphertextBlob      []byte
	EncryptionAlgorithm string
	EncryptionContext   map[string]string
	Recipient           *struct {
		KeyEncryptionAlgorithm string
		AttestationDocument    []byte
	}
}

// decryptOutput is what Decrypt answers. Exactly one of the two has the secret.
type decryptOutput struct {
	KeyID                  string `json:"KeyId"`
	EncryptionAlgorithm    string
	Plaintext              []byte `json:",omitempty"`
	CiphertextForRecipient []byte `json:",omitempty"`
}

const symmetricDefault = "SYMMETRIC_DEFAULT"

func (s *Service) answer(w http.ResponseWriter, r *http.Request) (any, error) {
	if r.Method != http.MethodPost || r.URL.Path != "/" {
		return nil, &Error{"UnknownOperationException", "calls are POST /"}
	}
	// The signature is not checked: there is nobody whose key could be known.
	if !strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ") {
		return nil, &Error{"MissingAuthenticationTokenException", "the request is not signed (SigV4)"}
	}
	if target := r.Header.Get("X-Amz-Target"); target != "TrentService.Decrypt" {
		return nil, &Error{"UnknownOperationException", fmt.Sprintf("%.80q is not known here, only TrentService.Decrypt", target)}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err != nil {
		return nil, &Error{"SerializationException", err.Error()}
	}
	var in decryptInput
	if err := strictjson.UnmarshalClosed(body, &in); err != nil {
		return nil, &Error{"SerializationException", err.Error()}
	}
	if in.EncryptionAlgorithm != "" && in.EncryptionAlgorithm != symmetricDefault {
		return nil, &Error{"ValidationException", "EncryptionAlgorithm is not SYMMETRIC_DEFAULT"}
	}
	conditions, recipient, err := s.recipient(&in)
	if err != nil {
		return nil, err
	}
	if !s.Policy.Allows(AnyPrincipal, "kms:Decrypt", conditions) {
		return nil, &Error{"AccessDeniedException", "the key policy allows kms:Decrypt to nobody with these PCRs: " + describe(conditions)}
	}
	plaintext, keyID, err := s.Decrypt(r.Context(), Call{in.KeyID, in.CiphertextBlob, in.EncryptionContext})
	if err != nil {
		return nil, err
	}
	out := decryptOutput{KeyID: keyID, EncryptionAlgorithm: symmetricDefault}
	if recipient == nil {
		out.Plaintext = plaintext
		return out, nil
	}
	if out.CiphertextForRecipient, err = cms.Seal(plaintext, recipient); err != nil {
		return nil, err
	}
	return out, nil
}

// recipient verifies the document of a call, and takes from it the keys for the
// policy's conditions and the key to encrypt to. A call without a document has
// neither.
func (s *Service) recipient(in *decryptInput) (conditions map[string]string, key *rsa.PublicKey, err error) {
	if in.Recipient == nil {
		return nil, nil, nil
	}
	invalid := func(format string, args ...any) error {
		return &Error{"ValidationException", fmt.Sprintf(format, args...)}
	}
	if in.Recipient.KeyEncryptionAlgorithm != "RSAES_OAEP_SHA_256" {
		return nil, nil, invalid("KeyEncryptionAlgorithm is not RSAES_OAEP_SHA_256")
	}
	d, err := nitrotpm.Parse(in.Recipient.AttestationDocument)
	if err != nil {
		return nil, nil, invalid("%v", err)
	}
	roots, err := s.Roots()
	if err != nil {
		return nil, nil, err
	}
	if len(roots) == 0 {
		return nil, nil, errors.New("no root to believe is known")
	}
	// KMS knows neither who is to be believed nor what to expect: the conditions of
	// the policy say which PCRs, and freshness is a matter of the timestamp.
	policy := nitrotpm.Policy{Roots: roots, AnyNonce: true, AnyPCRs: true, MaxAge: maxAge}
	if s.Now != nil {
		policy.At = s.Now()
	}
	if _, err := policy.Verify(d); err != nil {
		return nil, nil, invalid("%v", err)
	}
	public, err := x509.ParsePKIXPublicKey(d.PublicKey)
	if err != nil {
		return nil, nil, invalid("public_key of the attestation document is no SubjectPublicKeyInfo: %v", err)
	}
	key, ok := public.(*rsa.PublicKey)
	if !ok || key.N.BitLen() < minRSABits {
		return nil, nil, invalid("public_key of the attestation document is not an RSA key of %d bits", minRSABits)
	}
	conditions = make(map[string]string, len(d.PCRs))
	for n, value := range d.PCRs {
		conditions["kms:RecipientAttestation:NitroTPMPCR"+strconv.Itoa(n)] = hex.EncodeToString(value)
	}
	return conditions, key, nil
}

// describe names the PCRs that a policy usually binds.
func describe(conditions map[string]string) string {
	if conditions == nil {
		return "none, since there was no attestation document"
	}
	var parts []string
	for _, n := range []string{"4", "7", "12"} {
		parts = append(parts, "PCR "+n+" "+conditions["kms:RecipientAttestation:NitroTPMPCR"+n])
	}
	return strings.Join(parts, ", ")
}
