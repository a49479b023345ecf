package attest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/org/attestable-image-action/internal/retry"
	"github.com/org/attestable-image-action/internal/strictjson"
)

// Audiences of the two tokens: Fulcio takes the first, and the second is good
// for nothing but reading what GitHub says of the job.
const (
	AudienceSigning = "sigstore"
	AudienceClaims  = "nobody"
)

// Claims are what GitHub says of a job in its token ("OpenID Connect
// reference"), as far as the provenance repeats it. All of it is text there.
type Claims struct {
	Issuer            string `json:"iss"`
	Ref               string `json:"ref"`        // refs/heads/main
	SHA               string `json:"sha"`        // of the commit, hex
	Repository        string `json:"repository"` // OWNER/REPO
	RepositoryID      string `json:"repository_id"`
	RepositoryOwnerID string `json:"repository_owner_id"`
	Visibility        string `json:"repository_visibility"` // public, private or internal
	EventName         string `json:"event_name"`
	WorkflowRef       string `json:"workflow_ref"`     // OWNER/REPO/PATH@REF that was started
	JobWorkflowRef    string `json:"job_workflow_ref"` // that holds the job; may be elsewhere
	JobWorkflowSHA    string `json:"job_workflow_sha"` // commit of that one, hex
	RunnerEnvironment string `json:"runner_environment"`
	RunID             string `json:"run_id"`
	RunAttempt        string `json:"run_attempt"`
}

// VerifyToken checks a token (compact JWT) against the keys of the issuer and
// returns what it says of the job. The token's issuer may be the expected one
// or, for an enterprise of its own, a path below it.
func VerifyToken(ctx context.Context, token, issuer, audience string) (*Claims, error) {
	return verifyToken(ctx, token, issuer, audience, retry.Transport{})
}

// verifyToken is VerifyToken with other times to wait, for tests.
func verifyToken(ctx context.Context, token, issuer, audience string, transport retry.Transport) (*Claims, error) {
	fail := func(err error) error {
		return fmt.Errorf("read the job's identity token: %w", redact(err, token))
	}
	transport.MaxBody, transport.Context = 1<<20, ctx
	ctx = oidc.ClientContext(ctx, &http.Client{Transport: &transport})
	provider, err := oidc.NewProvider(ctx, issuer)
	if err != nil {
		return nil, fail(fmt.Errorf("fetch the keys of the issuer %s: %w", issuer, err))
	}
	// The library knows no issuers below an issuer: see below.
	verified, err := provider.VerifierContext(ctx, &oidc.Config{ClientID: audience, SkipIssuerCheck: true}).Verify(ctx, token)
	if err != nil {
		return nil, fail(err)
	}
	if verified.Issuer != issuer && !strings.HasPrefix(verified.Issuer, strings.TrimSuffix(issuer, "/")+"/") {
		return nil, fail(fmt.Errorf("it was issued by %q and not by %s", verified.Issuer, issuer))
	}
	// The library has read some of them itself.
	var claims struct {
		Claims

		Audience  any `json:"aud"`
		Expires   any `json:"exp"`
		Issued    any `json:"iat"`
		NotBefore any `json:"nbf"`
	}
	var payload json.RawMessage
	err = verified.Claims(&payload)
	if err == nil {
		err = strictjson.Unmarshal(payload, &claims)
	}
	if err != nil {
		return nil, fail(fmt.Errorf("decode its claims: %w", err))
	}
	for name, value := range map[string]string{
		"ref": claims.Ref, "sha": claims.SHA, "repository": claims.Repository, "repository_id": claims.RepositoryID,
		"repository_owner_id": claims.RepositoryOwnerID, "event_name": claims.EventName, "workflow_ref": claims.WorkflowRef,
		"job_workflow_ref": claims.JobWorkflowRef, "runner_environment": claims.RunnerEnvironment,
		"run_id": claims.RunID, "run_attempt": claims.RunAttempt,
	} {
		if value == "" {
			return nil, fail(fmt.Errorf("it lacks the claim %q: is it a token of a GitHub Actions job?", name))
		}
	}
	return &claims.Claims, nil
}

// Host is where a GitHub lives, and what follows from that.
type Host struct {
	Server string // https://github.com, without a slash at its end
	Issuer string // of the tokens of its jobs
	name   string // github.com
}

// ErrServer says that GitHub Enterprise Server cannot attest.
var ErrServer = errors.New("GitHub Enterprise Server issues no identities that Sigstore knows and keeps no attestations: run the workflow on github.com or ghe.com, or name a private Sigstore deployment with --signing-config and --trusted-root")

// ParseHost reads the URL of a GitHub server. For GitHub Enterprise Server the
// error is ErrServer, beside a Host without an issuer.
func ParseHost(server string) (Host, error) {
	u, err := url.Parse(strings.TrimSuffix(server, "/"))
	if err != nil || u.Host == "" || u.Path != "" || (u.Scheme != "https" && u.Scheme != "http") {
		return Host{}, fmt.Errorf("read the GitHub server %q: it is no URL such as https://github.com", server)
	}
	h := Host{Server: u.Scheme + "://" + u.Host, name: strings.ToLower(u.Host)}
	switch {
	case h.name == "github.com":
		h.Issuer = "https://token.actions.githubusercontent.com"
	case h.tenant():
		h.Issuer = "https://token.actions." + h.name
	default:
		return h, ErrServer
	}
	return h, nil
}

// tenant reports whether the host is one of GitHub Enterprise Cloud with data
// residency, which has a Sigstore of its own.
func (h Host) tenant() bool { return strings.HasSuffix(h.name, ".ghe.com") }

// API is the base URL of the host's REST API, for a person's machine: a runner
// says it in GITHUB_API_URL.
func (h Host) API() string {
	switch {
	case h.name == "github.com":
		return "https://api.github.com"
	case h.tenant():
		return "https://api." + h.name
	}
	return h.Server + "/api/v3"
}

// redact removes a secret from an error's text.
func redact(err error, secret string) error {
	if err == nil || secret == "" || !strings.Contains(err.Error(), secret) {
		return err
	}
	return errors.New(strings.ReplaceAll(err.Error(), secret, "***"))
}
