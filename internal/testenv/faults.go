package testenv

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"sync"
	"testing"
	"time"
)

// FaultsOfAMoment are ways in which a service of HTTP fails now and then, and
// after which one may ask again.
var FaultsOfAMoment = []string{
	"reset",             // the connection breaks before anything is done
	"lost answer",       // it is done, and the connection breaks
	"hang",              // nothing for a second, and then the connection breaks
	"429",               // with Retry-After of a second
	"500", "502", "503", // with a page for people
}

// Lies are answers that say of themselves that all is well.
var Lies = []string{
	"truncated",        // it is done, and half of the answer arrives
	"garbled",          // it is done, and one bit of the answer is another
	"another's answer", // a page of another program, with status 200
}

// Faults breaks a share of all requests in one way or the other. What breaks is
// decided by a seed and the order of requests.
type Faults struct {
	share float64
	kinds []string
	end   context.Context // what hangs, hangs no longer

	mu     sync.Mutex
	random *rand.Rand
	seen   map[string]int
	off    bool
}

// NewFaults breaks this share of requests in one of the ways.
func NewFaults(t testing.TB, seed uint64, share float64, kinds ...string) *Faults {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	return &Faults{share: share, kinds: kinds, end: ctx, random: rand.New(rand.NewPCG(seed, 0)), seen: make(map[string]int)} //nolint:gosec // not a secret
}

// Stop ends all faults to come.
func (f *Faults) Stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.off = true
}

// Seen tells how often there was what fault, by service and kind.
func (f *Faults) Seen() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.seen)
}

// next decides about a request: which fault, or "", and a number for it.
func (f *Faults) next(service string) (string, uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.off || f.random.Float64() >= f.share {
		return "", 0
	}
	kind := f.kinds[f.random.IntN(len(f.kinds))]
	f.seen[service+": "+kind]++
	return kind, f.random.Uint32()
}

// Front serves backend under the name of a service, with faults, and returns the
// base URL.
func (f *Faults) Front(t testing.TB, service string, backend http.Handler) string {
	t.Helper()
	s := httptest.NewServer(f.Before(service, backend))
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s.URL
}

// Before is a handler that breaks a share of the requests for backend.
func (f *Faults) Before(service string, backend http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		kind, number := f.next(service)
		if kind == "" {
			backend.ServeHTTP(w, r)
			return
		}
		f.fail(w, r, backend, kind, number)
	})
}

func (f *Faults) fail(w http.ResponseWriter, r *http.Request, backend http.Handler, kind string, number uint32) {
	switch kind {
	case "reset":
		Reset(w)
	case "lost answer":
		LoseAnswer(w, r, backend)
	case "hang":
		_, _ = io.Copy(io.Discard, r.Body) // or the server does not see that the client goes
		select {
		case <-time.After(time.Second):
		case <-r.Context().Done():
		case <-f.end.Done():
		}
		Reset(w)
	case "429":
		w.Header().Set("Retry-After", "1")
		http.Error(w, "slow down", http.StatusTooManyRequests)
	case "another's answer":
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, "<html><title>Welcome</title></html>")
	case "truncated", "garbled":
		recorded := httptest.NewRecorder()
		backend.ServeHTTP(recorded, r)
		body := recorded.Body.Bytes()
		if len(body) == 0 {
			Reset(w)
			return
		}
		maps.Copy(w.Header(), recorded.Header())
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.WriteHeader(recorded.Code)
		if kind == "truncated" {
			_, _ = w.Write(body[:len(body)/2])
			panic(http.ErrAbortHandler)
		}
		body = bytes.Clone(body)
		body[int(number)%len(body)] ^= 1
		_, _ = w.Write(body)
	default:
		status, err := strconv.Atoi(kind)
		if err != nil {
			panic(fmt.Sprintf("there is no fault %q", kind))
		}
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, "<html>Sorry</html>")
	}
}

// Forward is a handler that sends requests to a base URL.
func Forward(base string) http.Handler {
	u, err := url.Parse(base)
	if err != nil {
		panic(err)
	}
	return &httputil.ReverseProxy{
		Rewrite:      func(r *httputil.ProxyRequest) { r.SetURL(u) },
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
}
