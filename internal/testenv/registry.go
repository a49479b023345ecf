package testenv

import (
	"bytes"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cuelabs.dev/go/oci/ociregistry/ocimem"
	"cuelabs.dev/go/oci/ociregistry/ociserver"
)

// Registry is a registry on loopback that can be made to lie and to fail: what
// it serves passes through Lie, what it is asked through Intercept.
type Registry struct {
	Host string // 127.0.0.1:PORT

	mu        sync.Mutex
	tamper    func(path string, body []byte) []byte
	intercept func(w http.ResponseWriter, r *http.Request) bool
}

// RegistryKind is a kind of registry that there is in the world.
type RegistryKind struct {
	Name  string
	Start func(t testing.TB) *Registry
}

// RegistryKinds are one registry whose referrers API is right, and one without
// any, where the fallback tag must do.
var RegistryKinds = []RegistryKind{
	{"with referrers API", StartRegistry},
	{"without referrers API", func(t testing.TB) *Registry {
		t.Helper()
		return FrontRegistry(t, Distribution(t))
	}},
}

// StartRegistry starts a registry in this process, with a referrers API.
func StartRegistry(t testing.TB) *Registry {
	t.Helper()
	return FrontRegistry(t, ociserver.New(ocimem.New(), nil))
}

// FrontRegistry serves a registry that is reached through backend.
func FrontRegistry(t testing.TB, backend http.Handler) *Registry {
	t.Helper()
	r := new(Registry)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		r.mu.Lock()
		tamper, intercept := r.tamper, r.intercept
		r.mu.Unlock()
		if intercept != nil && intercept(w, request) {
			return
		}
		if tamper == nil || request.Method != http.MethodGet {
			backend.ServeHTTP(w, request)
			return
		}
		// Whole answers only: a range would hide what tamper looks for.
		request.Header.Del("Range")
		recorded := httptest.NewRecorder()
		backend.ServeHTTP(recorded, request)
		body := tamper(request.URL.Path, recorded.Body.Bytes())
		maps.Copy(w.Header(), recorded.Header())
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.WriteHeader(recorded.Code)
		_, _ = w.Write(body) // the client went away
	}))
	t.Cleanup(func() {
		front.CloseClientConnections()
		front.Close()
	})
	r.Host = strings.TrimPrefix(front.URL, "http://")
	return r
}

// Lie lets tamper change what the registry serves until the test ends.
func (r *Registry) Lie(t testing.TB, tamper func(path string, body []byte) []byte) {
	t.Helper()
	set := func(f func(string, []byte) []byte) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.tamper = f
	}
	set(tamper)
	t.Cleanup(func() { set(nil) })
}

// Intercept lets f answer requests instead of the registry, until the test
// ends; where f returns false, the registry answers.
func (r *Registry) Intercept(t testing.TB, f func(w http.ResponseWriter, r *http.Request) bool) {
	t.Helper()
	set := func(f func(http.ResponseWriter, *http.Request) bool) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.intercept = f
	}
	set(f)
	t.Cleanup(func() { set(nil) })
}

// Distribution starts the reference registry, which has no referrers API, and
// returns a handler that reaches it.
func Distribution(t testing.TB) http.Handler {
	t.Helper()
	program := Tool(t, "registry")
	dir := t.TempDir()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	_ = listener.Close()
	configuration := fmt.Sprintf("version: 0.1\nlog: {level: warn}\nstorage: {filesystem: {rootdirectory: %q}}\nhttp: {addr: %q, relativeurls: true}\n",
		filepath.Join(dir, "storage"), address)
	file := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(file, []byte(configuration), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "serve", file)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for range 500 {
		response, err := http.Get("http://" + address + "/v2/")
		if err == nil {
			_ = response.Body.Close()
			proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: address})
			proxy.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }
			return proxy
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("the registry did not start:\n%s", log.Bytes())
	return nil
}
