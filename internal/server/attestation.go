package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"time"

	"github.com/org/attestable-image-action/internal/nsm"
	"github.com/org/attestable-image-action/internal/strictjson"
	"github.com/org/attestable-image-action/nitrotpm"
)

// request is the body of POST /v1/attestation; bytes are base64 in JSON.
type request struct {
	Nonce    []byte `json:"nonce"`
	UserData []byte `json:"user_data,omitempty"`
	// PublicKey is there to be refused with a reason.
	PublicKey json.RawMessage `json:"public_key,omitempty"`
}

// attestation answers with a document.
func (s *Server) attestation(w http.ResponseWriter, r *http.Request) {
	asked, status, err := readRequest(w, r)
	if err != nil {
		refuse(w, status, err.Error())
		return
	}
	if !s.rate.take(time.Now()) {
		w.Header().Set("Retry-After", retryAfter)
		refuse(w, http.StatusTooManyRequests, "more is asked of this instance than it answers; try again later")
		return
	}
	select {
	case s.queue <- struct{}{}:
		defer func() { <-s.queue }()
	default:
		w.Header().Set("Retry-After", retryAfter)
		refuse(w, http.StatusServiceUnavailable, "too many requests wait for the TPM; try again later")
		return
	}
	document, err := s.document(r.Context(), nsm.Request{Nonce: asked.Nonce, UserData: asked.UserData, PublicKey: s.publicKey})
	switch {
	case errors.Is(err, nsm.ErrNotNitroTPM):
		fail(w, http.StatusNotImplemented, "this machine has no NitroTPM", err)
	case errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled):
		w.Header().Set("Retry-After", retryAfter)
		fail(w, http.StatusServiceUnavailable, "the TPM is in use; try again later", err)
	case err != nil:
		// What the TPM says is for the log: the caller can do nothing about it.
		fail(w, http.StatusBadGateway, "the TPM gave no document", err)
	default:
		answer(w, mediaDocument, document)
	}
}

// document waits for the TPM and asks it. A caller that goes away is not waited
// for, but a command that was begun comes to its end, so that nothing stays behind.
func (s *Server) document(ctx context.Context, request nsm.Request) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, tpmTime)
	defer cancel()
	select {
	case s.tpm <- struct{}{}:
		defer func() { <-s.tpm }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	tpm, err := s.config.OpenTPM(ctx)
	if err != nil {
		return nil, err
	}
	defer tpm.Close()
	return s.attester.Get(tpm, request)
}

// readRequest reads the body, and says with which status it is refused.
func readRequest(w http.ResponseWriter, r *http.Request) (asked request, status int, err error) {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return asked, http.StatusUnsupportedMediaType, errors.New("the request is not JSON: send Content-Type: application/json")
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		if _, large := errors.AsType[*http.MaxBytesError](err); large {
			return asked, http.StatusRequestEntityTooLarge, fmt.Errorf("the request has more than %d bytes", maxBody)
		}
		return asked, http.StatusBadRequest, errors.New("the request ends early")
	}
	if err := strictjson.UnmarshalClosed(body, &asked); err != nil {
		return asked, http.StatusBadRequest, errors.New(`the request is not {"nonce": base64, "user_data": base64}`)
	}
	switch {
	case asked.PublicKey != nil:
		err = errors.New("public_key is the key of this TLS session, and not the caller's to choose")
	case len(asked.Nonce) < minNonce || len(asked.Nonce) > maxNonce:
		err = fmt.Errorf("the nonce has %d bytes; between %d and %d are possible", len(asked.Nonce), minNonce, maxNonce)
	case len(asked.UserData) > nitrotpm.MaxField:
		err = fmt.Errorf("user_data has %d bytes, more than %d", len(asked.UserData), nitrotpm.MaxField)
	default:
		return asked, 0, nil
	}
	return asked, http.StatusBadRequest, err
}

// measurements answers with the image's own measurements document. It is a
// convenience: a client believes what is attested, and not what an instance says.
func (s *Server) measurements(w http.ResponseWriter, _ *http.Request) {
	if s.config.Measurements == nil {
		refuse(w, http.StatusNotFound, "this instance has no measurements document: take it from the image's artifact")
		return
	}
	answer(w, "application/json", s.config.Measurements)
}

func answer(w http.ResponseWriter, kind string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(body) // a caller that went away is told nothing
}

// refuse answers with an error that is the caller's.
func refuse(w http.ResponseWriter, status int, reason string) { fail(w, status, reason, nil) }

// fail answers with an error, and leaves its cause to the log.
func fail(w http.ResponseWriter, status int, reason string, err error) {
	if r, ok := w.(*recorder); ok {
		r.err = err
	}
	body, marshaled := json.Marshal(map[string]string{"error": reason})
	if marshaled != nil {
		body = []byte("{}")
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
}
