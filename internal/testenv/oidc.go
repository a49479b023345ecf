package testenv

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"time"
)

// GenuineIssuer is the issuer URL of the tokens that GitHub Actions hands out.
const GenuineIssuer = "https://token.actions.githubusercontent.com"

// Issuer is a stand-in for GitHub's OIDC issuer: nobody can run the real one.
// It serves discovery, the key set, and the endpoint where a job asks for a
// token with its request token. Tokens are JWTs signed with RS256, as GitHub's.
type Issuer struct {
	URL      string // value of "iss"
	TokenURL string // ACTIONS_ID_TOKEN_REQUEST_URL

	key  *rsa.PrivateKey
	mu   sync.Mutex
	runs map[string]Run // by request token
}

// issuerKeyID names the issuer's only key in its key set.
const issuerKeyID = "attestable-image-test"

// startIssuer serves an issuer on loopback. An empty url stands for the
// loopback address itself; any other must be mapped to handler by a Proxy.
func startIssuer(h Host, url string) (*Issuer, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, fmt.Errorf("make the issuer's key: %w", err)
	}
	i := &Issuer{URL: url, key: key, runs: make(map[string]Run)}
	base := serve(h, i.handler())
	if i.URL == "" {
		i.URL = base
	}
	i.TokenURL = base + "/idtoken?api-version=2.0"
	return i, nil
}

func (i *Issuer) handler() http.Handler {
	encode := base64.RawURLEncoding.EncodeToString
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]any{
			"issuer":                                i.URL,
			"jwks_uri":                              i.URL + "/.well-known/jwks",
			"subject_types_supported":               []string{"public", "pairwise"},
			"response_types_supported":              []string{"id_token"},
			"id_token_signing_alg_values_supported": []string{"RS256"},
			"scopes_supported":                      []string{"openid"},
		})
	})
	mux.HandleFunc("GET /.well-known/jwks", func(w http.ResponseWriter, _ *http.Request) {
		exponent := binary.BigEndian.AppendUint32(nil, uint32(i.key.E))
		writeJSON(w, http.StatusOK, map[string]any{"keys": []any{map[string]string{
			"kty": "RSA", "alg": "RS256", "use": "sig", "kid": issuerKeyID,
			"n": encode(i.key.N.Bytes()), "e": encode(exponent[1:]),
		}}})
	})
	mux.HandleFunc("GET /idtoken", func(w http.ResponseWriter, r *http.Request) {
		scheme, requestToken, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		i.mu.Lock()
		run, ok := i.runs[requestToken]
		i.mu.Unlock()
		if !ok || !strings.EqualFold(scheme, "bearer") {
			writeJSON(w, http.StatusUnauthorized, map[string]string{"message": "the request token is not valid"})
			return
		}
		audience := r.URL.Query().Get("audience")
		if audience == "" { // GitHub's default
			audience = "https://github.com/" + run.owner()
		}
		token, err := i.Token(audience, run.Claims())
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		writeJSON(w, http.StatusOK, map[string]any{"count": len(token), "value": token})
	})
	return mux
}

// Register lets run ask for tokens and returns its ACTIONS_ID_TOKEN_REQUEST_TOKEN.
func (i *Issuer) Register(run Run) string {
	token := rand.Text()
	i.mu.Lock()
	defer i.mu.Unlock()
	i.runs[token] = run
	return token
}

// Token returns a signed token (compact JWT) for audience with claims, valid
// for five minutes unless the claims say otherwise.
func (i *Issuer) Token(audience string, claims map[string]any) (string, error) {
	now := time.Now()
	all := map[string]any{
		"iss": i.URL, "aud": audience, "jti": rand.Text(),
		"iat": now.Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(5 * time.Minute).Unix(),
	}
	maps.Copy(all, claims)
	header, err := json.Marshal(map[string]string{"typ": "JWT", "alg": "RS256", "kid": issuerKeyID})
	if err != nil {
		return "", err
	}
	payload, err := json.Marshal(all)
	if err != nil {
		return "", fmt.Errorf("encode claims: %w", err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	signed := encode(header) + "." + encode(payload)
	digest := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(rand.Reader, i.key, crypto.SHA256, digest[:])
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	return signed + "." + encode(signature), nil
}

// Run is a workflow run, as its token and its environment describe it. An
// empty field has the value of DefaultRun.
type Run struct {
	Repository        string // owner/name
	RepositoryID      string
	RepositoryOwnerID string
	Visibility        string // public, private or internal
	Ref               string // refs/heads/...
	SHA               string // 40 hex digits
	EventName         string
	WorkflowPath      string // .github/workflows/...
	WorkflowName      string
	JobWorkflowRef    string // of a reusable workflow; default is the run's own workflow
	RunID             string
	RunAttempt        string
	RunnerEnvironment string // github-hosted or self-hosted
}

// DefaultRun is a push to the main branch of a public repository.
var DefaultRun = Run{
	Repository:        "octo-org/image",
	RepositoryID:      "812345678",
	RepositoryOwnerID: "98765",
	Visibility:        "public",
	Ref:               "refs/heads/main",
	SHA:               "5f3d6c1b0a9e8d7c6b5a493827160f5e4d3c2b1a",
	EventName:         "push",
	WorkflowPath:      ".github/workflows/image.yml",
	WorkflowName:      "Image",
	RunID:             "7654321098",
	RunAttempt:        "1",
	RunnerEnvironment: "github-hosted",
}

func (r Run) complete() Run {
	for _, f := range []struct {
		field *string
		value string
	}{
		{&r.Repository, DefaultRun.Repository},
		{&r.RepositoryID, DefaultRun.RepositoryID},
		{&r.RepositoryOwnerID, DefaultRun.RepositoryOwnerID},
		{&r.Visibility, DefaultRun.Visibility},
		{&r.Ref, DefaultRun.Ref},
		{&r.SHA, DefaultRun.SHA},
		{&r.EventName, DefaultRun.EventName},
		{&r.WorkflowPath, DefaultRun.WorkflowPath},
		{&r.WorkflowName, DefaultRun.WorkflowName},
		{&r.RunID, DefaultRun.RunID},
		{&r.RunAttempt, DefaultRun.RunAttempt},
		{&r.RunnerEnvironment, DefaultRun.RunnerEnvironment},
	} {
		if *f.field == "" {
			*f.field = f.value
		}
	}
	if r.JobWorkflowRef == "" {
		r.JobWorkflowRef = r.WorkflowRef()
	}
	return r
}

func (r Run) owner() string {
	owner, _, _ := strings.Cut(r.complete().Repository, "/")
	return owner
}

// WorkflowRef is the run's workflow as OWNER/REPO/PATH@REF.
func (r Run) WorkflowRef() string {
	if r.Repository == "" || r.WorkflowPath == "" || r.Ref == "" {
		r = r.complete()
	}
	return r.Repository + "/" + r.WorkflowPath + "@" + r.Ref
}

// Identity is the certificate's subject alternative name: the URI of the
// workflow that holds the job.
func (r Run) Identity() string {
	return "https://github.com/" + r.complete().JobWorkflowRef
}

// Claims are what GitHub says of the run in its token, all of them strings.
func (r Run) Claims() map[string]any {
	r = r.complete()
	return map[string]any{
		"sub":                   "repo:" + r.Repository + ":ref:" + r.Ref,
		"ref":                   r.Ref,
		"ref_type":              "branch",
		"ref_protected":         "true",
		"sha":                   r.SHA,
		"repository":            r.Repository,
		"repository_id":         r.RepositoryID,
		"repository_owner":      r.owner(),
		"repository_owner_id":   r.RepositoryOwnerID,
		"repository_visibility": r.Visibility,
		"event_name":            r.EventName,
		"workflow":              r.WorkflowName,
		"workflow_ref":          r.WorkflowRef(),
		"workflow_sha":          r.SHA,
		"job_workflow_ref":      r.JobWorkflowRef,
		"job_workflow_sha":      r.SHA,
		"run_id":                r.RunID,
		"run_number":            "42",
		"run_attempt":           r.RunAttempt,
		"runner_environment":    r.RunnerEnvironment,
		"actor":                 "octocat",
		"actor_id":              "583231",
		"head_ref":              "",
		"base_ref":              "",
	}
}

// Env is the environment in which a runner starts the run's steps, without the
// variables for tokens: see Stack.Env.
func (r Run) Env() []string {
	r = r.complete()
	return []string{
		"CI=true",
		"GITHUB_ACTIONS=true",
		"GITHUB_SERVER_URL=https://github.com",
		"GITHUB_REPOSITORY=" + r.Repository,
		"GITHUB_REPOSITORY_ID=" + r.RepositoryID,
		"GITHUB_REPOSITORY_OWNER=" + r.owner(),
		"GITHUB_REPOSITORY_OWNER_ID=" + r.RepositoryOwnerID,
		"GITHUB_REF=" + r.Ref,
		"GITHUB_SHA=" + r.SHA,
		"GITHUB_EVENT_NAME=" + r.EventName,
		"GITHUB_WORKFLOW=" + r.WorkflowName,
		"GITHUB_WORKFLOW_REF=" + r.WorkflowRef(),
		"GITHUB_WORKFLOW_SHA=" + r.SHA,
		"GITHUB_RUN_ID=" + r.RunID,
		"GITHUB_RUN_ATTEMPT=" + r.RunAttempt,
		"GITHUB_ACTOR=octocat",
		"RUNNER_ENVIRONMENT=" + r.RunnerEnvironment,
	}
}

func writeJSON(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(value) // the client went away
}
