package testenv

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"sync"
	"testing"
)

// KMS stands in for AWS KMS where moto does not do as KMS does: it signs
// digests (MessageType DIGEST) as they are. It knows GetPublicKey and Sign, for
// RSA keys, in AWS's JSON 1.1 protocol.
type KMS struct {
	mu    sync.Mutex
	keys  map[string]*rsa.PrivateKey
	signs int
}

// StartKMS starts the stand-in with keys by their identifiers, and points AWS's
// SDK to it by the environment.
func StartKMS(t testing.TB, keys map[string]*rsa.PrivateKey) *KMS {
	t.Helper()
	k := &KMS{keys: keys}
	useAWS(t, serve(t, k))
	return k
}

// Signs is how many signatures were made.
func (k *KMS) Signs() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.signs
}

// ServeHTTP answers one call.
func (k *KMS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	defer k.mu.Unlock()
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	answer := func(status int, body any) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(body) // the client is gone otherwise
	}
	refuse := func(kind, message string) {
		answer(http.StatusBadRequest, map[string]string{"__type": kind, "message": message})
	}
	var in struct {
		KeyID            string `json:"KeyId"`
		Message          []byte
		MessageType      string
		SigningAlgorithm string
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&in); err != nil {
		refuse("SerializationException", err.Error())
		return
	}
	key := k.keys[in.KeyID]
	if key == nil {
		refuse("NotFoundException", "Key '"+in.KeyID+"' does not exist")
		return
	}
	const algorithm = "RSASSA_PKCS1_V1_5_SHA_256"
	switch r.Header.Get("X-Amz-Target") {
	case "TrentService.GetPublicKey":
		der, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			refuse("KMSInternalException", err.Error())
			return
		}
		answer(http.StatusOK, map[string]any{
			"KeyId": in.KeyID, "PublicKey": der, "KeyUsage": "SIGN_VERIFY", "KeySpec": "RSA_2048", "SigningAlgorithms": []string{algorithm},
		})
	case "TrentService.Sign":
		switch {
		case in.SigningAlgorithm != algorithm:
			refuse("ValidationException", "this stand-in does not sign with "+in.SigningAlgorithm)
			return
		case in.MessageType != "DIGEST" || len(in.Message) != crypto.SHA256.Size():
			refuse("ValidationException", "Digest is invalid length for algorithm "+in.SigningAlgorithm)
			return
		}
		signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, in.Message)
		if err != nil {
			refuse("KMSInternalException", err.Error())
			return
		}
		k.signs++
		answer(http.StatusOK, map[string]any{"KeyId": in.KeyID, "Signature": signature, "SigningAlgorithm": in.SigningAlgorithm})
	default:
		refuse("UnknownOperationException", r.Header.Get("X-Amz-Target"))
	}
}
