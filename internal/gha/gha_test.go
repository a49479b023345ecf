package gha

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/org/attestable-image-action/internal/retry"
)

// step makes the test a step of a job and returns its files of outputs and of
// the summary.
func step(t *testing.T) (output, summary string) {
	t.Helper()
	dir := t.TempDir()
	output, summary = filepath.Join(dir, "output"), filepath.Join(dir, "summary")
	t.Setenv("GITHUB_ACTIONS", "true")
	t.Setenv("GITHUB_OUTPUT", output)
	t.Setenv("GITHUB_STEP_SUMMARY", summary)
	return output, summary
}

func TestOutputs(t *testing.T) {
	output, summary := step(t)
	for _, err := range []error{
		SetOutput("pcr4", "abc"),
		SetOutput("measurements", "{\n  \"a\": 1\n}"),
		AddSummary("# Title"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(output)
	if err != nil {
		t.Fatal(err)
	}
	const end = outputDelimiter
	if want := "pcr4<<" + end + "\nabc\n" + end + "\nmeasurements<<" + end + "\n{\n  \"a\": 1\n}\n" + end + "\n"; string(got) != want {
		t.Errorf("outputs are %q, want %q", got, want)
	}
	if got, err := os.ReadFile(summary); err != nil || string(got) != "# Title\n" {
		t.Errorf("the summary is %q (%v)", got, err)
	}
}

func TestBadOutputs(t *testing.T) {
	output, _ := step(t)
	t.Run("forged", func(t *testing.T) {
		for name, value := range map[string]string{
			"pcr4":             "x\n" + outputDelimiter + "\ndigest=evil",
			"pcr4\ndigest=e\n": "x",
			"":                 "x",
		} {
			if err := SetOutput(name, value); err == nil || !strings.Contains(err.Error(), "would forge") {
				t.Errorf("output %q = %q: error %v", name, value, err)
			}
		}
		if _, err := os.Stat(output); err == nil {
			t.Error("something was written")
		}
	})
	t.Run("no file", func(t *testing.T) {
		t.Setenv("GITHUB_OUTPUT", "")
		t.Setenv("GITHUB_STEP_SUMMARY", filepath.Join(t.TempDir(), "missing", "summary"))
		if err := SetOutput("pcr4", "x"); err == nil || !strings.Contains(err.Error(), "GITHUB_OUTPUT is not set") {
			t.Errorf("error %v", err)
		}
		if err := AddSummary("x"); err == nil || !strings.Contains(err.Error(), "no such file or directory") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("too long a summary", func(t *testing.T) {
		if err := AddSummary(strings.Repeat("x", maxSummary+1)); err == nil || !strings.Contains(err.Error(), "GitHub takes") {
			t.Errorf("error %v", err)
		}
	})
}

func TestCommands(t *testing.T) {
	step(t)
	var w bytes.Buffer
	Error(&w, "attestable-image: a,b", "50%\nsecond ::line")
	Warning(&w, "title", "message")
	ErrorAt(&w, Place{File: "image/config.xml", Line: 12}, "title", "message")
	WarningAt(&w, Place{File: "a,b::c\n%d", Line: 0}, "title", "message")
	WarningAt(&w, Place{Line: 3}, "title", "message")
	want := "::error title=attestable-image%3A a%2Cb::50%25%0Asecond ::line\n" +
		"::warning title=title::message\n" +
		"::error file=image/config.xml,line=12,title=title::message\n" +
		"::warning file=a%2Cb%3A%3Ac%0A%25d,title=title::message\n" +
		"::warning title=title::message\n"
	if w.String() != want {
		t.Errorf("got  %q\nwant %q", w.String(), want)
	}
}

// TestGroup holds that a program in a group cannot give the runner commands: it
// does not know the word that ends the silence.
func TestGroup(t *testing.T) {
	step(t)
	words := map[string]bool{}
	for range 2 {
		var w bytes.Buffer
		end := Group(&w, "KIWI\nlog")
		fmt.Fprintln(&w, "::set-output name=image-path::/evil")
		end()
		form := regexp.MustCompile(`^::group::KIWI%0Alog\n::stop-commands::([a-z0-9]{26})\n::set-output name=image-path::/evil\n::([a-z0-9]{26})::\n::endgroup::\n$`)
		m := form.FindStringSubmatch(w.String())
		if m == nil || m[1] != m[2] || words[m[1]] {
			t.Errorf("printed %q", w.String())
			continue
		}
		words[m[1]] = true
	}
}

func TestOutsideOfActions(t *testing.T) {
	output, _ := step(t)
	t.Setenv("GITHUB_ACTIONS", "")
	var w bytes.Buffer
	end := Group(&w, "KIWI")
	Error(&w, "title", "message")
	end()
	if err := errors.Join(SetOutput("a", "b"), AddSummary("c")); err != nil {
		t.Error(err)
	}
	if w.String() != "KIWI\n" {
		t.Errorf("printed %q", w.String())
	}
	if _, err := os.Stat(output); err == nil {
		t.Error("an output was set")
	}
}

func TestToken(t *testing.T) {
	for _, name := range []string{"GITHUB_TOKEN", "INPUT_GITHUB-TOKEN", "ATTESTABLE_IMAGE_GITHUB_TOKEN", "GH_TOKEN"} {
		t.Setenv(name, "")
	}
	if got := Token(); got != "" {
		t.Errorf("token %q out of nothing", got)
	}
	t.Setenv("GH_TOKEN", "last")
	t.Setenv("GITHUB_TOKEN", "first\n")
	if got := Token(); got != "first" {
		t.Errorf("token %q", got)
	}
}

func TestIDToken(t *testing.T) {
	calls := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls++
		switch {
		case r.Header.Get("Authorization") != "Bearer request-token":
			http.Error(w, "who are you, "+r.Header.Get("Authorization"), http.StatusUnauthorized)
		case calls == 1:
			http.Error(w, "busy", http.StatusServiceUnavailable)
		case r.URL.Query().Get("audience") == "none":
			_, _ = w.Write([]byte(`{}`))
		default:
			_, _ = w.Write([]byte(`{"count":1,"value":"token for ` + r.URL.Query().Get("audience") + ` ` + r.URL.Query().Get("api-version") + `"}`))
		}
	}))
	defer server.Close()
	t.Setenv("ACTIONS_ID_TOKEN_REQUEST_URL", server.URL+"/idtoken?api-version=2.0")
	t.Setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "request-token")
	token, err := IDToken(context.Background(), "sigstore")
	if err != nil || token != "token for sigstore 2.0" {
		t.Errorf("token %q, error %v", token, err)
	}
	if _, err := IDToken(context.Background(), "none"); err == nil || !strings.Contains(err.Error(), "the answer holds none") {
		t.Errorf("error %v", err)
	}
	t.Setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "s3cret")
	_, err = IDToken(context.Background(), "sigstore")
	if err == nil || !strings.Contains(err.Error(), "401 Unauthorized") || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("error %v", err)
	}
	t.Setenv("ACTIONS_ID_TOKEN_REQUEST_URL", "")
	if _, err := IDToken(context.Background(), "sigstore"); !errors.Is(err, ErrNoIDToken) {
		t.Errorf("error %v", err)
	}
}

// TestIDTokenFaults asks a service that fails for a moment, or for ever.
func TestIDTokenFaults(t *testing.T) {
	unavailable := func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "down", http.StatusServiceUnavailable) }
	for _, tc := range []struct {
		name  string
		n     int32 // of answers that are spoilt
		fault http.HandlerFunc
		want  string // error, or nothing
		calls int32
	}{
		{"hangs once", 1, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "", 2},
		{"resets once", 1, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "", 2},
		{"503, 503, well", 2, unavailable, "", 3},
		{"429 with Retry-After", 1, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "1")
			http.Error(w, "slowly", http.StatusTooManyRequests)
		}, "", 2},
		{"503 for ever", 1 << 20, unavailable, "503 Service Unavailable: down (after 4 attempts)", 4},
		{"resets for ever", 1 << 20, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "EOF (after 4 attempts)", 4},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var calls atomic.Int32
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if calls.Add(1) <= tc.n {
					tc.fault(w, r)
					return
				}
				_, _ = w.Write([]byte(`{"value":"a token"}`))
			}))
			defer server.Close()
			t.Setenv("ACTIONS_ID_TOKEN_REQUEST_URL", server.URL+"/idtoken?api-version=2.0")
			t.Setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "s3cret")
			start := time.Now()
			token, err := idToken(t.Context(), "sigstore", retry.Transport{Delay: time.Millisecond, Timeout: 300 * time.Millisecond})
			if tc.want == "" && (err != nil || token != "a token") || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "s3cret")) {
				t.Errorf("token %q, error %v", token, err)
			}
			if calls.Load() != tc.calls || strings.Contains(tc.name, "Retry-After") && time.Since(start) < time.Second {
				t.Errorf("%d requests in %s, want %d", calls.Load(), time.Since(start), tc.calls)
			}
		})
	}
	t.Run("the context ends", func(t *testing.T) {
		server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
		defer server.Close()
		t.Setenv("ACTIONS_ID_TOKEN_REQUEST_URL", server.URL)
		t.Setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "s3cret")
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := IDToken(ctx, "sigstore"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
	})
}
