package attest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/klauspost/compress/snappy"

	"github.com/org/attestable-image-action/internal/lazyregexp"
	"github.com/org/attestable-image-action/internal/retry"
	"github.com/org/attestable-image-action/internal/strictjson"
)

// GitHub is the part of GitHub's REST API that keeps attestations ("REST API
// endpoints for attestations").
type GitHub struct {
	API   string // base URL: https://api.github.com
	Token string // may be empty for reading of public repositories

	transport retry.Transport // zero but in tests
}

// storeAttempts is how often storing is tried, as GitHub's own action does.
const storeAttempts = 6

// maxListing bounds a list of attestations, which holds whole bundles.
const maxListing = maxFetched

// Store stores a bundle with a repository (OWNER/REPO) and returns its number; ""
// when the answer to a request that had its effect was lost.
func (g GitHub) Store(ctx context.Context, repository string, bundle []byte) (id string, err error) {
	fail := func(err error) (string, error) {
		return "", fmt.Errorf("store the attestation with GitHub for %s: %w", repository, redact(err, g.Token))
	}
	if g.Token == "" {
		return fail(errors.New("there is no token: set GITHUB_TOKEN (in a workflow: the input github-token)"))
	}
	body := append(append([]byte(`{"bundle":`), bundle...), '}')
	endpoint, err := g.endpoint("repos", repository, "attestations")
	if err != nil {
		return fail(err)
	}
	transport := g.transport
	if transport.Attempts == 0 {
		transport.Attempts = storeAttempts
	}
	stored := false
	transport.Settled = func(ctx context.Context, failed error) *http.Response {
		if refused, ok := errors.AsType[*retry.StatusError](failed); ok && refused.Code < 500 {
			return nil // it was not taken
		}
		if stored = g.holds(ctx, repository, bundle); !stored {
			return nil
		}
		return &http.Response{StatusCode: http.StatusCreated, Body: http.NoBody}
	}
	response, err := g.do(ctx, &transport, http.MethodPost, endpoint, body)
	if err != nil {
		return fail(explainStatus(err))
	}
	defer response.Body.Close()
	if stored {
		return "", nil
	}
	if response.StatusCode != http.StatusCreated {
		return fail(explainStore(retry.NewStatusError(response)))
	}
	var answer struct {
		ID json.Number `json:"id"`
	}
	if err := strictjson.Decode(response.Body, 1<<20, &answer); err != nil {
		return fail(fmt.Errorf("read the answer: %w", err))
	}
	if answer.ID == "" {
		return fail(errors.New("the answer gives no number"))
	}
	return answer.ID.String(), nil
}

// holds reports whether GitHub has the bundle, as far as it can be told.
func (g GitHub) holds(ctx context.Context, repository string, bundle []byte) bool {
	statement, err := Candidate{Data: bundle}.Claimed()
	if err != nil {
		return false
	}
	said, err := strictjson.Value(bundle)
	if err != nil {
		return false
	}
	once := g
	once.transport.Attempts = 1 // the next one asks again
	listed, err := once.Bundles(ctx, repository, statement.Subject[0].Digest["sha256"])
	if err != nil {
		return false
	}
	return slices.ContainsFunc(listed, func(c Candidate) bool {
		found, err := strictjson.Value(c.Data)
		if c.Err != nil || err != nil {
			return false
		}
		_, differs := firstDifference("", said, found)
		return !differs
	})
}

// explainStore says what to do about a refusal.
func explainStore(refused *retry.StatusError) error {
	switch refused.Code {
	case http.StatusUnauthorized:
		return fmt.Errorf("%w: the token is not valid, or expired: a job's own token ends with the job", refused)
	case http.StatusForbidden:
		return fmt.Errorf("%w: the token may not: add 'permissions: attestations: write' to the job (with id-token: write and contents: read)", refused)
	case http.StatusNotFound:
		return fmt.Errorf("%w: the token may not see the repository, or the repository cannot have attestations: private and internal ones need GitHub Enterprise Cloud", refused)
	}
	return refused
}

// explainStatus adds what to do when the service did not recover.
func explainStatus(err error) error {
	if refused, ok := errors.AsType[*retry.StatusError](err); ok && (refused.Code >= 500 || refused.Code == http.StatusTooManyRequests) {
		return fmt.Errorf("%w: start the job again later; https://www.githubstatus.com says whether GitHub is well", err)
	}
	return err
}

// listed is one attestation of a list.
type listed struct {
	Bundle    strictjson.Raw `json:"bundle"`
	BundleURL string         `json:"bundle_url"`
}

// Bundles fetches the bundles about the manifest with this SHA-256 (hex) that
// are stored with a repository (OWNER/REPO), or with any repository of an owner
// (OWNER).
func (g GitHub) Bundles(ctx context.Context, scope, sha256 string) ([]Candidate, error) {
	owned := !strings.Contains(scope, "/")
	kinds := []string{"repos"}
	if owned {
		kinds = []string{"orgs", "users"}
	}
	for _, kind := range kinds {
		candidates, err := g.bundles(ctx, kind, scope, sha256)
		if err != nil {
			return nil, fmt.Errorf("fetch the attestations that GitHub keeps for %s: %w", scope, redact(err, g.Token))
		}
		if len(candidates) > 0 {
			return candidates, nil
		}
	}
	return nil, nil
}

func (g GitHub) bundles(ctx context.Context, kind, scope, sha256 string) ([]Candidate, error) {
	endpoint, err := g.endpoint(kind, scope, "attestations", "sha256:"+sha256)
	if err != nil {
		return nil, err
	}
	transport := g.transport
	transport.MaxBody = maxListing
	if transport.Attempts == 0 {
		transport.Attempts = 3
	}
	address := endpoint + fmt.Sprintf("?per_page=%d", MaxBundles)
	response, err := g.do(ctx, &transport, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode == http.StatusUnauthorized && g.Token != "" {
		// A token that has expired must keep nobody from what is public.
		anonymous, err := GitHub{API: g.API}.do(ctx, &transport, http.MethodGet, address, nil)
		if err == nil && anonymous.StatusCode == http.StatusOK {
			_ = response.Body.Close()
			response = anonymous
		} else if err == nil {
			_ = anonymous.Body.Close()
		}
	}
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, nil
	case http.StatusUnauthorized:
		return nil, fmt.Errorf("%w: the token in GITHUB_TOKEN or GH_TOKEN is not valid, or expired: renew it, or unset it to read what is public", retry.NewStatusError(response))
	case http.StatusForbidden:
		if g.Token != "" {
			return nil, fmt.Errorf("%w: the token may not read attestations: a job needs 'permissions: attestations: read'", retry.NewStatusError(response))
		}
		return nil, fmt.Errorf("%w: without a token GitHub allows 60 requests an hour: set GITHUB_TOKEN, or take the bundles from the registry or a file", retry.NewStatusError(response))
	default:
		return nil, retry.NewStatusError(response)
	}
	var list struct {
		Attestations []listed `json:"attestations"`
	}
	if err := strictjson.Decode(response.Body, maxFetched, &list); err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	return FetchAll(ctx, len(list.Attestations), func(i int) Candidate {
		item := list.Attestations[i]
		c := Candidate{Source: fmt.Sprintf("GitHub, attestation %d", i+1), Data: item.Bundle}
		if item.BundleURL != "" {
			c.Data, c.Err = g.stored(ctx, item.BundleURL)
		}
		return c
	})
}

// stored fetches a bundle from where GitHub keeps it: another host, which must
// not see the token, and compressed with Snappy's block format.
func (g GitHub) stored(ctx context.Context, address string) ([]byte, error) {
	u, err := url.Parse(address)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" {
		return nil, errors.New("GitHub named a bundle's place that is no URL")
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	transport := g.transport
	transport.MaxBody = MaxBundle
	response, err := (&http.Client{Transport: &transport}).Do(request)
	if err != nil {
		// Its text holds the address, whose query is a signature.
		if place, ok := errors.AsType[*url.Error](err); ok {
			err = place.Err
		}
		return nil, fmt.Errorf("fetch a bundle from %s: %w", u.Host, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("fetch a bundle: %w", retry.NewStatusError(response))
	}
	compressed, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("fetch a bundle from %s: %w", u.Host, err)
	}
	if size, err := snappy.DecodedLen(compressed); err != nil || size > MaxBundle {
		return nil, fmt.Errorf("decompress a bundle from %s: it is no Snappy block of at most %d bytes", u.Host, MaxBundle)
	}
	data, err := snappy.Decode(nil, compressed)
	if err != nil {
		return nil, fmt.Errorf("decompress a bundle from %s: %w", u.Host, err)
	}
	return data, nil
}

// domainForm is what a trust domain may be: it becomes part of a file's name.
var domainForm = lazyregexp.New(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)

// TrustDomain asks a tenant of GitHub Enterprise Cloud by which name GitHub
// publishes the tenant's trust root; "" stands for GitHub's own ("REST API
// endpoints for meta data").
func (g GitHub) TrustDomain(ctx context.Context) (string, error) {
	fail := func(err error) (string, error) {
		return "", fmt.Errorf("ask %s for its trust domain: %w", g.API, redact(err, g.Token))
	}
	endpoint, err := g.endpoint("meta")
	if err != nil {
		return fail(err)
	}
	var meta struct {
		Domains struct {
			ArtifactAttestations struct {
				TrustDomain string `json:"trust_domain"`
			} `json:"artifact_attestations"`
		} `json:"domains"`
	}
	if err := g.get(ctx, endpoint, &meta); err != nil {
		if refused, ok := errors.AsType[*retry.StatusError](err); ok && (refused.Code == http.StatusUnauthorized || refused.Code == http.StatusForbidden) {
			err = fmt.Errorf("%w: set GH_TOKEN to a token of an account there and GH_HOST to its host, or name a trusted root file with --trusted-root", err)
		}
		return fail(err)
	}
	domain := meta.Domains.ArtifactAttestations.TrustDomain
	if domain != "" && (!domainForm().MatchString(domain) || strings.Contains(domain, "..")) {
		return fail(fmt.Errorf("its answer %.100q is no domain", domain))
	}
	return domain, nil
}

// maxObject bounds an answer of the API that holds one thing, in bytes.
const maxObject = 4 << 20

// get decodes the JSON that the API answers; an answer other than 200 is a
// *retry.StatusError.
func (g GitHub) get(ctx context.Context, endpoint string, into any) error {
	transport := g.transport
	transport.MaxBody = maxObject
	if transport.Attempts == 0 {
		transport.Attempts = 3
	}
	response, err := g.do(ctx, &transport, http.MethodGet, endpoint, nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return retry.NewStatusError(response)
	}
	if err := strictjson.Decode(response.Body, maxObject, into); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	return nil
}

// endpoint joins path elements to the API's base URL; "OWNER/REPO" is two.
func (g GitHub) endpoint(elements ...string) (string, error) {
	base, err := url.Parse(g.API)
	if err != nil || base.Host == "" {
		return "", fmt.Errorf("the API's address %q is no URL: check GITHUB_API_URL", g.API)
	}
	return base.JoinPath(elements...).String(), nil
}

func (g GitHub) do(ctx context.Context, transport *retry.Transport, method, endpoint string, body []byte) (*http.Response, error) {
	return g.doAccepting(ctx, transport, method, endpoint, "", body)
}

// doAccepting is do for answers that are not JSON.
func (g GitHub) doAccepting(ctx context.Context, transport *retry.Transport, method, endpoint, accept string, body []byte) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, endpoint, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", cmp.Or(accept, "application/vnd.github+json"))
	request.Header.Set("X-GitHub-Api-Version", "2022-11-28")
	request.Header.Set("User-Agent", "attestable-image")
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if g.Token != "" {
		if !retry.MayCarryToken(request.URL) {
			return nil, fmt.Errorf("ask %s: %w", request.URL.Host, retry.ErrPlainHTTP)
		}
		request.Header.Set("Authorization", "Bearer "+g.Token)
	}
	return (&http.Client{Transport: transport, CheckRedirect: retry.CheckRedirect}).Do(request)
}
