package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/org/attestable-image-action/internal/strictjson"
	"github.com/org/attestable-image-action/nitrotpm"
)

// Bounds of a client.
const (
	fetchTime     = 2 * time.Minute  // a request
	handshakeTime = 10 * time.Second // of it the TLS handshake
	retryPause    = time.Second      // between two attempts
)

// errNotYet is what an instance ends a request with that may answer a later one: it
// is not up, or has too much to do.
var errNotYet = errors.New("the instance does not answer yet")

// notYet is such an end, in its own words.
type notYet struct{ error }

func (e notYet) Unwrap() error        { return e.error }
func (e notYet) Is(target error) bool { return target == errNotYet }

// Fetch asks the service at a URL (https://HOST[:PORT]) for a document with this
// nonce. publicKey is the key with which the other end of the TLS session proved
// itself, SubjectPublicKeyInfo in DER: the document has to vouch for it. The
// certificate around it proves nothing, and is not looked at.
func Fetch(ctx context.Context, base string, nonce []byte) (document, publicKey []byte, err error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, nil, fmt.Errorf("ask the instance: %q is not a URL as https://HOST:PORT", base)
	}
	if !strings.HasSuffix(u.Path, "/v1/attestation") {
		u = u.JoinPath("v1", "attestation")
	}
	body, err := json.Marshal(request{Nonce: nonce})
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, nil, fmt.Errorf("ask the instance: %w", err)
	}
	r.Header.Set("Content-Type", "application/json")
	client := &http.Client{
		Transport: &http.Transport{
			// No proxy, and no connection that is used twice: the session whose key
			// is compared is the one that the document came through.
			DisableKeepAlives:   true,
			TLSHandshakeTimeout: handshakeTime,
			// The document vouches for the key of the session, and no authority does.
			TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}, //nolint:gosec // see above
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	response, err := client.Do(r)
	if err != nil {
		return nil, nil, notYet{fmt.Errorf("ask the instance: %w", err)}
	}
	defer response.Body.Close()
	content, err := io.ReadAll(io.LimitReader(response.Body, nitrotpm.MaxDocument+1))
	if err != nil {
		return nil, nil, fmt.Errorf("ask the instance: read its answer: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		var failure struct {
			Error string `json:"error"`
		}
		_ = strictjson.Unmarshal(content, &failure) // whatever is there is only shown
		err := fmt.Errorf("ask the instance: it answers %s: %q", response.Status, failure.Error)
		if response.StatusCode == http.StatusTooManyRequests || response.StatusCode == http.StatusServiceUnavailable {
			err = notYet{err}
		}
		return nil, nil, err
	}
	if len(content) > nitrotpm.MaxDocument {
		return nil, nil, fmt.Errorf("ask the instance: its answer has more than %d bytes", nitrotpm.MaxDocument)
	}
	if response.TLS == nil || len(response.TLS.PeerCertificates) == 0 {
		return nil, nil, errors.New("ask the instance: it showed no certificate")
	}
	return content, response.TLS.PeerCertificates[0].RawSubjectPublicKeyInfo, nil
}

// Await is Fetch for an instance that may not be up yet, or busy: it is asked again
// for as long as patience lasts.
func Await(ctx context.Context, base string, nonce []byte, patience time.Duration) (document, publicKey []byte, err error) {
	deadline := time.Now().Add(patience)
	for {
		document, publicKey, err = Fetch(ctx, base, nonce)
		if err == nil || !errors.Is(err, errNotYet) || !time.Now().Add(retryPause).Before(deadline) {
			return document, publicKey, err
		}
		select {
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("%w; the last answer: %w", ctx.Err(), err)
		case <-time.After(retryPause):
		}
	}
}
