package attest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sigstore/sigstore-go/pkg/sign"

	"github.com/org/attestable-image-action/internal/retry"
	"github.com/org/attestable-image-action/internal/testenv"
)

// service is one that attesting or verifying relies on, with a real server behind
// it, or what stands in for one that nobody else can run.
type service struct {
	name     string
	backend  string // base URL
	attempts int    // before it is given up
	// questions are asked between attempts, whether the one before had its effect.
	questions int
	use       func(ctx context.Context, base string, transport retry.Transport) error
}

// services are all of them.
func services(t *testing.T) []service {
	t.Helper()
	stack := testenv.StartSigstore(t, testenv.Options{})
	trust, err := ReadTrust(stack.TrustedRoot)
	if err != nil {
		t.Fatal(err)
	}
	instance, err := ReadInstance(stack.SigningConfig)
	if err != nil {
		t.Fatal(err)
	}
	timestamps, err := url.Parse(stack.TimestampURL)
	if err != nil {
		t.Fatal(err)
	}
	// signing signs with one of the services elsewhere, and the others without
	// anything in between.
	signing := func(change func(i *Instance, base string)) func(context.Context, string, retry.Transport) error {
		return func(ctx context.Context, base string, transport retry.Transport) error {
			i := instance
			change(&i, base)
			_, err := newSigner(i, func(context.Context) (string, error) {
				return stack.Issuer.Token(AudienceSigning, testenv.DefaultRun.Claims())
			}, trust, transport).Sign(ctx, statement(t, PredicateMeasurements, testMeasurements))
			return err
		}
	}
	log := newTestLog(t)
	public := newAuthority(t, "somebody", log.trusted())
	github := testenv.StartGitHub(t)
	bundle := public.both(t)[1].Data
	if _, err := (GitHub{API: github.URL, Token: github.Token}).Store(t.Context(), "octo-org/image", bundle); err != nil {
		t.Fatal(err)
	}
	data, err := public.trust.roots[0].MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	files, anchor := tufRepository(t, trustedRootTarget, data)
	tuf := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if data, ok := files[r.URL.Path]; ok {
			_, _ = w.Write(data)
			return
		}
		http.NotFound(w, r)
	}))
	t.Cleanup(tuf.Close)
	record := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodPost:
			_, _ = io.WriteString(w, `{"storage_records":[{"id":1}]}`)
		case r.URL.Path == "/meta":
			_, _ = io.WriteString(w, `{"domains":{"artifact_attestations":{"trust_domain":"x"}}}`)
		default:
			_, _ = io.WriteString(w, `{"owner":{"type":"Organization"}}`)
		}
	}))
	t.Cleanup(record.Close)
	return []service{
		{"Fulcio", stack.FulcioURL, 4, 0, signing(func(i *Instance, base string) { i.Fulcio = base })},
		{"timestamp authority", timestamps.Scheme + "://" + timestamps.Host, 4, 0, signing(func(i *Instance, base string) {
			i.Timestamps = []string{base + timestamps.Path}
		})},
		{"Rekor v2", stack.RekorURL, 4, 0, signing(func(i *Instance, base string) { i.Logs = []Log{{base, 2}} })},
		{"Rekor v1", log.url, 4, 0, func(ctx context.Context, base string, transport retry.Transport) error {
			s := public.signer(public.trust)
			s.timestamps = func(context.Context) []*sign.TimestampAuthority { return nil }
			s.logs = func(ctx context.Context) []sign.Transparency {
				return []sign.Transparency{newLog(ctx, Log{URL: base, Version: 1}, transport)}
			}
			_, err := s.Sign(ctx, statement(t, PredicateMeasurements, testMeasurements))
			return err
		}},
		{"OIDC issuer", stack.Issuer.URL, 4, 0, func(ctx context.Context, base string, transport retry.Transport) error {
			claims := testenv.DefaultRun.Claims()
			claims["iss"] = base
			token, err := stack.Issuer.Token(AudienceClaims, claims)
			if err == nil {
				_, err = verifyToken(ctx, token, base, AudienceClaims, transport)
			}
			return err
		}},
		{"GitHub, storing", github.URL, storeAttempts, storeAttempts - 1, func(ctx context.Context, base string, transport retry.Transport) error {
			_, err := GitHub{API: base, Token: github.Token, transport: transport}.Store(ctx, "octo-org/image", bundle)
			return err
		}},
		{"GitHub, listing", github.URL, 3, 0, func(ctx context.Context, base string, transport retry.Transport) error {
			found, err := GitHub{API: base, Token: github.Token, transport: transport}.Bundles(ctx, "octo-org/image", testDigest)
			if err == nil && len(found) == 0 {
				err = errors.New("nothing was found")
			}
			return err
		}},
		{"GitHub, a tenant's trust domain", record.URL, 3, 0, func(ctx context.Context, base string, transport retry.Transport) error {
			_, err := GitHub{API: base, transport: transport}.TrustDomain(ctx)
			return err
		}},
		{"GitHub, a storage record", record.URL, 3, 0, func(ctx context.Context, base string, transport retry.Transport) error {
			_, err := GitHub{API: base, Token: github.Token, transport: transport}.Record(ctx, "octo-org/image", StorageRecord{Name: "x", Registry: "y", Digest: "z"})
			return err
		}},
		{"TUF", tuf.URL, 4, 0, func(ctx context.Context, base string, transport retry.Transport) error {
			_, err := fetchRoot(ctx, base, anchor, trustedRootTarget, transport)
			return err
		}},
	}
}

// faulty stands in front of a service and spoils its first answers.
type faulty struct {
	mu       sync.Mutex
	requests []time.Time
	spoil    func(n int, w http.ResponseWriter, r *http.Request) bool // n counts from 1
}

// front starts faulty in front of a base URL; answers name the front instead.
func front(t *testing.T, backend string, spoil func(n int, w http.ResponseWriter, r *http.Request) bool) (string, *faulty) {
	t.Helper()
	target, err := url.Parse(backend)
	if err != nil {
		t.Fatal(err)
	}
	f := &faulty{spoil: spoil}
	var own string
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Header.Del("Accept-Encoding")
		},
		ModifyResponse: func(response *http.Response) error {
			body, err := io.ReadAll(response.Body)
			if err != nil {
				return err
			}
			body = bytes.ReplaceAll(body, []byte(backend), []byte(own))
			response.Body = io.NopCloser(bytes.NewReader(body))
			response.Header.Set("Content-Length", strconv.Itoa(len(body)))
			response.ContentLength = int64(len(body))
			return nil
		},
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.requests = append(f.requests, time.Now())
		n := len(f.requests)
		f.mu.Unlock()
		if !f.spoil(n, w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	own = server.URL
	return server.URL, f
}

// TestEveryService holds that our way to try again is the one of every client,
// not only of those that take it readily.
func TestEveryService(t *testing.T) { //nolint:tparallel // it sets the environment for its subtests
	all := services(t) // whose programs are in the cache, too
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	first := func(n int, f http.HandlerFunc) func(int, http.ResponseWriter, *http.Request) bool {
		return func(i int, w http.ResponseWriter, r *http.Request) bool {
			if i > n {
				return false
			}
			f(w, r)
			return true
		}
	}
	unavailable := func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "maintenance", http.StatusServiceUnavailable)
	}
	for name, tc := range map[string]struct {
		spoil func(n int, w http.ResponseWriter, r *http.Request) bool
		wrong func(s service, f *faulty, err error, took time.Duration) string
	}{
		"hangs once":     {first(1, hang), succeeds},
		"resets once":    {first(1, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }), succeeds},
		"503, 503, well": {first(2, unavailable), succeeds},
		"429 with Retry-After": {first(1, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "1")
			http.Error(w, "slowly", http.StatusTooManyRequests)
		}), func(s service, f *faulty, err error, took time.Duration) string {
			if wrong := succeeds(s, f, err, took); wrong != "" {
				return wrong
			}
			if wait := f.requests[1].Sub(f.requests[0]); wait < time.Second {
				return "it came back after " + wait.String()
			}
			return ""
		}},
		"503 for ever": {first(1<<20, unavailable), func(s service, f *faulty, err error, _ time.Duration) string {
			want := "503 Service Unavailable: maintenance (after " + strconv.Itoa(s.attempts) + " attempts)"
			if err == nil || !strings.Contains(err.Error(), want) || len(f.requests) != s.attempts+s.questions {
				return "it must fail with " + want
			}
			return ""
		}},
		"hangs, and the context ends": {first(1<<20, hang), func(_ service, _ *faulty, err error, took time.Duration) string {
			if !errors.Is(err, context.DeadlineExceeded) && (err == nil || !strings.Contains(err.Error(), context.DeadlineExceeded.Error())) || took > 5*time.Second {
				return "it went on for " + took.String()
			}
			return ""
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var group sync.WaitGroup // waiting takes no processor
			for _, s := range all {
				base, f := front(t, s.backend, tc.spoil)
				group.Go(func() {
					transport := retry.Transport{Delay: time.Millisecond, Timeout: 5 * time.Second}
					timeout := 30 * time.Second
					switch name {
					case "hangs once":
						transport.Timeout = 1500 * time.Millisecond
					case "hangs, and the context ends":
						transport.Timeout, timeout = time.Minute, 150*time.Millisecond
					}
					ctx, cancel := context.WithTimeout(t.Context(), timeout)
					defer cancel()
					start := time.Now()
					err := s.use(ctx, base, transport)
					f.mu.Lock()
					defer f.mu.Unlock()
					if wrong := tc.wrong(s, f, err, time.Since(start)); wrong != "" {
						t.Errorf("%s: %s: error %v after %d requests", s.name, wrong, err, len(f.requests))
					}
				})
			}
			group.Wait()
		})
	}
}

// succeeds says what is wrong unless the service was used, after a failure.
func succeeds(_ service, f *faulty, err error, _ time.Duration) string {
	if err != nil || len(f.requests) < 2 {
		return "it did not work in the end"
	}
	return ""
}
