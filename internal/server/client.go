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

	"github.com/org/attestable-image-action/internal/nitrotpm"
)

// fetchTime bounds a request of a client.
const fetchTime = 2 * time.Minute

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
			TLSHandshakeTimeout: 30 * time.Second,
			// The document vouches for the key of the session, and no authority does.
			TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}, //nolint:gosec // see above
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("it redirects to somebody else") },
	}
	response, err := client.Do(r)
	if err != nil {
		return nil, nil, fmt.Errorf("ask the instance: %w", err)
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
		_ = json.Unmarshal(content, &failure) // whatever is there is only shown
		return nil, nil, fmt.Errorf("ask the instance: it answers %s: %q", response.Status, failure.Error)
	}
	if len(content) > nitrotpm.MaxDocument {
		return nil, nil, fmt.Errorf("ask the instance: its answer has more than %d bytes", nitrotpm.MaxDocument)
	}
	if response.TLS == nil || len(response.TLS.PeerCertificates) == 0 {
		return nil, nil, errors.New("ask the instance: it showed no certificate")
	}
	return content, response.TLS.PeerCertificates[0].RawSubjectPublicKeyInfo, nil
}
