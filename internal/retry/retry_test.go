package retry

import (
	"context"
	"errors"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// server answers with the statuses one after the other, the last one again and
// again, and repeats the request's body.
func server(t *testing.T, header http.Header, statuses ...int) (url string, calls *atomic.Int32) {
	t.Helper()
	calls = new(atomic.Int32)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := int(calls.Add(1))
		maps.Copy(w.Header(), header)
		status := statuses[min(n, len(statuses))-1]
		if status == 0 { // the connection breaks
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(status)
		_, _ = io.Copy(w, r.Body)
	}))
	t.Cleanup(s.Close)
	return s.URL, calls
}

func TestRoundTrip(t *testing.T) {
	for _, tc := range []struct {
		name     string
		statuses []int
		header   http.Header
		calls    int32
		status   int // of the answer, or 0
		err      string
	}{
		{name: "good at once", statuses: []int{200}, calls: 1, status: 200},
		{name: "good later", statuses: []int{500, 429, 408, 201}, calls: 4, status: 201},
		{name: "good after somebody else left", statuses: []int{499, 201}, calls: 2, status: 201},
		{name: "connection broken once", statuses: []int{0, 200}, calls: 2, status: 200},
		{name: "connection broken", statuses: []int{0}, calls: 4, err: "EOF (after 4 attempts)"},
		{name: "unavailable", statuses: []int{503}, calls: 4, err: "/path: 503 Service Unavailable: body with lines (after 4 attempts)"},
		{name: "refused", statuses: []int{403}, calls: 1, status: 403},
		{name: "refused for a while", statuses: []int{403, 200}, header: http.Header{"Retry-After": {"0"}}, calls: 2, status: 200},
		{name: "not implemented", statuses: []int{501}, calls: 1, status: 501},
		{name: "over GitHub's limit", statuses: []int{403, 200}, header: http.Header{"X-Ratelimit-Remaining": {"0"}, "X-Ratelimit-Reset": {"1"}}, calls: 2, status: 200},
		{name: "over GitHub's limit for long", statuses: []int{403}, header: http.Header{"X-Ratelimit-Remaining": {"0"}, "X-Ratelimit-Reset": {"4102444800"}},
			calls: 1, err: "/path: 403 Forbidden: body with lines (it asks to wait for "},
		{name: "asking for too long a wait", statuses: []int{429}, header: http.Header{"Retry-After": {"3600"}}, calls: 1,
			err: "429 Too Many Requests: body with lines (it asks to wait for 1h0m0s)"},
		{name: "conflict", statuses: []int{409}, calls: 1, status: 409},
	} {
		t.Run(tc.name, func(t *testing.T) {
			url, calls := server(t, tc.header, tc.statuses...)
			client := &http.Client{Transport: &Transport{Delay: time.Millisecond}}
			response, err := client.Post(url+"/path?secret=1", "text/plain", strings.NewReader("body\nwith  lines"))
			switch status := (*StatusError)(nil); {
			case tc.err != "":
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("error %v, want one about %q", err, tc.err)
				} else if errors.As(err, &status) && strings.Contains(status.Error(), "secret") {
					t.Errorf("error %v shows the query", status)
				}
			case err != nil:
				t.Error(err)
			default:
				body, err := io.ReadAll(response.Body)
				_ = response.Body.Close()
				if err != nil || string(body) != "body\nwith  lines" || response.StatusCode != tc.status {
					t.Errorf("%s with %q (%v)", response.Status, body, err)
				}
			}
			if calls.Load() != tc.calls {
				t.Errorf("%d requests, want %d", calls.Load(), tc.calls)
			}
		})
	}
}

func TestHangingServer(t *testing.T) {
	release := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-release:
		}
	}))
	defer s.Close()
	defer close(release)
	client := &http.Client{Transport: &Transport{Attempts: 2, Timeout: 50 * time.Millisecond, Delay: time.Millisecond}}
	_, err := client.Get(s.URL)
	if err == nil || !strings.Contains(err.Error(), "no answer within 50ms (after 2 attempts)") {
		t.Errorf("error %v", err)
	}
}

func TestContextEnds(t *testing.T) {
	url, calls := server(t, http.Header{"Retry-After": {"60"}}, 503)
	for name, use := range map[string]func(ctx context.Context) error{
		"the request's": func(ctx context.Context) error {
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
			if err != nil {
				return err
			}
			_, err = (&http.Client{Transport: new(Transport)}).Do(request)
			return err
		},
		"the transport's": func(ctx context.Context) error {
			_, err := (&http.Client{Transport: &Transport{Context: ctx}}).Get(url)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			calls.Store(0)
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			defer cancel()
			start := time.Now()
			err := use(ctx)
			if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "503") {
				t.Errorf("error %v", err)
			}
			if took := time.Since(start); took > 5*time.Second || calls.Load() != 1 {
				t.Errorf("it took %s and %d requests", took, calls.Load())
			}
		})
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"":                              0,
		"7":                             7 * time.Second,
		"-7":                            0,
		"99999999999999999999":          0,
		"Fri, 02 Jan 2026 03:04:35 GMT": 30 * time.Second,
		"soon":                          0,
	} {
		if got := retryAfter(&http.Response{Header: http.Header{"Retry-After": {value}}}, now); got != want {
			t.Errorf("%q: %s, want %s", value, got, want)
		}
	}
}

func TestLongAnswer(t *testing.T) {
	url, _ := server(t, nil, 200)
	for limit, want := range map[int64]string{4: "abcd", 6: "abcdef", 7: "abcdef"} {
		client := &http.Client{Transport: &Transport{MaxBody: limit}}
		response, err := client.Post(url, "text/plain", strings.NewReader("abcdef"))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if string(got) != want || (err != nil) != (limit < 6) {
			t.Errorf("%d bytes allowed: read %q, error %v", limit, got, err)
		}
	}
}

// TestTotal holds that all attempts together take no longer than they may, whether
// the server hangs or refuses.
func TestTotal(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"hanging":  func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"refusing": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(handler)
			defer s.Close()
			client := &http.Client{Transport: &Transport{Attempts: 1000, Timeout: 80 * time.Millisecond, Delay: 10 * time.Millisecond, Total: 200 * time.Millisecond}}
			start := time.Now()
			_, err := client.Get(s.URL)
			if took := time.Since(start); err == nil || took > 2*time.Second || !strings.Contains(err.Error(), " attempts)") {
				t.Errorf("error %v after %s", err, took)
			}
		})
	}
}

// TestStranger holds that a server with a certificate of somebody else is asked
// once.
func TestStranger(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	defer s.Close()
	_, err := (&http.Client{Transport: &Transport{Delay: time.Millisecond}}).Get(s.URL)
	if err == nil || strings.Contains(err.Error(), "attempts") || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("error %v", err)
	}
}
