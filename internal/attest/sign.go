package attest

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/sign"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/org/attestable-image-action/internal/retry"
	"github.com/org/attestable-image-action/internal/strictjson"
)

// Instance is a Sigstore deployment to sign with.
type Instance struct {
	Name       string
	Fulcio     string   // URL of the certificate authority
	Issuer     string   // of identity tokens that it takes; empty for GitHub's
	Timestamps []string // URLs of RFC 3161 timestamp authorities, with paths
	Logs       []Log    // transparency logs
}

// Log is a Rekor.
type Log struct {
	URL     string
	Version uint32 // of its API: 1 or 2
}

// PublicInstance is the public Sigstore, which GitHub uses for public
// repositories. What it signs is in a log that everybody can read.
var PublicInstance = Instance{
	Name:   "the public Sigstore",
	Fulcio: "https://fulcio.sigstore.dev",
	Logs:   []Log{{URL: "https://rekor.sigstore.dev", Version: 1}},
}

// InstanceFor is the deployment that GitHub's own attest action uses for a
// repository of this visibility.
func InstanceFor(h Host, visibility string) Instance {
	if h.name != "github.com" {
		return Instance{
			Name:       "GitHub's Sigstore for " + h.name,
			Fulcio:     "https://fulcio." + h.name,
			Timestamps: []string{"https://timestamp." + h.name + "/api/v1/timestamp"},
		}
	}
	if visibility == "public" {
		return PublicInstance
	}
	return Instance{
		Name:       "GitHub's Sigstore",
		Fulcio:     "https://fulcio.githubapp.com",
		Timestamps: []string{"https://timestamp.githubapp.com/api/v1/timestamp"},
	}
}

// maxSigningConfig bounds a signing configuration, in bytes.
const maxSigningConfig = 1 << 20

// ReadInstance reads a signing configuration (Sigstore SigningConfig v0.2 in
// JSON) and chooses the services that are valid now.
func ReadInstance(path string) (Instance, error) {
	data, err := readFile(path, maxSigningConfig)
	if err != nil {
		return Instance{}, fmt.Errorf("read the signing configuration: %w", err)
	}
	i, err := parseInstance(data, time.Now())
	if err != nil {
		return Instance{}, fmt.Errorf("read the signing configuration %s: %w", path, err)
	}
	i.Name = path
	return i, nil
}

func parseInstance(data []byte, now time.Time) (Instance, error) {
	var i Instance
	message, err := root.NewSigningConfigProtobuf(data)
	if err == nil {
		err = strictjson.CheckMessage(data, message)
	}
	if err != nil {
		return i, fmt.Errorf("it must be a Sigstore SigningConfig v0.2 in JSON: %w", err)
	}
	// The library follows these pointers.
	if len(message.GetRekorTlogUrls()) > 0 && message.GetRekorTlogConfig() == nil {
		return i, errors.New("it lists rekorTlogUrls without a rekorTlogConfig")
	}
	if len(message.GetTsaUrls()) > 0 && message.GetTsaConfig() == nil {
		return i, errors.New("it lists tsaUrls without a tsaConfig")
	}
	config, err := root.NewSigningConfigFromProtobuf(message)
	if err != nil {
		return i, err
	}
	authority, err := root.SelectService(config.FulcioCertificateAuthorityURLs(), sign.FulcioAPIVersions, now)
	if err != nil {
		return i, fmt.Errorf("choose from its caUrls: %w", err)
	}
	i.Fulcio = authority.URL
	if issuers := config.OIDCProviderURLs(); len(issuers) > 0 {
		issuer, err := root.SelectService(issuers, []uint32{1}, now)
		if err != nil {
			return i, fmt.Errorf("choose from its oidcUrls: %w", err)
		}
		i.Issuer = issuer.URL
	}
	if urls := config.TimestampAuthorityURLs(); len(urls) > 0 {
		services, err := root.SelectServices(urls, config.TimestampAuthorityURLsConfig(), sign.TimestampAuthorityAPIVersions, now)
		if err != nil {
			return i, fmt.Errorf("choose from its tsaUrls: %w", err)
		}
		for _, s := range services {
			i.Timestamps = append(i.Timestamps, s.URL)
		}
	}
	if urls := config.RekorLogURLs(); len(urls) > 0 {
		services, err := root.SelectServices(urls, config.RekorLogURLsConfig(), sign.RekorAPIVersions, now)
		if err != nil {
			return i, fmt.Errorf("choose from its rekorTlogUrls: %w", err)
		}
		for _, s := range services {
			i.Logs = append(i.Logs, Log{URL: s.URL, Version: s.MajorAPIVersion})
		}
	}
	return i, i.Validate()
}

// Validate checks that the deployment can make signatures that verify later.
func (i *Instance) Validate() error {
	for _, address := range slices.Concat([]string{i.Fulcio}, i.Timestamps) {
		if err := checkURL(address); err != nil {
			return err
		}
	}
	for _, log := range i.Logs {
		if err := checkURL(log.URL); err != nil {
			return err
		}
		switch {
		case log.Version != 1 && log.Version != 2:
			return fmt.Errorf("there is no version %d of the API of a log: it is 1 or 2", log.Version)
		case log.Version == 2 && len(i.Timestamps) == 0:
			return fmt.Errorf("the log %s is a Rekor v2 and tells no time, and there is no timestamp authority: add one (tsaUrls in a signing configuration)", log.URL)
		}
	}
	if len(i.Timestamps) == 0 && len(i.Logs) == 0 {
		return errors.New("it names neither a timestamp authority nor a log, so nothing would say when a short-lived certificate was used: add one (tsaUrls in a signing configuration)")
	}
	return nil
}

func checkURL(address string) error {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return fmt.Errorf("%q is no URL of a service", address)
	}
	return nil
}

// Signer signs statements.
type Signer struct {
	authority  sign.CertificateProvider
	timestamps func(ctx context.Context) []*sign.TimestampAuthority
	logs       func(ctx context.Context) []sign.Transparency
	token      func(ctx context.Context) (string, error)
	trust      *Trust
}

// NewSigner signs with an instance; token gets a new identity token for the
// audience AudienceSigning, which is used until it is about to expire. Everything
// signed is verified against trust.
func NewSigner(i Instance, token func(ctx context.Context) (string, error), trust *Trust) *Signer {
	return newSigner(i, token, trust, retry.Transport{})
}

// newSigner is NewSigner with other times to wait, for tests.
func newSigner(i Instance, token func(ctx context.Context) (string, error), trust *Trust, transport retry.Transport) *Signer {
	return &Signer{
		token:     (&tokenCache{fetch: token}).get,
		trust:     trust,
		authority: fulcio{url: i.Fulcio, transport: transport},
		timestamps: func(ctx context.Context) []*sign.TimestampAuthority {
			authorities := make([]*sign.TimestampAuthority, 0, len(i.Timestamps))
			for _, url := range i.Timestamps {
				authorities = append(authorities, sign.NewTimestampAuthority(&sign.TimestampAuthorityOptions{
					URL: url, Timeout: -1, Transport: within(ctx, transport),
				}))
			}
			return authorities
		},
		logs: func(ctx context.Context) []sign.Transparency {
			logs := make([]sign.Transparency, 0, len(i.Logs))
			for _, log := range i.Logs {
				logs = append(logs, newLog(ctx, log, transport))
			}
			return logs
		},
	}
}

// NewLocalSigner signs with a local trust root.
func NewLocalSigner(l *LocalTrust) *Signer {
	return &Signer{
		authority: l,
		timestamps: func(context.Context) []*sign.TimestampAuthority {
			return []*sign.TimestampAuthority{l.timestampAuthority()}
		},
		logs:  func(context.Context) []sign.Transparency { return nil },
		token: func(context.Context) (string, error) { return "", nil },
		trust: l.trusted,
	}
}

// within is a transport whose requests end with ctx: the clients of sigstore-go
// make theirs without one.
func within(ctx context.Context, transport retry.Transport) http.RoundTripper {
	transport.Context = ctx
	return &transport
}

// tokenCache asks for a token once as long as it is good.
type tokenCache struct {
	fetch func(ctx context.Context) (string, error)

	mu      sync.Mutex
	token   string
	expires time.Time
}

// tokenMargin is how long before its end a token is not used any more: Fulcio is
// asked again for up to three minutes.
const tokenMargin = 3 * time.Minute

func (c *tokenCache) get(ctx context.Context) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.token != "" && time.Now().Add(tokenMargin).Before(c.expires) {
		return c.token, nil
	}
	token, err := c.fetch(ctx)
	if err != nil {
		return "", err
	}
	c.token, c.expires = token, expiry(token)
	return token, nil
}

// expiry reads when a token (compact JWT) expires; the zero time when it does not
// say so. Who made the token is Fulcio's to check.
func expiry(token string) time.Time {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}
	}
	var claims struct {
		Expires json.Number `json:"exp"` // seconds since 1970: RFC 7519, section 4.1.4
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || strictjson.Unmarshal(payload, &claims) != nil {
		return time.Time{}
	}
	seconds, err := claims.Expires.Float64()
	if err != nil || seconds < 0 || seconds > 1<<40 {
		return time.Time{}
	}
	return time.Unix(int64(seconds), 0)
}

// SignAll signs statements side by side, and returns their bundles in the same
// order.
func (s *Signer) SignAll(ctx context.Context, statements []*Statement) ([][]byte, error) {
	bundles := make([][]byte, len(statements))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for i, statement := range statements {
		group.Go(func() (err error) {
			bundles[i], err = s.Sign(ctx, statement)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return bundles, nil
}

// Sign signs a statement and returns the bundle as JSON on one line, without a
// line feed, after it was verified.
func (s *Signer) Sign(ctx context.Context, statement *Statement) ([]byte, error) {
	fail := func(err error) ([]byte, error) {
		return nil, fmt.Errorf("sign the statement %s: %w", statement.PredicateType, err)
	}
	payload, err := json.Marshal(statement)
	if err != nil {
		return fail(err)
	}
	token, err := s.token(ctx)
	if err != nil {
		return fail(err)
	}
	message, err := s.bundle(ctx, payload, token)
	if errors.Is(err, errConflict) {
		// The log has the entry of an attempt whose answer was lost, and would
		// not say where. Another signature makes another entry.
		message, err = s.bundle(ctx, payload, token)
	}
	if err != nil {
		return fail(redact(err, token))
	}
	line, err := marshalBundle(message)
	if err != nil {
		return fail(err)
	}
	checked := s.trust.Check(Candidate{Source: "the new bundle", Data: line}, statement.Subject[0].Digest["sha256"])
	if checked.Err != nil {
		return fail(fmt.Errorf("the new bundle does not verify, so it is stored nowhere: %w", checked.Err))
	}
	return line, nil
}

// marshalBundle is the bundle as JSON on one line.
func marshalBundle(message *protobundle.Bundle) ([]byte, error) {
	spaced, err := protojson.Marshal(message)
	if err != nil {
		return nil, err
	}
	// protojson's spaces change from build to build on purpose.
	var line bytes.Buffer
	if err := json.Compact(&line, spaced); err != nil {
		return nil, err
	}
	return line.Bytes(), nil
}

func (s *Signer) bundle(ctx context.Context, payload []byte, token string) (*protobundle.Bundle, error) {
	key, err := sign.NewEphemeralKeypair(nil)
	if err != nil {
		return nil, err
	}
	return sign.Bundle(&sign.DSSEData{Data: payload, PayloadType: PayloadType}, key, sign.BundleOptions{
		CertificateProvider:        s.authority,
		CertificateProviderOptions: &sign.CertificateProviderOptions{IDToken: token},
		TimestampAuthorities:       s.timestamps(ctx),
		TransparencyLogs:           s.logs(ctx),
		Context:                    ctx,
	})
}
