package attest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sigstore/rekor/pkg/generated/models"
	"github.com/sigstore/sigstore-go/pkg/sign"

	"github.com/org/attestable-image-action/internal/retry"
	"github.com/org/attestable-image-action/internal/testenv"
)

// quick tries again without waiting long.
var quick = retry.Transport{Delay: time.Millisecond, Timeout: time.Second}

// TestRekorV1 signs as for public repositories: an entry in a Rekor v1, whose
// time is the only one.
func TestRekorV1(t *testing.T) {
	log := newTestLog(t)
	a := newAuthority(t, "somebody", log.trusted())
	s := a.signer(a.trust)
	s.timestamps = func(context.Context) []*sign.TimestampAuthority { return nil }
	s.logs = func(ctx context.Context) []sign.Transparency {
		return []sign.Transparency{newLog(ctx, Log{URL: log.url, Version: 1}, quick)}
	}
	line, err := s.Sign(context.Background(), statement(t, PredicateMeasurements, testMeasurements))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(line, []byte(`"kindVersion":{"kind":"dsse","version":"0.0.1"}`)) || bytes.ContainsAny(line, "\n") {
		t.Errorf("bundle %s", line)
	}
	got := a.trust.Check(Candidate{Data: line}, testDigest)
	if len(got.Clocks) != 1 || got.Clocks[0].Kind != ClockLog || got.Clocks[0].URI != log.url {
		t.Errorf("clocks %+v, error %v", got.Clocks, got.Err)
	}
	if other := newAuthority(t, "somebody", newTestLog(t).trusted()); other.trust.Check(Candidate{Data: line}, testDigest).Err == nil {
		t.Error("verified with another root")
	}

	spoil := func(f func(e *models.LogEntryAnon)) func(string, *models.LogEntryAnon) string {
		return func(uuid string, e *models.LogEntryAnon) string {
			f(e)
			return uuid
		}
	}
	for name, tc := range map[string]struct {
		change func(string, *models.LogEntryAnon) string
		status int
		want   string
	}{
		"another entry":     {change: func(string, *models.LogEntryAnon) string { return "x" }, want: "lacks the entry that its header ETag names"},
		"no log ID":         {change: spoil(func(e *models.LogEntryAnon) { e.LogID = nil }), want: "its entry is not whole"},
		"no index":          {change: spoil(func(e *models.LogEntryAnon) { e.LogIndex = nil }), want: "its entry is not whole"},
		"no body":           {change: spoil(func(e *models.LogEntryAnon) { e.Body = nil }), want: "its entry is not whole"},
		"body of numbers":   {change: spoil(func(e *models.LogEntryAnon) { e.Body = 7 }), want: "body is not string"},
		"no verification":   {change: spoil(func(e *models.LogEntryAnon) { e.Verification = nil }), want: "lacks the proof"},
		"no proof":          {change: spoil(func(e *models.LogEntryAnon) { e.Verification.InclusionProof = nil }), want: "lacks the proof"},
		"half a proof":      {change: spoil(func(e *models.LogEntryAnon) { e.Verification.InclusionProof.Checkpoint = nil }), want: "its entry is not whole"},
		"another time":      {change: spoil(func(e *models.LogEntryAnon) { *e.IntegratedTime++ }), want: "the new bundle does not verify, so it is stored nowhere"},
		"refused":           {status: 400, want: "the log is full"},
		"down":              {status: 503, want: "503 Service Unavailable: {\"code\":1,\"message\":\"the log is full\"} (after 4 attempts)"},
		"another program":   {status: 200, want: `it answered 200 OK with "text/html; charset=utf-8", and not with JSON`},
		"conflict, no name": {status: 409, want: "add an entry to the log"},
	} {
		t.Run(name, func(t *testing.T) {
			log.change, log.status = tc.change, tc.status
			_, err := s.Sign(context.Background(), statement(t, PredicateMeasurements, testMeasurements))
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), PredicateMeasurements) {
				t.Errorf("error %v, want one about %q", err, tc.want)
			}
		})
	}
}

// TestRekorV2Conflict signs anew when the log has the entry of an attempt whose
// answer was lost.
func TestRekorV2Conflict(t *testing.T) {
	var calls atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		calls.Add(1)
		http.Error(w, "an equivalent entry already exists", http.StatusConflict)
	}))
	defer server.Close()
	a := newAuthority(t, "somebody", nil)
	s := a.signer(a.trust)
	s.logs = func(ctx context.Context) []sign.Transparency {
		return []sign.Transparency{newLog(ctx, Log{URL: server.URL, Version: 2}, quick)}
	}
	_, err := s.Sign(context.Background(), statement(t, PredicateMeasurements, testMeasurements))
	if !errors.Is(err, errConflict) || calls.Load() != 2 {
		t.Errorf("error %v after %d calls", err, calls.Load())
	}
}

// hang answers when the client has gone away, which a server sees only when it
// has read the request.
func hang(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
}

// TestServicesFail holds what is said when Fulcio, a timestamp authority or a
// Rekor v2 cannot be used, and that no token is in it.
func TestServicesFail(t *testing.T) {
	const token = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJyZXBvIn0.c2lnbmF0dXJl"
	for _, tc := range []struct {
		name    string
		handler http.HandlerFunc
		want    string
		calls   int32
	}{
		{"down", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "maintenance", http.StatusServiceUnavailable)
		},
			"503 Service Unavailable: maintenance (after 4 attempts)", 4},
		{"busy", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "0")
			http.Error(w, "slowly", http.StatusTooManyRequests)
		}, "429 Too Many Requests: slowly (after 4 attempts)", 4},
		{"breaking connections", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
			"EOF (after 4 attempts)", 4},
		{"hanging", hang,
			"no answer within 50ms (after 4 attempts)", 4},
		{"refusing", func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, "I do not like "+r.Header.Get("Authorization")+token, http.StatusBadRequest)
		}, "400", 1},
		{"talking nonsense", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusCreated)
			_, _ = w.Write([]byte("hello"))
		}, "", 1},
		{"talking without end", func(w http.ResponseWriter, _ *http.Request) {
			for range 3000 {
				if _, err := w.Write(bytes.Repeat([]byte("x"), 1<<10)); err != nil {
					return
				}
			}
		}, "", 1},
	} {
		var calls atomic.Int32
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			tc.handler(w, r)
		}))
		defer server.Close()
		hurry := retry.Transport{Delay: time.Millisecond, Timeout: 50 * time.Millisecond}
		if tc.name != "hanging" {
			hurry.Timeout = 0
		}
		a := newAuthority(t, "somebody", nil)
		for service, use := range map[string]func(s *Signer){
			"Fulcio": func(s *Signer) { s.authority = fulcio{url: server.URL + "/", transport: hurry} },
			"timestamp authority": func(s *Signer) {
				s.timestamps = func(ctx context.Context) []*sign.TimestampAuthority {
					return []*sign.TimestampAuthority{sign.NewTimestampAuthority(&sign.TimestampAuthorityOptions{URL: server.URL, Timeout: -1, Transport: within(ctx, hurry)})}
				}
			},
			"Rekor v2": func(s *Signer) {
				s.logs = func(ctx context.Context) []sign.Transparency {
					return []sign.Transparency{newLog(ctx, Log{URL: server.URL, Version: 2}, hurry)}
				}
			},
		} {
			t.Run(service+" "+tc.name, func(t *testing.T) {
				calls.Store(0)
				s := a.signer(a.trust)
				s.token = func(context.Context) (string, error) { return token, nil }
				use(s)
				_, err := s.Sign(context.Background(), statement(t, PredicateMeasurements, testMeasurements))
				switch {
				case err == nil || !strings.Contains(err.Error(), tc.want):
					t.Errorf("error %v, want one about %q", err, tc.want)
				case strings.Contains(err.Error(), token):
					t.Errorf("error %v shows the token", err)
				case len(err.Error()) > 2000 && tc.calls == 4:
					t.Errorf("an error of %d bytes", len(err.Error()))
				}
				if calls.Load() != tc.calls {
					t.Errorf("%d requests, want %d", calls.Load(), tc.calls)
				}
			})
		}
	}
	t.Run("the context ends", func(t *testing.T) {
		server := httptest.NewServer(http.HandlerFunc(hang))
		defer server.Close()
		a := newAuthority(t, "somebody", nil)
		s := newSigner(Instance{Fulcio: server.URL}, func(context.Context) (string, error) { return token, nil }, a.trust, retry.Transport{})
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		start := time.Now()
		_, err := s.Sign(ctx, statement(t, PredicateMeasurements, testMeasurements))
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 5*time.Second {
			t.Errorf("error %v after %s", err, time.Since(start))
		}
	})
	t.Run("no token", func(t *testing.T) {
		a := newAuthority(t, "somebody", nil)
		s := a.signer(a.trust)
		s.token = func(context.Context) (string, error) { return "", errors.New("id-token: write") }
		if _, err := s.Sign(context.Background(), statement(t, PredicateMeasurements, testMeasurements)); err == nil || !strings.Contains(err.Error(), "id-token: write") {
			t.Errorf("error %v", err)
		}
	})
}

// TestKeyless signs with the real Fulcio, timestamp authority and Rekor v2, as
// the signing configuration names them.
func TestKeyless(t *testing.T) {
	reusable := testenv.Run{Visibility: "private", JobWorkflowRef: "octo-org/workflows/.github/workflows/build.yml@refs/tags/v1"}
	for _, tc := range []struct {
		name     string
		options  testenv.Options
		run      testenv.Run
		workflow string
	}{
		{"with a log", testenv.Options{}, testenv.DefaultRun, "octo-org/image/.github/workflows/image.yml"},
		{"GitHub's, without a log, in a reusable workflow", testenv.Options{Organization: testenv.GitHubInc, NoRekor: true}, reusable,
			"octo-org/workflows/.github/workflows/build.yml@refs/tags/v1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := tc.options
			stack := testenv.StartSigstore(t, o)
			instance, err := ReadInstance(stack.SigningConfig)
			if err != nil {
				t.Fatal(err)
			}
			if instance.Fulcio != stack.FulcioURL || instance.Issuer != stack.Issuer.URL || (len(instance.Logs) == 0) != o.NoRekor || len(instance.Timestamps) != 1 {
				t.Errorf("instance %+v", instance)
			}
			trust, err := ReadTrust(stack.TrustedRoot)
			if err != nil {
				t.Fatal(err)
			}
			ctx := context.Background()
			claimsToken, err := stack.Issuer.Token(AudienceClaims, tc.run.Claims())
			if err != nil {
				t.Fatal(err)
			}
			claims, err := VerifyToken(ctx, claimsToken, instance.Issuer, AudienceClaims)
			if err != nil {
				t.Fatal(err)
			}
			signer := NewSigner(instance, func(context.Context) (string, error) {
				return stack.Issuer.Token(AudienceSigning, tc.run.Claims())
			}, trust)
			var candidates []Candidate
			for predicateType, predicate := range map[string][]byte{PredicateProvenance: provenanceOf(t, claims), PredicateMeasurements: testMeasurements} {
				line, err := signer.Sign(ctx, statement(t, predicateType, predicate))
				if err != nil {
					t.Fatal(err)
				}
				var b struct {
					MediaType string `json:"mediaType"`
				}
				if err := json.Unmarshal(line, &b); err != nil || b.MediaType != BundleMediaType {
					t.Errorf("media type %q, error %v", b.MediaType, err)
				}
				candidates = append(candidates, Candidate{Source: "signed", Data: line})
			}
			// Provenance and certificate agree in all that Fulcio certifies.
			e := expectImage()
			e.Issuer, e.Workflow = stack.Issuer.URL, tc.workflow
			v, err := Verify(ctx, trust, e, testDigest, from(candidates...))
			if err != nil || outcome(v) != "" {
				t.Errorf("failed %q, error %v", outcome(v), err)
			}
			e.Repository = "octo-org/other"
			e.Workflow = ""
			if v, err = Verify(ctx, trust, e, testDigest, from(candidates...)); err != nil || !strings.HasPrefix(outcome(v), "provenance repository: ") {
				t.Errorf("failed %q, error %v", outcome(v), err)
			}
		})
	}
}
