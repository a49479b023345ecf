package attest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/org/attestable-image-action/internal/retry"
)

// TestRecord makes storage records as GitHub's own action does.
func TestRecord(t *testing.T) {
	const (
		token  = "ghs_verysecret"
		digest = "sha256:" + testDigest
		orgs   = "/orgs/octo-org/artifacts/"
	)
	record := StorageRecord{Name: "ghcr.io/octo-org/image", Digest: digest, Version: "1.2.3", Registry: "https://ghcr.io"}
	same := `{"total_count":1,"storage_records":[{"id":5,"name":"ghcr.io/octo-org/image","registry_url":"https://ghcr.io/"}]}`
	for _, tc := range []struct {
		name   string
		owner  string // its type
		listed string
		status int // of making one
		answer string
		ids    []string
		err    string
		posts  int
	}{
		{"made", "Organization", "", 200, `{"storage_records":[{"id":7},{"id":8}]}`, []string{"7", "8"}, "", 1},
		{"beside another", "Organization", strings.Replace(same, "ghcr.io/octo-org/image", "ghcr.io/octo-org/other", 1), 201, `{"storage_records":[{"id":7}]}`, []string{"7"}, "", 1},
		{"there already", "Organization", same, 200, `{}`, []string{"5"}, "", 0},
		{"of a user", "User", "", 200, `{}`, nil, "", 0},
		{"no permission", "Organization", "", 403, `{"message":"Resource not accessible by integration"}`, nil, "give the job 'permissions: artifact-metadata: write'", 1},
		{"down", "Organization", "", 503, "unicorn", nil, "503 Service Unavailable: unicorn (after 6 attempts)", 6},
		{"no number", "Organization", "", 200, `{"storage_records":[]}`, nil, "the answer names no record", 1},
		{"nonsense", "Organization", "", 200, `<html>`, nil, "read the answer", 1},
		{"nobody knows the owner", "", "", 200, `{}`, nil, "ask whether the owner is an organization", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			posts := 0
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") != "Bearer "+token {
					t.Errorf("authorization %q", r.Header.Get("Authorization"))
				}
				switch {
				case r.Method == http.MethodGet && r.URL.Path == "/repos/octo-org/image" && tc.owner != "":
					_, _ = fmt.Fprintf(w, `{"owner":{"type":%q}}`, tc.owner)
				case r.Method == http.MethodGet && r.URL.Path == orgs+digest+"/metadata/storage-records" && tc.listed != "":
					_, _ = io.WriteString(w, tc.listed)
				case r.Method == http.MethodPost && r.URL.Path == orgs+"metadata/storage-record":
					posts++
					var body map[string]string
					if err := json.NewDecoder(r.Body).Decode(&body); err != nil || len(body) != 4 || body["name"] != record.Name || body["digest"] != digest ||
						body["version"] != "1.2.3" || body["registry_url"] != "https://ghcr.io" {
						t.Errorf("body %v, error %v", body, err)
					}
					w.WriteHeader(tc.status)
					_, _ = io.WriteString(w, tc.answer)
				default:
					http.NotFound(w, r)
				}
			}))
			defer server.Close()
			ids, err := (GitHub{API: server.URL, Token: token, transport: quick}).Record(context.Background(), "octo-org/image", record)
			if (err == nil) != (tc.err == "") || err != nil && (!strings.Contains(err.Error(), tc.err) || strings.Contains(err.Error(), token)) {
				t.Errorf("error %v, want one about %q", err, tc.err)
			}
			if !slices.Equal(ids, tc.ids) || posts != tc.posts {
				t.Errorf("records %q after %d requests, want %q after %d", ids, posts, tc.ids, tc.posts)
			}
		})
	}
}

// TestTrustDomain asks a tenant for the name of its trust root.
func TestTrustDomain(t *testing.T) {
	tenant, err := ParseHost("https://octo.ghe.com")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		host   Host
		status int
		answer string
		want   string // the target
		err    string
	}{
		{"a tenant", tenant, 200, `{"domains":{"artifact_attestations":{"trust_domain":"octo-1"}},"verifiable_password_authentication":true}`, "octo-1.trusted_root.json", ""},
		{"a tenant without a domain of its own", tenant, 200, `{"domains":{}}`, "trusted_root.json", ""},
		{"github.com is not asked", gitHubHost, 500, ``, "trusted_root.json", ""},
		{"a path", tenant, 200, `{"domains":{"artifact_attestations":{"trust_domain":"../../x"}}}`, "", "is no domain"},
		{"a climb", tenant, 200, `{"domains":{"artifact_attestations":{"trust_domain":"a..b"}}}`, "", "is no domain"},
		{"a wall", tenant, 401, `{"message":"Requires authentication"}`, "", "set GH_TOKEN to a token of an account there and GH_HOST to its host, or name a trusted root file"},
		{"no JSON", tenant, 200, `<html>`, "", "read the answer"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/meta" {
					t.Errorf("asked for %s", r.URL)
				}
				w.WriteHeader(tc.status)
				_, _ = io.WriteString(w, tc.answer)
			}))
			defer server.Close()
			got, err := rootOf(context.Background(), tc.host, GitHub{API: server.URL, transport: quick})
			if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("error %v, want one about %q", err, tc.err)
			}
			if err == nil && got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}

// TestExpiredToken reads public attestations although the token is not good any
// more.
func TestExpiredToken(t *testing.T) {
	private := false
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Authorization") != "":
			http.Error(w, "Bad credentials", http.StatusUnauthorized)
		case private:
			http.NotFound(w, r)
		default:
			_, _ = io.WriteString(w, `{"attestations":[{"bundle":{}}]}`)
		}
	}))
	defer server.Close()
	api := GitHub{API: server.URL, Token: "ghs_expired", transport: retry.Transport{}}
	if got, err := api.Bundles(context.Background(), "octo-org/image", testDigest); err != nil || len(got) != 1 {
		t.Errorf("%d bundles, error %v", len(got), err)
	}
	private = true
	if got, err := api.Bundles(context.Background(), "octo-org/image", testDigest); err == nil || !strings.Contains(err.Error(), "is not valid, or expired: renew it") {
		t.Errorf("%d bundles, error %v", len(got), err)
	}
}
