package attest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/snappy"

	"github.com/org/attestable-image-action/internal/retry"
	"github.com/org/attestable-image-action/internal/testenv"
)

func TestGitHubRoundTrip(t *testing.T) {
	server := testenv.StartGitHub(t)
	api := GitHub{API: server.URL, Token: server.Token, transport: quick}
	ctx := context.Background()
	stored := newAuthority(t, "somebody", nil).both(t)
	for i, c := range stored {
		id, err := api.Store(ctx, "octo-org/image", c.Data)
		if want := fmt.Sprint(1000001 + i); err != nil || id != want {
			t.Errorf("number %q, error %v, want %s", id, err, want)
		}
	}
	for _, scope := range []string{"octo-org/image", "octo-org"} {
		got, err := api.Bundles(ctx, scope, testDigest)
		if err != nil || len(got) != 2 || !bytes.Equal(got[0].Data, stored[0].Data) || got[1].Source != "GitHub, attestation 2" {
			t.Errorf("%s: %d bundles, error %v", scope, len(got), err)
		}
	}
	if got, err := api.Bundles(ctx, "octo-org/image", strings.Repeat("f", 64)); err != nil || len(got) != 0 {
		t.Errorf("%d bundles of another digest, error %v", len(got), err)
	}
	if got, err := api.Bundles(ctx, "somebody", testDigest); err != nil || len(got) != 0 {
		t.Errorf("%d bundles of another owner, error %v", len(got), err)
	}
	api.Token = "ghs_wrong"
	if _, err := api.Bundles(ctx, "octo-org/image", testDigest); err == nil || !strings.Contains(err.Error(), "the token in GITHUB_TOKEN or GH_TOKEN is not valid") {
		t.Errorf("error %v", err)
	}
}

func TestStoreFails(t *testing.T) {
	const token = "ghs_verysecret"
	answer := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		}
	}
	for _, tc := range []struct {
		name    string
		handler http.HandlerFunc
		token   string
		want    string
		calls   int32
	}{
		{"no token", answer(201, `{"id":1}`), "", "there is no token: set GITHUB_TOKEN", 0},
		{"no permission", answer(403, `{"message":"Resource not accessible by integration"}`), token,
			"Resource not accessible by integration\"}: the token may not: add 'permissions: attestations: write'", 1},
		{"expired", answer(401, `{"message":"Bad credentials"}`), token, "the token is not valid, or expired", 1},
		{"private without Enterprise Cloud", answer(404, `{"message":"Not Found"}`), token, "need GitHub Enterprise Cloud", 1},
		{"refused", answer(422, `{"message":"Invalid bundle"}`), token, "422 Unprocessable Entity: {\"message\":\"Invalid bundle\"}", 1},
		{"down", answer(502, "<html>unicorn</html>"), token, "502 Bad Gateway: <html>unicorn</html> (after 6 attempts): start the job again later", 6},
		{"busy", answer(429, "slow"), token, "429 Too Many Requests", 6},
		{"breaking connections", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, token, "EOF (after 6 attempts)", 6},
		{"no number", answer(201, `{}`), token, "the answer gives no number", 1},
		{"a number that is text", answer(201, `{"id":"../../x"}`), token, "read the answer", 1},
		{"no JSON", answer(201, `hello`), token, "read the answer", 1},
		{"repeating the token", func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, r.Header.Get("Authorization"), http.StatusBadRequest)
		}, token, "400 Bad Request: Bearer ***", 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var calls atomic.Int32
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				calls.Add(1)
				tc.handler(w, r)
			}))
			defer server.Close()
			api := GitHub{API: server.URL + "/", Token: tc.token, transport: quick}
			_, err := api.Store(context.Background(), "octo-org/image", []byte(`{}`))
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.HasPrefix(err.Error(), "store the attestation with GitHub for octo-org/image: ") {
				t.Errorf("error %v, want one about %q", err, tc.want)
			}
			if strings.Contains(fmt.Sprint(err), token) {
				t.Errorf("error %v shows the token", err)
			}
			if calls.Load() != tc.calls {
				t.Errorf("%d requests, want %d", calls.Load(), tc.calls)
			}
		})
	}
	t.Run("works the third time", func(t *testing.T) {
		var calls atomic.Int32
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var body struct {
				Bundle json.RawMessage `json:"bundle"`
			}
			if err := json.NewDecoder(r.Body).Decode(&body); err != nil || string(body.Bundle) != `{"a":1}` || r.URL.Path != "/repos/octo-org/image/attestations" {
				t.Errorf("%s with %s (%v)", r.URL, body.Bundle, err)
			}
			if calls.Add(1) < 3 {
				http.Error(w, "busy", http.StatusServiceUnavailable)
				return
			}
			answer(201, `{"id":7}`)(w, r)
		}))
		defer server.Close()
		id, err := (GitHub{API: server.URL, Token: token, transport: quick}).Store(context.Background(), "octo-org/image", []byte(`{"a":1}`))
		if err != nil || id != "7" {
			t.Errorf("number %q, error %v", id, err)
		}
	})
	t.Run("the answer is lost", func(t *testing.T) {
		github := testenv.StartGitHub(t)
		bundle := newAuthority(t, "somebody", nil).both(t)[1].Data
		posts := 0
		base, _ := front(t, github.URL, func(_ int, w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPost {
				return false
			}
			posts++
			// It is stored, and nobody is told.
			if _, err := (GitHub{API: github.URL, Token: github.Token}).Store(r.Context(), "octo-org/image", bundle); err != nil {
				t.Error(err)
			}
			http.Error(w, "unicorn", http.StatusBadGateway)
			return true
		})
		id, err := (GitHub{API: base, Token: github.Token, transport: quick}).Store(context.Background(), "octo-org/image", bundle)
		if stored := github.Bundles("octo-org/image"); err != nil || id != "" || posts != 1 || len(stored) != 1 {
			t.Errorf("number %q, error %v, %d requests, %d stored", id, err, posts, len(stored))
		}
	})
	t.Run("no URL", func(t *testing.T) {
		if _, err := (GitHub{API: "api", Token: token}).Store(context.Background(), "a/b", []byte(`{}`)); err == nil || !strings.Contains(err.Error(), "check GITHUB_API_URL") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("the context ends", func(t *testing.T) {
		server := httptest.NewServer(http.HandlerFunc(hang))
		defer server.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		if _, err := (GitHub{API: server.URL, Token: token}).Store(ctx, "a/b", []byte(`{}`)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
	})
}

// TestStoredElsewhere fetches bundles as GitHub serves them: from another host,
// compressed.
func TestStoredElsewhere(t *testing.T) {
	bundle := []byte(`{"mediaType":"` + BundleMediaType + `"}`)
	var elsewhere http.HandlerFunc
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("the other host sees the token")
		}
		elsewhere(w, r)
	}))
	defer store.Close()
	address := store.URL + "/bundle?sig=s3cret"
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer ghs_testing" || r.URL.Query().Get("per_page") != "100" {
			t.Errorf("%s with %s", r.URL, r.Header)
		}
		_, _ = fmt.Fprintf(w, `{"attestations":[{"bundle":null,"bundle_url":%q,"initiator":"user"},{"bundle":%s,"bundle_url":""}]}`, address, bundle)
	}))
	defer api.Close()
	fetch := func() ([]Candidate, error) {
		return GitHub{API: api.URL, Token: "ghs_testing", transport: quick}.Bundles(context.Background(), "octo-org/image", testDigest)
	}
	for name, tc := range map[string]struct {
		handler http.HandlerFunc
		want    string
	}{
		"good":           {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(snappy.Encode(nil, bundle)) }, ""},
		"gone":           {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "expired", http.StatusForbidden) }, "403 Forbidden: expired"},
		"down":           {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "down", http.StatusInternalServerError) }, "500 Internal Server Error: down (after 4 attempts)"},
		"not compressed": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("{}")) }, "decompress a bundle"},
		// The block claims 4 GiB.
		"a bomb": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte{0xff, 0xff, 0xff, 0xff, 0x0f, 0}) }, "it is no Snappy block of at most"},
		"cut off": {func(w http.ResponseWriter, _ *http.Request) {
			block := snappy.Encode(nil, bytes.Repeat(bundle, 10))
			_, _ = w.Write(block[:len(block)/2])
		}, "decompress a bundle"},
	} {
		t.Run(name, func(t *testing.T) {
			elsewhere = tc.handler
			got, err := fetch()
			if err != nil || len(got) != 2 || !bytes.Equal(got[1].Data, bundle) {
				t.Fatalf("%d bundles, error %v: one that cannot be had keeps from the other", len(got), err)
			}
			switch err := got[0].Err; {
			case tc.want == "" && (err != nil || !bytes.Equal(got[0].Data, bundle)):
				t.Errorf("%q, error %v", got[0].Data, err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "s3cret")):
				t.Errorf("error %v, want one about %q", err, tc.want)
			}
		})
	}
	address = "file:///etc/passwd"
	if got, err := fetch(); err != nil || len(got) != 2 || !strings.Contains(fmt.Sprint(got[0].Err), "place that is no URL") {
		t.Errorf("%+v, error %v", got, err)
	}
}

func TestBadLists(t *testing.T) {
	for name, tc := range map[string]struct {
		status int
		body   string
		want   string
		n      int
	}{
		"none":             {404, `{"message":"Not Found"}`, "", 0},
		"an empty list":    {200, `{"attestations":[]}`, "", 0},
		"no bundle":        {200, `{"attestations":[{}]}`, "", 1},
		"very many":        {200, `{"attestations":[` + strings.Repeat(`{},`, 1000) + `{}]}`, "", MaxBundles},
		"no JSON":          {200, `<html>`, "read the answer", 0},
		"something else":   {200, `[1]`, "read the answer", 0},
		"the limit of 60":  {403, `{"message":"API rate limit exceeded"}`, "without a token GitHub allows 60 requests an hour", 0},
		"down for a while": {503, `x`, "503 Service Unavailable: x (after 3 attempts)", 0},
		"moved":            {410, `x`, "410 Gone", 0},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(tc.status)
				_, _ = w.Write([]byte(tc.body))
			}))
			defer server.Close()
			got, err := GitHub{API: server.URL, transport: retry.Transport{Delay: time.Millisecond}}.Bundles(context.Background(), "a/b", testDigest)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) || len(got) != tc.n {
				t.Errorf("%d bundles, error %v, want %d and %q", len(got), err, tc.n, tc.want)
			}
		})
	}
}
