package artifact

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"cuelabs.dev/go/oci/ociregistry/ocimem"
	"cuelabs.dev/go/oci/ociregistry/ociserver"

	"github.com/org/attestable-image-action/internal/testenv"
)

// answer makes a registry answer some requests with a status and a body.
func answer(status int, body string, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		if r.Method != http.MethodHead {
			_, _ = io.WriteString(w, body)
		}
	}
}

// hang keeps a request until the client goes away or the test is over.
func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// on picks requests by method and a part of the path.
func on(method, part string) func(*http.Request) bool {
	return func(r *http.Request) bool { return r.Method == method && strings.Contains(r.URL.Path, part) }
}

// breakRegistry lets f answer the requests that match picks, the first n of them, or
// all when n is 0. It returns a count of those that matched.
func breakRegistry(t *testing.T, r *testenv.Registry, match func(*http.Request) bool, n int, f http.HandlerFunc) func() int {
	t.Helper()
	var mu sync.Mutex
	matched := 0
	over, end := context.WithCancel(context.Background())
	t.Cleanup(end) // what hangs, hangs as long as the test
	r.Intercept(t, func(w http.ResponseWriter, request *http.Request) bool {
		if !match(request) {
			return false
		}
		mu.Lock()
		matched++
		now := matched
		mu.Unlock()
		if n > 0 && now > n {
			return false
		}
		ctx, cancel := context.WithCancel(request.Context())
		defer cancel()
		defer context.AfterFunc(over, cancel)()
		f(w, request.WithContext(ctx))
		return true
	})
	return func() int {
		mu.Lock()
		defer mu.Unlock()
		return matched
	}
}

// TestPushFaults pushes to a registry that fails at one place in one way. Each
// fault must end in bounded time with a sentence that says what to do, and with
// nothing under the tag.
func TestPushFaults(t *testing.T) {
	t.Parallel()
	path := sparseDisk(t)
	denied := `{"errors":[{"code":"DENIED","message":"requested access is denied\n::set-output name=x::y"}]}`
	uploads := on(http.MethodPost, "/blobs/uploads/")
	stream := on(http.MethodPatch, "/blobs/uploads/")
	commit := on(http.MethodPut, "/blobs/uploads/")
	manifests := on(http.MethodPut, "/manifests/")
	login := func(r *http.Request) bool { return r.URL.Path == "/v2/" || r.URL.Path == "/token" }
	for name, c := range map[string]struct {
		match func(*http.Request) bool
		f     http.HandlerFunc
		want  string
	}{
		"401 at log-in":            {login, answer(401, "{}", "WWW-Authenticate", `Bearer realm="http://REGISTRY/token"`), "wants other credentials (401 Unauthorized): run `docker login REGISTRY` before"},
		"404 at log-in":            {login, answer(404, "not here"), "there is no registry at REGISTRY (404 Not Found): check the host in the reference"},
		"401 while uploading":      {uploads, answer(401, "{}"), "wants other credentials (401 Unauthorized): run `docker login REGISTRY` before"},
		"403 at the upload":        {uploads, answer(403, denied), "does not let these credentials write (403 Forbidden, \"DENIED: requested access is denied\\n::set-output name=x::y\"): give the account the right to push to REGISTRY/octo-org/image"},
		"403 for the manifest":     {manifests, answer(403, denied), "does not let these credentials write (403 Forbidden, "},
		"404 at the upload":        {uploads, answer(404, `{"errors":[{"code":"NAME_UNKNOWN","message":"no such repository"}]}`), "knows no such repository (404 Not Found, \"NAME_UNKNOWN: no such repository\"): create it first"},
		"413 for the disk":         {stream, answer(413, "<html>too large</html>"), "refuses an upload of this size (413 Request Entity Too Large): raise its limit"},
		"413 when it is committed": {commit, answer(413, ""), "refuses an upload of this size (413 Request Entity Too Large): raise its limit"},
		"429 for ever":             {uploads, answer(429, "{}"), "wants fewer requests (429 Too Many Requests) and went on saying so: try again later"},
		"429 for an hour":          {uploads, answer(429, "{}", "Retry-After", "3600"), "wants fewer requests (429 Too Many Requests): try again in 1h0m0s"},
		"429 at log-in":            {login, answer(429, "{}"), "wants fewer requests (429 Too Many Requests)"},
		"500 for the disk":         {stream, answer(500, "panic"), "failed again and again (500 Internal Server Error): try again later"},
		"500 for the manifest":     {manifests, answer(500, "{}"), "failed again and again (500 Internal Server Error): try again later"},
		"503 at log-in":            {login, answer(503, "{}"), "failed again and again (503 Service Unavailable): try again later"},
		"hangs at log-in":          {login, hang, "the registry hangs (it has not answered for 1s): try again"},
		"hangs at the upload":      {uploads, hang, "the registry hangs (it has not answered for 1s): try again"},
		"takes the disk and hangs": {stream, hang, "the registry hangs (it has not answered for 1s): try again"},
		"hangs at the commit":      {commit, hang, "the registry hangs (it has not answered for 1s): try again"},
		"hangs at the manifest":    {manifests, hang, "the registry hangs (it has not answered for 1s): try again"},
		"goes away": {stream, func(w http.ResponseWriter, _ *http.Request) {
			connection, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				connection.Close()
			}
		}, "the registry cannot be reached"},
		"sends the upload into the local network": {uploads, answer(202, "", "Location", "http://169.254.169.254/latest/"), "redirects to 169.254.169.254, an address of a local network"},
		"forgets where the upload goes":           {uploads, answer(202, ""), "does not say where the upload goes"},
		"a status nobody knows":                   {uploads, answer(418, "{}"), "the registry refused (418 I'm a teapot)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := testenv.StartRegistry(t)
			reference := r.Host + "/octo-org/image:v1"
			t.Run("push", func(t *testing.T) {
				breakRegistry(t, r, c.match, 0, func(w http.ResponseWriter, request *http.Request) {
					if value := w.Header().Get("WWW-Authenticate"); value != "" {
						t.Errorf("header %s was set", value)
					}
					c.f(hostWriter{w, r.Host}, request)
				})
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				_, err := Push(ctx, parse(t, reference), contentOf(t, path), withPatience(hasty))
				want := strings.ReplaceAll(c.want, "REGISTRY", r.Host)
				if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
					t.Errorf("push: %v\nwant one line with: %s", err, want)
				}
				if ctx.Err() != nil {
					t.Error("it took more than 30 s")
				}
			})
			if found, err := Open(t.Context(), parse(t, reference)); err == nil {
				t.Errorf("the tag points at %s", found.Reference)
			}
		})
	}
}

// hostWriter puts the registry's own address into headers.
type hostWriter struct {
	http.ResponseWriter
	host string
}

func (w hostWriter) WriteHeader(status int) {
	for key, values := range w.Header() {
		for i, value := range values {
			w.Header()[key][i] = strings.ReplaceAll(value, "REGISTRY", w.host)
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w hostWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return w.ResponseWriter.(http.Hijacker).Hijack()
}

// TestPushRecovers pushes to a registry that fails for a moment.
func TestPushRecovers(t *testing.T) {
	t.Parallel()
	path := sparseDisk(t)
	want, size := sums(t, path)
	for name, c := range map[string]struct {
		match func(*http.Request) bool
		f     http.HandlerFunc
	}{
		"429 with Retry-After":     {on(http.MethodPost, "/blobs/uploads/"), answer(429, "{}", "Retry-After", "1")},
		"503 while the disk flows": {on(http.MethodPatch, "/blobs/uploads/"), answer(503, "{}")},
		"502 at the commit":        {on(http.MethodPut, "/blobs/uploads/"), answer(502, "")},
		"500 for the manifest":     {on(http.MethodPut, "/manifests/"), answer(500, "{}")},
		"500 at log-in":            {func(r *http.Request) bool { return r.URL.Path == "/v2/" }, answer(500, "{}")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := testenv.StartRegistry(t)
			matched := breakRegistry(t, r, c.match, 1, c.f)
			var told int64
			start := time.Now()
			result, err := Push(t.Context(), parse(t, r.Host+"/octo-org/image:v1"), contentOf(t, path), withPatience(hasty),
				WithProgress(func(n int64) { told += n }))
			if err != nil {
				t.Fatal(err)
			}
			if result.DiskSHA256 != want || told != size {
				t.Errorf("pushed %s and told %d bytes; want %s and %d", result.DiskSHA256, told, want, size)
			}
			if matched() < 2 {
				t.Errorf("the request that failed came %d times", matched())
			}
			if strings.Contains(name, "Retry-After") && time.Since(start) < time.Second {
				t.Errorf("Retry-After of 1 s was not kept: it took %s", time.Since(start))
			}
		})
	}
}

// TestPushAnswerLost pushes to registries whose answers to what ended an upload
// are lost, each once: the upload is gone when the request comes again.
func TestPushAnswerLost(t *testing.T) {
	path := sparseDisk(t)
	want, _ := sums(t, path)
	for _, kind := range []struct {
		name    string
		backend func(t *testing.T) http.Handler
	}{
		{"in memory", func(*testing.T) http.Handler { return ociserver.New(ocimem.New(), nil) }},
		{"the reference registry", func(t *testing.T) http.Handler { return testenv.Distribution(t) }},
	} {
		t.Run(kind.name, func(t *testing.T) {
			backend := kind.backend(t)
			var mu sync.Mutex
			lost := map[string]bool{}
			r := testenv.FrontRegistry(t, http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
				mu.Lock()
				place := request.URL.Path
				lose := request.Method == http.MethodPut && strings.Contains(place, "/blobs/uploads/") && !lost[place]
				if lose {
					lost[place] = true
				}
				mu.Unlock()
				if lose {
					testenv.LoseAnswer(w, request, backend)
					return
				}
				backend.ServeHTTP(w, request)
			}))
			result, err := Push(t.Context(), parse(t, r.Host+"/octo-org/image:v1"), contentOf(t, path), withPatience(hasty))
			if err != nil {
				t.Fatal(err)
			}
			if result.DiskSHA256 != want || len(lost) < 2 {
				t.Errorf("pushed %s after %d lost answers; want %s", result.DiskSHA256, len(lost), want)
			}
		})
	}
}

// TestPushStalls pushes more than the connection holds to a registry that takes
// nothing of it.
func TestPushStalls(t *testing.T) {
	r := testenv.StartRegistry(t)
	breakRegistry(t, r, on(http.MethodPatch, "/blobs/uploads/"), 0, hang)
	content := contentOf(t, sparseDisk(t))
	content.DiskSize = 64 << 20
	content.OpenDisk = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(noise(64 << 20))), nil }
	_, err := Push(t.Context(), parse(t, r.Host+"/octo-org/image:v1"), content, withPatience(hasty))
	if want := "the registry hangs (it has taken no data for 1s)"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("push: %v\nwant: %s", err, want)
	}
}

// TestPushCancelled ends the context while the registry takes its time.
func TestPushCancelled(t *testing.T) {
	path := sparseDisk(t)
	r := testenv.StartRegistry(t)
	ctx, cancel := context.WithCancel(t.Context())
	breakRegistry(t, r, on(http.MethodPatch, "/blobs/uploads/"), 0, func(w http.ResponseWriter, request *http.Request) {
		cancel()
		hang(w, request)
	})
	start := time.Now()
	_, err := Push(ctx, parse(t, r.Host+"/octo-org/image:v1"), contentOf(t, path))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("push: %v", err)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("it took %s", took)
	}
}

// TestUnreachable reads from places where no registry is.
func TestUnreachable(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := listener.Addr().String()
	listener.Close()
	for reference, want := range map[string]string{
		closed + "/octo-org/image:v1":          "nothing listens at " + closed + " (connection refused)",
		"registry.invalid/octo-org/image:v1":   "registry.invalid",
		"oci:" + t.TempDir():                   "there is none (no file oci-layout)",
		"oci:" + t.TempDir() + "/no/layout:v1": "there is none (no file oci-layout)",
	} {
		if _, err := Open(t.Context(), parse(t, reference), withPatience(hasty)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("open %s: %v\nwant: %s", reference, err, want)
		}
	}
}

// TestAdviceOnGitHub names the permission that a job lacks.
func TestAdviceOnGitHub(t *testing.T) {
	ref := parse(t, "ghcr.io/octo-org/image:v1")
	for _, c := range []struct {
		status int
		want   intent
		text   string
	}{
		{403, toWrite, "push to ghcr.io/octo-org/image:v1: the registry does not let these credentials write (403 Forbidden): the job needs `permissions: packages: write`"},
		{403, toRead, "the job needs `permissions: packages: read`"},
		{401, toWrite, "in a workflow give the job's token as github-token"},
	} {
		err := explain("push to", ref, c.want, &statusError{status: c.status})
		if !strings.Contains(err.Error(), c.text) {
			t.Errorf("%d: %v\nwant: %s", c.status, err, c.text)
		}
	}
}

// TestPlainHTTP refuses a registry elsewhere that speaks no TLS.
func TestPlainHTTP(t *testing.T) {
	request, err := http.NewRequest(http.MethodGet, "http://registry.example/v2/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newTransport(hasty).RoundTrip(request); !errors.Is(err, errPlainHTTP) {
		t.Errorf("plain HTTP: %v", err)
	}
}
